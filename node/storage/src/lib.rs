//! What a node keeps on disk: volumes, and in each of them groups with a Raft log, bodies, and the mailboxes of a shard
//! or the records of the directory.
//!
//! Knows nothing of Raft's rules, of gRPC or of async: threads, callbacks, and bytes that others make sense of. Commands
//! of a shard are the exception: [`ShardState::apply`] decides everything about mailboxes.

mod assemble;
mod error;
mod failpoint;
mod faults;
mod files;
mod group;
mod half;
mod half_record;
mod half_status;
mod identity;
mod keys;
mod location;
mod log;
mod losses;
mod mark;
mod mirror;
mod options;
mod pace;
mod patience;
mod piecemeal;
mod planted;
mod prepare;
mod reader;
mod reading;
mod reads;
mod reclaim;
mod records;
mod resilver;
mod rewrites;
mod room;
mod salvage;
mod scrub;
mod since;
mod snapshot;
mod state;
mod store;
mod stray;
mod table;
mod tail;
mod under_way;
mod unread;
mod volume;
mod watch;
mod writer;

pub use error::StorageError;
pub use failpoint::{AccountFailpoint, Failpoint, reach};
pub use faults::{Faults, HalfName, Operation};
pub use group::Group;
pub use half_status::{HalfState, HalfStatus};
pub use identity::Identity;
pub use keys::GroupId;
pub use location::Location;
pub use log::{LogEntry, TryAppend};
pub use losses::{Losses, Lost};
pub use options::VolumeOptions;
pub use pace::ReadPace;
pub use reclaim::Reclaim;
pub use room::{free_on, has_room_for};
pub use scrub::{Finding, HalfScrub, ScrubHistory, ScrubOptions, ScrubProgress, ScrubReport, Scrubbed, Verdict};
pub use snapshot::{Blocks, Export, Installer};
pub use state::{
    AccountTotals, BodyChunk, BodyId, BodyOf, BodySource, Changes, Command, Delivered, MAILBOXES_MAX, MailboxInfo,
    MessageMeta, MoveStep, Moved, MovedAccount, MovedFingerprint, MovedListing, MovedMailbox, MovedMessage, MovedPart,
    MovedPass, MovedRequest, MovedSubscription, Outcome, Outline, PinnedBody, Place, Recipient, Remembered,
    RememberedFrom, SUBSCRIPTIONS_MAX, Selection, ShardEvent, ShardEventKind, ShardState, ShardTotals, Stamp,
    StoreAction, UPLOAD_CHUNKS_MAX, Whereabouts,
};
pub use table::Table;
pub use volume::{Volume, VolumeStatistics};
pub use writer::{Done, Notify};
