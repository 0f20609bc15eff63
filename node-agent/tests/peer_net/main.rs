//! The network of an agent, over loopback with a real CA, real TLS and a fake actor behind the handle: what reaches the
//! actor, what reaches the peer, and what is refused before either hears of it (failures.md rows 6, 9, 13, 14).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test may end by them

mod alive;
mod certificates;
mod csr;
mod hostile;
mod local;
mod raw;
mod senders;
mod streams;
mod support;
mod throughput;
