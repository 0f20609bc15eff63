//! The ioctls of btrfs and of loop devices, and the only `unsafe` of this program. Talks to the kernel; called by the rest of `btrfs`.
//!
//! Each function is one ioctl with its struct laid out as in the kernel's `linux/btrfs.h` and `linux/loop.h`. The opcode contains the size of its
//! struct, so a wrong size is refused by the kernel with `ENOTTY`; the sizes are checked again at compile time and the opcodes in a test.
//! Longer than other files, so that what is `unsafe` stays in one place.
#![allow(unsafe_code)] // the one file where it is allowed (style.md rule 6)

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

const MAGIC: u8 = 0x94;
/// Longest name of a subvolume in one directory.
pub const NAME_MAX: usize = 255;

const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_MAX_RFER: u64 = 1 << 0;
/// As a limit: take the limit away.
const LIMIT_CLEAR: u64 = u64::MAX;
const SEND_NO_DATA: u64 = 1 << 0;
const SEND_VERSION: u64 = 1 << 3;
const SEND_COMPRESSED: u64 = 1 << 4;
const LO_AUTOCLEAR: u32 = 4;
const LO_DIRECT_IO: u32 = 16;
/// `lo_flags` of a loop device that can't be written.
pub const LO_READ_ONLY: u32 = 1;

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    size: u64,
    inherit: *const Inherit,
    unused: [u64; 2],
    name: [u8; 4040],
}

#[repr(C)]
#[derive(Default)]
struct Limit {
    flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

/// `btrfs_qgroup_inherit` with exactly one group.
#[repr(C)]
#[derive(Default)]
struct Inherit {
    flags: u64,
    num_qgroups: u64,
    num_ref_copies: u64,
    num_excl_copies: u64,
    lim: Limit,
    qgroup: u64,
}

#[repr(C)]
#[derive(Default)]
struct QgroupLimitArgs {
    qgroupid: u64,
    lim: Limit,
}

#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroupid: u64,
}

#[repr(C)]
struct QgroupAssignArgs {
    assign: u64,
    src: u64,
    dst: u64,
}

#[repr(C)]
struct QuotaCtlArgs {
    cmd: u64,
    status: u64,
}

#[repr(C)]
#[derive(Default)]
struct Timespec {
    sec: u64,
    nsec: u32,
}

#[repr(C)]
struct SubvolInfoArgs {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [Timespec; 4],
    reserved: [u64; 8],
}

