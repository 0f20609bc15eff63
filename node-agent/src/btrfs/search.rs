//! Walks items of btrfs trees (`TREE_SEARCH_V2`) and reads the few kinds we need. Called by quota, subvol, estimate, send and read-ahead,
//! and by `stream::flags`.
//!
//! Buffers of 64 to 256 KiB are fastest (platform.md §4). `min_transid` filters whole leaves: what comes back may still be older.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Result;

use super::ioctl::{self, SearchKey};

/// Tree of tree roots.
pub const ROOT_TREE: u64 = 1;
/// Tree of all extents, with who refers to them.
pub const EXTENT_TREE: u64 = 2;
/// Tree of the pool's top level, in which each subvolume of ours is.
pub const TOP_TREE: u64 = 5;
/// Tree of qgroups.
pub const QUOTA_TREE: u64 = 8;
/// First inode of a subvolume, its root directory.
pub const FIRST_INODE: u64 = 256;
/// Last object id that is a user's inode or subvolume.
pub const LAST_FREE: u64 = u64::MAX - 255;

/// Bytes of one look at inodes: some fifty of small files.
const LOOK: usize = 16 << 10;
/// Offset of the flags in an inode item.
const INODE_FLAGS: usize = 64;
/// Bytes of an xattr before its name: key, transaction, two lengths, type.
const XATTR_HEADER: usize = 30;

/// Item types.
pub mod kind {
    /// An inode.
    pub const INODE: u32 = 1;
    /// (inode, `XATTR`, hash of the name).
    pub const XATTR: u32 = 24;
    /// A range of a file.
    pub const EXTENT_DATA: u32 = 108;
    /// (tree, `ROOT_ITEM`, …): a tree, also one that is deleted and not cleaned up yet.
    pub const ROOT_ITEM: u32 = 132;
    /// (address, `EXTENT_ITEM`, bytes).
    pub const EXTENT_ITEM: u32 = 168;
    /// (child tree, `ROOT_BACKREF`, parent tree).
    pub const ROOT_BACKREF: u32 = 144;
    /// (parent tree, `ROOT_REF`, child tree).
    pub const ROOT_REF: u32 = 156;
    /// (0, `QGROUP_INFO`, qgroup).
    pub const QGROUP_INFO: u32 = 242;
    /// (0, `QGROUP_LIMIT`, qgroup).
    pub const QGROUP_LIMIT: u32 = 244;
    /// (member, `QGROUP_RELATION`, group) and back.
    pub const QGROUP_RELATION: u32 = 246;
}

/// One item of a tree.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Object id of its key.
    pub object: u64,
    /// Type of its key.
    pub kind: u32,
    /// Offset of its key.
    pub offset: u64,
    /// Its bytes.
    pub data: &'a [u8],
}

impl Item<'_> {
    /// Little-endian number at a byte offset; `None` if the item is too short.
    pub fn u64_at(&self, at: usize) -> Option<u64> {
        self.data.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
    }
    /// The same, two bytes.
    pub fn u16_at(&self, at: usize) -> Option<u16> {
        self.data.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
    }
    /// The same, one byte.
    pub fn u8_at(&self, at: usize) -> Option<u8> {
        self.data.get(at).copied()
    }
}

/// Goes over all items in the bounds of `key`, in key order, until `f` breaks. The composite key range includes items of types between:
/// `f` looks at `kind`.
///
/// # Errors
///
/// That of the ioctl, see [`tree_search`](super::ioctl::tree_search).
pub fn for_each(fd: BorrowedFd<'_>, mut key: SearchKey, buffer: usize, mut f: impl FnMut(Item<'_>) -> ControlFlow<()>) -> Result<()> {
    let mut buf = vec![0_u8; buffer];
    loop {
        let (count, start) = ioctl::tree_search(fd, &key, &mut buf)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = buf.get(start..).unwrap_or_default();
        let mut last = None;
        for _ in 0..count {
            let Some((item, tail)) = split_item(rest) else { return Ok(()) };
            rest = tail;
            last = Some((item.object, item.kind, item.offset));
            if f(item).is_break() {
                return Ok(());
            }
        }
        match last.and_then(successor) {
            Some(next) if next <= key.max => key.min = next,
            _ => return Ok(()),
        }
    }
}

