//! LIST and LSUB (RFC 3501 §6.3.8, §6.3.9, with RFC 3348, RFC 6154 and RETURN of RFC 5258): a pure listing of the
//! account's mailboxes, and the commands around it.

use std::collections::{BTreeMap, BTreeSet};

use imap::Pattern;
use imap::command::{List, ListReturn, ListSelection};
use imap::encode::{self, MailboxAttribute};
use proto::wire::{AccountRequest, MailboxesReply};
use types::{MailboxName, SpecialUse};

use super::reply::Reply;
use super::{Conversation, Owner, Step};

type Listed = (Vec<MailboxAttribute>, String);

impl Conversation {
    pub(super) async fn list(&mut self, owner: Owner, list: &List) -> Step<Reply> {
        let is_question = list.patterns.iter().any(String::is_empty);
        if is_question {
            // The separator and the root, which is the same for every reference (RFC 3501 §6.3.8).
            encode::list(self.connection.output(), &[MailboxAttribute::NoSelect], "");
            return Ok(Reply::ok("separator listed"));
        }
        let mailboxes = match self.mailboxes(owner).await {
            Ok(mailboxes) => mailboxes,
            Err(reply) => return Ok(reply),
        };
        for (attributes, name) in listing(&mailboxes, list) {
            encode::list(self.connection.output(), &attributes, &name);
            self.connection.flush_if_full().await?;
        }
        Ok(Reply::ok("LIST done"))
    }

    pub(super) async fn lsub(&mut self, owner: Owner, reference: &str, pattern: &str) -> Step<Reply> {
        let mailboxes = match self.mailboxes(owner).await {
            Ok(mailboxes) => mailboxes,
            Err(reply) => return Ok(reply),
        };
        for (attributes, name) in subscribed(&mailboxes.subscriptions, reference, pattern) {
            encode::lsub(self.connection.output(), &attributes, &name);
            self.connection.flush_if_full().await?;
        }
        Ok(Reply::ok("LSUB done"))
    }

    async fn mailboxes(&mut self, owner: Owner) -> Result<MailboxesReply, Reply> {
        let request = AccountRequest { shard: owner.shard, account: owner.account };
        let reply = self.shards().mailboxes(request).await;
        reply.map_err(|error| self.failed(&error))
    }
}

/// In the order of names, INBOX first. A name that exists only as a part of longer ones is \Noselect.
fn listing(mailboxes: &MailboxesReply, list: &List) -> Vec<Listed> {
    let patterns: Vec<Pattern> =
        list.patterns.iter().map(|pattern| Pattern::new(&list.reference, pattern, MailboxName::SEPARATOR)).collect();
    let mut uses: BTreeMap<&str, Option<Option<SpecialUse>>> = BTreeMap::new();
    for mailbox in &mailboxes.mailboxes {
        uses.insert(&mailbox.name, Some(SpecialUse::parse(&mailbox.special_use)));
        for parent in parents(&mailbox.name) {
            uses.entry(parent).or_insert(None);
        }
    }
    let subscriptions: BTreeSet<&str> = mailboxes.subscriptions.iter().map(String::as_str).collect();
    let special_only = list.selection.contains(&ListSelection::SpecialUse);
    let with_subscribed = list.returns.contains(&ListReturn::Subscribed);
    let mut listed = Vec::new();
    for (&name, &exists) in &uses {
        let special_use = exists.flatten();
        if (special_only && special_use.is_none()) || !patterns.iter().any(|pattern| pattern.matches(name)) {
            continue;
        }
        let mut attributes = Vec::new();
        if exists.is_none() {
            attributes.push(MailboxAttribute::NoSelect);
        }
        attributes.push(match has_children(&uses, name) {
            true => MailboxAttribute::HasChildren,
            false => MailboxAttribute::HasNoChildren,
        });
        if with_subscribed && subscriptions.contains(name) {
            attributes.push(MailboxAttribute::Subscribed);
        }
        attributes.extend(special_use.map(MailboxAttribute::SpecialUse));
        listed.push((attributes, name.to_owned()));
    }
    inbox_first(&mut listed);
    listed
}

