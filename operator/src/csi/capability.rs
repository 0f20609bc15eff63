//! Which volume capabilities there are: a directory, written from one node. What isn't is refused with what to use instead.

use dotgraft_engine::filesystem::MountMode;
use dotgraft_proto::csi::v1 as wire;
use wire::volume_capability::AccessType;
use wire::volume_capability::access_mode::Mode;

use super::error::CsiError;

/// How a volume is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The head, from one node.
    Write,
    /// The head, from one node, only to read.
    Read,
    /// A commit, from any number of nodes.
    ReadMany,
}

/// Most capabilities in a call.
const MOST: usize = 32;

/// What one capability means.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for what no volume of ours can, with what to use instead.
pub fn check(capability: &wire::VolumeCapability) -> Result<Use, CsiError> {
    let invalid = |text: &str| Err(CsiError::Invalid(text.into()));
    match &capability.access_type {
        None => return invalid("access_type is missing in the volume capability"),
        Some(AccessType::Block(_)) => {
            return invalid("block volumes are not supported: use volumeMode Filesystem");
        }
        Some(AccessType::Mount(m)) if !matches!(m.fs_type.as_str(), "" | "btrfs") => {
            let text = format!("fsType `{}` can't be had: a volume is a btrfs subvolume; leave fsType out", m.fs_type);
            return Err(CsiError::Invalid(text));
        }
        Some(AccessType::Mount(m)) => {
            MountMode::WRITE.with_options(&m.mount_flags).map_err(|e| CsiError::Invalid(e.to_string()))?;
        }
    }
    match capability.access_mode.map(|m| m.mode()) {
        Some(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter) => Ok(Use::Write),
        Some(Mode::SingleNodeReaderOnly) => Ok(Use::Read),
        Some(Mode::MultiNodeReaderOnly) => Ok(Use::ReadMany),
        Some(Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter) => invalid(
            "a volume is written from one node at a time: use ReadWriteOnce or ReadWriteOncePod; to read it on other nodes, a PersistentVolume with volumeHandle `ro/<fsId>`",
        ),
        Some(Mode::Unknown) | None => invalid("access_mode is missing in the volume capability"),
    }
}

/// What a new volume is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    /// One whose head is written from one node.
    Volume,
    /// A view of a commit, read from any number of nodes.
    View,
}

/// What all of them mean together, for a new volume: its head is written from one node, or it is only read.
///
/// # Errors
///
/// As [`check`]; one that would be both.
pub fn check_new(capabilities: &[wire::VolumeCapability]) -> Result<New, CsiError> {
    if capabilities.is_empty() || capabilities.len() > MOST {
        return Err(CsiError::Invalid(format!("from 1 to {MOST} volume capabilities are needed")));
    }
    let uses = capabilities.iter().map(check).collect::<Result<Vec<_>, _>>()?;
    match uses.iter().filter(|u| **u == Use::ReadMany).count() {
        0 => Ok(New::Volume),
        n if n == uses.len() => Ok(New::View),
        _ => Err(CsiError::Invalid("a volume is written from one node, or read from many: ReadOnlyMany goes alone".into())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use wire::volume_capability::{AccessMode, BlockVolume, MountVolume};

    /// A mount in a mode.
    pub fn mount(mode: Mode) -> wire::VolumeCapability {
        wire::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }
    }

    #[test]
    fn one_writer_or_readers_of_a_commit() {
        assert_eq!(check(&mount(Mode::SingleNodeWriter)).unwrap(), Use::Write);
        assert_eq!(check(&mount(Mode::SingleNodeMultiWriter)).unwrap(), Use::Write);
        assert_eq!(check(&mount(Mode::MultiNodeReaderOnly)).unwrap(), Use::ReadMany);
        assert!(check_new(&[mount(Mode::SingleNodeWriter)]).is_ok());
        assert_eq!(check_new(&[mount(Mode::SingleNodeWriter)]).unwrap(), New::Volume);
        assert_eq!(check_new(&[mount(Mode::MultiNodeReaderOnly)]).unwrap(), New::View);
        assert!(check_new(&[mount(Mode::MultiNodeReaderOnly), mount(Mode::SingleNodeWriter)]).is_err(), "one or the other");
        assert!(check_new(&[]).is_err());
    }

    #[test]
    fn what_can_not_be_had_is_refused_by_name() {
        let text = |c: &wire::VolumeCapability| check(c).unwrap_err().to_string();
        assert!(text(&mount(Mode::MultiNodeMultiWriter)).contains("ReadWriteOnce"));
        let mut block = mount(Mode::SingleNodeWriter);
        block.access_type = Some(AccessType::Block(BlockVolume {}));
        assert!(text(&block).contains("volumeMode"));
        let mut ext4 = mount(Mode::SingleNodeWriter);
        ext4.access_type = Some(AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() }));
        assert!(text(&ext4).contains("ext4"));
        let with = |flag: &str| {
            let flags = MountVolume { mount_flags: vec![flag.into()], ..MountVolume::default() };
            wire::VolumeCapability { access_type: Some(AccessType::Mount(flags)), ..mount(Mode::SingleNodeWriter) }
        };
        assert!(text(&with("discard")).contains("`discard`"));
        assert!(["nosuid", "nodev", "noexec", "ro", "suid", "dev", "noatime"].iter().all(|f| check(&with(f)).is_ok()));
        assert!(check(&wire::VolumeCapability { access_mode: None, ..mount(Mode::SingleNodeWriter) }).is_err());
        assert!(check(&wire::VolumeCapability { access_type: None, ..mount(Mode::SingleNodeWriter) }).is_err());
    }
}
