//! `mailring account import`: many accounts from a CSV file. Lines fail one by one; hashing, which costs by far the
//! most, uses every core.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use csv::{ByteRecord, ReaderBuilder, Terminator};
use proto::wire::NewAccount;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::admin::account;
use crate::admin::client::AdminClient;
use crate::cli::OutputArgs;
use crate::failure::Failure;
use crate::output::counted;
use crate::{names, password};

/// Accounts in one change. The directory takes 500; fewer show progress sooner and lose less when a batch is lost.
const BATCH: usize = 200;
/// Batches that are hashed and wait for the directory.
const BATCHES_AHEAD: usize = 1;

#[derive(Debug, Serialize, Default)]
struct Report {
    imported: usize,
    failed: Vec<FailedLine>,
}

#[derive(Debug, Serialize)]
struct FailedLine {
    line: u64,
    account: String,
    error: String,
}

/// A line of the file that can be an account.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    account: String,
    secret: Secret,
}

#[derive(PartialEq, Eq)]
enum Secret {
    Password(String),
    Hash(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

pub async fn run(client: &mut AdminClient, file: &Path, output: OutputArgs) -> Result<(), Failure> {
    let input: Box<dyn Read + Send> = match file.to_str() {
        Some("-") => Box::new(io::stdin()),
        _ => Box::new(File::open(file).with_context(|| file.display().to_string()).map_err(Failure::Usage)?),
    };
    let mut rows = Rows::new(input).with_context(|| file.display().to_string()).map_err(Failure::Usage)?;
    let mut report = Report::default();
    let began = Instant::now();
    // The next batch is read and hashed while one is on its way to the directory. In a thread that nobody waits for
    // when the import stops early: it may be waiting for standard input.
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let hashing = thread::spawn(move || {
        loop {
            let lines = rows.batch(BATCH);
            if lines.is_empty() || sender.blocking_send(hashed(lines)).is_err() {
                return;
            }
        }
    });
    while let Some(batch) = batches.recv().await {
        import_batch(client, batch, &mut report).await?;
        progress(&report, began);
    }
    end_progress();
    hashing.join().map_err(|_| anyhow!("reading and hashing broke off; what was imported stays"))?;
    let imported = counted(report.imported, "account");
    let sentence = match report.failed.len() {
        0 => format!("{imported} imported"),
        failed => format!("{imported} imported, {} failed", counted(failed, "line")),
    };
    output.done(&report, &sentence)?;
    if report.failed.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

async fn import_batch(client: &mut AdminClient, batch: Vec<(u64, Hashed)>, report: &mut Report) -> Result<(), Failure> {
    let mut accounts = Vec::new();
    let mut numbers = Vec::new();
    let mut failed = Vec::new();
    for (line, hashed) in batch {
        match hashed {
            Ok(account) => {
                accounts.push(account);
                numbers.push(line);
            }
            Err((account, error)) => failed.push(FailedLine { line, account, error: format!("{error:#}") }),
        }
    }
    if accounts.is_empty() {
        report.fail(failed);
        return Ok(());
    }
    let results = match account::add(client, accounts.clone()).await {
        Ok(results) => results,
        Err(error) => {
            report.fail(failed);
            let done = counted(report.imported, "account");
            let first = numbers.first().copied().unwrap_or(0);
            eprintln!("mailring: stopped at line {first}: {done} imported before it");
            return Err(error);
        }
    };
    for ((line, account), result) in numbers.into_iter().zip(accounts).zip(results) {
        match result {
            Ok(()) => report.imported += 1,
            Err(error) => failed.push(FailedLine { line, account: account.name, error: error.to_string() }),
        }
    }
    report.fail(failed);
    Ok(())
}

impl Report {
    /// The lines of a batch that failed, here or in the directory, in the file's order. Said at once: an import of a
    /// million lines takes hours.
    fn fail(&mut self, mut failed: Vec<FailedLine>) {
        end_progress();
        failed.sort_by_key(|one| one.line);
        for FailedLine { line, account, error } in &failed {
            eprintln!("line {line}: {}: {error}", account.escape_debug());
        }
        self.failed.append(&mut failed);
    }
}

/// One line over itself on a terminal; nothing elsewhere.
fn progress(report: &Report, began: Instant) {
    let mut err = io::stderr();
    if err.is_terminal() {
        let (imported, failed) = (report.imported, report.failed.len());
        let a_second = (imported + failed) as f64 / began.elapsed().as_secs_f64().max(0.001);
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(err, "\r{imported} imported, {failed} failed, {a_second:.0} lines/s\x1b[K")
            .and_then(|()| err.flush());
    }
}

fn end_progress() {
    let mut err = io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K");
    }
}

type Hashed = Result<NewAccount, (String, anyhow::Error)>;

/// The lines as accounts, in order, hashed on all cores.
fn hashed(lines: Vec<Line>) -> Vec<(u64, Hashed)> {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(lines.len().max(1));
    let work = || {
        let mut done = Vec::new();
        while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((line.number, hash_line(line)));
        }
        done
    };
    let mut all: Vec<(u64, Hashed)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        // A line that nobody answers for must not be passed over.
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.flatten().collect()
    });
    all.sort_by_key(|(line, _)| *line);
    all
}

