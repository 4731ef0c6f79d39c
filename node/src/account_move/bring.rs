//! Brings an account to the shard that it moves to, as that shard's leader: in passes, each of what has changed since the
//! one before, while the account is served where it is. When little is left it is frozen there for the last pass.
//!
//! How far a mailbox is stands in the target's state, as the modseq of its last pass: whoever goes on begins there. What is
//! proposed names this bringer, so that one who has been overtaken can do no harm.

mod remembered;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use directory::AccountMove;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use proto::wire::export_account_request::What;
use proto::wire::exported_part::Part;
use proto::wire::move_account_request::Step;
use proto::wire::{Done, ExportAccountRequest, ExportMailbox, ExportedListing, ExportedMessage, MoveAccountRequest};
use proto::{ItemStream, MESSAGES_PER_CHANGE_MAX, uid_set_from_wire, uid_set_to_wire};
use storage::{
    AccountFailpoint, BodyOf, Command, MoveStep, Moved, MovedAccount, MovedMailbox, MovedPart, MovedPass,
    MovedSubscription, Outline, Place, reach,
};
use types::{AccountId, MailError, MailResult, MailboxId, UidSet};

use super::{ask, take};
use crate::Node;
use crate::group::Patience;
use crate::mail::blocking;
use crate::mail::deliver::put_body;
use crate::shard::Shard;

/// Before the account is frozen at the latest: one that changes faster than it is copied is held for longer.
const PASSES_MAX: u32 = 8;
/// A pass that has found so few changed messages or less is the last one before the account is frozen.
const FEW_MESSAGES: u64 = 100;
/// As long as it took no longer: over a slow link so few may be much, and the last one is to be well within [`super::HOLD_MAX`].
const FEW_TAKE: Duration = Duration::from_secs(5);
/// Messages whose bodies are on their way into the log, and their octets; one that is larger goes alone.
const WINDOW: usize = 16;
const WINDOW_OCTETS: usize = 4 * 1024 * 1024;
/// Octets of parts without a body in one command.
const PARTS_OCTETS: usize = 256 * 1024;
/// What a command has beside the digest of the body that it brings.
const HEAD_OCTETS: usize = 512;
/// Runs of UIDs in one part: two numbers of up to five octets each.
const RUNS_MAX: usize = 20_000;
/// Bodies that several messages share, of which it is remembered here which message brought them; of others a second copy
/// comes.
const SHARED_BODIES_MAX: usize = 100_000;
/// A wait for the throttle: it may be told of other copies meanwhile.
const THROTTLE_WAIT_MAX: Duration = Duration::from_secs(1);
/// The largest message that a node takes.
const MESSAGE_OCTETS_MAX: u64 = 128 * 1024 * 1024;

/// Returns once the target has all, and the account is frozen: since when, if it was frozen by this call.
pub async fn bring(
    node: &Node,
    target: &Arc<Shard>,
    account: AccountId,
    moving: AccountMove,
) -> MailResult<Option<Instant>> {
    let AccountMove { id, from, .. } = moving;
    let bringer = getrandom::u64().map_err(|e| MailError::Internal(e.to_string()))?;
    let now = take(target, account, id, MoveStep::Begin { bringer }).await?;
    match now.place {
        Place::Coming if now.move_id == id => {}
        Place::Whole | Place::Here if now.move_id == id => return Ok(None),
        place => return Err(MailError::CannotDo(format!("the account is {place:?} by move {}", now.move_id))),
    }
    let group = target.group.id;
    reach(AccountFailpoint::ComingNoted, group);
    let request = ExportAccountRequest { shard: from.0, account: account.0, what: None };
    let mut bringing = Bringing {
        node,
        target,
        account,
        id,
        bringer,
        request,
        bodies: HashMap::new(),
        requests_since_ms: 0,
        fingerprints_since_ms: 0,
        fingerprints: BTreeSet::new(),
        is_held: false,
    };
    bringing.fingerprints_before().await?;
    let began = Instant::now();
    let (mut passes, mut messages_in_all) = (0, 0);
    while passes < PASSES_MAX {
        passes += 1;
        let pass_began = Instant::now();
        let messages = bringing.pass().await?.messages;
        messages_in_all += messages;
        bringing.requests().await?;
        bringing.fingerprints().await?;
        reach(AccountFailpoint::PassBrought, group);
        if is_short(messages, pass_began.elapsed()) {
            break;
        }
    }
    if target.volume.space.is_full() {
        return Err(MailError::DiskFull);
    }
    let held_since = Instant::now();
    let freeze = MoveAccountRequest { shard: from.0, account: account.0, id, step: Step::Freeze.into() };
    reach(AccountFailpoint::FreezeAsked, group);
    if !ask::source(node, freeze).await?.done {
        return Err(MailError::CannotDo("the account cannot be frozen".to_owned()));
    }
    reach(AccountFailpoint::FreezeAnswered, group);
    tracing::info!(
        account = account.0,
        from = from.0,
        passes,
        messages = messages_in_all,
        took_ms = began.elapsed().as_millis() as u64,
        "account is held for its last pass"
    );
    bringing.is_held = true;
    let last = bringing.pass().await?;
    let Some(mod_seq_last) = last.frozen_at else {
        return Err(MailError::CannotDo("the account is not frozen any more".to_owned()));
    };
    bringing.requests().await?;
    bringing.fingerprints().await?;
    bringing.settle_forgotten().await?;
    reach(AccountFailpoint::LastPassBrought, group);
    let now = take(target, account, id, MoveStep::Complete { bringer, mod_seq_last }).await?;
    match now.place {
        Place::Whole if now.move_id == id => {
            reach(AccountFailpoint::AllBrought, group);
            Ok(Some(held_since))
        }
        place => Err(MailError::CannotDo(format!("the account is {place:?} by move {}", now.move_id))),
    }
}

