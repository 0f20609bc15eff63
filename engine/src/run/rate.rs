//! Bytes per second over the last ten seconds, from progress events; `Run` owns one.

use std::collections::BTreeMap;

use crate::ids::BootTime;

/// Length of the window in milliseconds.
pub const WINDOW_MS: u64 = 10_000;
const BUCKET_MS: u64 = 1_000;

/// A window of at most 11 buckets of one second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    since: BootTime,
    buckets: BTreeMap<u64, u64>,
}

impl Rate {
    /// Starts counting at `now`.
    pub const fn new(now: BootTime) -> Self {
        Self { since: now, buckets: BTreeMap::new() }
    }

    /// `bytes` more have been sent.
    pub fn add(&mut self, bytes: u64, now: BootTime) {
        let bucket = now.0 / BUCKET_MS;
        self.buckets.retain(|at, _| !Self::is_old(*at, now));
        let sum = self.buckets.entry(bucket).or_default();
        *sum = sum.saturating_add(bytes);
    }

    /// The mean over the window, or since the start if that is shorter; the first second counts as a whole one.
    pub fn per_second(&self, now: BootTime) -> u64 {
        let bytes = self.buckets.iter().filter(|(at, _)| !Self::is_old(**at, now)).fold(0_u64, |sum, (_, b)| sum.saturating_add(*b));
        let span = now.since_ms(self.since).clamp(BUCKET_MS, WINDOW_MS);
        u64::try_from(u128::from(bytes) * 1_000 / u128::from(span)).unwrap_or(u64::MAX)
    }

    /// Whether a bucket lies outside the window that ends at `now`.
    const fn is_old(bucket: u64, now: BootTime) -> bool {
        match now.0.checked_sub(WINDOW_MS) {
            Some(begin) => bucket <= begin / BUCKET_MS,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_a_stalled_one_falls_to_zero() {
        let mut rate = Rate::new(BootTime(0));
        for s in 1..=30 {
            rate.add(5_000_000, BootTime(s * 1_000));
        }
        assert_eq!(rate.per_second(BootTime(30_000)), 5_000_000);
        assert!(rate.per_second(BootTime(35_000)) < 3_000_000);
        assert_eq!(rate.per_second(BootTime(41_000)), 0);
        assert!(rate.buckets.len() <= 11);
    }

    #[test]
    fn the_first_moment_is_not_a_division_by_zero() {
        let mut rate = Rate::new(BootTime(5));
        rate.add(1_000, BootTime(5));
        assert_eq!(rate.per_second(BootTime(5)), 1_000);
    }

    #[test]
    fn sums_saturate() {
        let mut rate = Rate::new(BootTime(100_000));
        rate.add(u64::MAX, BootTime(102_000));
        rate.add(u64::MAX, BootTime(102_000));
        assert_eq!(rate.per_second(BootTime(102_000)), u64::MAX / 2);
        assert_eq!(rate.per_second(BootTime(u64::MAX)), 0);
    }
}
