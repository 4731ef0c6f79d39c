//! The session as a client sees it: bytes in, replies out.

mod content;
mod hostile;
mod properties;
mod server;
mod transcripts;
