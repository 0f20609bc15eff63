//! What others can make us log, at a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// A line of the log that anybody can cause: one in ten seconds.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl Quiet {
    /// One that has said nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Said { last: None, unsaid: 0 }))
    }

    /// Whether it may be said now, and then how many times it wasn't since the last time.
    pub fn says(&self) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if said.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            said.unsaid = said.unsaid.saturating_add(1);
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_in_ten_seconds_says_how_many_there_were() {
        let quiet = Quiet::new();
        assert_eq!((quiet.says(), quiet.says(), quiet.says()), (Some(0), None, None));
        tokio::time::advance(EVERY).await;
        assert_eq!((quiet.says(), quiet.says()), (Some(2), None));
    }
}
