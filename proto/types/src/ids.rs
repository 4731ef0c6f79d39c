//! A newtype for each id and counter, so that they cannot change places in a call.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One of S fixed slices of the account space, 0 to S-1.
    ShardId(u32)
);
id!(
    /// A node's Raft id: random, made with the data directory, never used again after it is lost.
    NodeId(u64)
);
id!(
    /// An account's id, unique in the cluster and never reused.
    AccountId(u64)
);
id!(
    /// A mailbox's id, unique within its account and never reused; it survives RENAME.
    MailboxId(u64)
);
id!(
    /// A message's unique identifier within its mailbox (RFC 9051 §2.3.1.1). Never 0.
    Uid(u32)
);
id!(
    /// A mailbox's unique identifier validity value (RFC 9051 §2.3.1.1). Never 0.
    UidValidity(u32)
);
id!(
    /// A modification sequence (RFC 7162 §3.1): the index of the log entry that made the change.
    ModSeq(u64)
);

impl Uid {
    /// The greatest UID that can be given out.
    pub const MAX: Uid = Uid(u32::MAX);
}
