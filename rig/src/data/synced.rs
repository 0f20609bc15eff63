//! A writer for pods: it appends numbered blocks to a file, makes each durable, and notes it in a file elsewhere; [`check`] says
//! whether a copy of the file holds them all, [`read`] what the notes say.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// What a writer has noted.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// The newest block that was acknowledged; 0: none.
    pub newest: u64,
    /// The longest that one block took.
    pub longest: Duration,
    /// How the last writer that failed has ended.
    pub error: Option<String>,
}

/// The writer's process: `dotgraft-e2e synced-writer FILE NOTES`. Goes on after the last whole block. It ends with the first error,
/// which is its last note.
pub fn writer_main(file: &Path, notes: &Path) -> Result<()> {
    let mut notes = File::options().create(true).append(true).open(notes)?;
    let result = write(file, &mut notes);
    if let Err(e) = &result {
        writeln!(notes, "error {e:#}")?;
    }
    result
}

fn write(file: &Path, notes: &mut File) -> Result<()> {
    let file = File::options().create(true).read(true).write(true).truncate(false).open(file)?;
    let mut number = file.metadata()?.len() / BLOCK as u64;
    loop {
        number += 1;
        let start = Instant::now();
        file.write_all_at(&block(number), (number - 1) * BLOCK as u64).with_context(|| format!("writing block {number}"))?;
        file.sync_data().with_context(|| format!("making block {number} durable"))?;
        writeln!(notes, "{number} {}", start.elapsed().as_micros())?;
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// What block `number` holds.
fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What a writer has noted so far, also one that was started again.
pub fn read(notes: &Path) -> Result<Noted> {
    let text = match fs::read_to_string(notes) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Noted::default()),
        other => other?,
    };
    let mut noted = Noted::default();
    let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
    for line in whole.lines() {
        if let Some(error) = line.strip_prefix("error ") {
            noted.error = Some(error.to_owned());
            continue;
        }
        let (number, micros) = line.split_once(' ').with_context(|| format!("not a note: {line}"))?;
        noted.newest = noted.newest.max(number.parse()?);
        noted.longest = noted.longest.max(Duration::from_micros(micros.parse()?));
    }
    Ok(noted)
}

/// Every block up to `at_least` is in the file, and every whole one beyond it is what it must be. Returns how many there are.
pub fn check(file: &Path, at_least: u64) -> Result<u64> {
    let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let blocks = content.chunks_exact(BLOCK);
    let found = blocks.len() as u64;
    for (number, bytes) in (1..).zip(blocks) {
        // A block that was not acknowledged may be there in part.
        ensure!(
            bytes == block(number) || number > at_least,
            "block {number} of {found} holds something else; {at_least} were acknowledged"
        );
    }
    ensure!(found >= at_least, "block {at_least} was acknowledged, the file has {found}");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_changed_block_is_found() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("synced-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let path = dir.join("file");
        let mut content: Vec<u8> = (1..=3).flat_map(block).collect();
        fs::write(&path, &content)?;
        assert_eq!(check(&path, 3)?, 3);
        assert!(check(&path, 4).is_err(), "one is missing");
        content[BLOCK + 17] ^= 1;
        fs::write(&path, &content)?;
        assert!(check(&path, 3).is_err(), "one has changed");
        assert!(check(&path, 1).is_ok(), "what was not acknowledged doesn't count");
        fs::remove_dir_all(&dir)?;
        Ok(())
    }
}