/// Whether the next pass, for which the account is held, is short as this one was.
fn is_short(messages: u64, took: Duration) -> bool {
    messages <= FEW_MESSAGES && took <= FEW_TAKE
}

struct Bringing<'a> {
    node: &'a Node,
    target: &'a Arc<Shard>,
    account: AccountId,
    id: u64,
    bringer: u64,
    request: ExportAccountRequest,
    /// By the body's number in the source: a message here that has it.
    bodies: HashMap<u64, BodyOf>,
    requests_since_ms: u64,
    fingerprints_since_ms: u64,
    /// Those that have come: they may be settled where they come from.
    fingerprints: BTreeSet<[u8; 32]>,
    /// The account is frozen: everybody waits.
    is_held: bool,
}

#[derive(Default)]
struct Pass {
    messages: u64,
    /// The account was frozen when the pass began: its last modseq.
    frozen_at: Option<u64>,
}

/// The source's [`Outline`] on its way.
#[derive(Default)]
struct Outlined {
    frozen_at: Option<u64>,
    account: MovedAccount,
    mailboxes: Vec<(MovedMailbox, u64)>,
    subscriptions: BTreeSet<String>,
}

fn unexpected() -> MailError {
    MailError::Internal("parts of an account do not fit together".to_owned())
}

fn part(moved: &Bytes) -> MailResult<MovedPart> {
    Moved::decode(&moved[..]).ok().and_then(|moved| moved.part).ok_or_else(unexpected)
}

/// The next part, or nothing once all have come: a stream may end early without an error where its task was stopped.
async fn next(stream: &mut ItemStream<proto::wire::ExportedPart>) -> MailResult<Option<Part>> {
    match stream.next().await.ok_or(MailError::Unavailable)??.part {
        Some(Part::End(_)) => Ok(None),
        Some(part) => Ok(Some(part)),
        None => Err(unexpected()),
    }
}

fn octets_of(part: &MovedPart) -> usize {
    Moved { part: Some(part.clone()) }.encoded_len()
}

