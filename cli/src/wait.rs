//! Waiting for an object to say that something happened, with a bound, and with what it says meanwhile.

use std::fmt::{self, Debug};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
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

/// It has not happened in time. What was asked for goes on by itself, unless whoever waited takes it back.
#[derive(Debug)]
pub struct TimedOut {
    /// How long was waited.
    pub after: Duration,
    /// What the object said last, or nothing.
    pub why: String,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.why.is_empty() { "no word yet" } else { &self.why };
        write!(f, "not done after {} s: {why}", self.after.as_secs())
    }
}

impl std::error::Error for TimedOut {}

/// Whether a status is about the spec beside it; else what it refuses is what was wanted before.
pub fn is_of(generation: Option<i64>, observed: Option<i64>) -> bool {
    generation.is_none_or(|now| observed.is_some_and(|seen| seen >= now))
}

/// Looks every 200 ms until `look` says `Done`.
pub async fn until<K, T>(api: &Api<K>, name: &str, timeout: Duration, look: impl FnMut(&K) -> Seen<T>) -> Result<T>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    try_until(api, name, timeout, look).await.map_err(|e| if e.is::<TimedOut>() { anyhow!("{e}; it goes on by itself") } else { e })
}

/// The same for who decides what becomes of it when the time is over: the error is [`TimedOut`] then.
pub async fn try_until<K, T>(api: &Api<K>, name: &str, timeout: Duration, mut look: impl FnMut(&K) -> Seen<T>) -> Result<T>
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
            return Err(TimedOut { after: timeout, why }.into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
