//! What deleted subvolumes leave in the quota tree (ADR 39). An extent stays charged to the subvolume that wrote it for as long as anybody uses it, also
//! when that subvolume is gone; and the kernel keeps the groups of such a one for ever, empty ones too.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::fsx::{self, Context, fail};
use super::ioctl::SearchKey;
use super::quota::{self, Group};
use super::search::{self, EXTENT_TREE, kind};
use super::{BtrfsPool, ioctl, locked, meta, strays};
use crate::driver::{DriverError, Stray, Tidied};

/// A look for who uses what a stray has left may take so long; the next one goes on.
const BUDGET: Duration = Duration::from_millis(500);

/// How far the look through all extents is, for subvolumes that are gone and were in no group.
#[derive(Debug, Default)]
pub struct Traced {
    /// Extents below this address have been looked at.
    at: u64,
    /// No head of ours refers to their extents itself, as far as was seen: only snapshots do.
    hopeless: BTreeSet<u64>,
}

impl BtrfsPool {
    /// See [`crate::driver::Driver::tidy_groups`].
    pub(super) fn tidy_quota(&self) -> Result<Tidied, DriverError> {
        let used = self.groups_in_use()?;
        let subvolumes = search::subvolumes(self.root()).map_err(|e| fail("list subvolumes".to_owned(), e))?;
        let groups = quota::all(self.root())?;
        let mut tidied = Tidied::default();
        let mut nobodys = BTreeSet::new();
        for Group { id, bytes } in groups.iter().filter(|g| quota::of_subvolume(g.id) && !subvolumes.contains(&g.id)) {
            if *bytes == 0 {
                self.remove_group(*id)?;
            } else if quota::groups_of(self.root(), *id)?.is_empty() {
                tidied.left = tidied.left.saturating_add(*bytes);
                nobodys.insert(*id);
            }
        }
        tidied.strays = self.trace(&nobodys)?;
        // Held until all is done: what is prepared meanwhile gets its number in here before its group is made.
        let allocated = locked(&self.allocated);
        let mut doomed = locked(&self.doomed);
        for group in &groups {
            let Some(n) = quota::number(group.id) else { continue };
            let in_hand = allocated.contains(&n) && !doomed.contains(&n);
            if used.contains(&n) || in_hand {
                continue;
            }
            if group.bytes == 0 && quota::remove(&self.root, n)? {
                doomed.remove(&n);
                tidied.removed += 1;
            }
            tidied.left = tidied.left.saturating_add(group.bytes);
        }
        Ok(tidied)
    }

    /// Subvolumes that were in no group and are gone, with extents that are used still: who made one in a head, in no group, and moved out of it what was
    /// written has it in that head. They are put into the head's group.
    fn trace(&self, nobodys: &BTreeSet<u64>) -> Result<Vec<Stray>, DriverError> {
        let mut traced = locked(&self.traced);
        traced.hopeless.retain(|id| nobodys.contains(id));
        let wanted: BTreeSet<u64> = nobodys.difference(&traced.hopeless).copied().collect();
        if wanted.is_empty() {
            traced.at = 0;
            return Ok(Vec::new());
        }
        let (users, at) = self.users_of(&wanted, traced.at)?;
        traced.at = at.unwrap_or(0);
        let (mut found, mut heads) = (Vec::new(), strays::Heads::new());
        for (id, tree) in &users {
            let Some(head) = self.head_of(*tree, &mut heads)? else { continue };
            quota::put_into(self.root(), *id, head.qgroup)?;
            found.push(Stray { fs: head.fs, path: "a deleted one".to_owned(), qgroup: head.qgroup, charged_others: false });
        }
        if at.is_none() {
            traced.hopeless.extend(wanted.iter().filter(|id| !users.contains_key(id)));
        }
        Ok(found)
    }

    /// For each of those subvolumes a tree that refers to an extent of its own, from that address on. And where to go on; `None`: all was seen.
    fn users_of(&self, gone: &BTreeSet<u64>, from: u64) -> Result<(BTreeMap<u64, u64>, Option<u64>), DriverError> {
        let started = Instant::now();
        let key = SearchKey {
            tree: EXTENT_TREE,
            min: (from, kind::EXTENT_ITEM, 0),
            max: (u64::MAX, kind::EXTENT_ITEM, u64::MAX),
            min_transid: 0,
        };
        let (mut users, mut seen, mut late) = (BTreeMap::new(), 0_u32, None);
        search::for_each(self.root(), key, 256 << 10, |item| {
            seen = seen.wrapping_add(1);
            if seen % 1024 == 0 && started.elapsed() > BUDGET {
                late = Some(item.object);
                return ControlFlow::Break(());
            }
            if let Some((owner, Some(user))) = search::charged(&item).filter(|(owner, _)| gone.contains(owner)) {
                users.entry(owner).or_insert(user);
            }
            if users.len() == gone.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .doing(|| "look through the extents".to_owned())?;
        Ok((users, late))
    }

    /// Numbers of the groups of all Filesystems that are here.
    fn groups_in_use(&self) -> Result<BTreeSet<u64>, DriverError> {
        let mut used = BTreeSet::new();
        for fs in self.list_all()? {
            let read = self.fs_dir(fs).and_then(|dir| meta::read_fs(&dir, self.info.id));
            used.extend(fsx::maybe(read)?.map(|meta| meta.qgroup));
        }
        Ok(used)
    }

    /// The group of a subvolume that is gone; in use or gone itself is fine.
    fn remove_group(&self, id: u64) -> Result<(), DriverError> {
        match ioctl::qgroup_create(&self.root, id, false) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY) => Ok(()),
            Err(e) => Err(fail(format!("remove qgroup 0/{id}"), e)),
        }
    }
}
