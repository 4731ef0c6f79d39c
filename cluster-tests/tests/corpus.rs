//! Real and odd mail comes back byte for byte, whichever way it came in.

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, CorpusMessage, corpus};

/// The messages of the corpus, or a few of our own that are odd in the same ways where there is none.
fn messages() -> Vec<CorpusMessage> {
    let mut all = corpus().unwrap_or_default();
    let own: [(&str, Vec<u8>); 9] = [
        ("own/plain", b"Subject: a\r\n\r\nb\r\n".to_vec()),
        ("own/no final newline", b"Subject: a\r\n\r\nb".to_vec()),
        ("own/dots", b"Subject: a\r\n\r\n.\r\n..\r\n.a\r\n...\r\n".to_vec()),
        ("own/8-bit", b"Subject: \xe4\xf6\r\n\r\n\xff\xfe\x80\r\n".to_vec()),
        ("own/nul", b"Subject: a\r\n\r\nb\0c\r\n\0".to_vec()),
        ("own/bare line ends", b"Subject: a\n\nb\rc\nd\r\n".to_vec()),
        ("own/header only", b"Subject: a\r\n\r\n".to_vec()),
        ("own/body only", b"\r\nb\r\n".to_vec()),
        ("own/long header", [b"X: ".to_vec(), vec![b'y'; 200_000], b"\r\n\r\nz\r\n".to_vec()].concat()),
    ];
    all.extend(own.into_iter().map(|(name, bytes)| CorpusMessage { name: name.to_owned(), bytes }));
    all.retain(|message| !message.bytes.is_empty());
    all
}

/// Whether a stored message is the one that was sent behind the headers that the router adds: Return-Path and
/// Received, which may be folded.
fn is_with_trace(stored: &[u8], sent: &[u8]) -> bool {
    let Some(trace) = stored.strip_suffix(sent) else { return false };
    let lines: Vec<&[u8]> = trace.split_inclusive(|byte| *byte == b'\n').collect();
    let fields: Vec<_> = lines.iter().filter(|line| !matches!(line.first(), Some(b' ' | b'\t'))).collect();
    trace.ends_with(b"\r\n")
        && matches!(fields.as_slice(), [path, received] if path.starts_with(b"Return-Path: <") && received.starts_with(b"Received: "))
}

/// As POP3 gives a message: it has nothing but lines that end with CRLF (RFC 1939 §3).
fn in_lines(message: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for &byte in message {
        if byte == b'\n' && lines.last() != Some(&b'\r') {
            lines.push(b'\r');
        }
        lines.push(byte);
    }
    if !lines.ends_with(b"\r\n") {
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

#[test]
fn mail_comes_back_byte_exact_over_smtp_append_imap_and_pop3() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&["bdat", "append"])?;
    let messages = messages();
    let mut smtp = cluster.smtp_client()?;
    for message in &messages {
        // BDAT carries any bytes (RFC 3030); DATA is tested with its own rule below.
        let (code, text) = smtp.deliver_binary("s@example.test", &["bdat@example.test"], &message.bytes)?;
        let loops = text.contains("5.4.6");
        ensure!(code == 250 || loops, "{}: {code} {text}", message.name);
    }
    let mut imap = cluster.imap_client("bdat@example.test")?;
    imap.select("INBOX")?;
    let uids = imap.uids()?;
    ensure!(uids.len() == messages.len(), "{} of {} stored", uids.len(), messages.len());
    for (uid, message) in uids.iter().zip(&messages) {
        let stored = imap.body(*uid)?.with_context(|| format!("{}: no body", message.name))?;
        ensure!(is_with_trace(&stored, &message.bytes), "{}: differs over SMTP", message.name);
    }
    let mut pop3 = cluster.pop3_client("bdat@example.test")?;
    for (number, message) in messages.iter().enumerate() {
        let stored = pop3.retrieve(number + 1)?;
        ensure!(is_with_trace(&stored, &in_lines(&message.bytes)), "{}: differs over POP3", message.name);
    }
    let mut imap = cluster.imap_client("append@example.test")?;
    // A NUL may not be in a literal (RFC 9051 §4.3); such mail comes by BDAT.
    let appended: Vec<&CorpusMessage> = messages.iter().filter(|message| !message.bytes.contains(&0)).collect();
    for message in &appended {
        imap.append("INBOX", &message.bytes).with_context(|| message.name.clone())?;
    }
    imap.select("INBOX")?;
    for (uid, message) in imap.uids()?.iter().zip(&appended) {
        let stored = imap.body(*uid)?.with_context(|| format!("{}: no body", message.name))?;
        ensure!(stored == message.bytes, "{}: differs over APPEND", message.name);
    }
    let mut pop3 = cluster.pop3_client("append@example.test")?;
    for (number, message) in appended.iter().enumerate() {
        let stored = pop3.retrieve(number + 1)?;
        ensure!(stored == in_lines(&message.bytes), "{}: differs over APPEND and POP3", message.name);
    }
    // What the index says of each can be asked for.
    for item in
        ["ENVELOPE", "BODYSTRUCTURE", "BODY", "RFC822.SIZE", "BODY.PEEK[HEADER]", "BODY.PEEK[1]", "BODY.PEEK[TEXT]"]
    {
        let untagged = imap.ok(&format!("UID FETCH 1:* {item}"))?;
        ensure!(untagged.len() == appended.len(), "{item}: {} of {}", untagged.len(), appended.len());
    }
    println!("{} messages by BDAT, {} by APPEND", messages.len(), appended.len());
    cluster.check_logs(&[])
}

#[test]
fn data_keeps_bytes_and_never_splits_a_message() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { replicas: 1, nodes: 1, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["data"])?;
    let mut kept = Vec::new();
    let (mut real, mut real_refused) = (0, 0);
    let mut smtp = cluster.smtp_client()?;
    for message in messages() {
        let is_real = message.name.starts_with("real/");
        real += usize::from(is_real);
        let (code, text) = smtp.deliver("s@example.test", &["data@example.test"], &message.bytes)?;
        match code {
            250 => kept.push(message),
            // Line ends that could be taken for an end of data are refused whole.
            550..=559 => real_refused += usize::from(is_real),
            _ => anyhow::bail!("{}: {code} {text}", message.name),
        }
    }
    let mut imap = cluster.imap_client("data@example.test")?;
    imap.select("INBOX")?;
    let uids = imap.uids()?;
    ensure!(uids.len() == kept.len(), "{} stored, {} acknowledged", uids.len(), kept.len());
    for (uid, message) in uids.iter().zip(&kept) {
        let stored = imap.body(*uid)?.with_context(|| format!("{}: no body", message.name))?;
        let mut expected = message.bytes.clone();
        if !expected.ends_with(b"\r\n") {
            expected.extend_from_slice(b"\r\n");
        }
        ensure!(is_with_trace(&stored, &expected), "{}: differs", message.name);
    }
    ensure!(kept.len() > 8, "only {} were kept", kept.len());
    // Hardly any mail that people have sent has such line ends.
    ensure!(real_refused * 100 <= real, "{real_refused} of {real} real messages refused");
    println!("{} messages by DATA, {real_refused} of {real} real ones refused", kept.len());
    cluster.check_logs(&[])
}
