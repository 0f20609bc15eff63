//! What ginkgo's report says, by group: which specs ran, passed, failed, and which could not run and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Ginkgo's report of one suite, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Suite {
    #[serde(rename = "SpecReports", default)]
    specs: Vec<Spec>,
}

/// One spec.
#[derive(Debug, Clone, Deserialize)]
pub struct Spec {
    #[serde(rename = "ContainerHierarchyTexts", default)]
    containers: Option<Vec<String>>,
    #[serde(rename = "LeafNodeText", default)]
    leaf: String,
    #[serde(rename = "LeafNodeType", default)]
    kind: String,
    #[serde(rename = "State", default)]
    state: String,
    #[serde(rename = "RunTime", default)]
    nanoseconds: f64,
    #[serde(rename = "Failure", default)]
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Failure {
    #[serde(rename = "Message", default)]
    message: String,
}

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It ran and all was as it must be.
    Passed,
    /// It ran and something was not.
    Failed,
    /// It began, and said that it doesn't apply.
    Skipped,
    /// It was not begun: left out by name, or the time was over.
    LeftOut,
}

impl Spec {
    /// How it ended.
    pub fn end(&self) -> End {
        match self.state.as_str() {
            "passed" => End::Passed,
            "skipped" if self.reason().is_empty() => End::LeftOut,
            "skipped" => End::Skipped,
            "pending" => End::LeftOut,
            _ => End::Failed,
        }
    }

    /// The first line of what it said, if it didn't pass.
    pub fn reason(&self) -> String {
        let message = self.failure.as_ref().map(|f| f.message.as_str()).unwrap_or_default();
        message.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().chars().take(200).collect()
    }

    /// The suite within the suite: `provisioning`, `subPath`.
    pub fn group(&self) -> String {
        let name = self.containers.iter().flatten().find(|text| text.contains("[Testpattern:")).map_or("", String::as_str);
        // Labels in brackets stand before and behind the word.
        let outside = name.split('[').map(|part| part.rsplit(']').next().unwrap_or_default().trim());
        outside.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Its volume and its sentence.
    pub fn title(&self) -> String {
        let pattern = self.containers.iter().flatten().find_map(|text| text.split("[Testpattern: ").nth(1)?.split(']').next());
        format!("{}: {}", pattern.unwrap_or("?"), self.leaf)
    }
}

/// Everything that ginkgo reports.
#[derive(Debug)]
pub struct Report(Vec<Spec>);

impl Report {
    /// Reads ginkgo's JSON.
    ///
    /// # Errors
    ///
    /// No file is there, as ginkgo leaves none when it is killed early; it is not the JSON of a version that is known here.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("ginkgo has left no report at {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(json).context("ginkgo's report")?;
        let ours = |s: &Spec| s.kind == "It" && s.containers.iter().flatten().any(|text| text.contains("External Storage"));
        Ok(Self(suites.into_iter().flat_map(|s| s.specs).filter(ours).collect()))
    }

    /// The specs that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Spec> {
        self.0.iter().filter(|s| s.end() == End::Failed)
    }

    fn count(&self, end: End) -> usize {
        self.0.iter().filter(|s| s.end() == end).count()
    }

    /// The report for people, in Markdown. `whole`: it was not cut short.
    pub fn text(&self, took: Duration, whole: bool) -> String {
        let (passed, failed) = (self.count(End::Passed), self.count(End::Failed));
        let (skipped, left) = (self.count(End::Skipped), self.count(End::LeftOut));
        let mut text = format!("# External.Storage\n\n{} specs: {} ran, {passed} passed, {failed} failed; ", self.0.len(), passed + failed);
        let _ = write!(text, "{skipped} skipped themselves, {left} were not begun. {} s", took.as_secs());
        text += if whole { ".\n\n" } else { "; it was cut short, or ran out of time.\n\n" };
        text += &self.table();
        self.list(&mut text, "Failed", End::Failed);
        self.reasons(&mut text);
        self.list(&mut text, "Not begun", End::LeftOut);
        text
    }

    fn table(&self) -> String {
        let mut groups: BTreeMap<String, (BTreeMap<End, usize>, f64)> = BTreeMap::new();
        for spec in &self.0 {
            let (counts, seconds) = groups.entry(spec.group()).or_default();
            *counts.entry(spec.end()).or_default() += 1;
            *seconds = seconds.max(spec.nanoseconds / 1e9);
        }
        let mut table = "| Group | passed | failed | skipped | not begun | longest, s |\n|---|---|---|---|---|---|\n".to_owned();
        for (group, (counts, seconds)) in groups {
            let of = |end| counts.get(&end).copied().unwrap_or_default();
            let (left, skipped) = (of(End::LeftOut), of(End::Skipped));
            let _ = writeln!(table, "| {group} | {} | {} | {skipped} | {left} | {seconds:.0} |", of(End::Passed), of(End::Failed));
        }
        table
    }

    fn list(&self, text: &mut String, title: &str, end: End) {
        let mut specs: Vec<&Spec> = self.0.iter().filter(|s| s.end() == end).collect();
        if specs.is_empty() {
            return;
        }
        specs.sort_by_key(|s| (s.group(), s.title()));
        let _ = writeln!(text, "\n## {title}\n");
        for spec in specs {
            let reason = if spec.reason().is_empty() { excluded(spec) } else { spec.reason() };
            let _ = writeln!(text, "- {}, {}: {reason}", spec.group(), spec.title());
        }
    }

    /// Why specs skipped themselves, and how many for each reason.
    fn reasons(&self, text: &mut String) {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for spec in self.0.iter().filter(|s| s.end() == End::Skipped) {
            *reasons.entry(spec.reason()).or_default() += 1;
        }
        let _ = writeln!(text, "\n## Skipped themselves\n");
        for (reason, count) in reasons {
            let _ = writeln!(text, "- {count}: {reason}");
        }
    }
}

