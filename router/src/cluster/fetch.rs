//! A FETCH that outlives its node: when the stream breaks, it goes on at another replica after the last message that
//! came whole, or within the section that was under way, as bodies never change, though the message has been expunged
//! meanwhile: then its body is read where it was. What a replica cannot read is asked of each of the others, and left out
//! where none can.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use proto::wire::fetch_item::Item;
use proto::wire::{BodyPlace, BodyRange, FetchItem, FetchRequest, FetchedMessage, Section, SectionData, UnreadMessage};
use proto::{ItemStream, NodeApi, uid_set_from_wire, uid_set_to_wire};
use types::{MailError, MailResult, NodeId, ShardId, UidSet};

use super::shards::{Place, ShardClient};

/// Breaks in one fetch without an item between them.
const BREAKS_MAX: u32 = 5;

pub struct FetchStream {
    client: ShardClient,
    request: FetchRequest,
    /// Still to come, the message under way left out.
    left: UidSet,
    stream: Option<ItemStream<FetchItem>>,
    under_way: Option<UnderWay>,
    /// Items made of a resumed message, which come before the stream's next.
    ready: VecDeque<FetchItem>,
    breaks: u32,
    sought: Option<Sought>,
    /// What no replica could read.
    unread: UidSet,
    done: bool,
}

/// A message that is asked for at one replica after the other.
struct Sought {
    uid: u32,
    /// Of those that could not read it.
    nodes: Vec<NodeId>,
}

/// A message whose large sections are coming.
struct UnderWay {
    uid: u32,
    /// By index in the request: octets still to come.
    missing: Vec<u64>,
    /// Octets that came.
    came: Vec<u64>,
    /// Where the sections begin in the body, of those that stand there so; and where that is.
    offsets: Vec<Option<u64>>,
    place: Option<BodyPlace>,
    /// Set in a resumed stream: its only section is this one of the request.
    resumed: Option<usize>,
}

impl UnderWay {
    /// What is missing of a section, by its place.
    fn rest(&self, index: usize) -> Option<BodyRange> {
        let (missing, came) = (*self.missing.get(index)?, self.came.get(index)?);
        let offset = (*self.offsets.get(index)?)?.checked_add(*came)?;
        Some(BodyRange { place: Some(self.place.clone()?), offset, octets: missing })
    }
}

impl FetchStream {
    pub(super) fn new(client: ShardClient, request: FetchRequest) -> FetchStream {
        let left = uid_set_from_wire(request.uids.as_ref()).unwrap_or_default();
        FetchStream {
            client,
            request,
            left,
            stream: None,
            under_way: None,
            ready: VecDeque::new(),
            breaks: 0,
            sought: None,
            unread: UidSet::new(),
            done: false,
        }
    }

    /// The messages that were left out so far, as they can be read nowhere; none where the request does not ask to be
    /// told.
    pub fn unread(&self) -> &UidSet {
        &self.unread
    }

