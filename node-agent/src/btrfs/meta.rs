//! The two file formats in the pool: `fs.json` and `commits/<id>.json` (storage.md §1). Versioned; a newer version is refused, never guessed.

use std::os::fd::AsFd;

use dotgraft_engine::format::{FormatError, Kind};
use dotgraft_engine::ids::PoolId;
use dotgraft_engine::model::Commit;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fsx;
use super::layout::{FS_JSON, commit_json};
use crate::driver::{DriverError, FsMeta};

fn decode<T: DeserializeOwned>(kind: Kind, name: &str, bytes: &[u8]) -> Result<T, DriverError> {
    kind.read(name, bytes).map_err(|e| match e {
        FormatError::Newer { .. } | FormatError::Unknown { .. } => DriverError::FormatNewer(e.to_string()),
        FormatError::Damaged { .. } => DriverError::BadMetadata(e.to_string()),
    })
}

fn encode(name: &str, value: &impl Serialize) -> Result<Vec<u8>, DriverError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| DriverError::BadMetadata(format!("{name}: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads `fs.json` in the directory of a Filesystem; `NotFound` if there is none, `FormatNewer` if a newer program wrote it,
/// `BadMetadata` if it is damaged or of another pool.
///
/// # Errors
///
/// As said; or it can't be read.
pub fn read_fs(dir: impl AsFd, pool: PoolId) -> Result<FsMeta, DriverError> {
    let meta: FsMeta = decode(Kind::FsFile, FS_JSON, &fsx::read_file(dir, FS_JSON)?)?;
    if meta.pool != pool {
        return Err(DriverError::BadMetadata(format!("{FS_JSON} of {} was written in pool {}, this is {pool}", meta.fs_id, meta.pool)));
    }
    Ok(meta)
}

/// Refuses with `FormatNewer` if a newer program wrote the file: it must be neither replaced nor removed. Whatever else is there may be.
fn spare_newer(kind: Kind, dir: impl AsFd, name: &str) -> Result<(), DriverError> {
    #[derive(Deserialize)]
    struct Nothing {}
    match fsx::read_file(dir, name).and_then(|bytes| decode::<Nothing>(kind, name, &bytes).map(drop)) {
        Err(e @ DriverError::FormatNewer(_)) => Err(e),
        _ => Ok(()),
    }
}

/// Refuses with `FormatNewer` if a newer program wrote `fs.json`: nothing of that Filesystem may be removed then.
///
/// # Errors
///
/// As said.
pub fn refuse_newer_fs(dir: impl AsFd) -> Result<(), DriverError> {
    spare_newer(Kind::FsFile, dir, FS_JSON)
}

/// Replaces `fs.json`; durable. Refuses with `FormatNewer` to replace a newer program's.
///
/// # Errors
///
/// A step fails; the old file is then still there, whole.
pub fn write_fs(dir: impl AsFd, meta: &FsMeta) -> Result<(), DriverError> {
    refuse_newer_fs(&dir)?;
    fsx::replace_file(&dir, FS_JSON, &encode(FS_JSON, meta)?)?;
    fsx::sync_dir(dir)
}

/// Reads the metadata beside a commit.
///
/// # Errors
///
/// [`DriverError::NotFound`] if there is none, [`DriverError::BadMetadata`] if it is damaged, newer, or of another commit.
pub fn read_commit(commits: impl AsFd, id: dotgraft_engine::ids::CommitId) -> Result<Commit, DriverError> {
    let name = commit_json(id);
    let commit: Commit = decode(Kind::Commit, &name, &fsx::read_file(commits, &name)?)?;
    if commit.id != id {
        return Err(DriverError::BadMetadata(format!("{name} speaks of commit {}", commit.id)));
    }
    Ok(commit)
}

/// Writes the metadata beside a commit: contents fsynced, the name durable with the next transaction (the snapshot that follows, or
/// [`fsx::sync_dir`]). Refuses with `FormatNewer` to replace a newer program's.
///
/// # Errors
///
/// A step fails; a file that was there is then still there, whole.
pub fn write_commit(commits: impl AsFd, commit: &Commit) -> Result<(), DriverError> {
    let name = commit_json(commit.id);
    spare_newer(Kind::Commit, &commits, &name)?;
    fsx::replace_file(commits, &name, &encode(&name, commit)?)
}

#[cfg(test)]
mod tests {
    use dotgraft_engine::ids::{Epoch, Timestamp};
    use dotgraft_engine::model::{Claim, Origin};

    use super::*;
    use crate::driver::{FsState, Role};

    const FS_GOLDEN: &str = include_str!("golden/fs.v1.json");
    const COMMIT_GOLDEN: &str = include_str!("golden/commit.v1.json");

    fn id<T: std::str::FromStr>(n: u32) -> T
    where
        T::Err: std::fmt::Debug,
    {
        format!("0198c2a5-7f00-7000-8000-{n:012}").parse().unwrap()
    }

    fn meta() -> FsMeta {
        FsMeta {
            version: 1,
            fs_id: id(1),
            pool: id(2),
            role: Role::Owner,
            state: FsState::Active,
            claim: Some(Claim { kind: "Dot".into(), namespace: "shop".into(), name: "db".into(), csi_name: None }),
            capacity: 1 << 30,
            history_limit: 2 << 30,
            origin_bytes: 0,
            shares_origin: false,
            fencing: "Proof".into(),
            reclaim_policy: "Delete".into(),
            origin: Some(Origin { fs_id: id(3), commit: id(4) }),
            qgroup: 77,
            epoch: Epoch(5),
            attempt: 6,
            opened: Some(id(7)),
            headless: false,
        }
    }

    fn commit() -> Commit {
        Commit {
            version: 1,
            id: id(10),
            fs_id: id(1),
            parent: Some(id(9)),
            time: Timestamp(1_700_000_000_123),
            epoch: Epoch(5),
            seq: 0,
            message: "before the upgrade".into(),
            metadata: [("author".to_owned(), "kim".to_owned())].into(),
            kept: Some(id(11)),
            transient: false,
            reset_to: None,
        }
    }

    #[test]
    fn both_formats_are_as_in_their_golden_files() {
        assert_eq!(String::from_utf8(encode("x", &meta()).unwrap()).unwrap(), FS_GOLDEN);
        assert_eq!(String::from_utf8(encode("x", &commit()).unwrap()).unwrap(), COMMIT_GOLDEN);
        assert_eq!(decode::<FsMeta>(Kind::FsFile, "x", FS_GOLDEN.as_bytes()).unwrap(), meta());
        assert_eq!(decode::<Commit>(Kind::Commit, "x", COMMIT_GOLDEN.as_bytes()).unwrap(), commit());
    }

    #[test]
    fn the_name_of_a_csi_call_is_kept_where_there_is_one() {
        let mut meta = meta();
        meta.claim.as_mut().unwrap().csi_name = Some("pvc-1".into());
        let bytes = encode("x", &meta).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("\"csiName\": \"pvc-1\""));
        assert_eq!(decode::<FsMeta>(Kind::FsFile, "x", &bytes).unwrap(), meta);
    }

    #[test]
    fn a_newer_version_is_refused_even_if_it_would_parse() {
        for (golden, name) in [(FS_GOLDEN, "fs.json"), (COMMIT_GOLDEN, "c.json")] {
            let newer = golden.replacen("\"version\": 1", "\"version\": 2", 1);
            assert_ne!(newer, golden);
            let error = if name == "fs.json" {
                decode::<FsMeta>(Kind::FsFile, name, newer.as_bytes()).unwrap_err()
            } else {
                decode::<Commit>(Kind::Commit, name, newer.as_bytes()).unwrap_err()
            };
            assert!(matches!(&error, DriverError::FormatNewer(m) if m.contains("version 2")), "{error}");
        }
    }

    /// A directory of a plain filesystem will do: what is tested is what is read first.
    fn in_a_directory(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        (dir, opened)
    }

    #[test]
    fn a_newer_programs_file_is_never_written_over() {
        let newer = FS_GOLDEN.replacen("\"version\": 1", "\"version\": 9, \"more\": {}", 1);
        let (dir, opened) = in_a_directory(FS_JSON, newer.as_bytes());
        assert!(matches!(write_fs(&opened, &meta()), Err(DriverError::FormatNewer(_))));
        assert!(matches!(refuse_newer_fs(&opened), Err(DriverError::FormatNewer(_))));
        assert_eq!(std::fs::read_to_string(dir.path().join(FS_JSON)).unwrap(), newer);

        let name = commit_json(commit().id);
        let newer = COMMIT_GOLDEN.replacen("\"version\": 1", "\"version\": 9", 1);
        let (dir, opened) = in_a_directory(&name, newer.as_bytes());
        assert!(matches!(write_commit(&opened, &commit()), Err(DriverError::FormatNewer(_))));
        assert_eq!(std::fs::read_to_string(dir.path().join(&name)).unwrap(), newer);
    }

    #[test]
    fn what_is_older_or_damaged_or_not_there_is_written() {
        for there in ["", "{", FS_GOLDEN] {
            let (_dir, opened) = in_a_directory(FS_JSON, there.as_bytes());
            write_fs(&opened, &meta()).unwrap();
            assert_eq!(read_fs(&opened, meta().pool).unwrap(), meta());
        }
        let (_dir, opened) = in_a_directory("other", b"");
        write_commit(&opened, &commit()).unwrap();
        assert_eq!(read_commit(&opened, commit().id).unwrap(), commit());
    }

    #[test]
    fn damage_is_bad_metadata() {
        for bad in ["", "{", "{}", "null", "{\"version\": 1}", "{\"version\": -1}", "\0\0\0\0"] {
            assert!(matches!(decode::<FsMeta>(Kind::FsFile, "x", bad.as_bytes()), Err(DriverError::BadMetadata(_))), "{bad:?}");
        }
    }
}
