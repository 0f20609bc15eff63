//! The data: what is written into a volume before the base commit, and what is changed before the increment. Made by a small
//! generator with a fixed seed, so that every round and contender moves the same bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

/// One set of platform.md §4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// 1 GiB in 8 files, first copy.
    A,
    /// 50,000 files of 2–8 KiB, first copy.
    B,
    /// Increment: random pages of a file, files rewritten, new, deleted, renamed.
    C,
    /// Increment: 20,000 page updates of a 4 GiB sparse database file.
    E,
}

/// xorshift64*: only has to be incompressible and the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
    }
}

const PAGE: u64 = 4096;

impl Set {
    /// In the order of the table.
    pub const fn all() -> [Self; 4] {
        [Self::A, Self::B, Self::C, Self::E]
    }
    /// Its letter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::E => "E",
        }
    }
    /// Whether the increment is measured instead of the first copy.
    pub const fn incremental(self) -> bool {
        matches!(self, Self::C | Self::E)
    }

    /// Writes the base into an empty directory.
    pub fn base(self, at: &Path, scale: u64) -> Result<()> {
        let mut dice = Dice(0x5EED);
        match self {
            Self::A => (0..8).try_for_each(|i| big_file(&at.join(format!("big{i}")), (128 << 20) / scale, &mut dice)),
            Self::B => small_files(at, 50_000 / scale, &mut dice),
            Self::C => {
                big_file(&at.join("db"), (256 << 20) / scale, &mut dice)?;
                small_files(at, 20_000 / scale, &mut dice)
            }
            Self::E => {
                let file = File::create(at.join("db"))?;
                file.set_len((4 << 30) / scale)?;
                pages(&file, (4 << 30) / scale, 20_000 / scale, &mut dice)
            }
        }
    }

    /// Changes it for the increment.
    pub fn change(self, at: &Path, scale: u64) -> Result<()> {
        let mut dice = Dice(0xC4A6E);
        let db = || OpenOptions::new().write(true).open(at.join("db"));
        match self {
            Self::A | Self::B => Ok(()),
            Self::C => {
                pages(&db()?, (256 << 20) / scale, 2_640 / scale, &mut dice)?;
                churn(at, scale, &mut dice)
            }
            Self::E => pages(&db()?, (4 << 30) / scale, 20_000 / scale, &mut dice),
        }
    }
}

fn big_file(path: &Path, size: u64, dice: &mut Dice) -> Result<()> {
    let mut file = File::create(path)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut left = size;
    while left > 0 {
        dice.fill(&mut buffer);
        let take = usize::try_from(left.min(buffer.len() as u64))?;
        file.write_all(buffer.get(..take).unwrap_or_default())?;
        left -= take as u64;
    }
    Ok(file.seek(SeekFrom::Start(0)).map(drop)?)
}

fn small(path: &Path, dice: &mut Dice) -> Result<()> {
    let mut buffer = vec![0u8; usize::try_from(2048 + dice.below(6144))?];
    dice.fill(&mut buffer);
    Ok(fs::write(path, buffer)?)
}

fn small_files(at: &Path, count: u64, dice: &mut Dice) -> Result<()> {
    for i in 0..count {
        let dir = at.join(format!("d{}", i / 250));
        if i % 250 == 0 {
            fs::create_dir_all(&dir)?;
        }
        small(&dir.join(format!("f{i}")), dice)?;
    }
    Ok(())
}

fn pages(file: &File, size: u64, count: u64, dice: &mut Dice) -> Result<()> {
    let mut page = vec![0u8; usize::try_from(PAGE)?];
    for _ in 0..count {
        dice.fill(&mut page);
        file.write_all_at(&page, dice.below(size / PAGE) * PAGE)?;
    }
    Ok(())
}

/// 500 files rewritten, 100 new, 100 deleted, 70 renamed.
fn churn(at: &Path, scale: u64, dice: &mut Dice) -> Result<()> {
    let path = |i: u64| at.join(format!("d{}", i / 250)).join(format!("f{i}"));
    let of = |n: u64| n / scale;
    let stride = |n: u64| (20_000 / scale / n.max(1)).max(1);
    for k in 0..of(500) {
        small(&path(k * stride(of(500)) / 2 * 2), dice)?;
    }
    for k in 0..of(100) {
        small(&at.join(format!("new{k}")), dice)?;
    }
    for k in 0..of(100) {
        fs::remove_file(path(k * stride(of(100)) + 1))?;
    }
    for k in 0..of(70) {
        let old = path(k * stride(of(70)) / 2 * 2 + 3);
        if old.exists() {
            fs::rename(&old, at.join(format!("renamed{k}")))?;
        }
    }
    Ok(())
}