#[repr(C)]
struct InoLookupArgs {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct SendArgs {
    send_fd: i64,
    clone_sources_count: u64,
    clone_sources: *const u64,
    parent_root: u64,
    flags: u64,
    version: u32,
    reserved: [u8; 28],
}

#[repr(C)]
struct FsInfoArgs {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct DevInfoArgs {
    devid: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    total_bytes: u64,
    unused: [u64; 379],
    path: [u8; 1024],
}

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// `struct file_handle` with btrfs' own form of it (`fs/btrfs/export.h`): an inode of a tree, and the inode's generation, 0 for any.
#[repr(C)]
struct InodeHandle {
    bytes: u32,
    kind: i32,
    inode: [u8; 8],
    tree: [u8; 8],
    generation: u32,
}

const fn size<T>() -> usize {
    std::mem::size_of::<T>()
}
const _: () = assert!(size::<VolArgsV2>() == 4096);
const _: () = assert!(size::<Inherit>() == 80); // 72 and one group
const _: () = assert!(size::<QgroupLimitArgs>() == 48);
const _: () = assert!(size::<QgroupCreateArgs>() == 16);
const _: () = assert!(size::<QgroupAssignArgs>() == 24);
const _: () = assert!(size::<QuotaCtlArgs>() == 16);
const _: () = assert!(size::<SubvolInfoArgs>() == 504);
const _: () = assert!(size::<InoLookupArgs>() == 4096);
const _: () = assert!(size::<SendArgs>() == 72);
const _: () = assert!(size::<FsInfoArgs>() == 1024);
const _: () = assert!(size::<DevInfoArgs>() == 4096);
const _: () = assert!(size::<LoopInfo64>() == 232);
const _: () = assert!(size::<LoopConfig>() == 304);
const _: () = assert!(size::<InodeHandle>() == 8 + HANDLE_BYTES as usize);

/// `FILEID_BTRFS_WITHOUT_PARENT`.
const HANDLE_KIND: i32 = 0x4d;
const HANDLE_BYTES: u32 = 20;

/// Bytes of `btrfs_ioctl_search_args_v2` before its buffer.
const SEARCH_HEADER: usize = 112;
/// Bytes of `btrfs_ioctl_space_args` before its slots.
const SPACE_HEADER: usize = 16;

const SYNC: Opcode = opcode::none(MAGIC, 8);
const TREE_SEARCH_V2: Opcode = opcode::read_write::<[u8; SEARCH_HEADER]>(MAGIC, 17);
const INO_LOOKUP: Opcode = opcode::read_write::<InoLookupArgs>(MAGIC, 18);
const SPACE_INFO: Opcode = opcode::read_write::<[u8; SPACE_HEADER]>(MAGIC, 20);
const WAIT_SYNC: Opcode = opcode::write::<u64>(MAGIC, 22);
const SNAP_CREATE_V2: Opcode = opcode::write::<VolArgsV2>(MAGIC, 23);
const SUBVOL_CREATE_V2: Opcode = opcode::write::<VolArgsV2>(MAGIC, 24);
const START_SYNC: Opcode = opcode::read::<u64>(MAGIC, 24);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(MAGIC, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);
const DEV_INFO: Opcode = opcode::read_write::<DevInfoArgs>(MAGIC, 30);
const FS_INFO: Opcode = opcode::read::<FsInfoArgs>(MAGIC, 31);
const SEND: Opcode = opcode::write::<SendArgs>(MAGIC, 38);
const QUOTA_CTL: Opcode = opcode::read_write::<QuotaCtlArgs>(MAGIC, 40);
const QGROUP_ASSIGN: Opcode = opcode::write::<QgroupAssignArgs>(MAGIC, 41);
const QGROUP_CREATE: Opcode = opcode::write::<QgroupCreateArgs>(MAGIC, 42);
const QGROUP_LIMIT: Opcode = opcode::read::<QgroupLimitArgs>(MAGIC, 43);
const GET_SUBVOL_INFO: Opcode = opcode::read::<SubvolInfoArgs>(MAGIC, 60);
const SNAP_DESTROY_V2: Opcode = opcode::write::<VolArgsV2>(MAGIC, 63);
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// One ioctl whose argument is a pointer to a struct that the kernel reads, writes or both.
struct Pointer<'a, T> {
    op: Opcode,
    arg: &'a mut T,
}

// SAFETY: `as_ptr` gives the address of a live, exclusively borrowed value; that `op` expects such a value is promised by the only
// constructor's callers (`call`, an unsafe fn). IS_MUTATING is true, so the compiler assumes the value changes.
unsafe impl<T> Ioctl for Pointer<'_, T> {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        self.op
    }
    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.arg).cast()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(out)
    }
}

/// One ioctl whose argument is a header with a buffer behind it.
struct Buffer<'a> {
    op: Opcode,
    bytes: &'a mut [u8],
}

// SAFETY: `as_ptr` gives the start of a live, exclusively borrowed buffer; that the kernel stays inside is ensured where it is built, from
// sizes that are written into the header there.
unsafe impl Ioctl for Buffer<'_> {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        self.op
    }
    fn as_ptr(&mut self) -> *mut c_void {
        self.bytes.as_mut_ptr().cast()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(out)
    }
}

/// One ioctl whose argument is a number.
struct Integer {
    op: Opcode,
    value: usize,
}

// SAFETY: no memory is passed; the opcodes used with it take a number or nothing.
unsafe impl Ioctl for Integer {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        self.op
    }
    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.value)
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(out)
    }
}

/// # Safety
/// `op` must take a pointer to a `T`, and pointers inside `arg` must be valid for the call.
unsafe fn call<T>(fd: BorrowedFd<'_>, op: Opcode, arg: &mut T) -> Result<IoctlOutput> {
    // SAFETY: promised by the caller.
    unsafe { ioctl(fd, Pointer { op, arg }) }
}

fn vol_args(name: impl AsRef<[u8]>, flags: u64) -> Result<Box<VolArgsV2>> {
    let bytes = name.as_ref();
    if bytes.is_empty() || bytes.len() > NAME_MAX || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(Errno::INVAL);
    }
    let mut args = Box::new(VolArgsV2 { fd: -1, transid: 0, flags, size: 0, inherit: std::ptr::null(), unused: [0; 2], name: [0; 4040] });
    for (to, from) in args.name.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(args)
}

