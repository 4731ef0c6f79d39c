//! RFC 5322 and MIME for the storage node: bytes in, values out. A `Digest` is computed once, at delivery; FETCH of
//! ENVELOPE, BODY, BODYSTRUCTURE and the places of sections are answered from it, and SEARCH is told by it what to
//! decode. Knows no mailbox, no disk and no protocol beyond the IMAP forms that it renders.
//!
//! Nothing here fails or panics on any bytes: what is broken is read as plain text, and what exceeds a limit is left
//! out of the structure, never out of the message.

mod address;
mod body_structure;
mod charset;
mod date;
mod digest;
mod envelope;
mod header;
mod lines;
mod mime;
mod parameters;
mod part;
mod record;
mod scan;
mod search;
mod section;
mod thread;
mod transfer;
mod words;
mod writer;

pub mod limits;

pub use address::Address;
pub use digest::{Digest, date_day};
pub use envelope::EnvelopeItem;
pub use header::{header_fields, header_values};
pub use part::{Encoding, Part, PartKind};
pub use record::DigestError;
pub use search::{Needle, body_contains, header_contains, text_contains};
pub use section::{Section, SectionText, partial};
pub use thread::BaseSubject;
