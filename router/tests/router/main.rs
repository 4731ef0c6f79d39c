//! The router over real sockets, before a cluster in memory.

mod cluster;
mod fetch;
mod grpc;
mod limits;
mod login;
mod pop3;
mod smtp;
#[path = "../support/mod.rs"]
mod support;
