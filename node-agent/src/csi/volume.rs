//! Volume handles and capabilities: what CSI requests say, checked before anything is done.

use dotgraft_engine::filesystem::MountMode;
use dotgraft_engine::handle::VolumeHandle;
use dotgraft_proto::csi::v1::VolumeCapability;
use dotgraft_proto::csi::v1::volume_capability::AccessType;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;

use super::refusal::Refusal;

/// Reads a handle. An empty one is invalid; one that can't be ours names no volume.
///
/// # Errors
///
/// `INVALID_ARGUMENT` if it is empty, `NOT_FOUND` if it can't be ours.
pub fn parse(handle: &str) -> Result<VolumeHandle, Refusal> {
    if handle.is_empty() {
        return Err(Refusal::invalid("volume_id is missing"));
    }
    handle.parse().map_err(|why| {
        let shown: String = handle.chars().take(80).collect();
        Refusal::not_found(format!("no volume `{shown}`: {why}"))
    })
}

/// How a volume is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What may be done through its mounts.
    pub mode: MountMode,
    /// At one path at a time.
    pub single_writer: bool,
    /// Group that the pod's processes have (`fsGroup`).
    pub group: Option<u32>,
}

impl Access {
    /// Checks a capability for a volume. `None` means that it is missing.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for what no volume of ours can: raw blocks, another filesystem, a mount option that it can't have, an access mode that doesn't go
    /// with the handle.
    pub fn check(volume: VolumeHandle, capability: Option<&VolumeCapability>) -> Result<Self, Refusal> {
        let capability = capability.ok_or_else(|| Refusal::invalid("volume_capability is missing"))?;
        let mount = match &capability.access_type {
            None => return Err(Refusal::invalid("volume_capability.access_type is missing")),
            Some(AccessType::Block(_)) => {
                return Err(Refusal::invalid("a Dot is a file system, not a block device: use volumeMode: Filesystem"));
            }
            Some(AccessType::Mount(mount)) => mount,
        };
        if !matches!(mount.fs_type.as_str(), "" | "btrfs") {
            let asked: String = mount.fs_type.chars().take(32).collect();
            return Err(Refusal::invalid(format!("a Dot is btrfs, not {asked}: leave fsType out")));
        }
        let asked = MountMode::WRITE.with_options(&mount.mount_flags).map_err(|e| Refusal::invalid(e.to_string()))?;
        let mode = capability.access_mode.as_ref().ok_or_else(|| Refusal::invalid("volume_capability.access_mode is missing"))?.mode;
        let mode = Mode::try_from(mode).unwrap_or(Mode::Unknown);
        let group = match mount.volume_mount_group.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Refusal::invalid("volume_mount_group is not the number of a group"))?),
        };
        let (read_only, single_writer) = check_mode(volume, mode)?;
        Ok(Self { mode: MountMode { read_only: read_only || asked.read_only, ..asked }, single_writer, group })
    }
}

