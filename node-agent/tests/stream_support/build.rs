//! Streams made by hand: commands with their attributes and checksums.

use dotgraft_agent::stream::frame::checksum;
use dotgraft_agent::stream::parse::CommandKind as Kind;

/// UUID of the stream's own subvolume.
pub const OWN: [u8; 16] = [1; 16];
/// UUID of its base.
pub const PARENT: [u8; 16] = [2; 16];

/// A stream under construction: header and commands, so that mutations can work on whole commands.
#[derive(Clone)]
pub struct Stream {
    pub version: u32,
    pub commands: Vec<Vec<u8>>,
}

impl Stream {
    pub fn new(version: u32) -> Self {
        Self { version, commands: Vec::new() }
    }

    pub fn push(&mut self, kind: u16, attributes: &[(u16, &[u8])]) {
        let mut payload = Vec::new();
        for (number, value) in attributes {
            payload.extend(number.to_le_bytes());
            if *number != 19 || self.version == 1 {
                payload.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
            }
            payload.extend(*value);
        }
        let mut command = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        command.extend(kind.to_le_bytes());
        command.extend([0; 4]);
        command.extend(payload);
        fix(&mut command);
        self.commands.push(command);
    }

    pub fn begin(&mut self, increment: bool) {
        let one = 1u64.to_le_bytes();
        if increment {
            self.push(Kind::Snapshot as u16, &[(15, b"s"), (1, &OWN), (2, &one), (20, &PARENT), (21, &one)]);
        } else {
            self.push(Kind::Subvol as u16, &[(15, b"s"), (1, &OWN), (2, &one)]);
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"btrfs-stream\0".to_vec();
        out.extend(self.version.to_le_bytes());
        for command in &self.commands {
            out.extend(command);
        }
        out
    }
}

/// Puts the checksum of a command right.
pub fn fix(command: &mut [u8]) {
    if command.len() >= 10 {
        let crc = checksum(command).to_le_bytes();
        command[6..10].copy_from_slice(&crc);
    }
}
