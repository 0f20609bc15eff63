//! Opening a pool as a whole: mount, layout, quotas, and the start-up checks (storage.md §1, §4).

use std::path::Path;
use std::sync::Mutex;

use dotgraft_engine::ids::{FsId, PoolId};

use super::fsx::{self, What};
use super::pool::{self, PoolError, PoolSource};
use super::{BtrfsPool, fold, ioctl, layout, locked, meta, quota, subvol};
use crate::driver::{DriverError, PoolInfo, Stray};

/// What opening a pool found and did.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// It was formatted just now.
    pub formatted: bool,
    /// A mount of an earlier life was taken over.
    pub reused_mount: bool,
    /// Subvolumes that were outside their qgroup, put in now.
    pub strays: Vec<Stray>,
    /// Filesystems whose check failed, with why: they can't be read, the others go on.
    pub unreadable: Vec<(FsId, String)>,
    /// Empty qgroups of Filesystems that are gone, removed now.
    pub qgroups_removed: usize,
}

impl BtrfsPool {
    /// Opens the pool in `source`, mounted at `mount_point`, for as long as the value lives.
    ///
    /// `expected` is the pool recorded for this node: anything else is [`PoolError::Missing`] and nothing is formatted. `None` formats what
    /// is empty, and takes over a pool of ours (a crash between mkfs and its recording).
    ///
    /// # Errors
    ///
    /// [`PoolError::Missing`] if another pool or none is there, [`PoolError::Refused`] for what is not to be formatted or not to be used;
    /// I/O errors.
    pub fn open(source: &PoolSource, mount_point: &Path, expected: Option<PoolId>) -> Result<(Self, OpenReport), PoolError> {
        let mounted = pool::mount(source, mount_point, expected)?;
        let quotas = ioctl::enable_simple_quotas(&mounted.root);
        if !is_simple(mounted.id) {
            let why = quotas.err().map_or_else(String::new, |e| format!(" ({e})"));
            return Err(PoolError::Refused(format!(
                "simple quotas can't be turned on{why}: the kernel must be 6.7 or newer, and the pool without full qgroups"
            )));
        }
        if fsx::make_dir(&mounted.root, layout::FS)? {
            fsx::sync_dir(&mounted.root)?;
        }
        let pool = Self {
            info: PoolInfo { asked_size: pool::other_size(source, &mounted.lock), ..facts(mounted.id) },
            root: mounted.root,
            dev: mounted.dev,
            allocated: Mutex::default(),
            doomed: Mutex::default(),
            looked: Mutex::default(),
            traced: Mutex::default(),
            _lock: mounted.lock,
        };
        let mut report = OpenReport { formatted: mounted.formatted, reused_mount: mounted.reused, ..OpenReport::default() };
        if !pool.space_now()?.read_only {
            pool.check(&mut report)?;
        }
        Ok((pool, report))
    }

    /// Strays back into their groups, empty groups of nobody away.
    fn check(&self, report: &mut OpenReport) -> Result<(), DriverError> {
        for fs in self.list_all()? {
            match self.check_one(fs) {
                Ok(strays) => report.strays.extend(strays),
                Err(e) => report.unreadable.push((fs, e.to_string())),
            }
        }
        report.strays.extend(self.look_for_strays()?);
        if report.unreadable.is_empty() {
            let tidied = self.tidy_quota()?;
            report.qgroups_removed = tidied.removed;
            report.strays.extend(tidied.strays);
        }
        Ok(())
    }

    fn check_one(&self, fs: FsId) -> Result<Vec<Stray>, DriverError> {
        let dir = self.fs_dir(fs)?;
        // A directory without fs.json is a `prepare` or `destroy` that a crash cut short; its actor repeats it.
        let Some(meta) = fsx::maybe(meta::read_fs(&dir, self.info.id))? else { return Ok(Vec::new()) };
        fsx::maybe(self.fs_sub(fs, layout::COMMITS).and_then(|commits| fold::sweep(self, &commits)))?;
        let mut strays = Vec::new();
        for path in self.subvolumes_of(fs)? {
            let subvol = subvol::open(&dir, &path)?;
            if let Some(others) = quota::put_into(self.root(), subvol.info.id, meta.qgroup)? {
                strays.push(Stray { fs, path, qgroup: meta.qgroup, charged_others: !others.is_empty() });
            }
        }
        Ok(strays)
    }

    /// Paths, below the directory of a Filesystem, of all its own subvolumes.
    pub(super) fn subvolumes_of(&self, fs: FsId) -> Result<Vec<String>, DriverError> {
        let dir = self.fs_dir(fs)?;
        let mut found = Vec::new();
        for name in fsx::names(&dir)? {
            match fsx::what(&dir, &name)? {
                Some(What::Subvolume) => found.push(name),
                Some(What::Directory) => {
                    let sub = fsx::open_dir(&dir, &name)?;
                    for inner in fsx::names(&sub)? {
                        if fsx::what(&sub, &inner)? == Some(What::Subvolume) {
                            found.push(format!("{name}/{inner}"));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Every directory under `fs/` that is named like a Filesystem.
    pub(super) fn list_all(&self) -> Result<Vec<FsId>, DriverError> {
        let dir = fsx::open_dir(&self.root, layout::FS)?;
        Ok(fsx::names(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A number for a new Filesystem's qgroup: used by no qgroup of the pool and not handed out before in this life. 40 random bits, so
    /// that one that only a journal knows yet (prepared after a crash) is not given to another either.
    pub(super) fn new_qgroup(&self) -> Result<u64, DriverError> {
        let mut allocated = locked(&self.allocated);
        let taken = quota::numbers(self.root())?;
        for _ in 0..64 {
            let random = uuid::Uuid::new_v4().as_u64_pair().1;
            let n = random % quota::MAX_NUMBER;
            if n != 0 && !taken.contains(&n) && allocated.insert(n) {
                return Ok(n);
            }
        }
        Err(DriverError::NoSpace("no free qgroup number".to_owned()))
    }
}

/// Whether the kernel says that simple quotas are on.
fn is_simple(id: PoolId) -> bool {
    std::fs::read_to_string(format!("/sys/fs/btrfs/{id}/qgroups/mode")).is_ok_and(|mode| mode.trim() == "squota")
}

fn facts(id: PoolId) -> PoolInfo {
    let newest = std::fs::read_to_string("/sys/fs/btrfs/features/send_stream_version").ok().and_then(|v| v.trim().parse::<u32>().ok());
    let stream_version = newest.unwrap_or(1).min(super::send::NEWEST_VERSION);
    let mut features: Vec<String> = ["quota-fence", "reflink", "simple-quotas"].map(str::to_owned).into();
    if stream_version >= 2 {
        features.extend(["encoded-io", "send-v2"].map(str::to_owned));
    }
    features.sort_unstable();
    let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    PoolInfo { id, stream_version, kernel_release, features, asked_size: None }
}
