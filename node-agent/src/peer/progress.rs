//! Whether a sender makes progress: no frame for too long, so few bytes that the stream would never end, or nothing but the
//! word that its kernel reads. Pure; the receive pump asks. Time in which the pump waits for its own actor does not count
//! against the peer.
//!
//! Time before an `Alive` is the kernel's: it counts for [`Expectation::kernel`] and for neither silence nor window, so a
//! stream that is slow only because the kernel is has a bound of its own, and `Alive` can't hide a slow stream for longer.
//! Both accounts are closed by [`Expectation::min_bytes`] of stream, not by a single byte: else one per half an hour would do.

use std::time::{Duration, Instant};

/// What is expected of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Expectation {
    /// No frame and no `Alive` for that long is the end.
    pub silence: Duration,
    /// In each window of that much waiting for the peer …
    pub window: Duration,
    /// … at least that many bytes come.
    pub min_bytes: u64,
    /// The same number of bytes comes before the peer's kernel has taken that long, by what the peer's `Alive` say. `None`:
    /// the peer is not told that it may send `Alive`, and gains nothing by it.
    pub kernel: Option<Duration>,
}

/// What is wrong with a peer's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// No frame.
    Silent,
    /// Too few bytes.
    Trickle,
    /// Its kernel reads, for so long, and brings too few bytes.
    Kernel(Duration),
}

/// One stream's account.
#[derive(Debug)]
pub struct Progress {
    expectation: Expectation,
    /// Waiting since then; `None` while the actor is waited for.
    waiting_since: Option<Instant>,
    /// Waited in this window before `waiting_since`.
    waited: Duration,
    /// Waited for the peer's kernel in this window.
    kernel: Duration,
    /// Bytes in this window.
    bytes: u64,
}

impl Progress {
    /// A stream that owes nothing until [`Progress::on_wait`].
    pub fn new(expectation: Expectation) -> Self {
        Self { expectation, waiting_since: None, waited: Duration::ZERO, kernel: Duration::ZERO, bytes: 0 }
    }

    /// Whether the peer may say that its kernel reads.
    pub fn takes_alive(&self) -> bool {
        self.expectation.kernel.is_some()
    }

    /// How often a side that has nothing to say but lives should say so: two of three such words may be late or lost.
    pub fn alive_every(&self) -> Duration {
        self.expectation.silence / 3
    }

    /// A frame with that many bytes arrived; until [`Progress::on_wait`] the peer owes nothing.
    pub fn on_frame(&mut self, now: Instant, bytes: usize) {
        self.settle(now);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes >= self.expectation.min_bytes {
            self.bytes = 0;
            self.waited = Duration::ZERO;
            self.kernel = Duration::ZERO;
        }
    }

