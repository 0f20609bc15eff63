//! Where everything is in a pool (storage.md §1). Each name and path in it is made and read here, for the driver and for whoever looks at
//! mount tables; paths are relative to the pool's top level.
//!
//! ```text
//! fs/<fsId>/fs.json                          what the copy knows of itself
//!           head                             the writable subvolume (owners)
//!           commits/<commit>                 read-only, with <commit>.json beside it
//!           commits/<commit>.work, .part     one that is being put together
//!           incoming/<commit>                a receive in progress
//!           checkpoints/<commit>.<offset>    where it can go on
//! ```

use std::path::{Component, Path, PathBuf};

use dotgraft_engine::ids::{CommitId, FsId};

use crate::driver::MountWhat;

/// The directory that holds one for each Filesystem.
pub const FS: &str = "fs";
/// Its writable subvolume.
pub const HEAD: &str = "head";
/// Its commits.
pub const COMMITS: &str = "commits";
/// What streams are applied to.
pub const INCOMING: &str = "incoming";
/// Read-only snapshots of what streams were applied to.
pub const CHECKPOINTS: &str = "checkpoints";
/// A copy's own file.
pub const FS_JSON: &str = "fs.json";

/// The directory of a Filesystem.
pub fn dir(fs: FsId) -> String {
    format!("{FS}/{fs}")
}

/// Something in the directory of a Filesystem.
pub fn within(fs: FsId, name: &str) -> String {
    format!("{FS}/{fs}/{name}")
}

/// The head of a Filesystem.
pub fn head(fs: FsId) -> String {
    within(fs, HEAD)
}

/// A commit of a Filesystem.
pub fn commit(fs: FsId, commit: CommitId) -> String {
    format!("{FS}/{fs}/{COMMITS}/{commit}")
}

/// What is mounted of a Filesystem.
pub fn subvolume(fs: FsId, what: MountWhat) -> String {
    match what {
        MountWhat::Head => head(fs),
        MountWhat::Commit(id) => commit(fs, id),
    }
}

/// A path in the pool as mount tables show it: from the pool's top level.
pub fn as_mounted(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// Whose directory a mount's root is in; `None` if it is in no Filesystem's.
pub fn fs_of(root: &Path) -> Option<FsId> {
    let mut parts = root.components();
    let top = (parts.next()?, parts.next()?);
    (top == (Component::RootDir, Component::Normal(FS.as_ref()))).then_some(())?;
    parts.next()?.as_os_str().to_str()?.parse().ok()
}

/// What the root of a mount is; `None` if it is neither a head nor a commit. Undoes [`as_mounted`] of a [`subvolume`].
pub fn what_is(root: &Path) -> Option<(FsId, MountWhat)> {
    let fs = fs_of(root)?;
    let last = || root.file_name()?.to_str()?.parse().ok();
    let candidates = [Some(MountWhat::Head), last().map(MountWhat::Commit)];
    candidates.into_iter().flatten().map(|what| (fs, what)).find(|(fs, what)| root == as_mounted(&subvolume(*fs, *what)))
}

/// The metadata beside a commit.
pub fn commit_json(commit: CommitId) -> String {
    format!("{commit}.json")
}

/// Back from a name; `None` if it is not a commit's metadata.
pub fn parse_commit_json(name: &str) -> Option<CommitId> {
    name.strip_suffix(".json")?.parse().ok()
}

/// Beside the commits: one that is being put together. No commit's id looks like it.
pub fn work(commit: CommitId) -> String {
    format!("{commit}.work")
}

/// Beside the commits: what is being brought into it.
pub fn part(commit: CommitId) -> String {
    format!("{commit}.part")
}

/// [`work`] or [`part`]: of an attempt that was interrupted, if none is under way.
pub fn is_work(name: &str) -> bool {
    [".work", ".part"].iter().any(|end| name.ends_with(end))
}

/// A checkpoint of a receive at an offset of its stream, bytes.
pub fn checkpoint(target: CommitId, offset: u64) -> String {
    format!("{target}.{offset}")
}

/// Back from a name; `None` if it is not a checkpoint's.
pub fn parse_checkpoint(name: &str) -> Option<(CommitId, u64)> {
    let (target, offset) = name.split_once('.')?;
    let parsed = (target.parse().ok()?, offset.parse().ok()?);
    (checkpoint(parsed.0, parsed.1) == name).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c2a5-7f00-7000-8000-000000000001";

    fn fs() -> FsId {
        ID.parse().unwrap()
    }

    fn commit_id() -> CommitId {
        "0198c2a5-7f00-7000-8000-000000000002".parse().unwrap()
    }

    #[test]
    fn what_is_mounted_is_read_back_from_a_mounts_root() {
        for what in [MountWhat::Head, MountWhat::Commit(commit_id())] {
            assert_eq!(what_is(&as_mounted(&subvolume(fs(), what))), Some((fs(), what)));
        }
        for other in [dir(fs()), within(fs(), INCOMING), format!("{}/sub", head(fs())), within(fs(), &commit_id().to_string())] {
            assert_eq!(what_is(&as_mounted(&other)), None, "{other}");
            assert_eq!(fs_of(&as_mounted(&other)), Some(fs()), "{other}");
        }
    }

    #[test]
    fn a_filesystem_is_only_what_has_its_directory_at_its_place() {
        for foreign in ["/", "/fs", "/fs/x/head", &format!("/{ID}"), &format!("/old/fs/{ID}/head"), &format!("fs/{ID}/head")] {
            assert_eq!(fs_of(Path::new(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn the_names_beside_commits_are_told_apart() {
        let names = [commit_id().to_string(), commit_json(commit_id()), work(commit_id()), part(commit_id())];
        assert_eq!(names.each_ref().map(|n| is_work(n)), [false, false, true, true]);
        assert_eq!(names.each_ref().map(|n| parse_commit_json(n)), [None, Some(commit_id()), None, None]);
    }

    #[test]
    fn a_checkpoint_name_has_one_spelling() {
        let id = commit_id();
        assert_eq!(parse_checkpoint(&checkpoint(id, 67_108_864)), Some((id, 67_108_864)));
        for bad in ["", ".", "x.1", &format!("{id}."), &format!("{id}.01"), &format!("{id}.+1"), &format!("{id}.1.json")] {
            assert_eq!(parse_checkpoint(bad), None, "{bad}");
        }
    }
}
