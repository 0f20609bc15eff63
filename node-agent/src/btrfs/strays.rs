//! Subvolumes that users make in their volumes outside of the volume's qgroup (storage.md §4, ADR 26). Who may write in a volume may make a
//! subvolume there, and choose its groups: none, and what is written in it counts nowhere; or another tenant's, who pays for it then.
//!
//! Ids of subvolumes only grow, so a look reads those of the pool's trees that are new since the one before: an ioctl where there is none,
//! however many volumes there are. Nobody but an administrator of the node takes a subvolume out of a group again.

use std::collections::BTreeMap;
use std::path::Path;

use dotgraft_engine::ids::FsId;

use super::fsx::{self, Context};
use super::search::{self, LAST_FREE, Placed, TOP_TREE};
use super::{BtrfsPool, ioctl, layout, locked, quota};
use crate::driver::{DriverError, Stray};

/// New subvolumes that one look takes in; the next one goes on.
const MOST: usize = 4096;
/// Subvolumes nested in each other that a look climbs, before it thinks that it is being led round by renames.
const DEEPEST: usize = 1 << 20;

/// How far the looks are, by ids of subvolumes.
#[derive(Debug, Default)]
pub struct Looked {
    /// Up to here all is right.
    settled: u64,
    /// Up to here the last look was. These are looked at once more: the kernel shows a snapshot before it is in the groups that its maker
    /// chose.
    seen: u64,
}

/// The head that something is nested in.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub fs: FsId,
    pub qgroup: u64,
}

/// Heads by the tree of a subvolume at any depth in them; `None`: it is in no head.
pub type Heads = BTreeMap<u64, Option<Head>>;

impl BtrfsPool {
    /// See [`crate::driver::Driver::strays`].
    pub(super) fn look_for_strays(&self) -> Result<Vec<Stray>, DriverError> {
        let mut looked = locked(&self.looked);
        let new = search::placed(self.root(), (looked.settled + 1, LAST_FREE), MOST).doing(|| "look for new subvolumes".to_owned())?;
        let (mut found, mut trouble) = (Vec::new(), None);
        let mut heads = Heads::new();
        for one in new.iter().filter(|one| one.parent != TOP_TREE) {
            match self.bring_home(one, &mut heads) {
                Ok(stray) => found.extend(stray),
                Err(e) => trouble = trouble.or(Some(e)),
            }
        }
        match trouble {
            None => *looked = Looked { settled: looked.seen, seen: new.last().map_or(looked.seen, |one| one.child.id) },
            Some(e) if found.is_empty() => return Err(e),
            Some(_) => {} // said by the next look, which begins where this one did
        }
        Ok(found)
    }

    /// Into its head's group; `None` if it was there, or is in no head.
    fn bring_home(&self, one: &Placed, heads: &mut Heads) -> Result<Option<Stray>, DriverError> {
        let Some(head) = self.head_of(one.parent, heads)? else { return Ok(None) };
        let put = quota::put_into(self.root(), one.child.id, head.qgroup);
        let others = match put {
            Ok(Some(others)) => others,
            Ok(None) => return Ok(None),
            Err(_) if self.placed(one.child.id)?.is_none() => return Ok(None), // it went meanwhile
            Err(e) => return Err(e),
        };
        let mut path = ioctl::ino_path(&self.root, one.parent, one.child.dir).unwrap_or_default();
        path.extend_from_slice(&one.child.name);
        let path = String::from_utf8_lossy(&path).into_owned();
        Ok(Some(Stray { fs: head.fs, path, qgroup: head.qgroup, charged_others: !others.is_empty() }))
    }

    /// The head that the tree is, or is nested in.
    pub(super) fn head_of(&self, tree: u64, heads: &mut Heads) -> Result<Option<Head>, DriverError> {
        let (mut at, mut passed) = (tree, Vec::new());
        let head = loop {
            if let Some(known) = heads.get(&at) {
                break *known;
            }
            passed.push(at);
            match self.placed(at)? {
                Some(top) if top.parent == TOP_TREE => break self.as_head(&top)?,
                Some(inner) if passed.len() < DEEPEST => at = inner.parent,
                _ => break None,
            }
        };
        heads.extend(passed.into_iter().map(|tree| (tree, head)));
        Ok(head)
    }

    /// A head was put into its group when it was made.
    fn as_head(&self, top: &Placed) -> Result<Option<Head>, DriverError> {
        let dir = fsx::maybe(ioctl::ino_path(&self.root, TOP_TREE, top.child.dir).doing(|| "find a head".to_owned()))?;
        let path = format!("/{}", String::from_utf8_lossy(&dir.unwrap_or_default()));
        let Some(fs) = layout::fs_of(Path::new(&path)) else { return Ok(None) };
        let qgroup = quota::groups_of(self.root(), top.child.id)?.first().copied();
        Ok(qgroup.map(|qgroup| Head { fs, qgroup }))
    }

    fn placed(&self, id: u64) -> Result<Option<Placed>, DriverError> {
        let found = search::placed(self.root(), (id, id), 1).doing(|| "find a subvolume".to_owned())?;
        Ok(found.into_iter().next())
    }
}
