//! How a run is shown while it goes: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dotgraft_api::ReplicationJobStatus;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::bytes;

/// One job's progress.
pub struct Display {
    bar: Option<ProgressBar>,
    last: String,
    at: Instant,
}

/// Plain lines come at most so often, unless the state changes.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Display {
    /// Chooses by what standard error is.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg:20} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, last: String::new(), at: Instant::now() }
    }

    /// The newest status.
    pub fn show(&mut self, status: &ReplicationJobStatus) {
        let state = status.state.clone().unwrap_or_else(|| "Pending".into());
        let progress = status.progress.clone().unwrap_or_default();
        if let Some(bar) = &self.bar {
            bar.set_length(progress.expected_bytes.unwrap_or(progress.replicated_bytes));
            bar.set_position(progress.replicated_bytes);
            bar.set_message(state);
            return;
        }
        if state != self.last || self.at.elapsed() >= LINE_EVERY {
            eprintln!("{}", line(&state, &progress));
            self.last = state;
            self.at = Instant::now();
        }
    }

    /// No more.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(state: &str, p: &dotgraft_api::Progress) -> String {
    let of = |n| format!(" of {}{}", if p.imprecise { "about " } else { "" }, bytes(n));
    let expected = p.expected_bytes.map(of).unwrap_or_default();
    let rate = p.bytes_per_second.map(|n| format!(", {}/s", bytes(n))).unwrap_or_default();
    let eta = p.eta.as_ref().map(|eta| format!(", {eta} left")).unwrap_or_default();
    format!("{state}: {}{expected}{rate}{eta}", bytes(p.replicated_bytes))
}
