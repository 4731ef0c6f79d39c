//! The session as a client sees it: bytes in, replies out.

mod properties;
mod server;
mod transcripts;
