//! Bytes per second over the last ten seconds, from progress events; `Run` owns one.

use std::collections::BTreeMap;

use crate::ids::Timestamp;

/// Length of the window in milliseconds.
pub const WINDOW_MS: i64 = 10_000;
const BUCKET_MS: i64 = 1_000;

/// A window of at most 11 buckets of one second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    since: Timestamp,
    buckets: BTreeMap<i64, u64>,
}

impl Rate {
    /// Starts counting at `now`.
    pub const fn new(now: Timestamp) -> Self {
        Self { since: now, buckets: BTreeMap::new() }
    }

    /// `bytes` more have been sent. After the clock went back, counts from there.
    pub fn add(&mut self, bytes: u64, now: Timestamp) {
        if now < self.since {
            *self = Self::new(now);
        }
        let bucket = now.0.div_euclid(BUCKET_MS);
        self.buckets.retain(|at, _| *at <= bucket && !Self::is_old(*at, now));
        let sum = self.buckets.entry(bucket).or_default();
        *sum = sum.saturating_add(bytes);
    }

    /// The mean over the window, or since the start if that is shorter; the first second counts as a whole one.
    pub fn per_second(&self, now: Timestamp) -> u64 {
        let bytes = self.buckets.iter().filter(|(at, _)| !Self::is_old(**at, now)).fold(0_u64, |sum, (_, b)| sum.saturating_add(*b));
        let span = now.since_ms(self.since).clamp(BUCKET_MS.unsigned_abs(), WINDOW_MS.unsigned_abs());
        u64::try_from(u128::from(bytes) * 1_000 / u128::from(span)).unwrap_or(u64::MAX)
    }

    /// Whether a bucket lies outside the window that ends at `now`.
    const fn is_old(bucket: i64, now: Timestamp) -> bool {
        bucket <= now.0.saturating_sub(WINDOW_MS).div_euclid(BUCKET_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_a_stalled_one_falls_to_zero() {
        let mut rate = Rate::new(Timestamp(0));
        for s in 1..=30 {
            rate.add(5_000_000, Timestamp(s * 1_000));
        }
        assert_eq!(rate.per_second(Timestamp(30_000)), 5_000_000);
        assert!(rate.per_second(Timestamp(35_000)) < 3_000_000);
        assert_eq!(rate.per_second(Timestamp(41_000)), 0);
        assert!(rate.buckets.len() <= 11);
    }

    #[test]
    fn the_first_moment_is_not_a_division_by_zero() {
        let mut rate = Rate::new(Timestamp(5));
        rate.add(1_000, Timestamp(5));
        assert_eq!(rate.per_second(Timestamp(5)), 1_000);
    }

    #[test]
    fn a_clock_that_goes_back_starts_a_new_window() {
        let mut rate = Rate::new(Timestamp(100_000));
        rate.add(7_000, Timestamp(101_000));
        rate.add(3_000, Timestamp(1_000));
        assert_eq!(rate.per_second(Timestamp(2_000)), 3_000);
        rate.add(u64::MAX, Timestamp(2_000));
        rate.add(u64::MAX, Timestamp(2_000));
        assert!(rate.per_second(Timestamp(i64::MAX)) < u64::MAX);
    }
}
