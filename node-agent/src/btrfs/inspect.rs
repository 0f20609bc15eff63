//! What is on disk of a Filesystem: the truth that `recover` compares the journal with.

use std::os::fd::AsFd;

use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::Commit;

use super::fsx::{self, Context, What};
use super::{BtrfsPool, ioctl, layout, meta, subvol};
use crate::driver::{DriverError, Found};

impl BtrfsPool {
    /// See [`crate::driver::Driver::inspect`].
    pub(super) fn look(&self, fs: FsId) -> Result<Found, DriverError> {
        let Some(dir) = fsx::maybe(self.fs_dir(fs))? else { return Ok(Found::default()) };
        let mut found = Found { meta: fsx::maybe(meta::read_fs(&dir, self.info.id))?, ..Found::default() };
        if let Some(of) = found.meta.as_ref().map(|m| m.fs_id).filter(|id| *id != fs) {
            return Err(DriverError::BadMetadata(format!("the directory of {fs} holds the fs.json of {of}")));
        }
        found.head = fsx::what(&dir, layout::HEAD)? == Some(What::Subvolume);
        self.look_at_commits(fs, &mut found)?;
        for name in self.names_in(fs, layout::INCOMING)? {
            found.incoming.extend(name.parse::<CommitId>().ok());
        }
        for name in self.names_in(fs, layout::CHECKPOINTS)? {
            found.checkpoints.extend(layout::parse_checkpoint(&name));
        }
        found.checkpoints.sort_unstable();
        Ok(found)
    }

    fn look_at_commits(&self, fs: FsId, found: &mut Found) -> Result<(), DriverError> {
        let Some(commits) = fsx::maybe(self.fs_sub(fs, layout::COMMITS))? else { return Ok(()) };
        let names = fsx::names(&commits)?;
        for name in names.iter().filter(|name| !layout::is_work(name)) {
            if let Some(id) = layout::parse_commit_json(name) {
                // Metadata without its snapshot: a commit that did not happen, or half of a deletion.
                if fsx::what(&commits, &id.to_string())?.is_none() {
                    found.broken.push(id.to_string());
                }
                continue;
            }
            let Ok(id) = name.parse::<CommitId>() else {
                found.broken.push(name.clone());
                continue;
            };
            // Only what is not there or not understood is broken; an I/O error must not look like a reason to delete.
            match look_at_commit(&commits, id) {
                Ok((true, commit)) if commit.fs_id == fs => found.commits.push(commit),
                Ok(_) | Err(DriverError::NotFound(_) | DriverError::BadMetadata(_)) => found.broken.push(name.clone()),
                Err(e) => return Err(e),
            }
        }
        found.commits.sort_by_key(dotgraft_engine::model::Commit::order);
        Ok(())
    }

    /// Names in a directory of a Filesystem; none if it is not there.
    pub(super) fn names_in(&self, fs: FsId, name: &str) -> Result<Vec<String>, DriverError> {
        match fsx::maybe(self.fs_sub(fs, name))? {
            Some(dir) => fsx::names(dir),
            None => Ok(Vec::new()),
        }
    }
}

/// Whether the subvolume of a commit is read-only, and its metadata.
fn look_at_commit(commits: impl AsFd, id: CommitId) -> Result<(bool, Commit), DriverError> {
    let root = subvol::open_root(&commits, &id.to_string())?;
    let read_only = ioctl::is_read_only(root).doing(|| format!("flags of {id}"))?;
    Ok((read_only, meta::read_commit(commits, id)?))
}
