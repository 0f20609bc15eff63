//! A limit on payload bytes per second, shared by all steps of a job (replication.md §3): a token bucket with debts. The
//! core is pure and takes `now`; the handle sleeps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dotgraft_engine::ids::JobUid;

const NANOS: u128 = 1_000_000_000;

/// The pure core. A request is granted at once and paid later: whoever takes more than there is waits until the debt is
/// paid, in the order in which they asked.
#[derive(Debug, Clone)]
struct Bucket {
    /// Bytes per second, at least 1.
    rate: u64,
    /// Bytes that may pile up while nobody sends.
    burst: u64,
    /// When the bucket would be exactly empty; the past means there is something in it.
    empty_at: Instant,
}

impl Bucket {
    fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        let empty_at = now.checked_sub(time_for(burst, rate)).unwrap_or(now);
        Self { rate, burst, empty_at }
    }

    /// Takes `n` bytes; returns how long to wait before sending them.
    fn take(&mut self, n: u64, now: Instant) -> Duration {
        let fullest = now.checked_sub(time_for(self.burst, self.rate)).unwrap_or(now);
        self.empty_at = self.empty_at.max(fullest) + time_for(n, self.rate);
        self.empty_at.saturating_duration_since(now)
    }

    /// Changes the rate; debts stay debts of time.
    fn set_rate(&mut self, rate: u64) {
        self.rate = rate.max(1);
    }
}

