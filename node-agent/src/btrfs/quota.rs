//! Simple quotas (storage.md §4): one level-1 qgroup `1/n` per Filesystem and pool, which every subvolume of it is a member of.
//!
//! Limits are always set through the pool's top level: through a full subvolume the ioctl fails. Called by `pool`, `fence`, `destroy`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use dotgraft_engine::ids::PoolId;
use rustix::io::Errno;

use super::fsx::{self, Context, fail};
use super::ioctl::{self, SearchKey};
use super::search::{self, QUOTA_TREE, kind};
use crate::driver::{DriverError, Usage};

const LEVEL_1: u64 = 1 << 48;
/// Numbers `n` of level-1 qgroups are below this: 40 random bits, so that one handed out but not yet written anywhere is not given twice.
pub const MAX_NUMBER: u64 = 1 << 40;
/// Room given for a moment to an operation that a full volume would refuse (a change of the `ro` flag reserves metadata).
const SLACK: u64 = 64 << 20;

/// Full id of `1/n`.
pub const fn level1(n: u64) -> u64 {
    LEVEL_1 | (n & (LEVEL_1 - 1))
}

/// Makes `1/n`; there already is success.
///
/// # Errors
///
/// The kernel refuses it for another reason than that it is there.
pub fn ensure(root: impl AsFd, n: u64) -> Result<(), DriverError> {
    match ioctl::qgroup_create(root, level1(n), true) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(fail(format!("create qgroup 1/{n}"), e)),
    }
}

/// Removes `1/n`: true if it is gone, false while the kernel still counts something in it (its cleaner works through deleted
/// subvolumes by and by; tried again later).
///
/// # Errors
///
/// The kernel refuses it for another reason than that it is in use or gone.
pub fn remove(root: impl AsFd, n: u64) -> Result<bool, DriverError> {
    match ioctl::qgroup_create(root, level1(n), false) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(e) => Err(fail(format!("remove qgroup 1/{n}"), e)),
    }
}

/// Sets the limit of `1/n`, bytes; 0 = none. `NotFound` if there is no such qgroup.
///
/// # Errors
///
/// [`DriverError::NotFound`] as said; other errors of the ioctl.
pub fn set_limit(root: impl AsFd, n: u64, bytes: u64) -> Result<(), DriverError> {
    ioctl::qgroup_limit(root, level1(n), (bytes != 0).then_some(bytes)).doing(|| format!("limit of qgroup 1/{n}"))
}

/// Use and limit of `1/n`: from sysfs, which shows the numbers of this moment; else from the tree, as of the last transaction.
///
/// # Errors
///
/// [`DriverError::NotFound`] if there is no such qgroup; the tree can't be read.
pub fn usage(root: BorrowedFd<'_>, pool: PoolId, n: u64) -> Result<Usage, DriverError> {
    match from_sysfs(pool, n) {
        Some(usage) => Ok(usage),
        None => from_tree(root, n),
    }
}

fn from_sysfs(pool: PoolId, n: u64) -> Option<Usage> {
    let dir = format!("/sys/fs/btrfs/{pool}/qgroups/1_{n}");
    let number = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(Usage { bytes: number("referenced")?, limit: number("max_referenced")? })
}

