//! Paths that are longer than the kernel can send (4,096 bytes): it ends the stream, with a warning in its log, and doesn't say which. Called when
//! that has happened.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType, OFlags};
use rustix::io::Errno;

use crate::descent::{Descent, open_beneath};

/// `PATH_MAX`, its NUL left out.
pub const LONGEST: usize = 4095;

/// What a user is told of a path that is too long.
pub fn told(which: &str) -> String {
    format!("{which} is longer than 4,096 bytes, which the kernel can't send: shorten names, or move it up")
}

/// The same of the first in a tree; `None` if there is none.
pub fn too_long(of: impl AsFd) -> Option<String> {
    find(of).ok().flatten().map(|which| told(&which))
}

/// The beginning of the first path that is too long.
fn find(root: impl AsFd) -> Result<Option<String>, Errno> {
    let mut at = Descent::new(root.as_fd())?;
    let mut below = vec![directories(&at)?];
    let mut lengths = vec![0_usize];
    while let (Some(present), Some(length)) = (below.last_mut(), lengths.last().copied()) {
        let Some((name, is_dir)) = present.pop() else {
            below.pop();
            lengths.pop();
            at.leave()?;
            continue;
        };
        let longer = length + usize::from(length > 0) + name.as_bytes().len();
        if longer > LONGEST {
            return Ok(Some(format!("`{}/…`", at.shown())));
        }
        if is_dir {
            let dir = open_beneath(at.here(), &name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            at.enter(name, dir)?;
            below.push(directories(&at)?);
            lengths.push(longer);
        }
    }
    Ok(None)
}

/// What can make a path too long in the present directory: directories, and the longest of the other names.
fn directories(at: &Descent) -> Result<Vec<(CString, bool)>, Errno> {
    let (mut found, mut longest) = (Vec::new(), CString::default());
    for entry in Dir::read_from(at.here())? {
        let entry = entry?;
        match entry.file_type() {
            FileType::Directory if entry.file_name() != c"." && entry.file_name() != c".." => {
                found.push((entry.file_name().to_owned(), true));
            }
            FileType::Directory => {}
            _ if entry.file_name().count_bytes() > longest.count_bytes() => entry.file_name().clone_into(&mut longest),
            _ => {}
        }
    }
    found.push((longest, false));
    Ok(found)
}