/// The header of a found item: transid, objectid, offset, type, len; then `len` bytes.
fn split_item(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let len = usize::try_from(u32_at(28)?).ok()?;
    let data = bytes.get(32..32_usize.checked_add(len)?)?;
    let item = Item { object: u64_at(8)?, kind: u32_at(24)?, offset: u64_at(16)?, data };
    Some((item, bytes.get(32 + len..)?))
}

/// The key right after this one.
fn successor((object, kind, offset): (u64, u32, u64)) -> Option<(u64, u32, u64)> {
    match offset.checked_add(1) {
        Some(offset) => Some((object, kind, offset)),
        None if kind < 255 => Some((object, kind + 1, 0)),
        None => object.checked_add(1).map(|object| (object, 0, 0)),
    }
}

/// Ids of all subvolumes, those that the kernel is still clearing away included.
///
/// # Errors
///
/// That of the ioctl.
pub fn subvolumes(fd: BorrowedFd<'_>) -> Result<BTreeSet<u64>> {
    let key =
        SearchKey { tree: ROOT_TREE, min: (FIRST_INODE, kind::ROOT_ITEM, 0), max: (LAST_FREE, kind::ROOT_ITEM, u64::MAX), min_transid: 0 };
    let mut found = BTreeSet::new();
    for_each(fd, key, 64 << 10, |item| {
        if item.kind == kind::ROOT_ITEM {
            found.insert(item.object);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Whom a data extent is charged to, and a tree that refers to it by itself and not by a snapshot. `None`: no data, or of a time without quotas.
pub fn charged(item: &Item<'_>) -> Option<(u64, Option<u64>)> {
    const DATA: u64 = 1;
    const OWNER: u8 = 172;
    const BY_TREE: u8 = 178;
    const BY_LEAF: u8 = 184;
    if item.kind != kind::EXTENT_ITEM || item.u64_at(16)? & DATA == 0 {
        return None;
    }
    let (mut at, mut owner, mut user) = (24, None, None);
    while let Some(what) = item.u8_at(at) {
        let one = item.u64_at(at + 1);
        at += match what {
            OWNER => {
                owner = one;
                9
            }
            BY_TREE => {
                user = user.or(one);
                29
            }
            BY_LEAF => 13,
            _ => break,
        };
    }
    Some((owner?, user))
}

/// A subvolume directly inside another tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its tree.
    pub id: u64,
    /// Inode of the directory it is in, in the parent's tree.
    pub dir: u64,
    /// Its name there: any bytes.
    pub name: Vec<u8>,
}

impl Child {
    /// Its name, for a message.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// Which tree a subvolume is in, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The tree that it is directly inside of.
    pub parent: u64,
    /// The subvolume itself.
    pub child: Child,
}

/// The subvolumes with ids from `first` to `last`, of which at most `most`, by id. One that is deleted has no place, and isn't among them.
///
/// # Errors
///
/// That of the ioctl, see [`tree_search`](super::ioctl::tree_search).
pub fn placed(fd: BorrowedFd<'_>, (first, last): (u64, u64), most: usize) -> Result<Vec<Placed>> {
    let key = SearchKey { tree: ROOT_TREE, min: (first, 0, 0), max: (last, kind::ROOT_BACKREF, u64::MAX), min_transid: 0 };
    let mut found = Vec::new();
    for_each(fd, key, 64 << 10, |item| {
        if let (kind::ROOT_BACKREF, Some((dir, name))) = (item.kind, reference(&item)) {
            found.push(Placed { parent: item.offset, child: Child { id: item.object, dir, name } });
        }
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// What a `ROOT_REF` or `ROOT_BACKREF` says: the directory that holds the subvolume, and its name there.
fn reference(item: &Item<'_>) -> Option<(u64, Vec<u8>)> {
    let (dir, len) = (item.u64_at(0)?, item.u16_at(16)?);
    Some((dir, item.data.get(18..18 + usize::from(len)).unwrap_or_default().to_vec()))
}

/// The subvolumes directly inside the tree `parent`.
///
/// # Errors
///
/// That of the ioctl, see [`tree_search`](super::ioctl::tree_search).
pub fn children(fd: BorrowedFd<'_>, parent: u64) -> Result<Vec<Child>> {
    let key = SearchKey { tree: ROOT_TREE, min: (parent, kind::ROOT_REF, 0), max: (parent, kind::ROOT_REF, u64::MAX), min_transid: 0 };
    let mut found = Vec::new();
    for_each(fd, key, 64 << 10, |item| {
        if let (kind::ROOT_REF, Some((dir, name))) = (item.kind, reference(&item)) {
            found.push(Child { id: item.offset, dir, name });
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// A piece of a file as an `EXTENT_DATA` item has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The file.
    pub inode: u64,
    /// Where in the file, bytes.
    pub at: u64,
    /// Transaction that made it.
    pub generation: u64,
    /// Bytes of the file it covers.
    pub len: u64,
    /// Bytes on disk that are its own; 0 for holes, preallocation and inline data.
    pub disk: u64,
    /// Its data is inside the item.
    pub inline: bool,
    /// It is compressed.
    pub compressed: bool,
}

/// Reads an `EXTENT_DATA` item; `None` for other kinds and for what is too short.
pub fn extent(item: &Item<'_>) -> Option<Extent> {
    if item.kind != kind::EXTENT_DATA {
        return None;
    }
    let inline = item.u8_at(20)? == 0;
    let base = Extent {
        inode: item.object,
        at: item.offset,
        generation: item.u64_at(0)?,
        len: 0,
        disk: 0,
        inline,
        compressed: item.u8_at(16)? != 0,
    };
    if inline {
        return Some(Extent { len: item.u64_at(8)?, ..base });
    }
    let (start, disk, len) = (item.u64_at(21)?, item.u64_at(29)?, item.u64_at(45)?);
    let has_data = start != 0 && item.u8_at(20)? == 1;
    Some(Extent { len: if has_data { len } else { 0 }, disk: if has_data { disk } else { 0 }, ..base })
}

/// Flags of the inodes of one read-only subvolume. They are mostly asked for in order: so one look takes in as many as a small buffer holds.
#[derive(Debug)]
pub struct Inodes {
    subvolume: OwnedFd,
    buffer: Vec<u8>,
    /// The inodes from the first to the second number have been seen.
    seen: Option<(u64, u64)>,
    /// Those of them that have flags, in order.
    flagged: Vec<(u64, u64)>,
}

impl Inodes {
    /// Of the read-only subvolume that `subvolume` is in.
    pub fn new(subvolume: OwnedFd) -> Self {
        Self { subvolume, buffer: vec![0; LOOK], seen: None, flagged: Vec::new() }
    }

    /// `BTRFS_INODE_*` bits of an inode; 0 if there is none with this number.
    ///
    /// # Errors
    ///
    /// That of the ioctl, see [`tree_search`](super::ioctl::tree_search).
    pub fn flags(&mut self, inode: u64) -> Result<u64> {
        if !self.seen.is_some_and(|(first, last)| (first..=last).contains(&inode)) {
            self.look(inode)?;
        }
        let found = self.flagged.binary_search_by_key(&inode, |(inode, _)| *inode).ok();
        Ok(found.and_then(|at| self.flagged.get(at)).map_or(0, |(_, flags)| *flags))
    }

    fn look(&mut self, from: u64) -> Result<()> {
        self.seen = None;
        self.flagged.clear();
        let key = SearchKey { tree: 0, min: (from, kind::INODE, 0), max: (LAST_FREE, kind::INODE, 0), min_transid: 0 };
        let (count, start) = ioctl::tree_search(&self.subvolume, &key, &mut self.buffer)?;
        let mut rest = self.buffer.get(start..).unwrap_or_default();
        // An inode's own item is the first of its items: whoever's items are seen, its own is.
        let mut last = if count == 0 { LAST_FREE } else { from };
        for _ in 0..count {
            let Some((item, tail)) = split_item(rest) else { break };
            rest = tail;
            last = item.object;
            if let (kind::INODE, Some(flags @ 1..)) = (item.kind, item.u64_at(INODE_FLAGS)) {
                self.flagged.push((item.object, flags));
            }
        }
        self.seen = Some((from, last));
        Ok(())
    }
}

/// The inodes in leaves written since `since` that have an xattr of this name, in the subvolume that `fd` is in. What `f` does to one may
/// change the tree.
///
/// # Errors
///
/// That of the ioctl, see [`tree_search`](super::ioctl::tree_search).
pub fn owed_inodes(fd: BorrowedFd<'_>, since: u64, name: &[u8], mut f: impl FnMut(u64) -> ControlFlow<()>) -> Result<()> {
    let key = SearchKey { tree: 0, min: (FIRST_INODE, 0, 0), max: (LAST_FREE, u32::MAX, u64::MAX), min_transid: since };
    for_each(fd, key, 64 << 10, |item| if has_xattr(&item, name) { f(item.object) } else { ControlFlow::Continue(()) })
}

/// Whether an item holds an xattr of this name: there may be several with one hash.
fn has_xattr(item: &Item<'_>, name: &[u8]) -> bool {
    if item.kind != kind::XATTR {
        return false;
    }
    let mut rest = *item;
    while let (Some(value), Some(len)) = (rest.u16_at(25), rest.u16_at(27)) {
        let (len, value) = (usize::from(len), usize::from(value));
        if rest.data.get(XATTR_HEADER..XATTR_HEADER + len) == Some(name) {
            return true;
        }
        rest.data = rest.data.get(XATTR_HEADER + len + value..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xattr_is_found_also_behind_another_of_its_hash_and_no_length_leads_out() {
        let entry = |name: &[u8], value: &[u8]| {
            let mut out = vec![0; 25];
            out.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
            out.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            out.push(8);
            [out.as_slice(), name, value].concat()
        };
        let data = [entry(b"user.a", b"value"), entry(b"trusted.b", b"")].concat();
        let item = |data| Item { object: 257, kind: kind::XATTR, offset: 0, data };
        assert!(has_xattr(&item(&data), b"trusted.b") && has_xattr(&item(&data), b"user.a"));
        assert!(!has_xattr(&item(&data), b"trusted") && !has_xattr(&Item { kind: kind::INODE, ..item(&data) }, b"user.a"));
        for cut in 0..data.len() {
            has_xattr(&item(&data[..cut]), b"trusted.b");
        }
    }

    #[test]
    fn the_key_after_the_last_offset_is_the_next_type_then_the_next_object() {
        assert_eq!(successor((5, 1, 7)), Some((5, 1, 8)));
        assert_eq!(successor((5, 1, u64::MAX)), Some((5, 2, 0)));
        assert_eq!(successor((5, 255, u64::MAX)), Some((6, 0, 0)));
        assert_eq!(successor((u64::MAX, 255, u64::MAX)), None);
    }

    #[test]
    fn a_short_buffer_or_item_gives_nothing_instead_of_a_panic() {
        assert!(split_item(&[0; 31]).is_none());
        let mut long = vec![0_u8; 40];
        long[28] = 200;
        assert!(split_item(&long).is_none());
        let item = Item { object: 1, kind: kind::EXTENT_DATA, offset: 0, data: &[0; 20] };
        assert!(extent(&item).is_none());
    }

    #[test]
    fn a_hole_and_a_preallocated_range_hold_no_data() {
        let mut data = vec![0_u8; 53];
        data[20] = 1;
        data[45] = 9;
        let hole = extent(&Item { object: 257, kind: kind::EXTENT_DATA, offset: 0, data: &data }).unwrap();
        assert_eq!((hole.len, hole.disk), (0, 0));
        data[21] = 1; // on disk
        data[20] = 2; // preallocated
        let prealloc = extent(&Item { object: 257, kind: kind::EXTENT_DATA, offset: 0, data: &data }).unwrap();
        assert_eq!(prealloc.len, 0);
    }
}
