//! The network: what agents say to each other (`Peer`, mutual TLS) and to programs of their node (`Local`, Unix socket).
//!
//! `directory`, `identity`, `leaf`, `tls` say who is who; `csr` gets our certificate; `accept`, `server` and `receive` serve
//! peers; `client` and `transfer` call them; `local` is the socket; `convert` and `status` are the only places that know
//! both the wire and the engine; `limits`, `progress` and `bandwidth` bound it all. Nothing here decides about data: the
//! Filesystem's actor does.

pub mod accept;
#[cfg(test)]
#[path = "../../../engine/tests/format_support/mod.rs"]
mod any_of;
pub mod bandwidth;
mod carried;
pub mod client;
pub mod convert;
pub mod csr;
pub mod directory;
pub mod handoff;
pub mod identity;
pub mod leaf;
pub mod limits;
pub mod local;
pub mod progress;
mod receive;
pub mod server;
pub mod status;
pub mod tls;
pub mod transfer;

pub use bandwidth::{Bandwidth, Limits};
pub use client::{ClientSettings, PeerClient};
pub use csr::Renewer;
pub use directory::{Fingerprint, PeerDirectory, PeerInfo};
pub use identity::IdentityStore;
pub use server::ServerSettings;
pub use tls::TlsContext;
pub use transfer::{Opened, Stored, Transfer};

/// HTTP/2 window of a stream and of a connection, bytes (platform.md §4).
pub const WINDOW: u32 = 16 << 20;
/// Payload of a Data message at most, bytes. The receiver sees nothing of a message until it has all of it, so this over its patience for
/// silence (30 s) is the slowest link: 4 KiB/s. Those of 1 MiB, which older senders send, are a fifth faster over loopback,
/// where either is several times what a copy brings (ADR 12).
pub const FRAME: usize = 128 << 10;
/// HTTP/2 frame, bytes. A ping waits until the one that is being written is out.
const H2_FRAME: u32 = 32 << 10;
/// What the kernel takes of a connection before it has sent it, bytes: a ping waits for that too, and what lies there counts as sent.
const UNSENT: u32 = 64 << 10;
/// Interval of HTTP/2 pings.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);
/// A ping unanswered for that long ends the connection. On a slow link it waits behind data: a frame, a TLS buffer of 64 KiB, [`UNSENT`]
/// and what the link itself holds: by that sum it comes through from about 10 KB/s on.
const KEEPALIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Wall clock, Unix seconds: certificates are about that.
fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// How both ends set a TCP connection up: answers are small and wanted at once. Slower without, not wrong.
fn tune(tcp: &tokio::net::TcpStream) {
    let _ = tcp.set_nodelay(true);
    let _ = socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
}