    /// The next item; `None` after the last. After an error nothing more comes.
    pub async fn next(&mut self) -> Option<MailResult<FetchItem>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            if self.done {
                return None;
            }
            match self.advance().await {
                Ok(Some(item)) => self.ready.push_back(item),
                Ok(None) => {}
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// One step; not each gives an item.
    async fn advance(&mut self) -> MailResult<Option<FetchItem>> {
        let Some(stream) = &mut self.stream else {
            if self.under_way.is_none() && self.left.is_empty() {
                self.done = true;
                return Ok(None);
            }
            let request = self.next_request();
            let place = Place::of_account(request.shard, request.account);
            let fetch = |node: Arc<dyn NodeApi>, shard: ShardId| {
                let request = FetchRequest { shard: shard.0, ..request.clone() };
                async move { node.fetch(request).await }
            };
            let open = self.client.open(place, fetch);
            self.stream = Some(open.await?);
            return Ok(None);
        };
        match stream.next().await {
            Some(Ok(FetchItem { item: Some(Item::Unread(unread)) })) => self.take_unread(unread).map(|()| None),
            Some(Ok(item)) => {
                self.breaks = 0;
                self.take(item)
            }
            // A node ends a stream early only with an error; what it left out it does not have.
            None => {
                self.stream = None;
                match self.under_way.take() {
                    None => self.left = UidSet::new(),
                    // Expunged, and its body has gone too.
                    Some(_) => return Err(MailError::Unavailable),
                }
                Ok(None)
            }
            Some(Err(
                MailError::NotLeader { .. } | MailError::NotHere | MailError::Unavailable | MailError::Deadline,
            )) if self.breaks < BREAKS_MAX => {
                self.breaks += 1;
                self.stream = None;
                if let Some(under_way) = &mut self.under_way {
                    under_way.resumed = None;
                }
                Ok(None)
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// The rest of a section of the message under way, else the messages still to come. One section a request: a node
    /// puts the beginning of each into the message's head, but its reader takes them one after the other.
    fn next_request(&mut self) -> FetchRequest {
        let (unread_uid, unread_at) = match &self.sought {
            Some(sought) => (sought.uid, sought.nodes.iter().map(|node| node.0).collect()),
            None => (0, Vec::new()),
        };
        let Some(under_way) = &mut self.under_way else {
            let uids = Some(uid_set_to_wire(&self.left));
            return FetchRequest { uids, unread_uid, unread_at, ..self.request.clone() };
        };
        let index = under_way.missing.iter().position(|octets| *octets > 0);
        let section = index.and_then(|index| {
            let section = self.request.sections.get(index)?;
            let (came, missing) = (under_way.came.get(index)?, under_way.missing.get(index)?);
            let offset = if section.has_partial { section.offset } else { 0 };
            Some(Section { has_partial: true, offset: offset + came, octets_max: *missing, ..section.clone() })
        });
        let request = FetchRequest {
            shard: self.request.shard,
            account: self.request.account,
            mailbox: self.request.mailbox,
            uids: Some(uid_set_to_wire(&UidSet::from_range(under_way.uid, under_way.uid))),
            sections: section.into_iter().collect(),
            tells_unread: self.request.tells_unread,
            unread_uid,
            unread_at,
            rest: index.and_then(|index| under_way.rest(index)),
            ..FetchRequest::default()
        };
        under_way.resumed = index;
        request
    }

    fn take(&mut self, item: FetchItem) -> MailResult<Option<FetchItem>> {
        match item.item {
            None | Some(Item::Unread(_)) => Ok(None),
            Some(Item::Message(message)) => match self.under_way.as_ref().and_then(|under| under.resumed) {
                Some(index) => self.take_resumed(message, index).map(|()| None),
                None => self.take_message(message).map(Some),
            },
            Some(Item::Data(mut data)) => {
                let under_way = self.under_way.as_ref().ok_or_else(broken)?;
                if let Some(index) = under_way.resumed {
                    if data.section != 0 {
                        return Err(broken());
                    }
                    data.section = index as u32;
                }
                self.count(data.section as usize, data.data.len() as u64)?;
                Ok(Some(FetchItem { item: Some(Item::Data(data)) }))
            }
        }
    }

    /// Another replica is asked next, each once; or the message is left out.
    fn take_unread(&mut self, UnreadMessage { uid, node, elsewhere }: UnreadMessage) -> MailResult<()> {
        let is_expected = match &self.under_way {
            Some(under_way) => under_way.uid == uid,
            None => self.left.contains(uid),
        };
        if !is_expected {
            return Err(broken());
        }
        let sought = self.sought.take().filter(|sought| sought.uid == uid);
        if elsewhere {
            let mut sought = sought.unwrap_or(Sought { uid, nodes: Vec::new() });
            // One that is told of again has been asked again, as no other came to lead: that is a break like any other.
            if !sought.nodes.contains(&NodeId(node)) {
                sought.nodes.push(NodeId(node));
                self.breaks = 0;
            }
            self.sought = Some(sought);
            return Ok(());
        }
        if self.under_way.is_some() {
            return Err(MailError::Corrupt { key: format!("the rest of message {uid}") });
        }
        self.breaks = 0;
        self.left = self.left.difference(&UidSet::from_range(1, uid));
        self.unread.insert(uid);
        Ok(())
    }

    fn take_message(&mut self, message: FetchedMessage) -> MailResult<FetchItem> {
        if self.under_way.is_some() {
            return Err(broken());
        }
        // Not to be asked for again, whatever happens.
        let passed = UidSet::from_range(1, message.uid);
        self.left = self.left.difference(&passed);
        let came: Vec<u64> = message.sections.iter().map(|section| section.data.len() as u64).collect();
        let missing: Vec<u64> = message
            .sections
            .iter()
            .map(|section| if section.nil { 0 } else { section.octets.saturating_sub(section.data.len() as u64) })
            .collect();
        if missing.iter().any(|octets| *octets > 0) {
            let sections = message.sections.iter();
            let offsets = sections.map(|section| section.has_offset.then_some(section.offset)).collect();
            let place = message.place.clone();
            self.under_way = Some(UnderWay { uid: message.uid, missing, came, offsets, place, resumed: None });
        }
        Ok(FetchItem { item: Some(Item::Message(message)) })
    }

    /// The head of a resumed message: only what its section already holds is new.
    fn take_resumed(&mut self, message: FetchedMessage, index: usize) -> MailResult<()> {
        let missing = self.under_way.as_ref().and_then(|under| under.missing.get(index)).copied();
        let [section] = <[_; 1]>::try_from(message.sections).map_err(|_| broken())?;
        if section.nil || missing != Some(section.octets) {
            return Err(broken());
        }
        if !section.data.is_empty() {
            self.count(index, section.data.len() as u64)?;
            let data = SectionData { section: index as u32, data: section.data };
            self.ready.push_back(FetchItem { item: Some(Item::Data(data)) });
        }
        Ok(())
    }

    fn count(&mut self, section: usize, octets: u64) -> MailResult<()> {
        let Some(under_way) = &mut self.under_way else { return Err(broken()) };
        let missing = under_way.missing.get_mut(section).ok_or_else(broken)?;
        *missing = missing.checked_sub(octets).ok_or_else(broken)?;
        let is_whole = *missing == 0;
        if let Some(came) = under_way.came.get_mut(section) {
            *came += octets;
        }
        // A resumed stream carries this one section alone.
        if is_whole && under_way.resumed.take().is_some() {
            self.stream = None;
        }
        if under_way.missing.iter().all(|octets| *octets == 0) {
            self.under_way = None;
        }
        Ok(())
    }
}

/// The node said what it cannot mean.
fn broken() -> MailError {
    MailError::Internal("items of a fetch do not fit together".to_owned())
}