/// Subscriptions stay when their mailbox goes, and are listed without looking for it (RFC 3501 §6.3.6, §6.3.9). Where
/// `%` stops above a subscribed name, the level at which it stops is listed with \Noselect.
fn subscribed(subscriptions: &[String], reference: &str, pattern: &str) -> Vec<Listed> {
    let matcher = Pattern::new(reference, pattern, MailboxName::SEPARATOR);
    let stops = pattern.contains('%');
    let mut names: BTreeMap<&str, bool> = BTreeMap::new();
    for name in subscriptions {
        if matcher.matches(name) {
            names.insert(name, true);
        }
        for parent in parents(name).filter(|parent| stops && matcher.matches(parent)) {
            names.entry(parent).or_insert(false);
        }
    }
    let attributes = |is_subscribed| if is_subscribed { Vec::new() } else { vec![MailboxAttribute::NoSelect] };
    let mut listed: Vec<Listed> = names.into_iter().map(|(name, is)| (attributes(is), name.to_owned())).collect();
    inbox_first(&mut listed);
    listed
}

/// `a/b/c`: `a`, `a/b`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices(MailboxName::SEPARATOR).filter_map(|(at, _)| name.get(..at))
}

fn has_children<T>(names: &BTreeMap<&str, T>, name: &str) -> bool {
    let below = format!("{name}{}", MailboxName::SEPARATOR);
    names.range(below.as_str()..).next().is_some_and(|(next, _)| next.starts_with(&below))
}

fn inbox_first(listed: &mut [Listed]) {
    listed.sort_by_key(|(_, name)| name != "INBOX");
}

#[cfg(test)]
mod tests {
    use imap::command::{List, ListReturn, ListSelection};
    use imap::encode::MailboxAttribute::{self, HasChildren, HasNoChildren, NoSelect, Subscribed};
    use proto::wire::{Mailbox, MailboxesReply};
    use types::SpecialUse;

    use super::{listing, subscribed};

    fn mailboxes() -> MailboxesReply {
        let mailbox = |(name, special_use): (&str, &str)| Mailbox {
            name: name.to_owned(),
            special_use: special_use.to_owned(),
            ..Mailbox::default()
        };
        let all = [("Archive/2024/May", ""), ("INBOX", ""), ("INBOX/Sub", ""), ("Archiv", ""), ("Sent", "\\Sent")];
        MailboxesReply {
            mailboxes: all.map(mailbox).to_vec(),
            subscriptions: ["INBOX", "Archive/2024/May", "Gone"].map(str::to_owned).to_vec(),
        }
    }

    fn list(pattern: &str) -> List {
        let patterns = vec![pattern.to_owned()];
        List { selection: Vec::new(), reference: String::new(), patterns, returns: Vec::new() }
    }

    fn names(listed: Vec<(Vec<MailboxAttribute>, String)>) -> Vec<String> {
        listed.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn implied_parents_are_listed_and_cannot_be_selected() {
        let special = MailboxAttribute::SpecialUse(SpecialUse::Sent);
        assert_eq!(
            listing(&mailboxes(), &list("%")),
            [
                (vec![HasChildren], "INBOX".to_owned()),
                (vec![HasNoChildren], "Archiv".to_owned()),
                (vec![NoSelect, HasChildren], "Archive".to_owned()),
                (vec![HasNoChildren, special], "Sent".to_owned()),
            ]
        );
        assert_eq!(names(listing(&mailboxes(), &list("*"))).len(), 7);
        assert_eq!(names(listing(&mailboxes(), &list("Archive/%"))), ["Archive/2024"]);
    }

    #[test]
    fn a_list_can_be_of_special_uses_and_tell_subscriptions() {
        let special = List { selection: vec![ListSelection::SpecialUse], ..list("*") };
        assert_eq!(names(listing(&mailboxes(), &special)), ["Sent"]);
        let returns = List { returns: vec![ListReturn::Subscribed], ..list("INBOX") };
        assert_eq!(listing(&mailboxes(), &returns), [(vec![HasChildren, Subscribed], "INBOX".to_owned())]);
    }

    #[test]
    fn lsub_with_percent_shows_the_level_at_which_it_stops() {
        let subscriptions = mailboxes().subscriptions;
        assert_eq!(
            subscribed(&subscriptions, "", "%"),
            [(vec![], "INBOX".to_owned()), (vec![NoSelect], "Archive".to_owned()), (vec![], "Gone".to_owned()),]
        );
        assert_eq!(names(subscribed(&subscriptions, "", "*")), ["INBOX", "Archive/2024/May", "Gone"]);
        assert_eq!(names(subscribed(&subscriptions, "Archive/", "%")), ["Archive/2024"]);
    }
}
