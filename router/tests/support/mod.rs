//! What the router's tests stand on: a cluster in memory, clients that speak over real sockets, certificates.

#![allow(dead_code)]

pub mod client;
pub mod cluster;
pub mod node;
pub mod router;