    /// The peer says that it waits for its kernel: the time since it was last heard is the kernel's. It is waited for on.
    pub fn on_alive(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since.filter(|_| self.takes_alive()) {
            self.kernel += now.saturating_duration_since(since);
            self.waiting_since = Some(now);
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
        if self.kernel_is_over() {
            return Some(since);
        }
        let left = self.expectation.window.saturating_sub(self.waited);
        Some(since + left.min(self.expectation.silence))
    }

    /// What is wrong at `now`, if anything.
    pub fn check(&self, now: Instant) -> Option<Stall> {
        let waiting = now.saturating_duration_since(self.waiting_since?);
        if self.kernel_is_over() {
            return Some(Stall::Kernel(self.kernel));
        }
        if waiting >= self.expectation.silence {
            return Some(Stall::Silent);
        }
        (self.waited + waiting >= self.expectation.window).then_some(Stall::Trickle)
    }

    fn kernel_is_over(&self) -> bool {
        self.expectation.kernel.is_some_and(|most| self.kernel >= most)
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
    const EXPECTATION: Expectation = Expectation {
        silence: Duration::from_secs(30),
        window: Duration::from_secs(60),
        min_bytes: 1000,
        kernel: Some(Duration::from_secs(1800)),
    };

    fn waiting(start: Instant) -> Progress {
        let mut progress = Progress::new(EXPECTATION);
        assert_eq!(progress.deadline(), None, "nothing is owed before the offer is taken");
        progress.on_wait(start);
        progress
    }

    #[test]
    fn silence_ends_a_stream() {
        let start = Instant::now();
        let progress = waiting(start);
        assert_eq!(progress.check(start + 29 * SECOND), None);
        assert_eq!(progress.deadline(), Some(start + 30 * SECOND));
        assert_eq!(progress.check(start + 30 * SECOND), Some(Stall::Silent));
    }

    #[test]
    fn a_byte_every_ten_seconds_ends_it_too() {
        let start = Instant::now();
        let mut progress = waiting(start);
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
        let mut progress = waiting(start);
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
        let mut progress = waiting(start);
        progress.on_frame(start + SECOND, 1);
        assert_eq!(progress.check(start + 1000 * SECOND), None, "the actor holds the frame");
        assert_eq!(progress.deadline(), None);
        progress.on_alive(start + 5000 * SECOND);
        assert_eq!(progress.check(start + 5000 * SECOND), None, "a word about the kernel meanwhile changes nothing");
        progress.on_wait(start + 10_000 * SECOND);
        assert_eq!(progress.check(start + 10_029 * SECOND), None);
        assert_eq!(progress.check(start + 10_030 * SECOND), Some(Stall::Silent));
    }

    /// An `Alive` every ten seconds, up to and with that second.
    fn alive(progress: &mut Progress, start: Instant, from: u32, to: u32) {
        for i in (from..=to).step_by(10) {
            let now = start + i * SECOND;
            assert_eq!(progress.check(now), None, "at {i} s");
            progress.on_alive(now);
        }
    }

    #[test]
    fn a_kernel_that_reads_may_be_silent_for_long_but_a_peer_that_stops_saying_so_may_not() {
        let start = Instant::now();
        let mut progress = waiting(start);
        alive(&mut progress, start, 10, 600);
        assert_eq!(progress.deadline(), Some(start + 630 * SECOND));
        assert_eq!(progress.check(start + 629 * SECOND), None);
        assert_eq!(progress.check(start + 630 * SECOND), Some(Stall::Silent));
    }

    #[test]
    fn a_word_that_was_not_asked_for_puts_nothing_off() {
        let start = Instant::now();
        let mut progress = Progress::new(Expectation { kernel: None, ..EXPECTATION });
        progress.on_wait(start);
        alive(&mut progress, start, 10, 20);
        assert!(!progress.takes_alive());
        assert_eq!(progress.check(start + 30 * SECOND), Some(Stall::Silent));
    }

    #[test]
    fn a_peer_that_says_nothing_else_is_cut_at_the_kernels_bound() {
        let start = Instant::now();
        let mut progress = waiting(start);
        alive(&mut progress, start, 10, 1800);
        assert_eq!(progress.deadline(), Some(start + 1800 * SECOND), "at once");
        assert_eq!(progress.check(start + 1800 * SECOND), Some(Stall::Kernel(1800 * SECOND)));
    }

    #[test]
    fn a_flood_of_words_makes_the_kernels_bound_no_longer() {
        let start = Instant::now();
        let mut progress = waiting(start);
        for i in 1..=180_000_u32 {
            progress.on_alive(start + i * SECOND / 100);
        }
        assert_eq!(progress.check(start + 1800 * SECOND), Some(Stall::Kernel(1800 * SECOND)));
    }

    #[test]
    fn a_few_bytes_now_and_then_do_not_open_the_kernels_account_anew() {
        let start = Instant::now();
        let mut progress = waiting(start);
        for i in 1..=18_u32 {
            alive(&mut progress, start, i * 100 - 90, i * 100);
            if i < 18 {
                progress.on_frame(start + i * 100 * SECOND, 10);
                progress.on_wait(start + i * 100 * SECOND);
            }
        }
        assert_eq!(progress.check(start + 1800 * SECOND), Some(Stall::Kernel(1800 * SECOND)));
        progress.on_frame(start + 1800 * SECOND, 1000);
        progress.on_wait(start + 1800 * SECOND);
        alive(&mut progress, start, 1810, 3590);
        assert_eq!(progress.check(start + 3590 * SECOND), None, "enough bytes do");
    }

    #[test]
    fn words_about_the_kernel_do_not_hide_a_trickle() {
        let start = Instant::now();
        let mut progress = waiting(start);
        // Ten seconds that the peer puts on its kernel, then five of its own before a byte.
        for i in 1..12_u32 {
            let now = start + i * 15 * SECOND;
            progress.on_alive(start + (i * 15 - 5) * SECOND);
            assert_eq!(progress.check(now), None, "after {i} frames");
            progress.on_frame(now, 1);
            progress.on_wait(now);
        }
        progress.on_alive(start + 175 * SECOND);
        assert_eq!(progress.check(start + 179 * SECOND), None);
        assert_eq!(progress.check(start + 180 * SECOND), Some(Stall::Trickle), "twelve times five are sixty");
    }
}