fn join_group(args: &mut VolArgsV2, inherit: &Inherit) {
    args.flags |= SUBVOL_QGROUP_INHERIT;
    args.size = size::<Inherit>() as u64;
    args.inherit = std::ptr::from_ref(inherit);
}

fn one_group(qgroup: u64) -> Inherit {
    Inherit { num_qgroups: 1, qgroup, ..Inherit::default() }
}

/// `SUBVOL_CREATE_V2`: an empty subvolume `name` in `parent` that is a member of the qgroup with this full id.
///
/// # Errors
///
/// `EEXIST` if the name is taken, `EDQUOT` or `ENOSPC` without room, `EROFS` in a pool that failed; others as the kernel gives them.
pub fn subvol_create(parent: impl AsFd, name: &str, qgroup: u64) -> Result<()> {
    let inherit = one_group(qgroup);
    let mut args = vol_args(name, 0)?;
    join_group(&mut args, &inherit);
    // SAFETY: the opcode takes VolArgsV2; `inherit` outlives the call and `size` is its size.
    unsafe { call(parent.as_fd(), SUBVOL_CREATE_V2, &mut *args) }.map(drop)
}

/// `SNAP_CREATE_V2`: a snapshot of `source` as `name` in `parent`, member of the qgroup with this full id.
///
/// # Errors
///
/// `EEXIST` if the name is taken, `EDQUOT` or `ENOSPC` without room, `EROFS` in a pool that failed; others as the kernel gives them.
pub fn snapshot(parent: impl AsFd, name: &str, source: impl AsFd, read_only: bool, qgroup: u64) -> Result<()> {
    let inherit = one_group(qgroup);
    let mut args = vol_args(name, if read_only { SUBVOL_RDONLY } else { 0 })?;
    args.fd = i64::from(source.as_fd().as_raw_fd());
    join_group(&mut args, &inherit);
    // SAFETY: the opcode takes VolArgsV2; `inherit` and the descriptor in `fd` outlive the call.
    unsafe { call(parent.as_fd(), SNAP_CREATE_V2, &mut *args) }.map(drop)
}

/// `SNAP_DESTROY_V2` by name: unlinks the subvolume; its space comes back by and by.
///
/// # Errors
///
/// `ENOENT` if there is none, `ENOTEMPTY` if others are nested in it, `EPERM` while it is the default subvolume or is being sent.
pub fn subvol_destroy(parent: impl AsFd, name: impl AsRef<[u8]>) -> Result<()> {
    let mut args = vol_args(name, 0)?;
    // SAFETY: the opcode takes VolArgsV2; without SPEC_BY_ID the union is the NUL-terminated name.
    unsafe { call(parent.as_fd(), SNAP_DESTROY_V2, &mut *args) }.map(drop)
}

/// Whether the subvolume is read-only.
///
/// # Errors
///
/// `EINVAL` if it is not the root of a subvolume.
pub fn is_read_only(subvol: impl AsFd) -> Result<bool> {
    let mut flags = 0_u64;
    // SAFETY: the opcode writes one u64.
    unsafe { call(subvol.as_fd(), SUBVOL_GETFLAGS, &mut flags) }?;
    Ok(flags & SUBVOL_RDONLY != 0)
}

/// Makes the subvolume read-only or writable.
///
/// # Errors
///
/// `EINVAL` if it is not the root of a subvolume, `EROFS` in a pool that failed, `EPERM` while it is being sent.
pub fn set_read_only(subvol: impl AsFd, read_only: bool) -> Result<()> {
    let mut flags = if read_only { SUBVOL_RDONLY } else { 0 };
    // SAFETY: the opcode reads one u64.
    unsafe { call(subvol.as_fd(), SUBVOL_SETFLAGS, &mut flags) }.map(drop)
}

/// What `GET_SUBVOL_INFO` tells of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubvolInfo {
    /// Id of its tree.
    pub id: u64,
    /// Transaction that last changed its tree (of its last *committed* state).
    pub generation: u64,
    /// Transaction that created it.
    pub created: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// UUID of what it is a snapshot of; zeros for none.
    pub parent_uuid: [u8; 16],
    /// What whoever owns its root directory says that it was received as; zeros for nothing. Read-only snapshots inherit it.
    pub received_uuid: [u8; 16],
    /// It is read-only.
    pub read_only: bool,
}

