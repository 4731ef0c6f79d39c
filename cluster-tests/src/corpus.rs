//! Real and odd mail for tests: a folder beside the checkout, or the one that MAILRING_CORPUS names.

use std::fs;
use std::path::PathBuf;

pub struct CorpusMessage {
    pub name: String,
    /// As found, with whatever line ends.
    pub bytes: Vec<u8>,
}

/// Every message, by name; None, said on stderr, where there is no corpus.
pub fn corpus() -> Option<Vec<CorpusMessage>> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let root = std::env::var_os("MAILRING_CORPUS").map_or(beside, PathBuf::from);
    let mut messages = Vec::new();
    for folder in ["odd", "real"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else {
            eprintln!("skipped: no corpus in {}", root.display());
            return None;
        };
        for entry in entries.flatten() {
            if let Ok(bytes) = fs::read(entry.path()) {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                messages.push(CorpusMessage { name, bytes });
            }
        }
    }
    messages.sort_by(|a, b| a.name.cmp(&b.name));
    Some(messages)
}
