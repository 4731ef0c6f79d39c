//! SEARCH (RFC 3501 §6.4.4): by sets where the index has them, then message by message, reading as little of each as
//! the remaining keys need.

use bytes::Bytes;
use message::{Digest, Needle};
use proto::wire::search_key::{Key, day};
use proto::wire::{SearchKey, SearchReply, SearchRequest};
use proto::{uid_set_from_wire, uid_set_to_wire};
use storage::{MessageMeta, ShardState};
use types::{AccountId, Keyword, MailError, MailResult, MailboxId, SystemFlags, UidSet};

use super::fetch::{digest, read_range};
use super::{Cancelled, cancellable, flagged, if_here};
use crate::Node;

/// Nesting of keys; the router's parser allows less.
const DEPTH_MAX: u32 = 200;

impl Node {
    pub(super) async fn search_mailbox(&self, request: SearchRequest) -> MailResult<SearchReply> {
        let state = self.read(request.shard).await?;
        let program = compile(request.key.as_ref(), 0)?;
        // Held by the work itself, which may outlive the call by a message.
        let bounds = self.bounds();
        let turns = if cost(&program) == 0 { &bounds.index_searches } else { &bounds.searches };
        let turn = turns.clone().acquire_owned().await.map_err(|_| MailError::Unavailable)?;
        let at = request.shard;
        let read = cancellable(move |cancelled| {
            let _turn = turn;
            let (account, mailbox) = (AccountId(request.account), MailboxId(request.mailbox));
            if_here(&state, account, |state| {
                let selection = state.select(account, mailbox)?;
                let recent = uid_set_from_wire(request.recent.as_ref())?;
                let search = Search { state: state.clone(), account, mailbox, all: selection.uids, recent };
                search.run(&program, cancelled)
            })
        });
        self.or_elsewhere(at, read.await).await
    }
}

/// A key made ready: needles folded, keywords checked.
enum Program {
    And(Vec<Program>),
    Or(Box<Program>, Box<Program>),
    Not(Box<Program>),
    All,
    Uids(UidSet),
    Flag { flag: SystemFlags, set: bool },
    Recent,
    Keyword { keyword: Option<Keyword>, set: bool },
    Day { compare: day::Compare, day: i64, sent: bool },
    Larger(u64),
    Smaller(u64),
    ModSeq(u64),
    Header { name: String, needle: Needle },
    Body(Needle),
    Text(Needle),
}

fn compile(key: Option<&SearchKey>, depth: u32) -> MailResult<Program> {
    if depth > DEPTH_MAX {
        return Err(MailError::Limit("search keys are nested too deeply".to_owned()));
    }
    let missing = || MailError::Invalid("a search key is missing".to_owned());
    let key = key.and_then(|key| key.key.as_ref()).ok_or_else(missing)?;
    Ok(match key {
        Key::All(_) => Program::All,
        Key::And(keys) => {
            Program::And(keys.keys.iter().map(|key| compile(Some(key), depth + 1)).collect::<MailResult<_>>()?)
        }
        Key::Or(or) => Program::Or(
            Box::new(compile(or.left.as_deref(), depth + 1)?),
            Box::new(compile(or.right.as_deref(), depth + 1)?),
        ),
        Key::Not(key) => Program::Not(Box::new(compile(Some(key), depth + 1)?)),
        Key::Uids(set) => Program::Uids(uid_set_from_wire(Some(set))?),
        Key::Flag(flag) => Program::Flag { flag: SystemFlags::from_bits((flag.bit & 0xff) as u8), set: flag.set },
        // What is no keyword at all is on no message.
        Key::Keyword(key) => Program::Keyword { keyword: Keyword::parse(&key.keyword).ok(), set: key.set },
        Key::Recent(true) => Program::Recent,
        Key::Recent(false) => Program::Not(Box::new(Program::Recent)),
        Key::Day(key) => Program::Day { compare: key.compare(), day: key.day, sent: key.sent },
        Key::Larger(octets) => Program::Larger(*octets),
        Key::Smaller(octets) => Program::Smaller(*octets),
        Key::ModSeq(mod_seq) => Program::ModSeq(*mod_seq),
        Key::Header(header) => Program::Header { name: header.name.clone(), needle: Needle::new(&header.value) },
        Key::Body(text) => Program::Body(Needle::new(text)),
        Key::Text(text) => Program::Text(Needle::new(text)),
    })
}

