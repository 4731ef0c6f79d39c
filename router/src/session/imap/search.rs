//! SEARCH (RFC 3501 §6.4.4, RFC 7162 §3.1.5): the client's keys become the shard's, sequence numbers becoming UIDs.

use imap::command::{Search, SearchCharset};
use imap::encode;
use imap::{View, command};
use proto::wire::search_key::{Day, Header, Key, Keys, KeywordFlag, Or, SystemFlag, day};
use proto::wire::{SearchKey, SearchRequest};
use proto::{uid_set_from_wire, uid_set_to_wire};
use types::{ModSeq, SystemFlags};

use super::reply::{Reply, ReplyCode};
use super::{Conversation, Owner, Step};

/// Messages within messages that a search may have on the wire. Decoders of protobuf stop at 100.
const NESTING_MAX: usize = 80;

impl Conversation {
    pub(super) async fn search(&mut self, owner: Owner, search: Search) -> Step<Reply> {
        if search.charset == SearchCharset::Unsupported {
            return Ok(Reply::no(ReplyCode::BadCharset, "charset not supported"));
        }
        let names_modseq = search.key.names_modseq();
        if names_modseq {
            self.knows_condstore();
        }
        let Some(selected) = self.selected.as_ref() else { return Ok(Reply::bad("select a mailbox first")) };
        if selected.gone {
            return Ok(Reply::gone());
        }
        let key = wire_key(&search.key, &selected.view);
        if nesting(&key) > NESTING_MAX {
            return Ok(Reply::no(ReplyCode::Named("LIMIT"), "search nested too deep"));
        }
        let request = SearchRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            key: Some(key),
            recent: Some(uid_set_to_wire(selected.view.recent_uids())),
        };
        let found = match self.shards().search(request).await {
            Ok(reply) => uid_set_from_wire(reply.uids.as_ref()).map(|uids| (uids, reply.mod_seq)),
            Err(error) => Err(error),
        };
        let (uids, mod_seq) = match found {
            Ok(found) => found,
            Err(error) => return Ok(self.failed_on_selected(&error)),
        };
        let Some(selected) = self.selected.as_ref() else { return Ok(Reply::bad("select a mailbox first")) };
        // What the client has not been told of has no sequence number yet.
        let uids = uids.intersection(selected.view.uids());
        let numbers = if search.uid { uids } else { selected.view.seqs(&uids) };
        let highest = (names_modseq && !numbers.is_empty()).then_some(ModSeq(mod_seq));
        encode::search(self.connection.output(), numbers.iter(), highest);
        Ok(Reply::ok("SEARCH done"))
    }
}

fn key(key: Key) -> SearchKey {
    SearchKey { key: Some(key) }
}

fn and(keys: Vec<SearchKey>) -> SearchKey {
    key(Key::And(Keys { keys }))
}

/// NOT NOT is nothing, however long the chain.
fn not(inner: SearchKey) -> SearchKey {
    match inner.key {
        Some(Key::Not(inner)) => *inner,
        inner => key(Key::Not(Box::new(SearchKey { key: inner }))),
    }
}

fn flag(flags: SystemFlags, set: bool) -> SearchKey {
    key(Key::Flag(SystemFlag { bit: u32::from(flags.bits()), set }))
}

fn header(name: &str, value: &str) -> SearchKey {
    key(Key::Header(Header { name: name.to_owned(), value: value.to_owned() }))
}

fn on_day(compare: day::Compare, day: i64, sent: bool) -> SearchKey {
    key(Key::Day(Day { compare: compare.into(), day, sent }))
}

