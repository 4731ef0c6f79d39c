//! Rows of bad input: what is sent, and which answers are accepted. Every row starts on a new connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::line::LineClient;

/// What is sent, and how an answer may begin: `501|553`. `-`: no answer is waited for. `.` among them: the server may
/// close instead. A trailing `.`, as in `221.`: it closes after the answer.
pub type Step = (Vec<u8>, &'static str);

pub struct Row {
    pub name: String,
    pub steps: Vec<Step>,
}

impl Row {
    /// Lines, to which CRLF is added.
    pub fn lines(name: impl Into<String>, steps: &[(&str, &'static str)]) -> Row {
        let steps = steps.iter().map(|(line, wanted)| (format!("{line}\r\n").into_bytes(), *wanted)).collect();
        Row { name: name.into(), steps }
    }

    /// Bytes as they are.
    pub fn bytes(name: impl Into<String>, steps: Vec<Step>) -> Row {
        Row { name: name.into(), steps }
    }

    /// Lines first, then this.
    pub fn after(mut self, lines: &[(&str, &'static str)]) -> Row {
        let first: Vec<Step> =
            lines.iter().map(|(line, wanted)| (format!("{line}\r\n").into_bytes(), *wanted)).collect();
        self.steps.splice(..0, first);
        self
    }
}

/// Plays rows, each followed by a look whether a new connection is greeted; the error lists all that failed.
/// `answer` reads one answer whole.
pub fn play_rows(
    address: SocketAddr,
    rows: &[Row],
    greeting: &str,
    answer: impl Fn(&mut LineClient) -> Result<String>,
) -> Result<()> {
    let mut failed = Vec::new();
    for row in rows {
        let greeted = || -> Result<()> {
            let line = LineClient::connect(address)?.line()?;
            ensure!(line.starts_with(greeting), "{line}");
            Ok(())
        };
        let played = play(address, row, greeting, &answer);
        if let Err(error) = played.and_then(|()| greeted().context("a new connection afterwards")) {
            failed.push(format!("{}: {error:#}", row.name));
        }
    }
    ensure!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
    Ok(())
}

fn play(
    address: SocketAddr,
    row: &Row,
    greeting: &str,
    answer: &impl Fn(&mut LineClient) -> Result<String>,
) -> Result<()> {
    let mut client = LineClient::connect(address)?;
    let line = client.line()?;
    ensure!(line.starts_with(greeting), "{line}");
    for (number, (bytes, wanted)) in row.steps.iter().enumerate() {
        // Towards a server that has closed already, writing may fail.
        let sent = client.send(bytes);
        if *wanted == "-" {
            continue;
        }
        let may_close = wanted.split('|').any(|one| one == ".");
        match sent.and_then(|()| answer(&mut client)) {
            Ok(got) => {
                let fits = wanted.split('|').any(|one| one != "." && got.starts_with(one.trim_end_matches('.')));
                ensure!(fits, "step {}: {got:?}, not {wanted}", number + 1);
                if wanted.ends_with('.') && !may_close {
                    ensure!(client.closes(), "step {}: stays open", number + 1);
                }
            }
            Err(_) if may_close => return Ok(()),
            Err(error) => return Err(error.context(format!("step {}", number + 1))),
        }
    }
    Ok(())
}
