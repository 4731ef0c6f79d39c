//! One request as the commands that it takes: a change of many messages is made in parts, so that nothing else of the shard
//! waits long for it. Pure.

use proto::wire::ExpungeRequest;
use proto::{MESSAGES_PER_CHANGE_MAX, uid_set_from_wire};
use storage::Command;
use types::{AccountId, MailError, MailResult, MailboxId, UidSet};

/// Commands that one request may come to: mailboxes of ten million messages are none of ours.
const COMMANDS_PER_REQUEST_MAX: usize = 1_000;
/// Messages that are copied at once: COPY and RENAME of INBOX are all or nothing (RFC 9051 §6.4.7), so it is one command,
/// and nothing else is done on the shard while it is applied. Their UIDs fit into a log entry, whatever gaps they have.
pub(super) const COPY_MESSAGES_MAX: u64 = 40_000;

/// The id of the n-th command of a request.
pub(super) fn nth_request(request: u128, n: usize) -> u128 {
    if request == 0 { 0 } else { request.wrapping_add(n as u128) }
}

/// Without a set only what is marked \Deleted may go (RFC 3501 §6.4.3), whatever the caller says: no request takes
/// the whole mailbox.
pub(super) fn expunge_commands(request: &ExpungeRequest) -> MailResult<Vec<Command>> {
    let sets = match request.has_uids {
        true => in_commands(&uid_set_from_wire(request.uids.as_ref())?)?.into_iter().map(Some).collect(),
        false => vec![None],
    };
    let command = |uids| Command::Expunge {
        account: AccountId(request.account),
        mailbox: MailboxId(request.mailbox),
        uids,
        only_deleted: request.only_deleted || !request.has_uids,
    };
    Ok(sets.into_iter().map(command).collect())
}

/// A set as those of as many commands as it needs; one for the empty set, which is answered too. The same for each
/// attempt at a request: so each command is known again by its id.
pub(super) fn in_commands(uids: &UidSet) -> MailResult<Vec<UidSet>> {
    if uids.is_empty() {
        return Ok(vec![UidSet::new()]);
    }
    if uids.len() > COMMANDS_PER_REQUEST_MAX as u64 * u64::from(MESSAGES_PER_CHANGE_MAX) {
        return Err(MailError::Limit("too many messages at once".to_owned()));
    }
    Ok(uids.parts(MESSAGES_PER_CHANGE_MAX).collect())
}

pub(super) fn check_copy(messages: u64) -> MailResult<()> {
    if messages <= COPY_MESSAGES_MAX {
        return Ok(());
    }
    Err(MailError::Limit(format!("too many messages to copy at once, at most {COPY_MESSAGES_MAX} are allowed")))
}

#[cfg(test)]
mod tests {
    use proto::wire::ExpungeRequest;
    use proto::{MESSAGES_PER_CHANGE_MAX, uid_set_to_wire};
    use storage::{Command, Stamp, StoreAction};
    use types::{
        AccountId, Flags, MAILBOX_NAME_OCTETS_MAX, MailError, MailboxId, MailboxName, ModSeq, Quota, SystemFlags,
        UidSet,
    };

    use super::{COPY_MESSAGES_MAX, check_copy, expunge_commands, in_commands};
    use crate::group::PROPOSAL_OCTETS_MAX;

    #[test]
    fn an_expunge_without_a_set_takes_only_what_is_marked() {
        for (has_uids, only_deleted, expected) in
            [(false, false, true), (false, true, true), (true, true, true), (true, false, false)]
        {
            let request = ExpungeRequest { has_uids, only_deleted, ..ExpungeRequest::default() };
            let commands = expunge_commands(&request).unwrap();
            let [Command::Expunge { uids, only_deleted, .. }] = commands.as_slice() else { panic!("no command") };
            assert_eq!((uids.is_some(), *only_deleted), (has_uids, expected));
        }
    }

    /// Every other UID from `first` on, in as many runs.
    fn runs(first: u32, count: usize) -> UidSet {
        (0..count as u32).map(|n| first + 2 * n).collect()
    }

    #[test]
    fn commands_about_any_set_of_messages_fit_into_a_log_entry() {
        // The last UIDs are the longest.
        let uids = runs(u32::MAX - 2 * COPY_MESSAGES_MAX as u32, COPY_MESSAGES_MAX as usize);
        let (account, mailbox) = (AccountId(u64::MAX), MailboxId(u64::MAX));
        let to = MailboxName::parse(&"m".repeat(MAILBOX_NAME_OCTETS_MAX)).unwrap();
        let flags = Flags::system(SystemFlags::ALL);
        let unchanged_since = Some(ModSeq(u64::MAX));
        let action = StoreAction::Replace;
        let quota = Quota { octets: Some(u64::MAX), messages: Some(u64::MAX) };
        for command in [
            Command::Store { account, mailbox, uids: uids.clone(), action, flags, unchanged_since },
            Command::Expunge { account, mailbox, uids: Some(uids.clone()), only_deleted: true },
            Command::Copy { account, from: mailbox, uids, to, remove_source: true, messages_min: u64::MAX, quota },
        ] {
            let octets = command.encode(Stamp { unix_ms: i64::MIN, seed: u64::MAX, format: u32::MAX }, u128::MAX).len();
            assert!(octets <= PROPOSAL_OCTETS_MAX, "{octets}");
        }
    }

    #[test]
    fn a_change_of_many_messages_is_made_in_parts_and_one_of_too_many_is_refused() {
        let many = runs(1, 2 * MESSAGES_PER_CHANGE_MAX as usize + 1);
        let request =
            ExpungeRequest { has_uids: true, uids: Some(uid_set_to_wire(&many)), ..ExpungeRequest::default() };
        let sets = expunge_commands(&request).unwrap().into_iter().map(|command| match command {
            Command::Expunge { uids, .. } => uids.unwrap(),
            _ => panic!("another command"),
        });
        let sets: Vec<UidSet> = sets.collect();
        assert_eq!(sets.len(), 3);
        assert_eq!(sets.iter().fold(UidSet::new(), |all, some| all.union(some)), many);
        assert!(sets.iter().all(|some| some.len() <= u64::from(MESSAGES_PER_CHANGE_MAX)));
        assert_eq!(in_commands(&UidSet::new()).unwrap(), [UidSet::new()]);
        assert!(matches!(in_commands(&UidSet::from_range(1, u32::MAX)), Err(MailError::Limit(_))));
        assert_eq!(check_copy(COPY_MESSAGES_MAX), Ok(()));
        assert!(matches!(check_copy(COPY_MESSAGES_MAX + 1), Err(MailError::Limit(_))));
    }
}