/// Recursion follows the client's nesting, which the parser bounds.
fn wire_key(from: &command::SearchKey, view: &View) -> SearchKey {
    use command::SearchKey as From;
    use day::Compare;
    match from {
        From::All => key(Key::All(true)),
        From::Has(flags) => flag(*flags, true),
        From::Lacks(flags) => flag(*flags, false),
        From::Keyword(keyword) => key(Key::Keyword(KeywordFlag { keyword: keyword.to_string(), set: true })),
        From::Unkeyword(keyword) => key(Key::Keyword(KeywordFlag { keyword: keyword.to_string(), set: false })),
        From::Recent => key(Key::Recent(true)),
        From::New => and(vec![key(Key::Recent(true)), flag(SystemFlags::SEEN, false)]),
        From::Old => not(key(Key::Recent(true))),
        From::Bcc(value) => header("Bcc", value),
        From::Cc(value) => header("Cc", value),
        From::From(value) => header("From", value),
        From::Subject(value) => header("Subject", value),
        From::To(value) => header("To", value),
        From::Header { field, value } => header(field, value),
        From::Body(text) => key(Key::Body(text.clone())),
        From::Text(text) => key(Key::Text(text.clone())),
        From::Before(day) => on_day(Compare::Before, *day, false),
        From::On(day) => on_day(Compare::On, *day, false),
        From::Since(day) => on_day(Compare::Since, *day, false),
        From::SentBefore(day) => on_day(Compare::Before, *day, true),
        From::SentOn(day) => on_day(Compare::On, *day, true),
        From::SentSince(day) => on_day(Compare::Since, *day, true),
        From::Larger(octets) => key(Key::Larger(*octets)),
        From::Smaller(octets) => key(Key::Smaller(*octets)),
        From::SequenceSet(set) => key(Key::Uids(uid_set_to_wire(&set.resolve_seqs_present(view.uids())))),
        From::Uid(set) => key(Key::Uids(uid_set_to_wire(&set.resolve_uids(view.uids())))),
        From::ModSeq { at_least, .. } => key(Key::ModSeq(at_least.0)),
        From::Not(inner) => not(wire_key(inner, view)),
        From::Or(left, right) => or(left, right, view),
        From::And(_) => {
            let mut keys = Vec::new();
            conjunction(from, view, &mut keys);
            and(keys)
        }
    }
}

/// Parentheses within parentheses become one list.
fn conjunction(from: &command::SearchKey, view: &View, keys: &mut Vec<SearchKey>) {
    match from {
        command::SearchKey::And(all) => all.iter().for_each(|one| conjunction(one, view, keys)),
        one => keys.push(wire_key(one, view)),
    }
}

/// Clients search for many alternatives by OR a OR b OR c, nested as deep as there are alternatives: that is sent as
/// NOT (NOT a NOT b NOT c), which is flat.
fn or(left: &command::SearchKey, right: &command::SearchKey, view: &View) -> SearchKey {
    let mut ways = Vec::new();
    disjunction(left, view, &mut ways);
    disjunction(right, view, &mut ways);
    match <[SearchKey; 2]>::try_from(ways) {
        Ok([left, right]) => key(Key::Or(Box::new(Or { left: Some(Box::new(left)), right: Some(Box::new(right)) }))),
        Err(ways) => not(and(ways.into_iter().map(not).collect())),
    }
}

fn disjunction(from: &command::SearchKey, view: &View, ways: &mut Vec<SearchKey>) {
    match from {
        command::SearchKey::Or(left, right) => {
            disjunction(left, view, ways);
            disjunction(right, view, ways);
        }
        way => ways.push(wire_key(way, view)),
    }
}

/// How deep messages lie in messages.
fn nesting(from: &SearchKey) -> usize {
    let deepest = |keys: &[SearchKey]| keys.iter().map(nesting).max().unwrap_or(0);
    1 + match &from.key {
        Some(Key::And(keys)) => 1 + deepest(&keys.keys),
        Some(Key::Not(inner)) => nesting(inner),
        Some(Key::Or(or)) => 1 + or.left.as_deref().map_or(0, nesting).max(or.right.as_deref().map_or(0, nesting)),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use imap::command::SearchKey as From;
    use imap::{SequenceSet, View};
    use proto::wire::search_key::Key;
    use types::{SystemFlags, UidSet};

    use super::{NESTING_MAX, nesting, wire_key};

    fn view() -> View {
        View::new([3, 5, 9].into_iter().collect(), UidSet::new())
    }

    #[test]
    fn sequence_numbers_become_uids() {
        let set = SequenceSet::parse(b"2:7").unwrap();
        let Some(Key::Uids(uids)) = wire_key(&From::SequenceSet(set), &view()).key else { panic!() };
        assert_eq!(uids.bounds, [5, 5, 9, 9]);
    }

    #[test]
    fn long_chains_do_not_nest_on_the_wire() {
        let leaf = || Box::new(From::Has(SystemFlags::SEEN));
        let (mut ors, mut nots, mut ands) = (leaf(), leaf(), leaf());
        for _ in 0..99 {
            ors = Box::new(From::Or(leaf(), ors));
            nots = Box::new(From::Not(nots));
            ands = Box::new(From::And(vec![*leaf(), *ands]));
        }
        for chain in [ors, nots, ands] {
            assert!(nesting(&wire_key(&chain, &view())) < 10);
        }
    }

    #[test]
    fn what_nests_all_the_same_is_measured() {
        let mut key = From::All;
        for _ in 0..50 {
            key = From::Not(Box::new(From::Or(Box::new(key), Box::new(From::All))));
        }
        assert!(nesting(&wire_key(&key, &view())) > NESTING_MAX);
    }
}
