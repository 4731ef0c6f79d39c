//! C: and S: transcripts against a router with an IMAP listener and a node in memory.

mod append;
mod bad_input;
mod fetch;
mod login;
mod mailboxes;
mod node;
mod random;
mod state;
mod store;
mod transcript;
mod updates;
