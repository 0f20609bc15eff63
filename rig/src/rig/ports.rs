//! Free ports on loopback, below the range the kernel gives to outgoing connections: a program that is killed and
//! started again must find its port free.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nothing listens on and that this process has not handed out before.
pub fn free() -> Result<u16> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = FIRST + uuid::Uuid::new_v4().as_fields().1 % (LAST - FIRST);
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {LAST} on 127.0.0.1")
}
