//! SELECT, EXAMINE and CLOSE, and what is held of the selected mailbox.

use imap::encode::{self, Code, Status};
use imap::{Expunged, MailboxArg, View};
use proto::wire::{Mailbox, SelectReply, SelectRequest};
use proto::{MESSAGES_PER_CHANGE_MAX, uid_set_from_wire};
use types::{
    AccountId, Flags, KEYWORDS_PER_MAILBOX_MAX, Keyword, MailError, MailResult, ModSeq, ShardId, SystemFlags, Uid,
    UidSet, UidValidity,
};

use super::reply::{Reply, ReplyCode};
use super::{Conversation, Owner};
use crate::cluster::{Notice, Subscription};

/// Groups of messages in [`Selected::told`]. What falls out is told to the client a second time, which does no harm.
const TOLD_MAX: usize = 64;

/// The selected mailbox as the client knows it.
pub(super) struct Selected {
    pub mailbox: u64,
    pub read_only: bool,
    pub view: View,
    /// The client has been told of all that happened up to here.
    pub known: u64,
    /// Flags that the client was told or set itself beyond `known`: which messages at which MODSEQ. Asked for what
    /// came since `known`, the shard will name them, and they are not told again.
    told: Vec<(u64, UidSet)>,
    /// The flags that FLAGS has announced.
    pub flags: Flags,
    pub recent_told: u32,
    subscription: Subscription,
    /// There may be changes that the client has not been told of.
    pub news: bool,
    /// The mailbox has been deleted. The view empties; nothing is left to ask the shard for.
    pub gone: bool,
}

impl Selected {
    fn new(reply: &SelectReply, read_only: bool, subscription: Subscription) -> MailResult<Selected> {
        let mailbox = reply.mailbox.as_ref().ok_or_else(|| MailError::Internal("SELECT without a mailbox".into()))?;
        let view = View::new(uid_set_from_wire(reply.uids.as_ref())?, uid_set_from_wire(reply.recent.as_ref())?);
        let mut flags = Flags::system(SystemFlags::ALL);
        for keyword in reply.keywords.iter().filter_map(|keyword| Keyword::parse(keyword).ok()) {
            flags.insert_keyword(keyword);
        }
        Ok(Selected {
            mailbox: mailbox.id,
            read_only,
            recent_told: view.recent(),
            view,
            known: mailbox.mod_seq,
            told: Vec::new(),
            flags,
            subscription,
            news: false,
            gone: false,
        })
    }

    /// Takes what the watch has said meanwhile.
    pub(super) fn listen(&mut self) {
        while let Some(notice) = self.subscription.try_next() {
            self.hear(notice);
        }
    }

    /// Waits until the watch says something. Cancel safe.
    pub(super) async fn next_notice(&mut self) -> Notice {
        self.subscription.next().await
    }

    pub(super) fn hear(&mut self, notice: Notice) {
        self.news |= match notice {
            Notice::Mailbox { mailbox, mod_seq } => mailbox.0 == self.mailbox && mod_seq.0 > self.known,
            Notice::List { .. } => false,
            Notice::Resync => true,
        };
    }

    /// The client knows this message's flags as of `mod_seq`.
    pub(super) fn tell(&mut self, uid: u32, mod_seq: u64) {
        if mod_seq <= self.known {
            return;
        }
        match self.told.iter_mut().rev().find(|(known, _)| *known == mod_seq) {
            Some((_, uids)) => uids.insert(uid),
            None => {
                if self.told.len() == TOLD_MAX {
                    self.told.remove(0);
                }
                self.told.push((mod_seq, UidSet::from_range(uid, uid)));
            }
        }
    }

    pub(super) fn was_told(&self, uid: u32, mod_seq: u64) -> bool {
        mod_seq <= self.known || self.told.iter().any(|(known, uids)| *known == mod_seq && uids.contains(uid))
    }

    /// The client has been told of everything up to `mod_seq`.
    pub(super) fn advance(&mut self, mod_seq: u64) {
        self.known = self.known.max(mod_seq);
        self.told.retain(|(known, _)| *known > mod_seq);
        self.told.shrink_to_fit();
    }

    /// The mailbox was deleted: its messages go from view as soon as EXPUNGE may be written.
    pub(super) fn lose(&mut self) {
        self.gone = true;
        let all = self.view.uids().clone();
        self.view.hold_back(&all);
    }

    /// Takes new messages into view; the new EXISTS if there were any. Runs of recent and other ones go in one after
    /// another, in ascending order, as the view wants them.
    pub(super) fn arrive(&mut self, arrived: &UidSet, recent: &UidSet) -> Option<u32> {
        let recent = arrived.intersection(recent);
        let others = arrived.difference(&recent);
        let tagged = |set: &UidSet, is_recent| set.ranges().iter().map(|run| (*run, is_recent)).collect::<Vec<_>>();
        let mut runs = tagged(&recent, true);
        runs.extend(tagged(&others, false));
        runs.sort_unstable();
        let mut exists = None;
        for ((first, last), is_recent) in runs {
            exists = self.view.arrive(&UidSet::from_range(first, last), is_recent).or(exists);
        }
        exists
    }

