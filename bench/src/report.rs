//! Collects times and prints them: the least and the median of each, and the ratio to the first contender.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A contender and its seconds.
type Row = (String, Vec<f64>);

/// Seconds by (set, cold or warm, contender), in the order of arrival.
#[derive(Debug, Default)]
pub struct Table {
    times: BTreeMap<(String, bool), Vec<Row>>,
}

impl Table {
    /// One measurement.
    pub fn add(&mut self, set: &str, cold: bool, contender: &str, seconds: f64) {
        let row = self.times.entry((set.to_owned(), !cold)).or_default();
        match row.iter_mut().find(|(name, _)| name == contender) {
            Some((_, all)) => all.push(seconds),
            None => row.push((contender.to_owned(), vec![seconds])),
        }
    }

    /// Markdown.
    pub fn text(&self) -> String {
        let mut out = String::from("| set | caches | contender | min s | median s | Dotgraft is (median) |\n|---|---|---|---|---|---|\n");
        for ((set, warm), row) in &self.times {
            let ours = row.iter().find(|(name, _)| name == "dotgraft").map_or(f64::NAN, |(_, all)| median(all));
            for (name, all) in row {
                let least = all.iter().copied().fold(f64::INFINITY, f64::min);
                let ratio = if name == "dotgraft" { String::from("–") } else { format!("{:.2} × as fast", median(all) / ours) };
                let caches = if *warm { "warm" } else { "cold" };
                let _ = writeln!(out, "| {set} | {caches} | {name} | {least:.3} | {:.3} | {ratio} |", median(all));
            }
        }
        out
    }
}

/// The middle one; the mean of the two in the middle.
pub fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
