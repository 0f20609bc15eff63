//! Room in the pool, and whether the kernel forced it read-only. O(1): two ioctls and one `fstatvfs`.

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use super::fsx::Context;
use super::{BtrfsPool, ioctl};
use crate::driver::{DriverError, Space};

const DATA: u64 = 1;
const METADATA: u64 = 4;
const GIB: u64 = 1 << 30;

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
}
