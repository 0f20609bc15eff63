//! What the kernel's streams don't say, and a volume keeps all the same when it moves (ADR 28): inode flags, holes.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags};

use crate::data::digest::tree_digest;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::owner::{owned_by, place};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![Case::new("move-kept", "`chattr +i`, `+a`, `+C` and others, and what is made of holes, go with a volume and come back", kept)]
}

/// Each with its flags; the first is the root.
const FLAGS: [(&str, IFlags); 7] = [
    ("", IFlags::IMMUTABLE),
    ("db", IFlags::NOCOW),
    ("db/data", IFlags::NOCOW),
    ("fixed", IFlags::IMMUTABLE),
    ("log", IFlags::APPEND),
    ("dir", IFlags::APPEND),
    ("odd", IFlags::NOATIME.union(IFlags::NODUMP)),
];

fn chattr(how: &str, path: &Path) -> Result<()> {
    let done = Command::new("chattr").arg(how).arg(path).status().context("chattr")?;
    ensure!(done.success(), "chattr {how} {}", path.display());
    Ok(())
}

fn furnish(head: &Path) -> Result<()> {
    fs::create_dir(head.join("db"))?;
    chattr("+C", &head.join("db"))?;
    fs::write(head.join("db/data"), vec![7; 1 << 20])?;
    fs::create_dir(head.join("dir"))?;
    for name in ["fixed", "log", "odd", "dir/f", "grown"] {
        fs::write(head.join(name), name)?;
    }
    let sparse = File::create(head.join("sparse"))?;
    sparse.write_all_at(&[7; 4096], 64 << 20)?;
    sparse.set_len(2 << 30)?;
    for (how, name) in [("+Ad", "odd"), ("+i", "fixed"), ("+a", "log"), ("+a", "dir"), ("+i", "")] {
        chattr(how, &head.join(name))?;
    }
    Ok(())
}

fn has_flags(head: &Path) -> Result<()> {
    let seen = FLAGS.iter().fold(IFlags::empty(), |seen, (_, flags)| seen | *flags);
    for (name, wanted) in FLAGS {
        let flags = ioctl_getflags(File::open(head.join(name))?)? & seen;
        ensure!(flags == wanted, "{name:?} has {flags:?}, not {wanted:?}");
    }
    Ok(())
}

fn change(head: &Path) -> Result<()> {
    File::options().append(true).open(head.join("log"))?.write_all(b"more")?;
    fs::write(head.join("dir/new"), b"new")?;
    chattr("-i", &head.join("fixed"))?;
    fs::write(head.join("fixed"), b"changed")?;
    chattr("+i", &head.join("fixed"))?;
    let open = |name: &str| File::options().write(true).open(head.join(name));
    fallocate(open("grown")?, FallocateFlags::empty(), 0, 128 << 20)?;
    fallocate(open("sparse")?, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 64 << 20, 4096)?;
    Ok(())
}

async fn kept(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    furnish(&head)?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    place(&t, "d", "n2").await?;
    owned_by(&t, "d", "n2").await?;

    let head = t.mount("n2", &fs_id).await?;
    ensure!(tree_digest(&head)? == digest, "what arrived isn't what was there");
    has_flags(&head)?;
    change(&head)?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    place(&t, "d", "n1").await?;
    owned_by(&t, "d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(tree_digest(&head)? == digest, "what came back isn't what was there");
    has_flags(&head)?;
    t.unmount(&head).await?;
    let bytes = eventually("the report of the way back", STEP, || async {
        let report = &t.object("Dot", "d").await?["status"]["migration"];
        ensure!(report["to"] == "n1" && report["phase"] == "Done", "it is {report}");
        report["bytes"].as_u64().context("no bytes in status.migration")
    })
    .await?;
    ensure!(bytes < 1 << 20, "the way back sent {bytes} bytes for what is made of holes");
    Ok(())
}
