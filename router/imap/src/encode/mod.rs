//! Responses as octets, appended to the caller's buffer. Whatever text comes in, no line ends early: strings are
//! quoted or made literals, and free text is cleaned of control characters.

mod data;
mod fetch;
mod status;
mod string;

pub use data::{
    MailboxAttribute, capability, enabled, exists, expunge, flags, id, list, lsub, namespace, recent, search,
    status as status_of_mailbox,
};
pub use fetch::FetchWriter;
pub use status::{Code, Status, bye, challenge, continuation, greeting, preauth, tagged, untagged};
pub use string::{put_mailbox, put_nstring, put_string};