impl SubvolInfo {
    /// The UUID that a send stream names it by (kernel: `send_subvol_begin`).
    pub fn sent_as(&self) -> [u8; 16] {
        if self.is_received() { self.received_uuid } else { self.uuid }
    }

    /// A received UUID is set. We set none: something in a volume did.
    pub fn is_received(&self) -> bool {
        self.received_uuid != [0; 16]
    }
}

/// `GET_SUBVOL_INFO` of the subvolume that `fd` is in.
///
/// # Errors
///
/// As the kernel gives them; `ENOTTY` if it is not on btrfs.
pub fn subvol_info(fd: impl AsFd) -> Result<SubvolInfo> {
    // Zeroed by hand, because arrays of 256 have no Default.
    let mut args = Box::new(SubvolInfoArgs {
        treeid: 0,
        name: [0; 256],
        parent_id: 0,
        dirid: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        ctransid: 0,
        otransid: 0,
        stransid: 0,
        rtransid: 0,
        times: Default::default(),
        reserved: [0; 8],
    });
    // SAFETY: the opcode writes one SubvolInfoArgs.
    unsafe { call(fd.as_fd(), GET_SUBVOL_INFO, &mut *args) }?;
    Ok(SubvolInfo {
        id: args.treeid,
        generation: args.generation,
        created: args.otransid,
        uuid: args.uuid,
        parent_uuid: args.parent_uuid,
        received_uuid: args.received_uuid,
        read_only: args.flags & 1 != 0, // BTRFS_ROOT_SUBVOL_RDONLY of the root item, not the ioctl's flag
    })
}

/// `INO_LOOKUP`: one path of an inode, relative to the root of its tree; it ends in `/` and is empty for the root itself.
///
/// # Errors
///
/// `ENOENT` if the tree has no such inode.
pub fn ino_path(fd: impl AsFd, tree: u64, inode: u64) -> Result<Vec<u8>> {
    let mut args = Box::new(InoLookupArgs { treeid: tree, objectid: inode, name: [0; 4080] });
    // SAFETY: the opcode reads and writes one InoLookupArgs.
    unsafe { call(fd.as_fd(), INO_LOOKUP, &mut *args) }?;
    Ok(args.name.iter().copied().take_while(|b| *b != 0).collect())
}