fn from_tree(root: BorrowedFd<'_>, n: u64) -> Result<Usage, DriverError> {
    let id = level1(n);
    let key = SearchKey { tree: QUOTA_TREE, min: (0, kind::QGROUP_INFO, id), max: (0, kind::QGROUP_LIMIT, id), min_transid: 0 };
    let (mut usage, mut found) = (Usage::default(), false);
    search::for_each(root, key, 64 << 10, |item| {
        match (item.kind, item.offset == id) {
            (kind::QGROUP_INFO, true) => {
                found = true;
                usage.bytes = item.u64_at(8).unwrap_or(0);
            }
            (kind::QGROUP_LIMIT, true) if item.u64_at(0).unwrap_or(0) & 1 != 0 => usage.limit = item.u64_at(8).unwrap_or(0),
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .doing(|| "read the quota tree".to_owned())?;
    if found { Ok(usage) } else { Err(DriverError::NotFound(format!("qgroup 1/{n}"))) }
}

/// Limit of a subvolume's own qgroup `0/<id>`, bytes; `None` for none.
pub fn own_limit(root: BorrowedFd<'_>, subvolume: u64) -> Result<Option<u64>, DriverError> {
    let item = (0, kind::QGROUP_LIMIT, subvolume);
    let key = SearchKey { tree: QUOTA_TREE, min: item, max: item, min_transid: 0 };
    let mut limit = None;
    search::for_each(root, key, 4 << 10, |item| {
        if item.kind == kind::QGROUP_LIMIT && item.u64_at(0).unwrap_or(0) & 1 != 0 {
            limit = item.u64_at(8);
        }
        ControlFlow::Continue(())
    })
    .doing(|| "read the quota tree".to_owned())?;
    Ok(limit)
}

/// Sets or (with `None`) removes the limit of a subvolume's own qgroup; a qgroup that is missing is made.
pub fn set_own_limit(root: BorrowedFd<'_>, subvolume: u64, bytes: Option<u64>) -> Result<(), DriverError> {
    let set = || ioctl::qgroup_limit(root, subvolume, bytes);
    match set() {
        Err(Errno::NOENT) if bytes.is_some() => {
            let _ = ioctl::qgroup_create(root, subvolume, true); // it may be there by now; else the next call says why not
            set()
        }
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
    .doing(|| format!("limit of qgroup 0/{subvolume}"))
}

/// A qgroup, as of the last transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Full id.
    pub id: u64,
    /// Bytes that are charged to it.
    pub bytes: u64,
}

/// Whether it is the own group of a subvolume that users or the agent make.
pub const fn of_subvolume(id: u64) -> bool {
    id >= search::FIRST_INODE && id < LEVEL_1
}

/// `n` of `1/n`; `None` for another level.
pub const fn number(id: u64) -> Option<u64> {
    if id >= LEVEL_1 && id < LEVEL_1 << 1 { Some(id & (LEVEL_1 - 1)) } else { None }
}

/// All qgroups, by id.
///
/// # Errors
///
/// The quota tree can't be read.
pub fn all(root: BorrowedFd<'_>) -> Result<Vec<Group>, DriverError> {
    let key = SearchKey { tree: QUOTA_TREE, min: (0, kind::QGROUP_INFO, 0), max: (0, kind::QGROUP_INFO, u64::MAX), min_transid: 0 };
    let mut found = Vec::new();
    search::for_each(root, key, 64 << 10, |item| {
        if item.kind == kind::QGROUP_INFO {
            found.push(Group { id: item.offset, bytes: item.u64_at(8).unwrap_or(0) });
        }
        ControlFlow::Continue(())
    })
    .doing(|| "read the quota tree".to_owned())?;
    Ok(found)
}

/// Numbers `n` of all level-1 qgroups.
///
/// # Errors
///
/// The quota tree can't be read.
pub fn numbers(root: BorrowedFd<'_>) -> Result<BTreeSet<u64>, DriverError> {
    Ok(all(root)?.iter().filter_map(|group| number(group.id)).collect())
}

/// Numbers `n` of the level-1 qgroups that the subvolume with this tree id is a member of.
///
/// # Errors
///
/// The quota tree can't be read.
pub fn groups_of(root: BorrowedFd<'_>, subvolume: u64) -> Result<Vec<u64>, DriverError> {
    let key = SearchKey {
        tree: QUOTA_TREE,
        min: (subvolume, kind::QGROUP_RELATION, LEVEL_1),
        max: (subvolume, kind::QGROUP_RELATION, u64::MAX),
        min_transid: 0,
    };
    let mut found = Vec::new();
    search::for_each(root, key, 64 << 10, |item| {
        if item.kind == kind::QGROUP_RELATION {
            found.push(item.offset & (LEVEL_1 - 1));
        }
        ControlFlow::Continue(())
    })
    .doing(|| "read the quota tree".to_owned())?;
    Ok(found)
}

/// Makes `1/n` the one level-1 group that a subvolume is a member of. What the subvolume's extents are charged with moves along. Returns the
/// others that it was a member of instead or besides; `None` if all was right.
///
/// # Errors
///
/// The quota tree can't be read; the kernel refuses the change, such as of a subvolume that is just being deleted.
pub fn put_into(root: BorrowedFd<'_>, subvolume: u64, n: u64) -> Result<Option<Vec<u64>>, DriverError> {
    let (own, others): (Vec<u64>, Vec<u64>) = groups_of(root, subvolume)?.into_iter().partition(|group| *group == n);
    if !own.is_empty() && others.is_empty() {
        return Ok(None);
    }
    if own.is_empty() {
        ensure(root, n)?;
        ioctl::qgroup_assign(root, subvolume, level1(n), true).doing(|| format!("put 0/{subvolume} into qgroup 1/{n}"))?;
    }
    for other in &others {
        let left = ioctl::qgroup_assign(root, subvolume, level1(*other), false);
        fsx::gone_is_fine(left.doing(|| format!("take 0/{subvolume} out of qgroup 1/{other}")))?;
    }
    Ok(Some(others))
}

/// Runs a step inside a volume that needs a little metadata; where the volume is full, its limit is raised by 64 MiB for that moment.
/// A crash in between leaves the higher limit until the next `set_limit`.
///
/// # Errors
///
/// The outer error: the limit can't be read or set. The inner one: that of `step`.
pub fn with_room<T>(
    root: BorrowedFd<'_>,
    pool: PoolId,
    groups: &[u64],
    step: impl Fn() -> rustix::io::Result<T>,
) -> Result<rustix::io::Result<T>, DriverError> {
    match step() {
        Err(Errno::DQUOT) => {}
        other => return Ok(other),
    }
    let before: Vec<(u64, Usage)> = groups.iter().map(|n| usage(root, pool, *n).map(|u| (*n, u))).collect::<Result<_, _>>()?;
    let limited = || before.iter().filter(|(_, u)| u.limit != 0);
    for (n, u) in limited() {
        set_limit(root, *n, u.limit.max(u.bytes).saturating_add(SLACK))?;
    }
    let result = step();
    for (n, u) in limited() {
        set_limit(root, *n, u.limit)?;
    }
    Ok(result)
}