/// (read-only, at one path only).
fn check_mode(volume: VolumeHandle, mode: Mode) -> Result<(bool, bool), Refusal> {
    match (volume.is_read_only(), mode) {
        (_, Mode::Unknown) => Err(Refusal::invalid("volume_capability.access_mode is missing or of a newer CSI")),
        (_, Mode::MultiNodeMultiWriter | Mode::MultiNodeSingleWriter) => Err(Refusal::invalid(
            "a Dot is written on one node at a time: use ReadWriteOnce, and ReadOnlyMany with a handle of its own (ro/<fsId>) for readers elsewhere",
        )),
        (_, Mode::SingleNodeReaderOnly) | (true, Mode::MultiNodeReaderOnly) => Ok((true, false)),
        (true, _) => Err(Refusal::invalid("this handle is read-only (ro/…): use ReadOnlyMany")),
        (false, Mode::MultiNodeReaderOnly) => Err(Refusal::invalid(
            "a writable Dot can't be read on many nodes: make a volume of its own for readers (handle ro/<fsId>, ReadOnlyMany)",
        )),
        (false, Mode::SingleNodeSingleWriter) => Ok((false, true)),
        (false, Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => Ok((false, false)),
    }
}

#[cfg(test)]
mod tests {
    use dotgraft_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use tonic::Code;

    use super::*;

    const FS: &str = "0198c2a5-7f00-7000-8000-000000000001";

    #[test]
    fn an_empty_handle_is_invalid_and_a_strange_one_names_nothing() {
        assert_eq!(parse("").unwrap_err().code, Code::InvalidArgument);
        for text in ["x", "../..", "ro/x", &format!("ro/{FS}@x")] {
            let refusal = parse(text).unwrap_err();
            assert_eq!(refusal.code, Code::NotFound, "{text}");
            assert!(refusal.message.contains(text), "{}", refusal.message);
        }
        assert!(parse(&"x".repeat(1_000)).unwrap_err().message.len() < 400);
    }

    fn capability(mode: Mode, mount: MountVolume) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: Some(AccessType::Mount(mount)) }
    }

    #[test]
    fn modes_are_taken_or_refused_by_what_the_handle_can_do() {
        let head = parse(FS).unwrap();
        let commit = parse(&format!("ro/{FS}")).unwrap();
        let taken = |volume, mode| {
            Access::check(volume, Some(&capability(mode, MountVolume::default()))).map(|a| (a.mode.read_only, a.single_writer))
        };
        assert_eq!(taken(head, Mode::SingleNodeWriter), Ok((false, false)));
        assert_eq!(taken(head, Mode::SingleNodeMultiWriter), Ok((false, false)));
        assert_eq!(taken(head, Mode::SingleNodeSingleWriter), Ok((false, true)));
        assert_eq!(taken(head, Mode::SingleNodeReaderOnly), Ok((true, false)));
        assert_eq!(taken(commit, Mode::MultiNodeReaderOnly), Ok((true, false)));
        assert_eq!(taken(commit, Mode::SingleNodeReaderOnly), Ok((true, false)));
        for (volume, mode, hint) in [
            (head, Mode::MultiNodeMultiWriter, "ReadWriteOnce"),
            (head, Mode::MultiNodeSingleWriter, "ReadWriteOnce"),
            (commit, Mode::MultiNodeMultiWriter, "ReadWriteOnce"),
            (head, Mode::MultiNodeReaderOnly, "ro/<fsId>"),
            (commit, Mode::SingleNodeWriter, "ReadOnlyMany"),
            (head, Mode::Unknown, "missing"),
        ] {
            let refusal = taken(volume, mode).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidArgument);
            assert!(refusal.message.contains(hint), "{mode:?}: {}", refusal.message);
        }
    }

    #[test]
    fn block_foreign_file_systems_and_options_are_refused_with_what_to_use() {
        let head = parse(FS).unwrap();
        let mount = |m: MountVolume| Some(capability(Mode::SingleNodeWriter, m));
        let with = |m: MountVolume| Access::check(head, mount(m).as_ref());
        let block = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            ..capability(Mode::SingleNodeWriter, MountVolume::default())
        };
        let neither = VolumeCapability { access_type: None, ..block.clone() };
        let no_mode = VolumeCapability { access_mode: None, ..capability(Mode::SingleNodeWriter, MountVolume::default()) };
        let refused = [
            (Access::check(head, None), "missing"),
            (Access::check(head, Some(&block)), "volumeMode: Filesystem"),
            (Access::check(head, Some(&neither)), "access_type"),
            (Access::check(head, Some(&no_mode)), "access_mode"),
            (with(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() }), "fsType"),
            (with(MountVolume { mount_flags: vec!["dax".into()], ..MountVolume::default() }), "`dax`"),
            (with(MountVolume { volume_mount_group: "staff".into(), ..MountVolume::default() }), "number"),
        ];
        for (result, hint) in refused {
            let refusal = result.unwrap_err();
            assert_eq!(refusal.code, Code::InvalidArgument);
            assert!(refusal.message.contains(hint), "{}", refusal.message);
        }
        let fine = MountVolume { fs_type: "btrfs".into(), mount_flags: vec!["noatime".into()], volume_mount_group: "2000".into() };
        assert_eq!(with(fine).unwrap().group, Some(2000));
        let asked = |flags: &[&str]| {
            let mount_flags = flags.iter().map(|f| (*f).to_owned()).collect();
            with(MountVolume { mount_flags, ..MountVolume::default() }).unwrap().mode
        };
        assert_eq!(asked(&[]), MountMode::WRITE);
        assert_eq!(asked(&["noexec", "ro"]), MountMode { noexec: true, ..MountMode::READ });
        assert_eq!(asked(&["nosuid", "suid", "dev"]), MountMode { nosuid: false, nodev: false, ..MountMode::WRITE });
    }
}