fn hash_line(line: &Line) -> Hashed {
    let row = match &line.row {
        Ok(row) => row,
        Err((account, error)) => return Err((account.clone(), anyhow!("{error}"))),
    };
    let password_hash = match &row.secret {
        Secret::Password(text) => password::hash(text),
        Secret::Hash(phc) => password::check_hash(phc).map(|()| phc.clone()),
    };
    match password_hash {
        Ok(password_hash) => Ok(NewAccount { name: row.account.clone(), password_hash }),
        Err(error) => Err((row.account.clone(), error)),
    }
}

struct Line {
    /// From 1, the header's line included.
    number: u64,
    /// Or the account as far as it could be read, and why it cannot be imported.
    row: Result<Row, (String, String)>,
}

/// The file's lines after its header.
struct Rows<R: Read> {
    reader: csv::Reader<io::Chain<R, &'static [u8]>>,
    account: usize,
    password: Option<usize>,
    hash: Option<usize>,
}

impl<R: Read> Rows<R> {
    fn new(input: R) -> anyhow::Result<Rows<R>> {
        // Every line ends with LF, also the last; the CR before it is taken off here. Only so can lines be counted.
        let mut reader =
            ReaderBuilder::new().flexible(true).terminator(Terminator::Any(b'\n')).from_reader(input.chain(&b"\n"[..]));
        let header = reader.byte_headers().context("header line")?.clone();
        let (mut account, mut password, mut hash) = (None, None, None);
        for (index, name) in header.iter().enumerate() {
            let name = name.trim_ascii();
            let column = match name {
                b"account" => &mut account,
                b"password" => &mut password,
                b"password_hash" => &mut hash,
                other => bail!(
                    "header line: column {:?} is not account, password or password_hash",
                    String::from_utf8_lossy(other)
                ),
            };
            if column.replace(index).is_some() {
                bail!("header line: column {:?} stands twice", String::from_utf8_lossy(name));
            }
        }
        let account = account.context("header line: no column account")?;
        if password.is_none() && hash.is_none() {
            bail!("header line: no column password or password_hash");
        }
        Ok(Rows { reader, account, password, hash })
    }

    /// Up to `max` lines; none at the end of the file.
    fn batch(&mut self, max: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut record = ByteRecord::new();
        while lines.len() < max {
            match self.reader.read_byte_record(&mut record) {
                Ok(true) if record.len() == 1 && record.iter().all(|field| field == b"\r") => {}
                Ok(true) => {
                    // The reader stands after the record's line end; a quoted field may have line ends of its own.
                    let within = record.iter().flatten().filter(|octet| **octet == b'\n').count() as u64;
                    let number = self.reader.position().line().saturating_sub(1 + within);
                    lines.push(Line { number, row: self.row(&record) });
                }
                Ok(false) => break,
                Err(error) => {
                    let number = self.reader.position().line();
                    lines.push(Line { number, row: Err((String::new(), error.to_string())) });
                    break;
                }
            }
        }
        lines
    }

    fn row(&self, record: &ByteRecord) -> Result<Row, (String, String)> {
        let shown = String::from_utf8_lossy(record.get(self.account).unwrap_or_default()).trim().to_owned();
        let wrong = |reason: String| (shown.clone(), reason);
        if record.len() != self.reader_columns() {
            let (columns, found) = (self.reader_columns(), record.len());
            return Err(wrong(format!("{columns} fields expected, {found} found; quote a field that has a comma")));
        }
        let field = |index: Option<usize>| -> Result<&str, (String, String)> {
            let bytes = index.and_then(|index| record.get(index)).unwrap_or_default();
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            std::str::from_utf8(bytes).map_err(|_| wrong("not UTF-8".to_owned()))
        };
        let account = names::account(field(Some(self.account))?.trim()).map_err(|e| wrong(e.to_string()))?;
        let secret = match (field(self.password)?, field(self.hash)?.trim()) {
            ("", "") => return Err(wrong("no password".to_owned())),
            (password, "") => Secret::Password(password.to_owned()),
            ("", hash) => Secret::Hash(hash.to_owned()),
            _ => return Err(wrong("both password and password_hash".to_owned())),
        };
        Ok(Row { account: account.to_string(), secret })
    }

