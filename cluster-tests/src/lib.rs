//! Whole-cluster tests: a harness that runs real processes on free ports, deliberately dumb clients that send what they
//! are told and read what comes, C:/S: transcripts, and the corpus of real and odd mail where there is one.

mod admin;
mod checker;
mod clock;
mod cluster;
mod corpus;
mod damage;
mod disk;
mod failpoints;
mod formats;
mod groups;
mod history;
mod idle;
mod imap;
mod line;
mod load;
mod maildrops;
mod network;
mod noise;
mod placement;
mod pop3;
mod ports;
mod process;
mod proxy;
mod quantiles;
mod random;
mod reading;
mod replicas;
mod rows;
mod scenario;
mod service;
mod smtp;
mod system_calls;
mod totals;
mod transcript;
mod trials;
mod volumes;

pub use checker::check;
pub use clock::{Clock, no_clocks_because};
pub use cluster::{Cluster, ClusterOptions, PASSWORD};
pub use corpus::{CorpusMessage, corpus};
pub use damage::{
    LARGE_MESSAGES, LOGS, TABLES, check_large, check_large_but, check_range_but, files_of, fill, flip, flip_large,
    flip_large_late, flip_log, flip_tables, live_log,
};
pub use disk::{DISK_RESERVE_OCTETS, Disk, Stall, disks_possible};
pub use failpoints::{Asked, Failpoints, Reached};
pub use groups::Elections;
pub use history::{Change, Entries, History, Operation, Outcome, Place, Reading, Seen, Status, Tally};
pub use idle::Idlers;
pub use imap::ImapClient;
pub use line::{LineClient, is_timeout};
pub use load::{Load, LoadOptions, MAILBOXES, message};
pub use network::{Fault, Network, in_own_network};
pub use noise::noise;
pub use pop3::Pop3Client;
pub use process::{Process, binary, eventually, planted_binary};
pub use proxy::{Link, Proxy};
pub use quantiles::Quantiles;
pub use random::Random;
pub use rows::{Row, Step, play_rows};
pub use scenario::{PROVEN, Scenario, command_again, is_long, rounds, setting};
pub use service::Service;
pub use smtp::{SmtpClient, dot_stuffed};
pub use system_calls::Injection;
pub use transcript::{Transcript, play};
pub use trials::{StepFault, chosen, failpoints_possible, in_parts};
pub use volumes::{delete_disk, letter};
