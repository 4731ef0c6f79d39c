//! How commands print: tables and sentences for people, JSON for scripts.

use std::io::{self, Write};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::OutputArgs;

impl OutputArgs {
    /// A listing: an array in JSON, a table otherwise.
    pub fn list<T: Serialize>(self, header: &[&str], items: &[T], row: impl Fn(&T) -> Vec<String>) -> Result<()> {
        if self.json {
            return json(&items);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.iter().map(|name| name.to_uppercase()));
        for item in items {
            table.add_row(row(item));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        line(&table.trim_fmt())
    }

    /// One thing: an object in JSON, a line a field otherwise.
    pub fn show<T: Serialize>(self, item: &T, fields: &[(&str, String)]) -> Result<()> {
        if self.json {
            return json(item);
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> = fields.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
        line(&lines.join("\n"))
    }

    /// What was done: an object in JSON, a sentence otherwise.
    pub fn done<T: Serialize>(self, item: &T, sentence: &str) -> Result<()> {
        if self.json { json(item) } else { line(sentence) }
    }
}

fn json<T: Serialize>(item: &T) -> Result<()> {
    line(&serde_json::to_string_pretty(item).context("write JSON")?)
}

/// A line on standard output. A reader that went away (`| head`) is no error.
pub fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to standard output"),
    }
}

/// "1 account", "2 accounts".
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Octets as a person reads them.
pub fn octets(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

/// A span of time as a person says it: two digits or three, where it is more than two of a unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", (seconds + 30) / 60),
        7200..172_800 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} days", seconds.saturating_add(43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{octets, span};

    #[test]
    fn spans_are_readable() {
        assert_eq!([0, 119, 120, 725, 7199].map(span), ["0 s", "119 s", "2 min", "12 min", "120 min"]);
        assert_eq!([7200, 172_799, 172_800, u64::MAX].map(span), ["2 h", "48 h", "2 days", "213503982334601 days"]);
    }

    #[test]
    fn octets_are_readable() {
        assert_eq!(octets(0), "0 B");
        assert_eq!(octets(1023), "1023 B");
        assert_eq!(octets(1536), "1.5 KiB");
        assert_eq!(octets(5 * 1024 * 1024 * 1024), "5.0 GiB");
        assert_eq!(octets(u64::MAX), "16384.0 PiB");
    }
}