impl Bringing<'_> {
    /// Once over all that has changed since the pass before.
    async fn pass(&mut self) -> MailResult<Pass> {
        let outlined = self.outlined().await?;
        self.is_held |= outlined.frozen_at.is_some();
        let local = self.local().await?;
        let is_new = local.account != outlined.account;
        let mut parts = Vec::from_iter(is_new.then_some(MovedPart::Account(outlined.account)));
        let known: BTreeMap<u64, &(MovedMailbox, u64)> = local.mailboxes.iter().map(|one| (one.0.id, one)).collect();
        let is_new = |mailbox: &MovedMailbox| known.get(&mailbox.id).is_none_or(|(known, _)| known != mailbox);
        let new = outlined.mailboxes.iter().map(|(mailbox, _)| mailbox).filter(|mailbox| is_new(mailbox));
        parts.extend(new.cloned().map(MovedPart::Mailbox));
        let there: BTreeSet<u64> = outlined.mailboxes.iter().map(|(mailbox, _)| mailbox.id).collect();
        parts.extend(known.keys().copied().filter(|id| !there.contains(id)).map(MovedPart::Gone));
        let subscribed: BTreeSet<String> = local.subscriptions.iter().cloned().collect();
        let change = |on| move |name: &String| MovedPart::Subscription(MovedSubscription { name: name.clone(), on });
        parts.extend(subscribed.difference(&outlined.subscriptions).map(change(false)));
        parts.extend(outlined.subscriptions.difference(&subscribed).map(change(true)));
        let since = |id: u64| known.get(&id).map_or(0, |(_, mod_seq)| *mod_seq);
        let changed: Vec<(u64, u64)> = outlined
            .mailboxes
            .iter()
            .map(|(mailbox, mod_seq)| (mailbox.id, since(mailbox.id), *mod_seq))
            .filter(|(_, since, mod_seq)| since < mod_seq)
            .map(|(id, since, _)| (id, since))
            .collect();
        self.bodies.retain(|_, of| there.contains(&of.mailbox));
        self.import_all(parts).await?;
        let mut messages = 0;
        for (mailbox, since) in changed {
            messages += self.mailbox(MailboxId(mailbox), since).await?;
        }
        Ok(Pass { messages, frozen_at: outlined.frozen_at })
    }

    async fn export(&self, what: What) -> MailResult<ItemStream<proto::wire::ExportedPart>> {
        ask::export(self.node, &ExportAccountRequest { what: Some(what), ..self.request.clone() }).await
    }

    async fn outlined(&self) -> MailResult<Outlined> {
        let mut stream = self.export(What::Outline(Done {})).await?;
        let (mut outlined, mut came) = (Outlined::default(), false);
        while let Some(part_of) = next(&mut stream).await? {
            match part_of {
                Part::Outline(outline) => {
                    came = true;
                    outlined.frozen_at = outline.frozen.then_some(outline.mod_seq_last);
                }
                Part::Mailbox(mailbox) => match part(&mailbox.moved)? {
                    MovedPart::Mailbox(moved) => outlined.mailboxes.push((moved, mailbox.mod_seq)),
                    _ => return Err(unexpected()),
                },
                Part::Moved(moved) => match part(&moved)? {
                    MovedPart::Account(account) => outlined.account = account,
                    MovedPart::Subscription(subscription) => drop(outlined.subscriptions.insert(subscription.name)),
                    _ => return Err(unexpected()),
                },
                _ => return Err(unexpected()),
            }
        }
        // A stream that breaks errs; one without an outline says nothing of the account.
        if came { Ok(outlined) } else { Err(unexpected()) }
    }

    async fn local(&self) -> MailResult<Outline> {
        let (state, account) = (self.target.state(), self.account);
        blocking(move || Ok(state.outline(account)?)).await
    }

    /// What happened in a mailbox since a modseq. Answers how many messages came or changed.
    async fn mailbox(&mut self, id: MailboxId, since: u64) -> MailResult<u64> {
        let (state, account) = (self.target.state(), self.account);
        let known = blocking(move || Ok(state.uids(account, id)?)).await?;
        let asked = ExportMailbox { mailbox: id.0, since, known: Some(uid_set_to_wire(&known)) };
        let mut stream = self.export(What::Mailbox(asked)).await?;
        // Nothing: it has just been deleted, as the next pass will say.
        let Some(first) = next(&mut stream).await? else { return Ok(0) };
        let Part::Listing(listing) = first else { return Err(unexpected()) };
        let mut window = Window::default();
        let (mut parts, mut octets) = (Vec::new(), 0);
        while let Some(part_of) = window.meanwhile(next(&mut stream)).await?? {
            let Part::Message(message) = part_of else { return Err(unexpected()) };
            if message.body == 0 {
                octets += message.moved.len();
                parts.push(part(&message.moved)?);
            } else if let Some(shared) = self.message(message, &mut stream, &mut window).await? {
                octets += HEAD_OCTETS;
                parts.push(shared);
            }
            if octets > PARTS_OCTETS {
                octets = 0;
                window.meanwhile(self.import(std::mem::take(&mut parts))).await??;
            }
        }
        window.make_room(0, 0, &mut self.bodies).await?;
        self.import(parts).await?;
        self.note_pass(id, since, &known, listing).await
    }

    /// A message that is new here. Its body is on its way then, or answered is a part that refers to one which is here.
    async fn message(
        &mut self,
        message: ExportedMessage,
        stream: &mut ItemStream<proto::wire::ExportedPart>,
        window: &mut Window,
    ) -> MailResult<Option<MovedPart>> {
        let MovedPart::Message(mut moved) = part(&message.moved)? else { return Err(unexpected()) };
        if message.octets > MESSAGE_OCTETS_MAX {
            return Err(MailError::Limit("message too large".to_owned()));
        }
        let mut body = BytesMut::new();
        loop {
            let Some(Part::Body(piece)) = window.meanwhile(next(stream)).await?? else { return Err(unexpected()) };
            body.extend_from_slice(&piece);
            if body.len() as u64 >= message.octets {
                break;
            }
        }
        window.settle(&mut self.bodies);
        if message.shared && window.bodies.contains(&message.body) {
            window.make_room(0, 0, &mut self.bodies).await?;
        }
        if let Some(of) = self.bodies.get(&message.body) {
            moved.body = Some(*of);
            return Ok(Some(MovedPart::Message(moved)));
        }
        self.target.volume.space.admit(body.len() as u64)?;
        self.node.account_moves().gets_on(self.account);
        window.meanwhile(self.pace(body.len())).await?;
        window.make_room(WINDOW - 1, WINDOW_OCTETS.saturating_sub(body.len()), &mut self.bodies).await?;
        let of = BodyOf { mailbox: moved.mailbox, uid: moved.uid };
        moved.body = Some(BodyOf::default());
        let (account, id, bringer) = (self.account, self.id, self.bringer);
        let (target, octets, body, digest) = (self.target.clone(), body.len(), body.freeze(), message.digest);
        let head_octets = digest.len() + HEAD_OCTETS;
        let command = move |source| {
            let parts = vec![MovedPart::Message(moved)];
            Command::Import { account, id, bringer, parts, body: Some(source), digest }
        };
        let (known_by, patience) = (message.shared.then_some(message.body), self.patience());
        let put = async move {
            put_body(&target, (0, patience), body, head_octets, command).await?;
            Ok((octets, known_by.map(|number| (number, of))))
        };
        window.begin(octets, known_by, Box::pin(put));
        Ok(None)
    }

    /// Says that the mailbox has all up to the listing's modseq.
    async fn note_pass(
        &mut self,
        id: MailboxId,
        since: u64,
        known: &UidSet,
        listing: ExportedListing,
    ) -> MailResult<u64> {
        let there = uid_set_from_wire(listing.uids.as_ref())?;
        // Once the pass is noted nobody asks for what it lacks. Before the hold some of it may have gone in the meantime.
        let (state, account) = (self.target.state(), self.account);
        let brought = blocking(move || Ok(state.uids(account, id)?)).await?;
        let missing = there.difference(&brought).len();
        if self.is_held && missing > 0 {
            return Err(MailError::CannotDo(format!("{missing} messages of a mailbox have not come")));
        }
        let changed = uid_set_from_wire(listing.changed.as_ref())?;
        let told = listing.vanished.as_ref().map(|set| uid_set_from_wire(Some(set))).transpose()?;
        let messages = changed.len();
        let gone = told.as_ref().map_or_else(|| known.difference(&there), Clone::clone);
        let is_one_part = changed.ranges().len() + gone.ranges().len() <= RUNS_MAX
            && gone.len() <= u64::from(MESSAGES_PER_CHANGE_MAX);
        let follows = told.is_some() && is_one_part;
        let changed = if follows { changed } else { UidSet::new() };
        let mut parts = gone.parts(MESSAGES_PER_CHANGE_MAX);
        let mut passes = Vec::new();
        if !follows {
            // Removed without a word: those who ask for changes have to look at all.
            let silent = |gone: UidSet| MovedPass::new(id.0, since, false, &UidSet::new(), &gone);
            passes.extend(parts.by_ref().map(silent));
        }
        let gone = parts.next().unwrap_or_default();
        passes.push(MovedPass::new(id.0, listing.mod_seq, follows, &changed, &gone));
        self.bodies.retain(|_, of| of.mailbox != id.0 || there.contains(of.uid));
        for pass in passes {
            self.import(vec![MovedPart::Pass(pass)]).await?;
        }
        Ok(messages)
    }

    async fn import_all(&self, parts: Vec<MovedPart>) -> MailResult<()> {
        let (mut some, mut octets) = (Vec::new(), 0);
        for part in parts {
            let part_octets = octets_of(&part);
            if octets + part_octets > PARTS_OCTETS {
                octets = 0;
                self.import(std::mem::take(&mut some)).await?;
            }
            octets += part_octets;
            some.push(part);
        }
        self.import(some).await
    }

    async fn import(&self, parts: Vec<MovedPart>) -> MailResult<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let octets = parts.iter().map(octets_of).sum();
        self.target.volume.space.admit(octets as u64)?;
        self.pace(octets).await;
        let (account, id, bringer) = (self.account, self.id, self.bringer);
        let command = Command::Import { account, id, bringer, parts, body: None, digest: Bytes::new() };
        self.target.propose_with((0, self.patience()), &command, None).await.map(|_| ())
    }

    /// Nobody waits for what comes before the hold.
    fn patience(&self) -> Patience {
        if self.is_held { Patience::Asked } else { Patience::Copy }
    }

    /// Copies yield to mail, but not while everybody waits for this one.
    async fn pace(&self, octets: usize) {
        while !self.is_held
            && let Err(wait) = self.node.groups().peers.throttle.pass(octets, Instant::now())
        {
            tokio::time::sleep(wait.min(THROTTLE_WAIT_MAX)).await;
        }
    }
}