struct Search {
    state: ShardState,
    account: AccountId,
    mailbox: MailboxId,
    all: UidSet,
    recent: UidSet,
}

impl Search {
    fn run(&self, program: &Program, cancelled: &Cancelled) -> MailResult<SearchReply> {
        cancelled.check()?;
        let (candidates, exact) = self.narrow(program)?;
        if exact {
            return Ok(SearchReply { uids: Some(uid_set_to_wire(&candidates)), mod_seq: 0 });
        }
        let mut uids = UidSet::new();
        let mut mod_seq = 0;
        let mut failed = None;
        self.state.messages(self.account, self.mailbox, &candidates, |meta| {
            let mut candidate = Candidate { search: self, meta: &meta, digest: None, header: None, raw: None };
            match cancelled.check().and_then(|()| candidate.matches(program)) {
                Ok(true) => {
                    uids.insert(meta.uid.0);
                    mod_seq = mod_seq.max(meta.mod_seq.0);
                    true
                }
                // A message that was expunged meanwhile matches nothing.
                Ok(false) | Err(MailError::MailboxGone) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(SearchReply { uids: Some(uid_set_to_wire(&uids)), mod_seq }),
        }
    }

    /// A superset of the matches from the index alone, and whether it is exactly the matches.
    fn narrow(&self, program: &Program) -> MailResult<(UidSet, bool)> {
        Ok(match program {
            Program::All => (self.all.clone(), true),
            Program::Uids(uids) => (self.all.intersection(uids), true),
            Program::Recent => (self.all.intersection(&self.recent), true),
            Program::Flag { flag, set } => {
                (flagged(&self.state, self.account, self.mailbox, *flag, *set, &self.all)?, true)
            }
            Program::And(keys) => {
                let mut result = (self.all.clone(), true);
                for key in keys {
                    let (uids, exact) = self.narrow(key)?;
                    result = (result.0.intersection(&uids), result.1 && exact);
                }
                result
            }
            Program::Or(left, right) => {
                let (left, right) = (self.narrow(left)?, self.narrow(right)?);
                (left.0.union(&right.0), left.1 && right.1)
            }
            Program::Not(key) => match self.narrow(key)? {
                (uids, true) => (self.all.difference(&uids), true),
                (_, false) => (self.all.clone(), false),
            },
            Program::Keyword { .. }
            | Program::Day { .. }
            | Program::Larger(_)
            | Program::Smaller(_)
            | Program::ModSeq(_)
            | Program::Header { .. }
            | Program::Body(_)
            | Program::Text(_) => (self.all.clone(), false),
        })
    }
}

/// One message, and what has been read of it so far.
struct Candidate<'a> {
    search: &'a Search,
    meta: &'a MessageMeta,
    digest: Option<Digest>,
    header: Option<Bytes>,
    raw: Option<Bytes>,
}

impl Candidate<'_> {
    fn matches(&mut self, program: &Program) -> MailResult<bool> {
        let meta = self.meta;
        Ok(match program {
            Program::All => true,
            Program::Uids(uids) => uids.contains(meta.uid.0),
            Program::Recent => self.search.recent.contains(meta.uid.0),
            Program::Flag { flag, set } => meta.flags.system.contains(*flag) == *set,
            Program::Keyword { keyword, set } => {
                keyword.as_ref().is_some_and(|keyword| meta.flags.keywords.contains(keyword)) == *set
            }
            Program::And(keys) => {
                // Cheap keys first: what reads the body comes last.
                let mut keys: Vec<&Program> = keys.iter().collect();
                keys.sort_by_key(|key| cost(key));
                for key in keys {
                    if !self.matches(key)? {
                        return Ok(false);
                    }
                }
                true
            }
            Program::Or(left, right) => self.matches(left)? || self.matches(right)?,
            Program::Not(key) => !self.matches(key)?,
            Program::Day { compare, day, sent } => {
                let of_message = if *sent { message::date_day(self.digest()?) } else { Some(meta.internal_date.day()) };
                of_message.is_some_and(|of_message| match compare {
                    day::Compare::Before => of_message < *day,
                    day::Compare::On => of_message == *day,
                    day::Compare::Since => of_message >= *day,
                })
            }
            Program::Larger(octets) => meta.size > *octets,
            Program::Smaller(octets) => meta.size < *octets,
            Program::ModSeq(mod_seq) => meta.mod_seq.0 >= *mod_seq,
            Program::Header { name, needle } => message::header_contains(&self.header()?, Some(name), needle),
            Program::Body(needle) => {
                let raw = self.raw()?;
                message::body_contains(&raw, self.digest()?, needle)
            }
            Program::Text(needle) => {
                let raw = self.raw()?;
                message::text_contains(&raw, self.digest()?, needle)
            }
        })
    }

