//! Waiting for an object to say that something happened, with a bound, and with what it says meanwhile.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What a look at an object found.
pub enum Seen<T> {
    /// It happened.
    Done(T),
    /// It can't happen any more.
    Failed(String),
    /// Not yet, and why.
    NotYet(String),
}

/// Whether a status is about the spec beside it; else what it refuses is what was wanted before.
pub fn is_of(generation: Option<i64>, observed: Option<i64>) -> bool {
    generation.is_none_or(|now| observed.is_some_and(|seen| seen >= now))
}

/// Looks every 200 ms until `look` says `Done`.
pub async fn until<K, T>(api: &Api<K>, name: &str, timeout: Duration, mut look: impl FnMut(&K) -> Seen<T>) -> Result<T>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let end = Instant::now() + timeout;
    loop {
        let why = match api.get_opt(name).await? {
            Some(object) => match look(&object) {
                Seen::Done(value) => return Ok(value),
                Seen::Failed(why) => bail!("{why}"),
                Seen::NotYet(why) => why,
            },
            None => bail!("`{name}` was deleted meanwhile"),
        };
        if Instant::now() >= end {
            bail!("not done after {} s: {}; it goes on by itself", timeout.as_secs(), if why.is_empty() { "no word yet" } else { &why });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
