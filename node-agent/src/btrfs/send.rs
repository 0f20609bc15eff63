//! A kernel send as a `Read`: the ioctl runs in a thread of its own and writes into a pipe, with read-ahead beside it; `stream::complete` adds
//! what the kernel leaves out. Called by transfer tasks.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use dotgraft_engine::ids::{CommitId, FsId};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::BtrfsPool;
use super::fsx::{Context, fail};
use super::ioctl::SubvolInfo;
use super::ioctl::{self, SendHow};
use super::long;
use super::pause::Pause;
use super::readahead::{self, Job, Progress};
use super::search::Inodes;
use super::subvol::Subvol;
use crate::driver::DriverError;
use crate::stream::complete::{Completed, FlagsOf};

/// Newest stream protocol that our receiver and the measurements know.
pub const NEWEST_VERSION: u32 = 2;
/// Size of the pipe: as large as the kernel gives without a privilege.
const PIPE: usize = 1 << 20;

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendOptions {
    /// Stream protocol version, 1 or 2.
    pub version: u32,
    /// Compressed extents travel as they are (protocol 2, and only to a receiver that can write them).
    pub compressed: bool,
    /// Read ahead beside the send.
    pub read_ahead: bool,
}

/// A running send, completed (`stream::complete`).
#[derive(Debug)]
pub struct SendStream(Completed<KernelStream, Inodes>);

/// What the kernel writes. The end of the stream is reported only after the kernel said that it was whole; dropping it ends the send and waits for
/// its threads, so that its commits can be deleted right after.
#[derive(Debug)]
struct KernelStream {
    /// Of what is sent.
    root: OwnedFd,
    pipe: Option<OwnedFd>,
    sender: Option<JoinHandle<rustix::io::Result<()>>>,
    ahead: Option<JoinHandle<()>>,
    progress: Arc<Progress>,
    failed: Option<Errno>,
    pause: Pause,
}

impl BtrfsPool {
    /// Starts to send `target`, whole or as the difference to `base`; both must be commits of `fs` here.
    ///
    /// # Errors
    ///
    /// [`DriverError::NotFound`] if one of the two is not here; [`DriverError::Unsupported`] if a stream would name both by one UUID, so that a
    /// clone from the base can't be told from one within the target; the kernel can't begin to send.
    pub fn send_with(&self, fs: FsId, base: Option<CommitId>, target: CommitId, options: SendOptions) -> Result<SendStream, DriverError> {
        if options.version == 0 || options.version > self.info.stream_version || (options.compressed && options.version < 2) {
            return Err(DriverError::Unsupported(format!("send stream version {} (compressed: {})", options.version, options.compressed)));
        }
        let from = base.map(|b| self.commit_subvol(fs, b)).transpose()?.map(|b| b.info);
        let to = self.commit_subvol(fs, target)?;
        if let Some((base, _)) = base.zip(from).filter(|(_, from)| from.sent_as() == to.info.sent_as()) {
            return Err(DriverError::Unsupported(format!(
                "something in the volume has given commits {base} and {target} one received UUID, before this release cleared it: the \
                 difference between them can't be sent; delete one of them"
            )));
        }
        start(to, from, options, false)
    }
}

/// Sends all of a read-only subvolume to a receiver in this pool: the content of files is only named. `version` is the newest that this kernel
/// knows.
pub(super) fn without_data(target: Subvol, version: u32) -> Result<SendStream, DriverError> {
    start(target, None, SendOptions { version: version.min(NEWEST_VERSION), compressed: false, read_ahead: false }, true)
}

fn start(target: Subvol, base: Option<SubvolInfo>, options: SendOptions, without_data: bool) -> Result<SendStream, DriverError> {
    let what = || "start a send".to_owned();
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(what)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE); // a smaller one is only slower

    let progress = Arc::new(Progress::default());
    let job = Job {
        root: target.fd.try_clone().doing(what)?,
        tree: target.info.id,
        newer_than: base.map_or(0, |b| b.created),
        skip_compressed: options.compressed,
    };
    let how = SendHow { base: base.map(|b| b.id), version: options.version, compressed: options.compressed, without_data };
    let root = target.fd.try_clone().doing(what)?;
    let inodes = Inodes::new(target.fd.try_clone().doing(what)?);
    let mut stream = KernelStream { root, pipe: Some(reader), sender: None, ahead: None, progress, failed: None, pause: Pause::default() };
    // `writer` moves into the thread and is closed with it: that is the end of the stream.
    let send = move || ioctl::send(&target.fd, &writer, how);
    stream.sender = Some(std::thread::Builder::new().name("send".to_owned()).spawn(send).doing(what)?);
    if options.read_ahead {
        let shared = Arc::clone(&stream.progress);
        let run = move || readahead::run(&job, &shared);
        stream.ahead = Some(std::thread::Builder::new().name("read-ahead".to_owned()).spawn(run).doing(what)?);
    }
    Ok(SendStream(Completed::new(stream, inodes)))
}

impl SendStream {
    /// Bytes asked for ahead and not yet sent, for metrics and tests.
    pub fn ahead(&self) -> u64 {
        self.0.inner().ahead()
    }
}

impl Read for SendStream {
    /// Errors carry a [`DriverError`] ([`DriverError::of_read`] gets it out).
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl FlagsOf for Inodes {
    fn flags_of(&mut self, inode: u64) -> io::Result<u64> {
        self.flags(inode).map_err(|e| io::Error::new(io::Error::from(e).kind(), fail("read the flags of an inode", e)))
    }
}

impl KernelStream {
    fn ahead(&self) -> u64 {
        self.progress.asked.load(Ordering::Relaxed).saturating_sub(self.progress.sent.load(Ordering::Relaxed))
    }

    fn over(&self) {
        self.progress.over.store(true, Ordering::Relaxed);
        if let Some(ahead) = &self.ahead {
            ahead.thread().unpark();
        }
    }

    /// The pipe is empty and its writer gone: what did the kernel say?
    fn end(&mut self) -> io::Result<usize> {
        self.over();
        if let Some(sender) = self.sender.take() {
            self.failed = sender.join().unwrap_or(Err(Errno::IO)).err();
        }
        match self.failed {
            None => Ok(0),
            Some(e) => Err(io::Error::new(io::Error::from(e).kind(), send_error(e, &self.root))),
        }
    }
}

fn send_error(errno: Errno, root: &OwnedFd) -> DriverError {
    match errno {
        Errno::IO | Errno::UCLEAN => {
            DriverError::CorruptDisk(format!("the kernel could not read what it was to send ({errno}): see dmesg, then scrub the pool"))
        }
        // Kernels before 6.10 say that it is memory.
        Errno::NAMETOOLONG | Errno::NOMEM => long::too_long(root).map_or_else(|| fail("send", errno), DriverError::Unsupported),
        e => fail("send", e),
    }
}

impl Read for KernelStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        if buf.is_empty() {
            return Ok(0);
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut *buf))? {
            0 => self.end(),
            n => {
                self.pause.before_handing_over(self.progress.sent.load(Ordering::Relaxed), n as u64);
                let before = self.progress.sent.fetch_add(n as u64, Ordering::Relaxed);
                if let Some(ahead) = self.ahead.as_ref().filter(|_| before >> 20 != (before + n as u64) >> 20) {
                    ahead.thread().unpark();
                }
                Ok(n)
            }
        }
    }
}

impl Drop for KernelStream {
    fn drop(&mut self) {
        self.over();
        self.pipe = None; // the kernel's next write fails with EPIPE
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
        if let Some(ahead) = self.ahead.take() {
            let _ = ahead.join();
        }
    }
}
