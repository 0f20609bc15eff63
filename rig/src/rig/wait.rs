//! Waiting for something to become true, and saying so: what for, how long already, and why not yet.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Polls `check` until it is `Ok`; its errors are the reasons why not yet. After 3 s it says what it waits for, then
/// every 15 s. An error after `timeout` names `what` and the last reason.
pub async fn eventually<T, F, Fut>(what: &str, timeout: Duration, check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    poll(what, timeout, Duration::from_secs(3), check).await
}

/// The same, silent: for checks that print for themselves.
pub async fn eventually_quiet<T, F, Fut>(what: &str, timeout: Duration, check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    poll(what, timeout, Duration::MAX, check).await
}

async fn poll<T, F, Fut>(what: &str, timeout: Duration, mut say_at: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let left = timeout.saturating_sub(start.elapsed()).max(Duration::from_millis(100));
        let reason = match tokio::time::timeout(left, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) => reason,
            Err(_) => anyhow::anyhow!("the check itself did not answer"),
        };
        let waited = start.elapsed();
        if waited >= timeout {
            return Err(reason).context(format!("waited {:.0} s for {what}", waited.as_secs_f64()));
        }
        if waited >= say_at {
            let reason: String = format!("{reason:#}").lines().next().unwrap_or_default().chars().take(400).collect();
            println!("        waiting for {what} ({:.0} s of {:.0}): {reason}", waited.as_secs_f64(), timeout.as_secs_f64());
            say_at = waited + Duration::from_secs(15);
        }
        tokio::time::sleep(pause.min(timeout.saturating_sub(waited))).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

/// Fails if `check` fails at any time during `span`: what must *not* happen.
pub async fn throughout<F, Fut>(what: &str, span: Duration, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let start = Instant::now();
    while start.elapsed() < span {
        check().await.with_context(|| format!("after {:.1} s of {what}", start.elapsed().as_secs_f64()))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
