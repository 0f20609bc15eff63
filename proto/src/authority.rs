//! A Unix socket for an HTTP/2 server, on which the clients' `:authority` does not matter. Who speaks CSI serves on it.
//!
//! Some gRPC clients (older kubelets and sidecars, C++, Python, Java) put the socket's path into `:authority`, raw or with `%2F`. That is
//! no host, so the HTTP library resets every such request with `PROTOCOL_ERROR` (csi.md §1, "Hazard"; hyperium/h2#487). A socket in a
//! directory has no host anyway, so on the way in each `:authority` is replaced by the host `a`.
//!
//! That is safe without taking HPACK apart (RFC 7541): indices count from the newest entry of the dynamic table, and entries only leave at
//! the old end, by size. A value that becomes *shorter* (one letter is the shortest there is) makes the reader's table hold at least what
//! the writer's holds, so every index means the same for both. What is not understood here is left for the HTTP library to judge.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// Header blocks up to HTTP/2's smallest maximum of a frame are looked into; one that is longer, or goes on in another frame, is left alone.
const MAX_BLOCK: usize = 16 << 10;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const CHUNK: usize = 8 << 10;

/// A connection whose `:authority` fields are made harmless as they come in.
#[derive(Debug)]
pub struct HostlessStream<S> {
    inner: S,
    filter: Filter,
    /// Filtered, not yet read; from `taken` on.
    ready: Vec<u8>,
    taken: usize,
}

impl<S> HostlessStream<S> {
    /// Around a connection on which nothing was read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, filter: Filter::default(), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HostlessStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        loop {
            let waiting = me.ready.get(me.taken..).unwrap_or_default();
            if !waiting.is_empty() {
                let n = waiting.len().min(buf.remaining());
                buf.put_slice(waiting.get(..n).unwrap_or_default());
                me.taken += n;
                return Poll::Ready(Ok(()));
            }
            me.ready.clear();
            me.taken = 0;
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut me.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(())); // the end; half a frame is of no use to anybody
            }
            me.filter.feed(chunk.filled(), &mut me.ready);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HostlessStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

impl<S> Connected for HostlessStream<S> {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

/// Takes the client's bytes apart into frames.
#[derive(Debug)]
struct Filter {
    /// So many bytes go through as they are.
    pass: usize,
    /// A frame being collected.
    held: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { pass: PREFACE, held: Vec::new() }
    }
}

impl Filter {
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            if self.pass > 0 {
                let (through, rest) = input.split_at(self.pass.min(input.len()));
                out.extend_from_slice(through);
                self.pass -= through.len();
                input = rest;
                continue;
            }
            let wanted = if self.held.len() < FRAME_HEAD { FRAME_HEAD } else { FRAME_HEAD + length(&self.held) };
            let (part, rest) = input.split_at((wanted - self.held.len()).min(input.len()));
            self.held.extend_from_slice(part);
            input = rest;
            if self.held.len() == FRAME_HEAD && !is_whole_block(&self.held) {
                self.pass = length(&self.held);
                out.append(&mut self.held);
            } else if self.held.len() > FRAME_HEAD && self.held.len() == wanted {
                rewrite(&self.held, out);
                self.held.clear();
            }
        }
    }
}

/// Length of a frame's payload by its head.
fn length(head: &[u8]) -> usize {
    match head {
        [a, b, c, ..] => usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c),
        _ => 0,
    }
}

fn is_whole_block(head: &[u8]) -> bool {
    let (kind, flags) = (head.get(3), head.get(4).copied().unwrap_or(0));
    kind == Some(&HEADERS) && flags & END_HEADERS != 0 && (1..=MAX_BLOCK).contains(&length(head))
}

/// Puts a HEADERS frame out, its authority replaced.
fn rewrite(frame: &[u8], out: &mut Vec<u8>) {
    let replaced = block_of(frame).and_then(|at| {
        let value = authority_in(frame.get(at.clone())?)?;
        Some((at.start + value.start, at.start + value.end))
    });
    let pieces = replaced.and_then(|(from, to)| Some((frame.get(3..from)?, frame.get(to..)?)));
    let Some((before, after)) = pieces else { return out.extend_from_slice(frame) };
    let new = before.len() + 3 + 2 + after.len() - FRAME_HEAD;
    let [.., a, b, c] = new.to_be_bytes();
    out.extend_from_slice(&[a, b, c]);
    out.extend_from_slice(before);
    out.extend_from_slice(&[1, b'a']); // a string of one letter, not Huffman-coded
    out.extend_from_slice(after);
}

