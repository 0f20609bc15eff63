//! Room in the pool, and whether the kernel forced it read-only. O(1): two ioctls and one `fstatvfs`.

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use super::fsx::Context;
use super::{BtrfsPool, ioctl};
use crate::driver::{DriverError, Space};

const DATA: u64 = 1;
const METADATA: u64 = 4;
const GIB: u64 = 1 << 30;
/// Commits and receives are refused under this much metadata space (storage.md §1).
const METADATA_FLOOR: u64 = 512 << 20;

/// Metadata space under which commits and receives are refused, bytes: 512 MiB, in pools under 8 GiB a sixteenth of the pool (there
/// the kernel's metadata chunks are smaller too, and 512 MiB would refuse long before it is full).
pub const fn metadata_floor(total: u64) -> u64 {
    if total / 16 < METADATA_FLOOR { total / 16 } else { METADATA_FLOOR }
}

/// What stays unassigned, bytes: 5 %, at least 1 GiB, at most a quarter of the pool.
const fn reserve(total: u64) -> u64 {
    let five_percent = total / 20;
    let at_least = if five_percent > GIB { five_percent } else { GIB };
    if at_least < total / 4 { at_least } else { total / 4 }
}

impl BtrfsPool {
    /// Room now.
    pub(super) fn space_now(&self) -> Result<Space, DriverError> {
        let (_, max_id, _) = ioctl::fs_info(&self.root).doing(|| "read pool info".to_owned())?;
        let (mut total, mut allocated) = (0_u64, 0_u64);
        for devid in 1..=max_id {
            match ioctl::dev_info(&self.root, devid) {
                Ok((used, size)) => (total, allocated) = (total.saturating_add(size), allocated.saturating_add(used)),
                Err(Errno::NODEV) => {}
                other => other.map(drop).doing(|| "read device info".to_owned())?,
            }
        }
        let unallocated = total.saturating_sub(allocated);
        let groups = ioctl::space_info(&self.root).doing(|| "read space info".to_owned())?;
        let free = |kind: u64| groups.iter().filter(|g| g.flags & kind != 0).map(|g| g.total.saturating_sub(g.used)).sum::<u64>();
        let flags = rustix::fs::fstatvfs(&self.root).doing(|| "statfs of the pool".to_owned())?.f_flag;
        Ok(Space {
            total,
            available: unallocated.saturating_add(free(DATA)).saturating_sub(reserve(total)),
            metadata_free: unallocated.saturating_add(free(METADATA)),
            read_only: flags.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// Refuses what would fill the metadata space up, and everything that writes when the pool is read-only.
    pub(super) fn check_room(&self) -> Result<(), DriverError> {
        let space = self.space_now()?;
        if space.read_only {
            return Err(DriverError::PoolFailed("the kernel made the pool read-only: see dmesg, then repair and remount".to_owned()));
        }
        let floor = metadata_floor(space.total);
        if space.metadata_free < floor {
            return Err(DriverError::NoSpace(format!(
                "{} MiB for metadata are left in the pool, {} MiB are needed: delete commits or enlarge the pool",
                space.metadata_free >> 20,
                floor >> 20
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_five_percent_between_one_gib_and_a_quarter() {
        assert_eq!(reserve(100 * GIB), 5 * GIB);
        assert_eq!(reserve(10 * GIB), GIB);
        assert_eq!(reserve(2 * GIB), GIB / 2);
    }

    #[test]
    fn the_metadata_floor_is_smaller_in_small_pools() {
        assert_eq!(metadata_floor(1 << 40), 512 << 20);
        assert_eq!(metadata_floor(4 * GIB), 256 << 20);
    }
}
