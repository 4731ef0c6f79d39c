//! A whole mailbox as a client reads it, and whether each message is what was sent.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::history::{Reading, Seen, Status};
use crate::imap::ImapClient;
use crate::load::message;

/// SELECT and FETCH of everything. `quiet`: nothing writes, so that what SELECT and STATUS say must fit what FETCH shows.
pub(crate) fn read_mailbox(
    client: &mut ImapClient,
    account: &str,
    mailbox: &'static str,
    began: u64,
    quiet: bool,
) -> Result<Reading> {
    let selected = client.ok(&format!("SELECT {mailbox} (CONDSTORE)"))?;
    let selected = String::from_utf8_lossy(&selected.join(&b'\n')).into_owned();
    let number = |before: &str| -> Result<u64> {
        let digits = selected.split(before).nth(1).with_context(|| format!("{before} in {selected}"))?;
        Ok(digits.split(']').next().unwrap_or_default().parse()?)
    };
    let exists = selected.lines().find_map(|line| line.strip_prefix("* ")?.strip_suffix(" EXISTS"));
    let mut messages = BTreeMap::new();
    for response in client.ok("UID FETCH 1:* (FLAGS MODSEQ RFC822.SIZE BODY.PEEK[])")? {
        if let Some((uid, seen)) = fetched(&response) {
            messages.insert(uid, seen);
        }
    }
    let mut reading = Reading {
        place: format!("{account}/{mailbox}"),
        began,
        ended: began,
        uid_validity: number("[UIDVALIDITY ")? as u32,
        uid_next: number("[UIDNEXT ")? as u32,
        highest_mod_seq: number("[HIGHESTMODSEQ ")?,
        exists: exists.context("no EXISTS")?.parse()?,
        status: None,
        messages,
    };
    if quiet {
        reading.status = Some(status(client, mailbox)?);
    } else {
        // What came between the two commands is no fault.
        let greatest = reading.messages.last_key_value().map_or(0, |(uid, _)| *uid);
        reading.uid_next = reading.uid_next.max(greatest + 1);
        reading.exists = reading.messages.len() as u32;
        let mod_seq = reading.messages.values().map(|seen| seen.mod_seq).max().unwrap_or(0);
        reading.highest_mod_seq = reading.highest_mod_seq.max(mod_seq);
    }
    Ok(reading)
}

/// STATUS of a mailbox.
pub(crate) fn status(client: &mut ImapClient, mailbox: &str) -> Result<Status> {
    let said = client.ok(&format!("STATUS {mailbox} (MESSAGES UNSEEN UIDNEXT UIDVALIDITY HIGHESTMODSEQ)"))?;
    let said = String::from_utf8_lossy(&said.join(&b'\n')).into_owned();
    let number = |item: &str| -> Result<u64> {
        let value = said.split(item).nth(1).and_then(|rest| rest.trim_start().split([' ', ')']).next());
        value.with_context(|| format!("{item} in {said}"))?.parse().with_context(|| format!("{item} in {said}"))
    };
    Ok(Status {
        messages: number("MESSAGES")?,
        unseen: number("UNSEEN")?,
        uid_next: number("UIDNEXT")?,
        uid_validity: number("UIDVALIDITY")?,
        highest_mod_seq: number("HIGHESTMODSEQ")?,
    })
}

/// One FETCH response; None for others, and for those without a body, which tell of flags alone.
fn fetched(response: &[u8]) -> Option<(u32, Seen)> {
    let open = response.windows(3).position(|three| three == b"}\r\n")?;
    let head = String::from_utf8_lossy(&response[..open]).into_owned();
    let octets: usize = head.rsplit('{').next()?.parse().ok()?;
    let body = response.get(open + 3..open + 3 + octets)?;
    let tail = String::from_utf8_lossy(&response[open + 3 + octets..]).into_owned();
    let items = head + &tail;
    let number = |before: &str| -> Option<u64> { items.split(before).nth(1)?.split([' ', ')']).next()?.parse().ok() };
    let flags = items.split("FLAGS (").nth(1)?.split(')').next()?;
    let value = flags.split(' ').find_map(|flag| flag.strip_prefix("$v")?.parse().ok()).unwrap_or(0);
    let marker = body.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Subject: "));
    let marker = String::from_utf8_lossy(marker.unwrap_or_default()).trim_end().to_owned();
    let trace = body.strip_suffix(message(&marker).as_slice());
    let intact = trace.is_some_and(|trace| trace.is_empty() || trace.starts_with(b"Return-Path:"));
    let seen = Seen {
        marker,
        intact,
        seen: flags.split(' ').any(|flag| flag == "\\Seen"),
        value,
        mod_seq: number("MODSEQ (")?,
        octets: body.len() as u64,
        size: number("RFC822.SIZE ")?,
    };
    Some((number("UID ")? as u32, seen))
}

#[cfg(test)]
mod tests {
    use super::fetched;
    use crate::load::message;

    #[test]
    fn a_fetch_response_is_read_with_what_stands_before_and_behind_its_body() {
        let body = [b"Return-Path: <>\r\nReceived: x\r\n".to_vec(), message("m1.2.3")].concat();
        let response = |body: &[u8]| {
            let head = format!("* 4 FETCH (UID 9 FLAGS (\\Seen $v7) RFC822.SIZE 77 BODY[] {{{}}}\r\n", body.len());
            [head.as_bytes(), body, b" MODSEQ (55))"].concat()
        };
        let (uid, seen) = fetched(&response(&body)).unwrap();
        assert_eq!((uid, seen.marker.as_str(), seen.intact, seen.value, seen.mod_seq), (9, "m1.2.3", true, 7, 55));
        assert_eq!((seen.seen, seen.octets, seen.size), (true, body.len() as u64, 77));
        let mut changed = body.clone();
        let last = changed.len() - 4;
        changed[last] ^= 1;
        assert!(!fetched(&response(&changed)).unwrap().1.intact);
        assert!(fetched(b"* 4 FETCH (UID 9 FLAGS ())").is_none());
    }
}
