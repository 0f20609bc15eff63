//! Logs to standard error: JSON for machines, lines for people (csi.md §2). `RUST_LOG` chooses what; the default is `info`.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// For a terminal.
    Human,
}

/// Not a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log format: use `json` or `human`")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;
    fn from_str(s: &str) -> Result<Self, FormatError> {
        match s {
            "json" => Ok(Self::Json),
            "human" => Ok(Self::Human),
            other => Err(FormatError(other.chars().take(32).collect())),
        }
    }
}

impl Format {
    /// `human` on a terminal, else `json`.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

/// Starts logging for this process. A second call does nothing.
pub fn init(format: Option<Format>) {
    // The HTTP stack tells of every frame at `debug`, and kube of every request at `debug`.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn,hyper=warn,h2=warn,rustls=warn"));
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format.unwrap_or_else(Format::detect) {
        Format::Json => base.json().flatten_event(true).with_current_span(true).with_span_list(false).finish().try_init(),
        Format::Human => base.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_formats_and_no_more() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("human".parse(), Ok(Format::Human));
        assert!("JSON".parse::<Format>().is_err());
        init(Some(Format::Json));
        init(Some(Format::Human));
    }
}