type Brought = MailResult<(usize, Option<(u64, BodyOf)>)>;

/// Bodies that are on their way into the log.
#[derive(Default)]
struct Window {
    puts: FuturesUnordered<Pin<Box<dyn Future<Output = Brought> + Send>>>,
    octets: usize,
    /// Those that several messages share.
    bodies: HashSet<u64>,
    /// Of them, those that have come.
    brought: Vec<(u64, BodyOf)>,
}

impl Window {
    fn begin(&mut self, octets: usize, shared: Option<u64>, put: Pin<Box<dyn Future<Output = Brought> + Send>>) {
        self.octets += octets;
        self.bodies.extend(shared);
        self.puts.push(put);
    }

    /// Waits until no more than so many are left, with no more than so many octets.
    async fn make_room(&mut self, puts: usize, octets: usize, bodies: &mut HashMap<u64, BodyOf>) -> MailResult<()> {
        while self.puts.len() > puts || self.octets > octets {
            let Some(brought) = self.puts.next().await else { break };
            self.note(brought)?;
        }
        self.settle(bodies);
        Ok(())
    }

    /// What is under way gets on while something else is waited for.
    async fn meanwhile<T>(&mut self, waited: impl Future<Output = T>) -> MailResult<T> {
        tokio::pin!(waited);
        loop {
            tokio::select! {
                done = &mut waited => return Ok(done),
                Some(brought) = self.puts.next() => self.note(brought)?,
            }
        }
    }

    fn note(&mut self, brought: Brought) -> MailResult<()> {
        let (octets, shared) = brought?;
        self.octets -= octets;
        self.brought.extend(shared);
        Ok(())
    }

    /// Whoever else has these bodies need not bring them.
    fn settle(&mut self, bodies: &mut HashMap<u64, BodyOf>) {
        for (number, of) in self.brought.drain(..) {
            self.bodies.remove(&number);
            if bodies.len() < SHARED_BODIES_MAX {
                bodies.insert(number, of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FEW_MESSAGES, FEW_TAKE, is_short};

    #[test]
    fn an_account_is_held_once_little_is_left_that_takes_little_time() {
        assert!(is_short(0, Duration::ZERO) && is_short(FEW_MESSAGES, FEW_TAKE));
        assert!(!is_short(FEW_MESSAGES + 1, Duration::ZERO), "much changes meanwhile");
        assert!(!is_short(1, FEW_TAKE + Duration::from_millis(1)), "one that is large, over a slow link");
        assert!(FEW_TAKE * 2 < super::super::HOLD_MAX, "what takes twice as long is brought while it is held");
    }
}