    pub(super) fn expunge(&mut self, uids: &UidSet) -> Expunged {
        self.view.expunge(uids)
    }

    /// Whether `flags` names a keyword that FLAGS has not announced; if so it is to be announced now.
    pub(super) fn learn_keywords(&mut self, flags: &Flags) -> bool {
        let before = self.flags.keywords.len();
        for keyword in &flags.keywords {
            self.flags.insert_keyword(keyword.clone());
        }
        self.flags.keywords.len() > before
    }

    /// RFC 3501 §7.2.6 and §7.1, PERMANENTFLAGS.
    pub(super) fn announce_flags(&self, out: &mut bytes::BytesMut) {
        encode::flags(out, &self.flags);
        let none = Flags::default();
        let (flags, new_keywords) = match self.read_only {
            true => (&none, false),
            false => (&self.flags, self.flags.keywords.len() < KEYWORDS_PER_MAILBOX_MAX),
        };
        let code = Code::PermanentFlags { flags, new_keywords };
        encode::untagged(out, Status::Ok, Some(code), "flags that can be changed");
    }
}

impl Conversation {
    /// RFC 3501 §6.3.1 and §6.3.2. Whatever was selected before no longer is, also when this fails.
    pub(super) async fn select(
        &mut self,
        owner: Owner,
        mailbox: &MailboxArg,
        condstore: bool,
        read_only: bool,
    ) -> Reply {
        if self.selected.take().is_some() {
            // RFC 7162 §3.2.11.
            encode::untagged(self.connection.output(), Status::Ok, Some(Code::Named("CLOSED")), "mailbox closed");
        }
        if condstore {
            self.knows_condstore();
        }
        let name = match mailbox.name() {
            Ok(name) => name,
            Err(error) => return Reply::invalid_name(error),
        };
        // Before the mailbox is read, so that nothing falls between.
        let subscription = self.session.context.cluster.hub().subscribe(ShardId(owner.shard), AccountId(owner.account));
        let request = SelectRequest {
            shard: owner.shard,
            account: owner.account,
            name: name.as_str().to_owned(),
            examine: read_only,
        };
        let opened = match self.shards().select(request).await {
            Ok(reply) => Selected::new(&reply, read_only, subscription).map(|selected| (selected, reply)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((selected, reply)) => {
                self.announce(&selected, &reply.mailbox.unwrap_or_default(), reply.first_unseen);
                self.selected = Some(selected);
                let code = if read_only { ReplyCode::ReadOnly } else { ReplyCode::ReadWrite };
                Reply::ok("mailbox selected").with_code(code)
            }
            Err(error) => self.failed(&error),
        }
    }

    /// RFC 7162 §3.1: the command that first shows that the client knows CONDSTORE brings HIGHESTMODSEQ where a mailbox
    /// is selected already. It is the one that the client has been told everything up to.
    pub(super) fn knows_condstore(&mut self) {
        if std::mem::replace(&mut self.condstore, true) {
            return;
        }
        if let Some(selected) = self.selected.as_ref().filter(|selected| !selected.gone) {
            let highest = Code::HighestModSeq(ModSeq(selected.known.max(1)));
            encode::untagged(self.connection.output(), Status::Ok, Some(highest), "highest MODSEQ");
        }
    }

    fn announce(&mut self, selected: &Selected, mailbox: &Mailbox, first_unseen: u32) {
        let out = self.connection.output();
        selected.announce_flags(out);
        encode::exists(out, selected.view.exists());
        encode::recent(out, selected.view.recent());
        if let Some(seq) = selected.view.seq(Uid(first_unseen)) {
            encode::untagged(out, Status::Ok, Some(Code::Unseen(seq)), "first unseen");
        }
        let validity = UidValidity(mailbox.uid_validity);
        encode::untagged(out, Status::Ok, Some(Code::UidValidity(validity)), "UIDs valid");
        // 0: every UID has been given out, so there is no next one to tell.
        if mailbox.uid_next != 0 {
            encode::untagged(out, Status::Ok, Some(Code::UidNext(Uid(mailbox.uid_next))), "next UID");
        }
        let highest = Code::HighestModSeq(ModSeq(mailbox.mod_seq.max(1)));
        encode::untagged(out, Status::Ok, Some(highest), "highest MODSEQ");
    }

    /// RFC 3501 §6.4.2. If the shard cannot be reached the mailbox stays selected, so that the client may try again.
    pub(super) async fn close(&mut self, owner: Owner) -> Reply {
        if let Some(selected) = self.selected.as_ref().filter(|selected| !selected.read_only && !selected.gone) {
            match self.expunge_all_deleted(owner, selected.mailbox).await {
                Ok(()) | Err(MailError::MailboxGone) => {}
                Err(error) => return self.failed(&error),
            }
        }
        self.selected = None;
        Reply::ok("mailbox closed")
    }

    async fn expunge_all_deleted(&self, owner: Owner, mailbox: u64) -> MailResult<()> {
        for part in self.deleted(owner, mailbox, None).await?.parts(MESSAGES_PER_CHANGE_MAX) {
            self.expunge_deleted(owner, mailbox, &part).await?;
        }
        Ok(())
    }
}