    fn digest(&mut self) -> MailResult<&Digest> {
        let digest = match self.digest.take() {
            Some(digest) => digest,
            None => digest(&self.search.state, self.meta.body)?,
        };
        Ok(self.digest.insert(digest))
    }

    fn header(&mut self) -> MailResult<Bytes> {
        if let Some(header) = &self.header {
            return Ok(header.clone());
        }
        let range = self.digest()?.header();
        let header = read_range(&self.search.state, self.meta.body, range)?;
        Ok(self.header.insert(header).clone())
    }

    fn raw(&mut self) -> MailResult<Bytes> {
        if let Some(raw) = &self.raw {
            return Ok(raw.clone());
        }
        let raw = read_range(&self.search.state, self.meta.body, 0..self.meta.size)?;
        Ok(self.raw.insert(raw).clone())
    }
}

/// What a key needs: 0 the index, 1 the digest or header, 2 the body.
fn cost(program: &Program) -> u8 {
    match program {
        Program::And(keys) => keys.iter().map(cost).max().unwrap_or(0),
        Program::Or(left, right) => cost(left).max(cost(right)),
        Program::Not(key) => cost(key),
        Program::All
        | Program::Uids(_)
        | Program::Flag { .. }
        | Program::Recent
        | Program::Keyword { .. }
        | Program::Larger(_)
        | Program::Smaller(_)
        | Program::ModSeq(_) => 0,
        Program::Day { sent, .. } => u8::from(*sent),
        Program::Header { .. } => 1,
        Program::Body(_) | Program::Text(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;
    use message::{Digest, Needle};
    use storage::{BodySource, Command, GroupId, Recipient, Stamp, Volume, VolumeOptions};
    use types::{AccountId, InternalDate, MailError, MailboxName, Quota, UidSet};

    use super::{Cancelled, Program, Search};

    #[test]
    fn a_search_that_nobody_waits_for_any_more_stops() {
        let directory = tempfile::tempdir().unwrap();
        let volume = Volume::open(VolumeOptions::new(directory.path())).unwrap();
        let state = volume.group(GroupId(0)).unwrap().shard();
        let account = AccountId(1);
        let body = b"Subject: x\r\n\r\nbody\r\n";
        let deliver = Command::Deliver {
            recipients: vec![Recipient { account, fingerprint: [1; 32], quota: Quota::NONE }],
            body: BodySource::Inline,
            digest: Digest::of(body).encode().into(),
            date: InternalDate::utc(1),
            settle: Vec::new(),
        };
        // The body itself is not in the log: a search that reads it fails, one that has stopped does not get there.
        let applied = state.apply(1, Stamp::default(), deliver, Some(body.len() as u64), Bytes::from_static(b"1"));
        applied.unwrap().0.unwrap();
        let mailbox = state.mailbox(account, &MailboxName::inbox()).unwrap().unwrap().id;
        let all = state.select(account, mailbox).unwrap().uids;
        let search = Search { state, account, mailbox, all, recent: UidSet::new() };
        let flag = |set| Cancelled(Arc::new(AtomicBool::new(set)));
        assert!(search.run(&Program::All, &flag(false)).is_ok());
        assert_eq!(search.run(&Program::All, &flag(true)), Err(MailError::Deadline));
        let text = Program::Text(Needle::new("body"));
        assert!(matches!(search.run(&text, &flag(false)), Err(MailError::Corrupt { .. })));
        assert_eq!(search.run(&text, &flag(true)), Err(MailError::Deadline));
    }
}
