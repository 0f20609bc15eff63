//! A connection with what is tied to its life: whose it is, its place among the connections, the word that it has gone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Passes every byte through, and is dropped with the connection.
#[derive(Debug)]
pub struct Carried<Io, With> {
    io: Io,
    with: With,
}

impl<Io, With> Carried<Io, With> {
    /// Ties `with` to `io`.
    pub fn new(io: Io, with: With) -> Self {
        Self { io, with }
    }

    /// What is tied to it.
    pub fn with(&self) -> &With {
        &self.with
    }
}

impl<Io: AsyncRead + Unpin, With: Unpin> AsyncRead for Carried<Io, With> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin, With: Unpin> AsyncWrite for Carried<Io, With> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
