//! Every bound of the directory, by name. They are part of the replicated rules: all replicas must have the same ones,
//! so they are constants and not settings.

/// Shards of a cluster, fixed when it is created. 4,096 Raft groups are spread over a hundred nodes without strain.
pub const SHARDS_MAX: u32 = 4096;
/// Copies of a shard.
pub const REPLICAS_MAX: u32 = 5;
/// Nodes that are not removed. The plan's cost grows with shards times nodes.
pub const NODES_MAX: usize = 256;
/// Node records, those of removed nodes included: they stay so that a removed node is told so for ever.
pub const NODE_RECORDS_MAX: usize = 10_000;
/// A node's weight; each unit is 128 points on the ring.
pub const NODE_WEIGHT_MAX: u32 = 64;
/// A node's name or zone in octets: a DNS label.
pub const LABEL_OCTETS_MAX: usize = 63;
/// A node's `host:port` in octets: a domain name, brackets or a colon, a port.
pub const ADDRESS_OCTETS_MAX: usize = 263;
/// Domains of a cluster.
pub const DOMAINS_MAX: usize = 100_000;
/// Accounts of a cluster: about half a gigabyte of state in memory on each voter.
pub const ACCOUNTS_MAX: usize = 1_000_000;
/// Aliases of a cluster.
pub const ALIASES_MAX: usize = 1_000_000;
/// Accounts in one [`CreateAccounts`](crate::Command::CreateAccounts): with the longest names and hashes such a command
/// stays below the 512 KiB that a log entry may have.
pub const ACCOUNTS_BATCH_MAX: usize = 500;
/// A password hash in octets; Argon2id with a 32-octet salt and a 64-octet output has 162.
pub const PASSWORD_HASH_OCTETS_MAX: usize = 256;
/// Targets written in one alias.
pub const ALIAS_TARGETS_MAX: usize = 500;
/// Accounts that one recipient may come to be after aliases are followed. RFC 5321 §4.5.3.1.8 asks for 100 recipients
/// of a client; a list of a thousand is the most that one mail transaction should fan out to.
pub const EXPANSION_ACCOUNTS_MAX: usize = 1000;
/// Names visited while the aliases of one recipient are followed.
pub const EXPANSION_VISITS_MAX: usize = 4000;
/// Accounts on one page of a listing.
pub const ACCOUNTS_PAGE_MAX: usize = 1000;
/// For so long, by the stamps of requests, one is known again by its id: callers ask again for some seconds, then nobody
/// does.
pub const REQUEST_AGE_MS: u64 = 10 * 60 * 1000;
/// Answers that are remembered, a request for many accounts having one for each; the oldest go first. With the longest names
/// in all of them some 8 MiB of state, and more changes than one could ask for and lose from sight in ten minutes.
pub const REQUEST_ANSWERS_MAX: usize = 16_384;
/// Accounts that move to another shard at a time: each is looked at every half second, and is few milliseconds' work then.
pub const ACCOUNT_MOVES_MAX: usize = 1000;
