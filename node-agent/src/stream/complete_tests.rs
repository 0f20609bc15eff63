//! What a completed stream is, whatever way the kernel's is cut.

use proptest::prelude::*;

use super::*;
use crate::stream::parse::{Command, command};
use crate::stream::path::StreamPath;

const NOCOW: u64 = 1 << 1;
const IMMUTABLE: u64 = 1 << 6;
const COMPRESS: u64 = 1 << 11;

/// Inode 256 is the root and has no flags.
struct Flags;

impl FlagsOf for Flags {
    fn flags_of(&mut self, inode: u64) -> io::Result<u64> {
        match inode {
            1000 => Ok(NOCOW | COMPRESS),
            1001 => Ok(IMMUTABLE),
            1002 => Err(io::Error::other("unreadable")),
            _ => Ok(COMPRESS),
        }
    }
}

fn make(path: &[u8], inode: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, CommandKind::Mkfile, &[(attribute::PATH, path), (attribute::INODE, &inode.to_le_bytes())]);
    out
}

fn write(path: &[u8], at: u64, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, CommandKind::Write, &[(attribute::PATH, path), (attribute::FILE_OFFSET, &at.to_le_bytes()), (attribute::DATA, data)]);
    out
}

fn end() -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, CommandKind::End, &[]);
    out
}

fn stream(version: u32, commands: &[Vec<u8>]) -> Vec<u8> {
    [b"btrfs-stream\0".as_slice(), &version.to_le_bytes(), &commands.concat()].concat()
}

/// Gives its bytes in pieces of these sizes, in turn.
struct Cut<'a>(&'a [u8], Vec<usize>);

impl Read for Cut<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1.rotate_left(1);
        let size = self.1.last().copied().unwrap_or(1).max(1).min(buf.len());
        self.0.read(&mut buf[..size])
    }
}

fn completed(bytes: &[u8], cut: Vec<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    Completed::new(Cut(bytes, cut), Flags).read_to_end(&mut out).unwrap();
    out
}

/// The commands of a completed stream, in short.
fn told(bytes: &[u8]) -> Vec<String> {
    let mut rest = &bytes[STREAM_HEADER..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let len = command_len(rest, MAX_COMMAND).unwrap().unwrap();
        let name = |path: StreamPath<'_>| String::from_utf8_lossy(path.bytes()).into_owned();
        all.push(match command(&rest[..len], Version::V2).unwrap() {
            Command::Mkfile { path, .. } => format!("make {}", name(path)),
            Command::Fileattr { path, flags } => format!("flags {} {flags:#x}", name(path)),
            Command::Fallocate { path, mode: PUNCH, offset, len } => format!("hole {} {offset}+{len}", name(path)),
            Command::Write { path, offset, data } => format!("write {} {offset}+{}", name(path), data.len()),
            Command::End => "end".to_owned(),
            other => panic!("{other:?}"),
        });
        rest = &rest[len..];
    }
    all
}

#[test]
fn flags_come_right_after_what_has_them_and_only_those_that_travel() {
    let bytes = stream(2, &[make(b"a", 1000), write(b"a", 0, b"x"), make(b"b", 1), make(b"c", 1001), end()]);
    let expected = ["make a", "flags a 0x2", "write a 0+1", "make b", "make c", "flags c 0x40", "end"];
    assert_eq!(told(&completed(&bytes, vec![1 << 20])), expected);
}

#[test]
fn a_run_of_zeros_is_a_hole_and_its_last_byte() {
    let zeros = |path: &[u8], at| write(path, at, &[0; 4096]);
    let bytes = stream(
        2,
        &[
            zeros(b"a", 0),
            zeros(b"a", 4096),
            zeros(b"a", 8192),
            write(b"a", 12288, b"x"),
            zeros(b"a", 20480),
            zeros(b"a", 28672),
            zeros(b"b", 32768),
            write(b"b", 0, &[0; 16384]),
            end(),
        ],
    );
    let expected = [
        "hole a 0+12288",
        "write a 12287+1",
        "write a 12288+1",
        "write a 20480+4096", // short ones that are not together stay
        "write a 28672+4096",
        "write b 32768+4096",
        "hole b 0+16384",
        "write b 16383+1",
        "end",
    ];
    assert_eq!(told(&completed(&bytes, vec![1 << 20])), expected);
}

#[test]
fn protocol_1_and_what_is_no_stream_pass_as_they_are() {
    let first = stream(1, &[make(b"a", 1000), write(b"a", 0, &[0; 16384])]);
    let cut_off = stream(2, &[make(b"b", 1), write(b"b", 0, b"x")]);
    let cut_off = &cut_off[..cut_off.len() - 1];
    let too_long = [stream(2, &[]).as_slice(), &u32::MAX.to_le_bytes(), &[7; 100]].concat();
    for bytes in [first.as_slice(), cut_off, &too_long, b"", b"btrfs", &[0; 100]] {
        assert_eq!(completed(bytes, vec![3]), bytes);
    }
    // What was held back is not lost with a broken end.
    let broken = [stream(2, &[write(b"a", 0, &[0; 16384])]).as_slice(), &[1, 2, 3]].concat();
    let out = completed(&broken, vec![1 << 20]);
    assert_eq!(told(&out[..out.len() - 3]), ["hole a 0+16384", "write a 16383+1"]);
    assert_eq!(out[out.len() - 3..], [1, 2, 3]);
}

#[test]
fn flags_that_cannot_be_read_end_the_stream() {
    let bytes = stream(2, &[make(b"a", 1002), end()]);
    assert!(Completed::new(bytes.as_slice(), Flags).read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn the_largest_command_passes_behind_any_other() {
    let bytes = stream(2, &[make(b"a", 1), write(b"a", 0, &vec![7; 1_000_000]), write(b"a", 1_000_000, &vec![7; 1_000_000]), end()]);
    for cut in [1 << 20, 99_991, 1 << 21] {
        assert_eq!(completed(&bytes, vec![cut]), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_comes_out_does_not_depend_on_how_it_was_cut(
        what in proptest::collection::vec((0..4_u8, 0..3_u8, 1..40_000_usize), 0..20),
        cut in proptest::collection::vec(1..50_000_usize, 1..8),
    ) {
        let mut at = 0;
        let mut commands: Vec<_> = what
            .into_iter()
            .map(|(kind, path, len)| {
                let path = [b'a' + path];
                at += len as u64;
                match kind {
                    0 => make(&path, 999 + u64::from(path[0] - b'a')),
                    1 => write(&path, at - len as u64, &vec![7; len]),
                    _ => write(&path, at - len as u64, &vec![0; len]),
                }
            })
            .collect();
        commands.push(end());
        let bytes = stream(2, &commands);
        prop_assert_eq!(completed(&bytes, cut), completed(&bytes, vec![1 << 20]));
    }
}
