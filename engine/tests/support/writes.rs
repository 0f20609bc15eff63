//! Every write of a pod is remembered, with what it was made on top of: at most one node writes in an epoch, and what was acknowledged
//! is in the owner's head, or kept aside, or was given up by somebody's own wish.

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::filesystem::Life;
use dotgraft_engine::ids::Epoch;

use super::sim::Sim;

#[derive(Debug, Default)]
pub struct Writes {
    /// Of each write, what the head held before it.
    on_top_of: BTreeMap<u64, u64>,
    /// Who wrote in which epoch.
    writers: BTreeMap<Epoch, usize>,
    /// Gone by somebody's wish: a commit was deleted, a superseded copy dropped.
    given_up: BTreeSet<u64>,
}

impl Writes {
    /// This write and all before it.
    fn up_to(&self, content: u64) -> BTreeSet<u64> {
        let all = std::iter::successors(Some(content), |c| self.on_top_of.get(c).copied());
        all.filter(|c| self.on_top_of.contains_key(c)).collect()
    }

    /// Somebody asked for what holds this to be removed.
    pub fn give_up(&mut self, content: u64) {
        let all = self.up_to(content);
        self.given_up.extend(all);
    }
}

impl Sim<'_> {
    /// A pod on node `n` was told that its write is durable.
    pub fn note_write(&mut self, n: usize, before: u64, content: u64) {
        // What lost authority and is not frozen yet is served in the epoch in which it was mounted.
        let base = self.nodes[n].journal.load().base;
        let opened = base.as_ref().and_then(|b| b.opened).map(|o| o.epoch).or(self.ledger.served[n].map(|(epoch, _)| epoch));
        self.ledger.writes.on_top_of.insert(content, before);
        // Nobody was promised what is written, by a mount of the host, into what is superseded or goes.
        if base.as_ref().is_none_or(|b| b.superseded || b.life != Life::Active) {
            return;
        }
        let epoch = opened.or(base.map(|b| b.epoch)).unwrap_or_default();
        let writer = *self.ledger.writes.writers.entry(epoch).or_insert(n);
        assert_eq!(writer, n, "two nodes write in epoch {epoch}: {writer} and {n}");
    }

    /// A superseded copy goes, by a person's word.
    pub fn give_up_copy(&mut self, n: usize) {
        let disk = &self.nodes[n].disk;
        let held: Vec<u64> = disk.head.iter().map(|h| h.content).chain(disk.commits.values().map(|(_, c)| *c)).collect();
        for content in held {
            self.ledger.writes.give_up(content);
        }
    }

    /// Nothing that was acknowledged is missing everywhere.
    pub fn watch_writes(&self) {
        let disks = || self.nodes.iter().map(|n| &n.disk);
        let heads = disks().filter_map(|d| d.head.as_ref().map(|h| h.content));
        let held = heads.chain(disks().flat_map(|d| d.commits.values().map(|(_, c)| *c)));
        let writes = &self.ledger.writes;
        let there: BTreeSet<u64> = held.flat_map(|content| writes.up_to(content)).collect();
        let lost: Vec<&u64> = writes.on_top_of.keys().filter(|w| !there.contains(w) && !writes.given_up.contains(w)).collect();
        assert!(lost.is_empty(), "acknowledged writes that are nowhere any more: {lost:?}");
    }
}
