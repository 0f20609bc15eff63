//! The node's two clocks: the only place where the agent reads them for the engine.
//!
//! What people see goes by the wall clock, which may be set. What is waited for goes by the boot clock, which nobody can set and which goes
//! on while the node is suspended (`CLOCK_BOOTTIME` of `clock_gettime(2)`).

use dotgraft_engine::ids::{BootTime, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Unix milliseconds by the wall clock.
pub fn wall_clock() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond().saturating_add(ahead_ms()))
}

/// By how much tests have this node's wall clock be wrong: `DOTGRAFT_CLOCK_AHEAD`, seconds, of debug builds only. What isn't the engine's, such as
/// certificates, goes by the machine's clock still.
fn ahead_ms() -> i64 {
    static AHEAD: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    let read = || std::env::var("DOTGRAFT_CLOCK_AHEAD").ok().and_then(|s| s.parse::<i64>().ok()).unwrap_or(0);
    if cfg!(debug_assertions) { AHEAD.get_or_init(read).saturating_mul(1_000) } else { 0 }
}

/// Milliseconds since this node booted, suspended or not.
pub fn boot_clock() -> BootTime {
    let since = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(since.tv_sec).unwrap_or(0), u64::try_from(since.tv_nsec).unwrap_or(0));
    BootTime(seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_is_the_kernels_uptime() {
        let uptime = |text: String| text.split('.').next().and_then(|s| s.parse::<u64>().ok()).expect("seconds");
        let before = uptime(std::fs::read_to_string("/proc/uptime").expect("procfs"));
        let seen = boot_clock().0 / 1_000;
        let after = uptime(std::fs::read_to_string("/proc/uptime").expect("procfs"));
        assert!((before..=after).contains(&seen), "{before} {seen} {after}");
    }
}