/// Where the header block is in a HEADERS frame: without padding and priority (RFC 9113 §6.2).
fn block_of(frame: &[u8]) -> Option<Range<usize>> {
    let flags = *frame.get(4)?;
    let (mut start, mut end) = (FRAME_HEAD, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(start)?))?;
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    (start <= end).then_some(start..end)
}

/// Where the value of `:authority` is, its length included; `None` if there is none, it is empty, or it comes by index.
fn authority_in(block: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        match first {
            0x80.. => at = integer(block, at, 7)?.1,
            0x20..0x40 => at = integer(block, at, 5)?.1,
            _ => {
                let (index, mut next) = integer(block, at, if first & 0x40 != 0 { 6 } else { 4 })?;
                let mut is_authority = index == 1; // of the static table
                if index == 0 {
                    let name = string(block, next)?;
                    is_authority = is_authority_name(block.get(name.clone())?);
                    next = name.end;
                }
                let value = string(block, next)?;
                if is_authority {
                    return (value.len() > 1).then_some(value);
                }
                at = value.end;
            }
        }
    }
    None
}

/// `:authority` with its length in front, plain or Huffman-coded.
fn is_authority_name(name: &[u8]) -> bool {
    name == b"\x0a:authority" || name == b"\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f"
}

/// A string with its length in front (RFC 7541 §5.2).
fn string(block: &[u8], at: usize) -> Option<Range<usize>> {
    let (len, from) = integer(block, at, 7)?;
    let end = from.checked_add(len)?;
    (end <= block.len()).then_some(at..end)
}

/// An integer with a prefix of so many bits, and where it ends (RFC 7541 §5.1). Larger than a frame is nothing.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value == mask {
        for shift in [0, 7, 14] {
            let byte = usize::from(*block.get(next)?);
            next += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((value, next));
            }
        }
        return None;
    }
    Some((value, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [.., a, b, c] = payload.len().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Whole and byte by byte must give the same.
    fn filtered(frames: &[u8]) -> Vec<u8> {
        let all = [&[b'p'; PREFACE], frames].concat();
        let (mut whole, mut dripped, mut drip) = (Vec::new(), Vec::new(), Filter::default());
        Filter::default().feed(&all, &mut whole);
        for byte in &all {
            drip.feed(&[*byte], &mut dripped);
        }
        assert_eq!(whole, dripped);
        whole.split_off(PREFACE)
    }

    #[test]
    fn an_authority_becomes_one_letter_however_it_is_written() {
        let huffman_name = b"\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f".as_slice();
        for name in [b"\x41".as_slice(), b"\x01", b"\x11", b"\x40\x0a:authority", &[b"\x00", huffman_name].concat()] {
            for value in [b"\x08/a/b.soc".as_slice(), b"\x84\xff\xff\xff\xff"] {
                let block = [b"\x83\x3f\xe1\x1f".as_slice(), name, value, b"\x86"].concat();
                let expected = [b"\x83\x3f\xe1\x1f".as_slice(), name, b"\x01a", b"\x86"].concat();
                assert_eq!(filtered(&frame(HEADERS, END_HEADERS, &block)), frame(HEADERS, END_HEADERS, &expected));
            }
        }
    }

    #[test]
    fn padding_and_priority_stay_and_other_frames_pass() {
        let flags = END_HEADERS | PADDED | PRIORITY;
        let sent = [frame(0, 0, b"\x41\x02/a"), frame(HEADERS, flags, b"\x02ppppp\x41\x02/a\x00\x00"), frame(6, 0, b"12345678")].concat();
        let got = [frame(0, 0, b"\x41\x02/a"), frame(HEADERS, flags, b"\x02ppppp\x41\x01a\x00\x00"), frame(6, 0, b"12345678")].concat();
        assert_eq!(filtered(&sent), got);
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let long = [b"\x41\x7f\x80\x7f".as_slice(), &vec![b'/'; 16_255], b"\x86\x83\x84"].concat();
        let rows: [&[u8]; 7] = [b"", b"\x41", b"\x41\x09/a", b"\x41\x00", b"\x7f\xff\xff\xff\xff\xff", b"\x00\x7f", &long];
        for block in rows {
            let sent = frame(HEADERS, END_HEADERS, block);
            assert_eq!(filtered(&sent), sent, "{block:02x?}");
        }
        let continued = frame(HEADERS, 0, b"\x41\x02/a");
        assert_eq!(filtered(&continued), continued, "it goes on in another frame");
        let padded = frame(HEADERS, END_HEADERS | PADDED, b"\xff\x41\x02/a");
        assert_eq!(filtered(&padded), padded);
    }
}
