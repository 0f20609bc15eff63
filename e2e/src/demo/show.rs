//! How the demo shows itself: headings, commands as a person would type them, their output, and what took how long.

use std::time::Instant;

use anyhow::Result;

use crate::rig::kube::Kube;
use crate::rig::source_root;

/// Prints, and remembers timings.
pub struct Show {
    kube: Kube,
    number: usize,
    timings: Vec<(String, f64)>,
}

impl Show {
    /// With the administrator's access, as the person at the terminal would have.
    pub fn new(kube: &Kube) -> Self {
        Self { kube: kube.clone(), number: 0, timings: Vec::new() }
    }

    /// Starts a step.
    pub fn step(&mut self, title: &str) {
        self.number += 1;
        println!("\n{}. {title}", self.number);
    }

    /// One line of what happens.
    #[expect(clippy::unused_self, reason = "reads as the others do")]
    pub fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// Shows a kubectl command, runs it, shows its output.
    pub async fn kubectl(&self, args: &str) -> Result<String> {
        let words: Vec<&str> = args.split_whitespace().collect();
        let quoted = |word: &&str| if word.starts_with('{') { format!("'{word}'") } else { (*word).to_owned() };
        println!("   $ kubectl {}", words.iter().map(quoted).collect::<Vec<_>>().join(" "));
        let output = self.kube.kubectl(&words).await?;
        output.lines().for_each(|line| println!("     {line}"));
        Ok(output)
    }

    /// `kubectl apply -f e2e/demo/<file>`.
    pub async fn apply(&self, file: &str) -> Result<()> {
        println!("   $ kubectl apply -f e2e/demo/{file}");
        let path = source_root().join("e2e/demo").join(file);
        let output = self.kube.kubectl(&["apply", "-f", &path.to_string_lossy()]).await?;
        output.lines().for_each(|line| println!("     {line}"));
        Ok(())
    }

    /// Remembers how long something took.
    pub fn timing(&mut self, what: &str, seconds: f64) {
        self.timings.push((what.into(), seconds));
    }

    /// Remembers how long something took that began at `start`, and says so.
    pub fn took(&mut self, what: &str, start: Instant) {
        let seconds = start.elapsed().as_secs_f64();
        println!("   {what}: {seconds:.2} s");
        self.timing(what, seconds);
    }

    /// The table of timings.
    pub fn table(&self) {
        println!("\nTimings");
        for (what, seconds) in &self.timings {
            println!("  {what:<58} {seconds:>8.2} s");
        }
    }
}
