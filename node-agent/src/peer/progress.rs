//! Whether a sender makes progress: no frame for too long, or so few bytes that the stream would never end. Pure; the
//! receive pump asks. Time in which the pump waits for its own actor does not count against the peer.

use std::time::{Duration, Instant};

/// What is expected of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Expectation {
    /// No frame for that long is the end.
    pub silence: Duration,
    /// In each window of that much waiting for the peer …
    pub window: Duration,
    /// … at least that many bytes come.
    pub min_bytes: u64,
}

/// What is wrong with a peer's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// No frame.
    Silent,
    /// Too few bytes.
    Trickle,
}

/// One stream's account.
#[derive(Debug)]
pub struct Progress {
    expectation: Expectation,
    /// Waiting since then; `None` while the actor is waited for.
    waiting_since: Option<Instant>,
    /// Waited in this window before `waiting_since`.
    waited: Duration,
    /// Bytes in this window.
    bytes: u64,
}

impl Progress {
    /// A stream that starts to wait for its peer now.
    pub fn new(expectation: Expectation, now: Instant) -> Self {
        Self { expectation, waiting_since: Some(now), waited: Duration::ZERO, bytes: 0 }
    }

    /// A frame with that many bytes arrived; until [`Progress::on_wait`] the peer owes nothing.
    pub fn on_frame(&mut self, now: Instant, bytes: usize) {
        self.settle(now);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes >= self.expectation.min_bytes {
            self.bytes = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// The pump waits for the peer again.
    pub fn on_wait(&mut self, now: Instant) {
        self.settle(now);
        self.waiting_since = Some(now);
    }

    /// When to look again if nothing comes, while the peer is waited for.
    pub fn deadline(&self) -> Option<Instant> {
        let since = self.waiting_since?;
        let left = self.expectation.window.saturating_sub(self.waited);
        Some(since + left.min(self.expectation.silence))
    }

    /// What is wrong at `now`, if anything.
    pub fn check(&self, now: Instant) -> Option<Stall> {
        let waiting = now.saturating_duration_since(self.waiting_since?);
        if waiting >= self.expectation.silence {
            return Some(Stall::Silent);
        }
        (self.waited + waiting >= self.expectation.window).then_some(Stall::Trickle)
    }

    fn settle(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const EXPECTATION: Expectation = Expectation { silence: Duration::from_secs(30), window: Duration::from_secs(60), min_bytes: 1000 };

    #[test]
    fn silence_ends_a_stream() {
        let start = Instant::now();
        let progress = Progress::new(EXPECTATION, start);
        assert_eq!(progress.check(start + 29 * SECOND), None);
        assert_eq!(progress.deadline(), Some(start + 30 * SECOND));
        assert_eq!(progress.check(start + 30 * SECOND), Some(Stall::Silent));
    }

    #[test]
    fn a_byte_every_ten_seconds_ends_it_too() {
        let start = Instant::now();
        let mut progress = Progress::new(EXPECTATION, start);
        for i in 1..6_u32 {
            let now = start + i * 10 * SECOND;
            assert_eq!(progress.check(now), None, "after {i} frames");
            progress.on_frame(now, 1);
            progress.on_wait(now);
        }
        assert_eq!(progress.check(start + 60 * SECOND), Some(Stall::Trickle));
    }

    #[test]
    fn enough_bytes_open_a_new_window() {
        let start = Instant::now();
        let mut progress = Progress::new(EXPECTATION, start);
        for i in 1..100_u32 {
            let now = start + i * 20 * SECOND;
            progress.on_frame(now, 1000);
            progress.on_wait(now);
            assert_eq!(progress.check(now + 20 * SECOND), None);
        }
    }

    #[test]
    fn time_that_the_actor_takes_is_not_the_peers() {
        let start = Instant::now();
        let mut progress = Progress::new(EXPECTATION, start);
        progress.on_frame(start + SECOND, 1);
        assert_eq!(progress.check(start + 1000 * SECOND), None, "the actor holds the frame");
        assert_eq!(progress.deadline(), None);
        progress.on_wait(start + 1000 * SECOND);
        assert_eq!(progress.check(start + 1029 * SECOND), None);
        assert_eq!(progress.check(start + 1030 * SECOND), Some(Stall::Silent));
    }
}
