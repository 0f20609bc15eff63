//! Figures of a run: percentiles, what the programs' own metrics say of their CSI calls, memory and processor time of a process.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Pid;

use super::Test;
use crate::rig::programs::http_get;

/// Median, 95th percentile and maximum, as printed.
pub fn spread(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: usize| sorted.get((sorted.len() * share).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
    format!("p50 {:.2} s, p95 {:.2} s, max {:.2} s ({})", at(50), at(95), at(100), sorted.len())
}

/// Calls of a method so far: how many, and their seconds together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calls {
    /// How many.
    pub count: f64,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Of these, answered with an error (`ABORTED`: not yet).
    pub refused: f64,
}

/// CSI calls of operator and agents by method, since the programs were started.
#[derive(Clone, Debug, Default)]
pub struct Csi(BTreeMap<String, Calls>);

impl Csi {
    /// As the metrics of all programs say now.
    pub async fn now(t: &Test) -> Result<Self> {
        let mut all = BTreeMap::<String, Calls>::new();
        for address in t.rig.nodes.iter().map(|n| &n.http).chain([&t.rig.operator_http]) {
            let (_, text) = http_get(address, "/metrics").await?;
            for (method, calls) in of_text(&text) {
                let sum = all.entry(method).or_default();
                sum.count += calls.count;
                sum.seconds += calls.seconds;
                sum.refused += calls.refused;
            }
        }
        Ok(Self(all))
    }

    /// What was called since `before`, one method a line.
    pub fn since(&self, before: &Self, methods: &[&str]) -> String {
        let line = |method: &&str| {
            let (now, then) = (self.of(method), before.of(method));
            let count = now.count - then.count;
            let mean = if count > 0.0 { (now.seconds - then.seconds) / count } else { 0.0 };
            let refused = match now.refused - then.refused {
                none if none < 1.0 => String::new(),
                some => format!(" ({some:.0} not yet)"),
            };
            format!("{method} {count:.0} × {:.0} ms{refused}", mean * 1e3)
        };
        methods.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// Calls of a method since the programs were started.
    pub fn of(&self, method: &str) -> Calls {
        self.0.get(method).copied().unwrap_or_default()
    }
}

/// The sums of both programs' histograms of CSI calls by method.
fn of_text(text: &str) -> BTreeMap<String, Calls> {
    let mut all = BTreeMap::<String, Calls>::new();
    for line in text.lines().filter(|l| l.contains("csi_") && l.contains("method=")) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let Some(method) = name.split_once("method=\"").and_then(|(_, rest)| rest.split('"').next()) else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let calls = all.entry(method.to_owned()).or_default();
        if name.contains("seconds_count") {
            calls.count = value;
        } else if name.contains("seconds_sum") {
            calls.seconds = value;
        } else if name.contains("calls_total") && !name.to_ascii_lowercase().contains("code=\"ok\"") {
            calls.refused += value;
        }
    }
    all
}

/// Resident memory of a process in MiB: all, and its own (without the files that it maps).
pub fn memory(pid: Pid) -> Result<(f64, f64)> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

/// Processor time of a process so far, by the kernel's clock of 100 ticks a second.
pub fn processor(pid: Pid) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("too few fields")?.parse()?) };
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let all: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(spread(&all), "p50 50.00 s, p95 95.00 s, max 100.00 s (100)");
        assert_eq!(spread(&[2.0]), "p50 2.00 s, p95 2.00 s, max 2.00 s (1)");
        assert_eq!(spread(&[]), "p50 0.00 s, p95 0.00 s, max 0.00 s (0)");
    }

    #[test]
    fn calls_are_read_by_method() {
        let text = "dotgraft_csi_call_seconds_sum{method=\"NodeStageVolume\"} 1.5\n\
                    dotgraft_csi_call_seconds_count{method=\"NodeStageVolume\"} 3\n\
                    dotgraft_operator_csi_seconds_bucket{le=\"0.1\",method=\"CreateVolume\"} 9\n\
                    dotgraft_operator_csi_calls_total{method=\"CreateVolume\",code=\"OK\"} 7\n\
                    dotgraft_operator_csi_calls_total{method=\"CreateVolume\",code=\"ABORTED\"} 2\n\
                    dotgraft_operator_csi_seconds_count{method=\"CreateVolume\"} 9\n";
        let all = Csi(of_text(text));
        assert_eq!(all.of("NodeStageVolume"), Calls { count: 3.0, seconds: 1.5, refused: 0.0 });
        let text = all.since(&Csi::default(), &["NodeStageVolume", "CreateVolume"]);
        assert_eq!(text, "NodeStageVolume 3 × 500 ms, CreateVolume 9 × 0 ms (2 not yet)");
    }

    #[test]
    fn this_process_has_memory_and_takes_time() {
        let (resident, own) = memory(rustix::process::getpid()).unwrap();
        assert!(resident >= own && own > 0.1, "{resident} {own}");
        processor(rustix::process::getpid()).unwrap();
    }
}
