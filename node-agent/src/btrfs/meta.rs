//! The two file formats in the pool: `fs.json` and `commits/<id>.json` (storage.md §1). Versioned; a newer version is refused, never guessed.

use std::os::fd::AsFd;

use dotgraft_engine::ids::PoolId;
use dotgraft_engine::model::{Commit, FORMAT_VERSION};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fsx;
use crate::driver::{DriverError, FsMeta};

/// Name of a copy's own file.
pub const FS_JSON: &str = "fs.json";

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn decode<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, DriverError> {
    let bad = |e: serde_json::Error| DriverError::BadMetadata(format!("{name}: {e}"));
    let Versioned { version } = serde_json::from_slice(bytes).map_err(bad)?;
    if version == 0 || version > FORMAT_VERSION {
        return Err(DriverError::BadMetadata(format!(
            "{name} has format version {version}, this program reads 1 to {FORMAT_VERSION}: run the newer program that wrote it"
        )));
    }
    serde_json::from_slice(bytes).map_err(bad)
}

fn encode(name: &str, value: &impl Serialize) -> Result<Vec<u8>, DriverError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| DriverError::BadMetadata(format!("{name}: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads `fs.json` in the directory of a Filesystem; `NotFound` if there is none, `BadMetadata` if it is damaged, newer, or of another pool.
///
/// # Errors
///
/// As said; or it can't be read.
pub fn read_fs(dir: impl AsFd, pool: PoolId) -> Result<FsMeta, DriverError> {
    let meta: FsMeta = decode(FS_JSON, &fsx::read_file(dir, FS_JSON)?)?;
    if meta.pool != pool {
        return Err(DriverError::BadMetadata(format!("{FS_JSON} of {} was written in pool {}, this is {pool}", meta.fs_id, meta.pool)));
    }
    Ok(meta)
}

/// Replaces `fs.json`; durable.
///
/// # Errors
///
/// A step fails; the old file is then still there, whole.
pub fn write_fs(dir: impl AsFd, meta: &FsMeta) -> Result<(), DriverError> {
    fsx::replace_file(&dir, FS_JSON, &encode(FS_JSON, meta)?)?;
    fsx::sync_dir(dir)
}

/// Name of the file beside a commit.
pub fn commit_name(id: impl std::fmt::Display) -> String {
    format!("{id}.json")
}

/// Reads the metadata beside a commit.
///
/// # Errors
///
/// [`DriverError::NotFound`] if there is none, [`DriverError::BadMetadata`] if it is damaged, newer, or of another commit.
pub fn read_commit(commits: impl AsFd, id: dotgraft_engine::ids::CommitId) -> Result<Commit, DriverError> {
    let name = commit_name(id);
    let commit: Commit = decode(&name, &fsx::read_file(commits, &name)?)?;
    if commit.id != id {
        return Err(DriverError::BadMetadata(format!("{name} speaks of commit {}", commit.id)));
    }
    Ok(commit)
}

/// Writes the metadata beside a commit: contents fsynced, the name durable with the next transaction (the snapshot that follows, or
/// [`fsx::sync_dir`]).
///
/// # Errors
///
/// A step fails; a file that was there is then still there, whole.
pub fn write_commit(commits: impl AsFd, commit: &Commit) -> Result<(), DriverError> {
    let name = commit_name(commit.id);
    fsx::replace_file(commits, &name, &encode(&name, commit)?)
}

#[cfg(test)]
mod tests {
    use dotgraft_engine::ids::{Epoch, Timestamp};
    use dotgraft_engine::model::{Claim, Origin};

    use super::*;
    use crate::driver::{FsRole, FsState};

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
            role: FsRole::Owner,
            state: FsState::Active,
            claim: Some(Claim { kind: "Dot".into(), namespace: "shop".into(), name: "db".into(), csi_name: None }),
            capacity: 1 << 30,
            history_limit: 2 << 30,
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
        }
    }

    #[test]
    fn both_formats_are_as_in_their_golden_files() {
        assert_eq!(String::from_utf8(encode("x", &meta()).unwrap()).unwrap(), FS_GOLDEN);
        assert_eq!(String::from_utf8(encode("x", &commit()).unwrap()).unwrap(), COMMIT_GOLDEN);
        assert_eq!(decode::<FsMeta>("x", FS_GOLDEN.as_bytes()).unwrap(), meta());
        assert_eq!(decode::<Commit>("x", COMMIT_GOLDEN.as_bytes()).unwrap(), commit());
    }

    #[test]
    fn the_name_of_a_csi_call_is_kept_where_there_is_one() {
        let mut meta = meta();
        meta.claim.as_mut().unwrap().csi_name = Some("pvc-1".into());
        let bytes = encode("x", &meta).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("\"csiName\": \"pvc-1\""));
        assert_eq!(decode::<FsMeta>("x", &bytes).unwrap(), meta);
    }

    #[test]
    fn a_newer_version_is_refused_even_if_it_would_parse() {
        for (golden, name) in [(FS_GOLDEN, "fs.json"), (COMMIT_GOLDEN, "c.json")] {
            let newer = golden.replacen("\"version\": 1", "\"version\": 2", 1);
            assert_ne!(newer, golden);
            let error = if name == "fs.json" {
                decode::<FsMeta>(name, newer.as_bytes()).unwrap_err()
            } else {
                decode::<Commit>(name, newer.as_bytes()).unwrap_err()
            };
            assert!(matches!(&error, DriverError::BadMetadata(m) if m.contains("version 2")), "{error}");
        }
    }

    #[test]
    fn damage_is_bad_metadata() {
        for bad in ["", "{", "{}", "null", "{\"version\": 1}", "{\"version\": -1}", "\0\0\0\0"] {
            assert!(matches!(decode::<FsMeta>("x", bad.as_bytes()), Err(DriverError::BadMetadata(_))), "{bad:?}");
        }
    }
}