/// How long `n` bytes take, rounded up to a nanosecond, at most a year: more is as good as never.
fn time_for(n: u64, rate: u64) -> Duration {
    const YEAR: u64 = 365 * 24 * 3600 * 1_000_000_000;
    let nanos = (u128::from(n) * NANOS).div_ceil(u128::from(rate.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(YEAR).min(YEAR))
}

/// A job's limit. A cheap clone; all clones share it.
#[derive(Debug, Clone)]
pub struct Bandwidth {
    /// `None`: unlimited.
    bucket: Arc<Mutex<Option<Bucket>>>,
}

impl Bandwidth {
    /// At most `rate` bytes per second, with a burst of a quarter of a second; `None` is unlimited. 0 counts as 1.
    pub fn new(rate: Option<u64>) -> Self {
        let limit = Self { bucket: Arc::default() };
        limit.set(rate);
        limit
    }

    /// Changes the limit for everyone who shares it; who sleeps already, sleeps on.
    pub fn set(&self, rate: Option<u64>) {
        let mut bucket = self.lock();
        match (rate, bucket.as_mut()) {
            (None, _) => *bucket = None,
            (Some(rate), Some(bucket)) if bucket.rate != rate => {
                bucket.set_rate(rate);
                bucket.burst = rate / 4;
            }
            (Some(_), Some(_)) => {}
            (Some(rate), None) => *bucket = Some(Bucket::new(rate, rate / 4, Instant::now())),
        }
    }

    /// Waits until `n` more bytes may be sent. Cancelling the wait doesn't give them back.
    pub async fn take(&self, n: usize) {
        let wait = self.lock().as_mut().map_or(Duration::ZERO, |b| b.take(n as u64, Instant::now()));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The largest piece to send at once, at most `max`: what an eighth of a second allows, and at least 4 KiB. Receivers end a stream
    /// in which no frame comes for long, so a slow one is sent in small frames rather than late ones.
    pub fn piece(&self, max: usize) -> usize {
        let rate = self.lock().as_ref().map_or(u64::MAX, |b| b.rate);
        usize::try_from(rate / 8).unwrap_or(usize::MAX).clamp(4 << 10, max.max(4 << 10)).min(max)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limits of all jobs that send from this node: the transfers of a job share one, of whichever Filesystem, and a change of it reaches
/// those that run.
#[derive(Debug, Default)]
pub struct Limits(Mutex<BTreeMap<JobUid, Bandwidth>>);

impl Limits {
    /// The limit of a job that begins a transfer, at that rate from now on.
    pub fn of(&self, job: JobUid, rate: Option<u64>) -> Bandwidth {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, limit| Arc::strong_count(&limit.bucket) > 1); // of jobs that send nothing now
        let limit = all.entry(job).or_insert_with(|| Bandwidth::new(rate)).clone();
        limit.set(rate);
        limit
    }

    /// The job's limit has been changed, or not: said each time that it is heard of.
    pub fn set(&self, job: JobUid, rate: Option<u64>) {
        if let Some(limit) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&job) {
            limit.set(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_transfers_of_a_job_share_its_limit_and_a_change_reaches_those_that_run() {
        let limits = Limits::default();
        let [one, other] = [1, 2].map(|n| JobUid::from_uuid(uuid::Uuid::from_u128(n)));
        let waits = async |limit: &Bandwidth, n| tokio::time::timeout(Duration::from_millis(100), limit.take(n)).await.is_err();
        let (first, second) = (limits.of(one, Some(1000)), limits.of(one, Some(1000)));
        assert!(waits(&first, 100_000).await);
        assert!(waits(&second, 1).await, "what the first took, the second waits for");
        assert!(!waits(&limits.of(other, Some(1000)), 1).await, "it is another job's");
        limits.set(one, None);
        assert!(!waits(&first, 1).await && !waits(&second, 1).await, "it is lifted");
        drop((first, second));
        let _third = limits.of(other, None);
        assert_eq!(limits.0.lock().unwrap().len(), 1, "jobs that send nothing are forgotten");
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 500, start);
        assert_eq!(bucket.take(500, start), Duration::ZERO);
        assert_eq!(bucket.take(1000, start), Duration::from_secs(1));
        assert_eq!(bucket.take(1000, start), Duration::from_secs(2), "asked second, waits second");
    }

    #[test]
    fn over_any_time_no_more_than_rate_times_time_plus_burst_passes() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10_000, 2_000, start);
        let (mut now, mut sent) = (start, 0_u64);
        for i in 0..1_000_u64 {
            let n = i * 7919 % 3_000;
            now += bucket.take(n, now) + Duration::from_millis(i % 5 * 40);
            sent += n;
            let elapsed = u64::try_from((now - start).as_millis()).unwrap();
            let allowed = 10_000 * elapsed / 1000 + 2_000 + 10;
            assert!(sent <= allowed, "{sent} bytes after {:?}", now - start);
        }
    }

    #[test]
    fn idle_time_is_saved_up_to_the_burst_only() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 100, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(1100, later), Duration::from_secs(1));
    }

    #[test]
    fn absurd_numbers_wait_for_ever_but_do_not_overflow() {
        let start = Instant::now();
        let mut bucket = Bucket::new(0, u64::MAX, start);
        let wait = bucket.take(u64::MAX, start);
        assert!(bucket.take(u64::MAX, start) >= wait);
    }

    #[test]
    fn a_slow_stream_is_sent_in_small_pieces() {
        assert_eq!(Bandwidth::new(None).piece(1 << 20), 1 << 20);
        assert_eq!(Bandwidth::new(Some(100 << 20)).piece(1 << 20), 1 << 20);
        assert_eq!(Bandwidth::new(Some(64 << 10)).piece(1 << 20), 8 << 10);
        assert_eq!(Bandwidth::new(Some(0)).piece(1 << 20), 4 << 10);
    }

    #[tokio::test]
    async fn an_unlimited_one_never_waits_and_a_limit_can_be_set_later() {
        let bandwidth = Bandwidth::new(None);
        let quick = tokio::time::timeout(Duration::from_secs(1), bandwidth.take(usize::MAX)).await;
        assert!(quick.is_ok());
        bandwidth.clone().set(Some(1000));
        let slow = tokio::time::timeout(Duration::from_millis(50), bandwidth.take(10_000)).await;
        assert!(slow.is_err(), "ten seconds' worth of bytes passed at once");
    }
}