/// Opens the inode of a tree for reading, by `open_by_handle_at`: wherever in the pool it is, whatever it is called, however deep, and
/// also while somebody renames it. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
///
/// `ENOENT` if it is gone; `EPERM` without the capability.
pub fn open_inode(pool: impl AsFd, tree: u64, inode: u64) -> Result<OwnedFd> {
    let mut handle =
        InodeHandle { bytes: HANDLE_BYTES, kind: HANDLE_KIND, inode: inode.to_ne_bytes(), tree: tree.to_ne_bytes(), generation: 0 };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the kernel reads the header and `bytes` bytes after it, all inside `handle`, which outlives the call.
    let fd = unsafe { libc::open_by_handle_at(pool.as_fd().as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        return Err(if errno == Errno::STALE { Errno::NOENT } else { errno });
    }
    // SAFETY: the call has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bounds of one `TREE_SEARCH_V2`; the kernel gives items whose composite key lies between `min` and `max`.
#[derive(Debug, Clone, Copy)]
pub struct SearchKey {
    /// Tree to search; 0 is the one that `fd` is in.
    pub tree: u64,
    /// (objectid, type, offset), inclusive.
    pub min: (u64, u32, u64),
    /// (objectid, type, offset), inclusive.
    pub max: (u64, u32, u64),
    /// Only leaves written in this transaction or later.
    pub min_transid: u64,
}

/// `TREE_SEARCH_V2`: fills `buf` (which keeps its size) and returns the number of items and the bytes they start at.
///
/// # Errors
///
/// `EOVERFLOW` if the first item doesn't fit into `buf`; `ENOENT` if there is no such tree.
pub fn tree_search(fd: impl AsFd, key: &SearchKey, buf: &mut Vec<u8>) -> Result<(u32, usize)> {
    if buf.len() < SEARCH_HEADER + 64 {
        return Err(Errno::INVAL);
    }
    let room = (buf.len() - SEARCH_HEADER) as u64;
    let mut head = Vec::with_capacity(SEARCH_HEADER);
    for v in [key.tree, key.min.0, key.max.0, key.min.2, key.max.2, key.min_transid, u64::MAX] {
        head.extend_from_slice(&v.to_ne_bytes());
    }
    for v in [key.min.1, key.max.1, u32::MAX, 0] {
        head.extend_from_slice(&v.to_ne_bytes());
    }
    head.extend_from_slice(&[0; 32]);
    head.extend_from_slice(&room.to_ne_bytes());
    for (to, from) in buf.iter_mut().zip(&head) {
        *to = *from;
    }
    // SAFETY: the kernel reads the header and writes at most `room` bytes after it, all inside `buf`.
    unsafe { ioctl(fd.as_fd(), Buffer { op: TREE_SEARCH_V2, bytes: buf.as_mut_slice() }) }?;
    let found = buf.get(64..68).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Ok((found, SEARCH_HEADER))
}

/// Use of one kind of block group, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockGroups {
    /// Type and profile bits: 1 data, 2 system, 4 metadata.
    pub flags: u64,
    /// Allocated for it (one copy).
    pub total: u64,
    /// Of that in use (one copy).
    pub used: u64,
}

/// `SPACE_INFO`: use per kind of block group. At most 64 kinds (there are fewer than ten).
///
/// # Errors
///
/// As the kernel gives them; `ENOTTY` if it is not on btrfs.
pub fn space_info(fd: impl AsFd) -> Result<Vec<BlockGroups>> {
    const SLOTS: u64 = 64;
    let mut buf = vec![0_u8; SPACE_HEADER + 24 * 64];
    for (to, from) in buf.iter_mut().zip(SLOTS.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: the kernel reads the 16-byte header and writes it and at most `SLOTS` entries of 24 bytes after it: exactly `buf`.
    unsafe { ioctl(fd.as_fd(), Buffer { op: SPACE_INFO, bytes: &mut buf }) }?;
    let word = |b: &[u8], at: usize| b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let count = usize::try_from(word(&buf, 8).min(SLOTS)).unwrap_or(0);
    let entries = buf.get(SPACE_HEADER..).unwrap_or_default().chunks_exact(24).take(count);
    Ok(entries.map(|e| BlockGroups { flags: word(e, 0), total: word(e, 8), used: word(e, 16) }).collect())
}

/// `FS_INFO`: UUID of the filesystem, highest device id, number of devices.
///
/// # Errors
///
/// As the kernel gives them; `ENOTTY` if it is not on btrfs.
pub fn fs_info(fd: impl AsFd) -> Result<([u8; 16], u64, u64)> {
    let mut args = Box::new(FsInfoArgs { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] });
    // SAFETY: the opcode writes one FsInfoArgs (and reads its flags, which are 0).
    unsafe { call(fd.as_fd(), FS_INFO, &mut *args) }?;
    Ok((args.fsid, args.max_id, args.num_devices))
}

/// `DEV_INFO`: (bytes allocated to block groups, size) of a device; `NODEV` if there is none with this id.
///
/// # Errors
///
/// `ENODEV` if there is none with this id.
pub fn dev_info(fd: impl AsFd, devid: u64) -> Result<(u64, u64)> {
    let mut args = Box::new(DevInfoArgs { devid, uuid: [0; 16], bytes_used: 0, total_bytes: 0, unused: [0; 379], path: [0; 1024] });
    // SAFETY: the opcode reads and writes one DevInfoArgs.
    unsafe { call(fd.as_fd(), DEV_INFO, &mut *args) }?;
    Ok((args.bytes_used, args.total_bytes))
}

/// `SYNC`: all data and metadata of the pool are durable when it returns.
///
/// # Errors
///
/// `EIO` or `EROFS`: the pool has failed, and nothing is known about what is durable.
pub fn sync(fd: impl AsFd) -> Result<()> {
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl(fd.as_fd(), Integer { op: SYNC, value: 0 }) }.map(drop)
}

/// `START_SYNC` and `WAIT_SYNC`: the running transaction is durable when it returns (not the data that was not yet written back).
///
/// # Errors
///
/// `EIO` or `EROFS`: the pool has failed, and nothing is known about what is durable.
pub fn commit_transaction(fd: impl AsFd) -> Result<()> {
    let mut transid = 0_u64;
    // SAFETY: the opcode writes one u64.
    unsafe { call(fd.as_fd(), START_SYNC, &mut transid) }?;
    // SAFETY: the opcode reads one u64.
    unsafe { call(fd.as_fd(), WAIT_SYNC, &mut transid) }.map(drop)
}

