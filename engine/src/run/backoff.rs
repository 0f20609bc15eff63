//! How long a run sleeps after a temporary error: exponential with jitter, from a seed, so that a run that is
//! replayed sleeps the same (replication.md §3).
//!
//! | failures in a row | sleeps (ms) |    | failures in a row | sleeps (ms) |
//! |---|---|---|---|---|
//! | 1 | 250–500 | | 5 | 4 000–8 000 |
//! | 2 | 500–1 000 | | 6 | 8 000–16 000 |
//! | 3 | 1 000–2 000 | | 7 | 16 000–32 000 |
//! | 4 | 2 000–4 000 | | 8 and more | 30 000–60 000 |

/// Longest sleep after the first failure, in milliseconds.
pub const BASE_MS: u64 = 500;
/// Longest sleep at all, in milliseconds.
pub const CAP_MS: u64 = 60_000;

/// The jitter's source: `SplitMix64`, whose whole state is one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jitter(u64);

impl Jitter {
    /// From a seed that the caller draws for each run.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Milliseconds to sleep after `failures` failures in a row (1 or more): between half of the table's value
    /// and all of it.
    pub fn delay_ms(&mut self, failures: u32) -> u64 {
        let full = BASE_MS.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(CAP_MS);
        let half = full / 2;
        half + self.next() % (full - half + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_follow_the_table_and_never_exceed_the_cap() {
        let table = [(1, 500), (2, 1_000), (3, 2_000), (7, 32_000), (8, 60_000), (9, 60_000), (u32::MAX, 60_000)];
        for seed in 0..200 {
            let mut jitter = Jitter::new(seed);
            for (failures, full) in table {
                let got = jitter.delay_ms(failures);
                assert!((full / 2..=full).contains(&got), "{failures} failures slept {got}");
            }
        }
    }

    #[test]
    fn one_seed_is_one_sequence_and_two_seeds_are_two() {
        let sleeps = |seed| {
            let mut jitter = Jitter::new(seed);
            (1..9).map(|n| jitter.delay_ms(n)).collect::<Vec<_>>()
        };
        assert_eq!(sleeps(7), sleeps(7));
        assert_ne!(sleeps(7), sleeps(8));
    }
}