    fn reader_columns(&self) -> usize {
        1 + usize::from(self.password.is_some()) + usize::from(self.hash.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::{FailedLine, Line, Report, Row, Rows, Secret, hashed};

    fn lines(text: &[u8]) -> Vec<Line> {
        let mut rows = Rows::new(text).unwrap();
        let mut all = Vec::new();
        loop {
            let batch = rows.batch(2);
            if batch.is_empty() {
                return all;
            }
            all.extend(batch);
        }
    }

    fn password(account: &str, password: &str) -> Row {
        Row { account: account.to_owned(), secret: Secret::Password(password.to_owned()) }
    }

    #[test]
    fn lines_become_accounts_with_quotes_crlf_and_a_byte_order_mark() {
        let text = "\u{feff}account,password\r\nA@Example.Test,\"with \"\"quotes\"\", comma\"\r\nb@example.test, leading and trailing \r\n\r\nc@bücher.test,x\r\n\n\ne@b.test,x";
        let rows: Vec<(u64, Row)> =
            lines(text.as_bytes()).into_iter().map(|line| (line.number, line.row.unwrap())).collect();
        assert_eq!(rows[0], (2, password("a@example.test", "with \"quotes\", comma")));
        assert_eq!(rows[1], (3, password("b@example.test", " leading and trailing ")));
        assert_eq!(rows[2], (5, password("c@xn--bcher-kva.test", "x")));
        assert_eq!(rows[3], (8, password("e@b.test", "x")));
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn bad_lines_are_told_by_number_and_do_not_hinder_others() {
        let text = b"account,password\nnonsense,x\na@b.test\na@b.test,x,y\na@b.test,\n\xff@b.test,x\ngood@b.test,x\n";
        let all = lines(text);
        let failed: Vec<u64> = all.iter().filter(|line| line.row.is_err()).map(|line| line.number).collect();
        assert_eq!(failed, [2, 3, 4, 5, 6]);
        assert_eq!(all.last().unwrap().row, Ok(password("good@b.test", "x")));
    }

    #[test]
    fn failures_name_the_account_without_its_line_end_and_come_in_order() {
        let all = lines(b"password,account\r\nx,nonsense\r\nx,y,z\r\n,a@b.test\r\n");
        let named = |line: &Line| line.row.as_ref().unwrap_err().0.clone();
        assert_eq!(all.iter().map(named).collect::<Vec<_>>(), ["nonsense", "y", "a@b.test"]);
        // Two that the directory refuses around one that never gets there.
        let failed = |line| FailedLine { line, account: String::new(), error: String::new() };
        let mut report = Report::default();
        report.fail(vec![failed(3), failed(2), failed(4)]);
        report.fail(vec![failed(5)]);
        assert_eq!(report.failed.iter().map(|one| one.line).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn columns_come_in_any_order_and_unknown_ones_are_refused() {
        let text = b"password_hash,account,password\n,a@b.test,x\n$argon2id$m=8,t=1,p=1$x$y,a@b.test,\n$h,a@b.test,x\n";
        let rows = lines(text);
        assert_eq!(rows[0].row, Ok(password("a@b.test", "x")));
        assert!(matches!(&rows[1].row, Err((_, reason)) if reason.contains("3 fields")));
        assert!(matches!(&rows[2].row, Err((_, reason)) if reason.contains("both")));
        for header in ["", "account\n", "password\n", "account,pasword\n", "account,account,password\n"] {
            assert!(Rows::new(header.as_bytes()).is_err(), "{header:?}");
        }
    }

    #[test]
    fn hashes_are_taken_as_they_are_and_passwords_are_hashed_in_order() {
        let phc = crate::password::hash("given").unwrap();
        let text = format!("account,password,password_hash\na@b.test,x,\nb@b.test,,\"{phc}\"\nc@b.test,,$2b$10$no\n");
        let all = hashed(lines(text.as_bytes()));
        assert_eq!(all.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4]);
        let hash = |index: usize| all[index].1.as_ref().map(|account| account.password_hash.clone());
        assert!(hash(0).unwrap().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_eq!(hash(1).unwrap(), phc);
        assert!(hash(2).is_err());
    }
}