/// Why a spec was left out by name.
pub fn excluded(spec: &Spec) -> String {
    let name = format!("{} {} {}", spec.containers.iter().flatten().cloned().collect::<Vec<_>>().join(" "), spec.leaf, spec.group());
    let because = [
        ("Disruptive", "restarts kubelets by ssh, which the rig's nodes don't have"),
        ("Windows", "for Windows"),
        ("ntfs", "for Windows"),
        ("any volume data source", "needs images that can't be made here"),
        ("erformance", "measures against figures of a cloud"),
    ];
    because.iter().find(|(word, _)| name.contains(word)).map_or("not selected, or the time was over", |(_, why)| why).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"[{"SpecReports": [
        {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
        {"ContainerHierarchyTexts": ["[sig-storage] External Storage [Driver: csi.dotgraft.dev]", "[Testpattern: Dynamic PV (default fs)] provisioning"],
         "LeafNodeText": "should work", "LeafNodeType": "It", "State": "passed", "RunTime": 2500000000},
        {"ContainerHierarchyTexts": ["[sig-storage] External Storage [Driver: csi.dotgraft.dev]", "[Testpattern: Dynamic PV (default fs)] provisioning"],
         "LeafNodeText": "should fit", "LeafNodeType": "It", "State": "failed", "RunTime": 9000000000, "Failure": {"Message": "\n  too large\nmore"}},
        {"ContainerHierarchyTexts": ["[sig-storage] External Storage [Driver: csi.dotgraft.dev]", "[Testpattern: Dynamic PV (block volmode)] volumes [Slow]"],
         "LeafNodeText": "should store data", "LeafNodeType": "It", "State": "skipped", "Failure": {"Message": "no block"}},
        {"ContainerHierarchyTexts": ["[sig-storage] External Storage [Driver: csi.dotgraft.dev]", "[Testpattern: Dynamic PV (ntfs)][Feature:Windows] volumes"],
         "LeafNodeText": "should store data", "LeafNodeType": "It", "State": "skipped"},
        {"ContainerHierarchyTexts": ["[sig-storage] Else"], "LeafNodeText": "x", "LeafNodeType": "It", "State": "timedout"}
    ]}]"#;

    #[test]
    fn a_report_counts_every_spec_of_ours_once_and_says_why_it_did_not_pass() {
        let report = Report::parse(SAMPLE.as_bytes()).unwrap();
        let text = report.text(Duration::from_secs(61), true);
        assert!(text.contains("4 specs: 2 ran, 1 passed, 1 failed; 1 skipped themselves, 1 were not begun. 61 s.\n"), "{text}");
        assert!(text.contains("| provisioning | 1 | 1 | 0 | 0 | 9 |"), "{text}");
        assert!(text.contains("- provisioning, Dynamic PV (default fs): should fit: too large\n"), "{text}");
        assert!(text.contains("- 1: no block\n") && text.contains("should store data: for Windows\n"), "{text}");
        assert!(text.contains("| volumes | 0 | 0 | 1 | 1 | 0 |"), "{text}");
        assert_eq!(report.failed().count(), 1);
    }

    #[test]
    fn a_spec_that_was_interrupted_has_failed() {
        let json = SAMPLE.replace("\"passed\", \"RunTime\"", "\"interrupted\", \"RunTime\"");
        assert_eq!(Report::parse(json.as_bytes()).unwrap().failed().count(), 2);
    }
}