/// `QUOTA_CTL`: turns simple quotas on; on already is success. `INVAL` where the kernel is older than 6.7.
///
/// # Errors
///
/// `EINVAL` where the kernel is older than 6.7.
pub fn enable_simple_quotas(root: impl AsFd) -> Result<()> {
    let mut args = QuotaCtlArgs { cmd: QUOTA_ENABLE_SIMPLE, status: 0 };
    // SAFETY: the opcode reads and writes one QuotaCtlArgs.
    unsafe { call(root.as_fd(), QUOTA_CTL, &mut args) }.map(drop)
}

/// `QGROUP_CREATE`: makes or removes the qgroup with this full id.
///
/// # Errors
///
/// `EEXIST` if it is there and to be made, `ENOENT` if it is not and to be removed, `EBUSY` while something is counted in it.
pub fn qgroup_create(root: impl AsFd, qgroup: u64, create: bool) -> Result<()> {
    let mut args = QgroupCreateArgs { create: u64::from(create), qgroupid: qgroup };
    // SAFETY: the opcode reads one QgroupCreateArgs.
    unsafe { call(root.as_fd(), QGROUP_CREATE, &mut args) }.map(drop)
}

/// `QGROUP_ASSIGN`: makes `member` a member of `group`, or no more.
///
/// # Errors
///
/// `ENOENT` if one of the two is not there, `EEXIST` if `member` is a member already.
pub fn qgroup_assign(root: impl AsFd, member: u64, group: u64, assign: bool) -> Result<()> {
    let mut args = QgroupAssignArgs { assign: u64::from(assign), src: member, dst: group };
    // SAFETY: the opcode reads one QgroupAssignArgs. (A positive result means "rescan needed", which simple quotas have not.)
    unsafe { call(root.as_fd(), QGROUP_ASSIGN, &mut args) }.map(drop)
}

/// `QGROUP_LIMIT`: sets or (with `None`) removes the limit in bytes. Through the pool's top level only: through a full subvolume it
/// fails with `DQUOT` (storage.md §3).
///
/// # Errors
///
/// `ENOENT` if there is no such qgroup, `EDQUOT` through a full subvolume.
pub fn qgroup_limit(top: impl AsFd, qgroup: u64, bytes: Option<u64>) -> Result<()> {
    let mut args = QgroupLimitArgs {
        qgroupid: qgroup,
        lim: Limit { flags: LIMIT_MAX_RFER, max_rfer: bytes.unwrap_or(LIMIT_CLEAR), ..Limit::default() },
    };
    // SAFETY: the opcode is declared as reading, but the kernel only takes one QgroupLimitArgs from here.
    unsafe { call(top.as_fd(), QGROUP_LIMIT, &mut args) }.map(drop)
}

/// What a kernel send is to do.
#[derive(Debug, Clone, Copy)]
pub struct SendHow {
    /// Tree id of the base; `None` sends everything.
    pub base: Option<u64>,
    /// Stream protocol version, 1 or 2.
    pub version: u32,
    /// Compressed extents travel as they are (protocol 2).
    pub compressed: bool,
    /// The content of files is only named, not sent.
    pub without_data: bool,
}

/// `SEND`: writes the stream of the read-only subvolume to `to`; blocks until its end. `PIPE` when the reader went away.
///
/// # Errors
///
/// `EPIPE` when the reader went away, `EPERM` if the subvolume or a base is writable, `EIO` for a checksum error.
pub fn send(subvol: impl AsFd, to: impl AsFd, how: SendHow) -> Result<()> {
    let clones = [how.base.unwrap_or(0)];
    let mut args = SendArgs {
        send_fd: i64::from(to.as_fd().as_raw_fd()),
        clone_sources_count: u64::from(how.base.is_some()),
        clone_sources: if how.base.is_some() { clones.as_ptr() } else { std::ptr::null() },
        parent_root: how.base.unwrap_or(0),
        flags: if how.version > 1 { SEND_VERSION } else { 0 }
            | if how.compressed { SEND_COMPRESSED } else { 0 }
            | if how.without_data { SEND_NO_DATA } else { 0 },
        version: if how.version > 1 { how.version } else { 0 },
        reserved: [0; 28],
    };
    // SAFETY: the opcode takes SendArgs; `clones` and the descriptor `to` outlive the call.
    unsafe { call(subvol.as_fd(), SEND, &mut args) }.map(drop)
}

