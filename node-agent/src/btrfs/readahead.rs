//! Read-ahead beside a kernel send, which by itself has one read in flight (platform.md §4). Started and ended by `send`.
//!
//! Walks the extents that the send will read, in the same order (inode by inode), and asks for them early; never more than
//! [`AHEAD`] bytes before what was sent, and drops what it brought in once it was used. Only a hint: every error here is ignored.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Advice, Mode, OFlags, ResolveFlags, fadvise};

use super::search::{self, Extent};
use super::{estimate, ioctl};

/// Bytes asked for and not yet sent, at most.
pub const AHEAD: u64 = 256 << 20;
/// One request: the kernel cuts larger ones to its read-ahead window without a word.
const CHUNK: u64 = 1 << 20;
/// Ranges from this size on are dropped from the page cache after use; smaller ones age by themselves.
const WORTH_DROPPING: u64 = 128 << 10;
/// Ranges remembered for that, and so files kept open.
const REMEMBERED: usize = 256;
/// The stream may still be reading this close behind what was sent.
const MARGIN: u64 = 8 << 20;

/// What reader and read-ahead know of each other.
#[derive(Debug, Default)]
pub struct Progress {
    /// Stream bytes that were read by our reader.
    pub sent: AtomicU64,
    /// Bytes asked for so far.
    pub asked: AtomicU64,
    /// The send has ended or was given up.
    pub over: AtomicBool,
}

/// What to read ahead.
#[derive(Debug)]
pub struct Job {
    /// Root of the commit that is sent.
    pub root: OwnedFd,
    /// Its tree.
    pub tree: u64,
    /// Extents made after this transaction are sent; 0 = all.
    pub newer_than: u64,
    /// Compressed extents are sent as they are: read past the page cache, so not worth asking for.
    pub skip_compressed: bool,
}

/// A range that was asked for.
struct Range {
    file: Rc<OwnedFd>,
    at: u64,
    len: u64,
    /// Value of `asked` after it.
    until: u64,
}

struct Walk<'a> {
    job: &'a Job,
    progress: &'a Progress,
    file: Option<(u64, Rc<OwnedFd>)>,
    used: VecDeque<Range>,
}

/// Runs until all was asked for and used, or the send is over.
pub fn run(job: &Job, progress: &Progress) {
    let mut walk = Walk { job, progress, file: None, used: VecDeque::new() };
    let key = estimate::all_inodes(job.tree, job.newer_than);
    let _ = search::for_each(job.root.as_fd(), key, 128 << 10, |item| match search::extent(&item) {
        Some(extent) if walk.wants(&extent) => walk.ask(&extent),
        _ => walk.go_on(),
    });
    walk.file = None;
    while !walk.used.is_empty() && walk.go_on().is_continue() {
        std::thread::park_timeout(Duration::from_millis(20));
        walk.drop_used(MARGIN);
    }
    walk.drop_used(0);
}

impl Walk<'_> {
    fn wants(&self, extent: &Extent) -> bool {
        extent.len > 0 && !extent.inline && extent.generation > self.job.newer_than && !(extent.compressed && self.job.skip_compressed)
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.progress.over.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn ask(&mut self, extent: &Extent) -> ControlFlow<()> {
        let Some(file) = self.open(extent.inode) else { return self.go_on() };
        let (mut at, end) = (extent.at, extent.at.saturating_add(extent.len));
        while at < end {
            self.wait_for_room()?;
            let len = CHUNK.min(end - at);
            let _ = fadvise(&*file, at, std::num::NonZeroU64::new(len), Advice::WillNeed);
            let until = self.progress.asked.fetch_add(len, Ordering::Relaxed) + len;
            if len >= WORTH_DROPPING && self.used.len() < REMEMBERED {
                self.used.push_back(Range { file: Rc::clone(&file), at, len, until });
            }
            at += len;
        }
        ControlFlow::Continue(())
    }

    /// Waits while too much is asked for and not sent. Where the stream is smaller than what was asked for (clones), this ends the
    /// read-ahead early: it helps less then, and harms nothing.
    fn wait_for_room(&mut self) -> ControlFlow<()> {
        loop {
            self.go_on()?;
            self.drop_used(MARGIN);
            let ahead = self.progress.asked.load(Ordering::Relaxed).saturating_sub(self.progress.sent.load(Ordering::Relaxed));
            if ahead + CHUNK <= AHEAD {
                return ControlFlow::Continue(());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn drop_used(&mut self, margin: u64) {
        let sent = if margin == 0 { u64::MAX } else { self.progress.sent.load(Ordering::Relaxed) };
        while self.used.front().is_some_and(|r| r.until.saturating_add(margin) < sent) {
            if let Some(range) = self.used.pop_front() {
                let _ = fadvise(&*range.file, range.at, std::num::NonZeroU64::new(range.len), Advice::DontNeed);
            }
        }
    }

    fn open(&mut self, inode: u64) -> Option<Rc<OwnedFd>> {
        if let Some((of, file)) = &self.file
            && *of == inode
        {
            return Some(Rc::clone(file));
        }
        let mut path = ioctl::ino_path(&self.job.root, self.job.tree, inode).ok()?;
        if path.last() == Some(&b'/') {
            path.pop();
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOATIME | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = Rc::new(rustix::fs::openat2(&self.job.root, path, flags, Mode::empty(), resolve).ok()?);
        self.file = Some((inode, Rc::clone(&file)));
        Some(file)
    }
}
