//! How results are printed: a table for people, JSON or YAML for programs.

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// An error for people: what was tried, and why it didn't work. What the API server refuses is in its own words, once.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let refusal = match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(s)) if !s.message.is_empty() => Some(s.message.clone()),
            Some(kube::Error::Api(s)) => Some(format!("the API server says {} {}", s.code, s.reason)),
            _ => None,
        };
        let ends = refusal.is_some();
        let text = refusal.unwrap_or_else(|| cause.to_string());
        // Many errors repeat their cause.
        if !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
        if ends {
            break;
        }
    }
    parts.join(": ")
}

/// Rows of a table, aligned as kubectl does it.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With its head.
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }
    /// One more row; what has control characters is escaped.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = cells.into_iter().map(|c| if c.is_empty() { "-".to_owned() } else { c.chars().flat_map(visible).collect() });
        self.rows.push(shown.collect());
    }
    /// Aligned text.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
            cells.join("   ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn visible(c: char) -> std::vec::IntoIter<char> {
    let text: String = if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    text.chars().collect::<Vec<_>>().into_iter()
}

/// Prints `value` as asked; `table` draws it for people, `true` for wide.
pub fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce(bool) -> String) -> Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Format::Yaml => print!("{}", serde_yaml::to_string(value)?),
        Format::Table | Format::Wide => println!("{}", table(format == Format::Wide)),
    }
    Ok(())
}

/// Bytes with a binary unit.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// The first 13 characters of an id: its time and enough of the rest to tell neighbours apart.
pub fn short(id: &str) -> String {
    id.chars().take(13).collect()
}

/// How long ago, as kubectl says it.
pub fn age(then: jiff::Timestamp) -> String {
    age_at(then, jiff::Timestamp::now())
}

/// The same as of a moment.
pub fn age_at(then: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let s = now.as_second().saturating_sub(then.as_second()).max(0);
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_shown() {
        let mut table = Table::new(&["NAME", "MESSAGE"]);
        table.row(vec!["a".into(), "two\nlines".into()]);
        table.row(vec!["longer".into(), String::new()]);
        assert_eq!(table.text(), "NAME     MESSAGE\na        two\\nlines\nlonger   -");
    }

    #[test]
    fn an_error_is_one_sentence_without_what_only_programmers_read() {
        let status = |message: &str| kube::core::Status::failure(message, "Forbidden").with_code(403).boxed();
        let refused = anyhow::Error::new(kube::Error::Api(status("dots is forbidden: no"))).context("making it");
        assert_eq!(sentence(&refused), "making it: dots is forbidden: no");
        let silent = anyhow::Error::new(kube::Error::Api(status("")));
        assert_eq!(sentence(&silent), "the API server says 403 Forbidden");
        let twice = anyhow::anyhow!("no route").context("asking: no route");
        assert_eq!(sentence(&twice), "asking: no route");
    }
}