/// A loop device as `LOOP_GET_STATUS64` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopStatus {
    /// `st_dev` of the backing file.
    pub device: u64,
    /// `st_ino` of the backing file.
    pub inode: u64,
    /// Where in the file it starts, bytes.
    pub offset: u64,
    /// How much of the file it shows, bytes; 0 = all.
    pub size_limit: u64,
    /// Flags, see [`LO_READ_ONLY`].
    pub flags: u32,
}

const fn no_loop_info() -> LoopInfo64 {
    LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

/// `LOOP_GET_STATUS64`; `NXIO` for a loop device without a file.
///
/// # Errors
///
/// `ENXIO` for a loop device without a file.
pub fn loop_status(device: impl AsFd) -> Result<LoopStatus> {
    let mut info = no_loop_info();
    // SAFETY: the opcode writes one LoopInfo64.
    unsafe { call(device.as_fd(), LOOP_GET_STATUS64, &mut info) }?;
    Ok(LoopStatus { device: info.device, inode: info.inode, offset: info.offset, size_limit: info.sizelimit, flags: info.flags })
}

/// `LOOP_CTL_GET_FREE`: number of a loop device without a file; another process may take it first.
///
/// # Errors
///
/// As the kernel gives them, such as `EPERM` without the right to make one.
pub fn loop_free(control: impl AsFd) -> Result<u32> {
    // SAFETY: the opcode takes no argument.
    let number = unsafe { ioctl(control.as_fd(), Integer { op: LOOP_CTL_GET_FREE, value: 0 }) }?;
    u32::try_from(number).map_err(|_| Errno::NODEV)
}

/// `LOOP_CONFIGURE`: puts `file` behind the loop device, with 4 KiB blocks, direct I/O where the file allows it (the kernel falls back
/// by itself), and autoclear, so that it goes with its last user. `BUSY` if it has a file already.
///
/// The loop device keeps `file`'s *open file description* alive, with any `flock` on it: pass one of its own.
///
/// # Errors
///
/// `EBUSY` if it has a file already; as the kernel gives them.
pub fn loop_configure(device: impl AsFd, file: impl AsFd) -> Result<()> {
    let fd = u32::try_from(file.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    let mut config = LoopConfig { fd, block_size: 4096, info: no_loop_info(), reserved: [0; 8] };
    config.info.flags = LO_AUTOCLEAR | LO_DIRECT_IO;
    // SAFETY: the opcode reads one LoopConfig; `file` outlives the call and the kernel takes its own reference.
    unsafe { call(device.as_fd(), LOOP_CONFIGURE, &mut config) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel_headers() {
        // Printed by a C program from linux/btrfs.h; an opcode holds the size of its struct.
        let known: [(Opcode, Opcode); 19] = [
            (SNAP_CREATE_V2, 0x5000_9417),
            (SUBVOL_CREATE_V2, 0x5000_9418),
            (SNAP_DESTROY_V2, 0x5000_943f),
            (SUBVOL_GETFLAGS, 0x8008_9419),
            (SUBVOL_SETFLAGS, 0x4008_941a),
            (GET_SUBVOL_INFO, 0x81f8_943c),
            (INO_LOOKUP, 0xd000_9412),
            (TREE_SEARCH_V2, 0xc070_9411),
            (QUOTA_CTL, 0xc010_9428),
            (QGROUP_ASSIGN, 0x4018_9429),
            (QGROUP_CREATE, 0x4010_942a),
            (QGROUP_LIMIT, 0x8030_942b),
            (SEND, 0x4048_9426),
            (SYNC, 0x9408),
            (START_SYNC, 0x8008_9418),
            (WAIT_SYNC, 0x4008_9416),
            (FS_INFO, 0x8400_941f),
            (DEV_INFO, 0xd000_941e),
            (SPACE_INFO, 0xc010_9414),
        ];
        for (ours, kernel) in known {
            assert_eq!(ours, kernel, "{kernel:#x}");
        }
    }

    #[test]
    fn a_name_is_one_component() {
        for bad in ["", "a/b", "..\0", &"n".repeat(256)] {
            assert!(vol_args(bad, 0).is_err(), "{bad:?}");
        }
        assert!(vol_args("n".repeat(255), 0).is_ok());
    }
}
