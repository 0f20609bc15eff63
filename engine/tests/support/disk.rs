//! What a node keeps over a crash: its pool, as far as one Filesystem goes, and its journal.

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::filesystem::{Base, Found, Life, MountWhat, Record, Recovered, Role, Row};
use dotgraft_engine::ids::CommitId;
use dotgraft_engine::model::Commit;

#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Counts writes: two heads or commits with the same number hold the same.
    pub content: u64,
    /// The flag alone: nobody opens a file for writing any more, and who has one open goes on.
    pub read_only: bool,
    /// The limit of one byte: nothing writes.
    pub fenced: bool,
    /// A pod has made a subvolume in it.
    pub nested: bool,
}

impl Head {
    pub const fn holding(content: u64) -> Self {
        Self { content, read_only: false, fenced: false, nested: false }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Disk {
    pub meta: Option<Base>,
    pub head: Option<Head>,
    pub commits: BTreeMap<CommitId, (Commit, u64)>,
    pub checkpoints: BTreeSet<(CommitId, u64)>,
    pub incoming: BTreeSet<CommitId>,
    /// The kernel's mount table; survives the agent, not the node.
    pub mounts: BTreeMap<String, MountWhat>,
}

impl Disk {
    pub fn is_empty(&self) -> bool {
        *self == Self { mounts: self.mounts.clone(), ..Self::default() }
    }

    /// As the agent's `inspect` and `base_of` read it.
    pub fn inspect(&self) -> Found {
        let base = self.meta.clone().map(|meta| {
            let life = match meta.life {
                Life::Deleting | Life::Gone => Life::Deleting,
                _ if meta.role == Role::Owner && self.head.is_none() && !meta.headless => Life::Creating,
                _ => Life::Active,
            };
            Base { life, frozen: None, ..meta }
        });
        Found {
            base,
            head: self.head.is_some(),
            fenced: self.head.as_ref().is_some_and(|h| h.fenced || h.read_only),
            commits: self.commits.values().map(|(c, _)| c.clone()).collect(),
            checkpoints: self.checkpoints.iter().copied().collect(),
            incoming: self.incoming.iter().copied().collect(),
            broken: Vec::new(),
        }
    }

    pub fn is_mounted(&self, what: MountWhat) -> bool {
        self.mounts.values().any(|w| *w == what)
    }

    pub fn drop_partial(&mut self, target: CommitId) {
        self.incoming.remove(&target);
        self.checkpoints.retain(|(t, _)| *t != target);
    }

    pub fn clear(&mut self) {
        *self = Self { mounts: std::mem::take(&mut self.mounts), ..Self::default() };
    }
}

#[derive(Debug, Clone, Default)]
pub struct Journal(pub BTreeMap<String, Vec<u8>>);

impl Journal {
    /// All or nothing: here, all.
    pub fn commit(&mut self, records: &[Record]) {
        for row in records.iter().flat_map(Record::rows) {
            match row {
                Row::Put(key, body) => drop(self.0.insert(key, body)),
                Row::Delete(key) => drop(self.0.remove(&key)),
                Row::DeleteAll => self.0.clear(),
            }
        }
    }

    pub fn load(&self) -> Recovered {
        let rows: Vec<(String, Vec<u8>)> = self.0.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Recovered::parse(&rows).expect("our own rows can be read")
    }
}
