//! The contract between processes: the generated gRPC code, its conversion to the domain's nouns, and the two
//! traits behind which a router finds a node, whether over the network or in its own process.

mod body;
mod client;
mod convert;
mod error;
mod format;
mod listen;
mod refusals;
mod request;
mod role;
mod server;
mod socket;
mod store;
mod stream;
mod tls;
mod validity;

/// The generated messages and gRPC stubs of package `mailring.v1`.
#[allow(clippy::all, missing_docs)]
pub mod wire {
    tonic::include_proto!("mailring.v1");
}

pub use body::{BODY_PIECE_OCTETS, Body};
pub use client::{GrpcNode, connect, connect_for_bulk};
pub use convert::{fetched_flags, uid_set_from_wire, uid_set_to_wire};
pub use error::{mail_error, status};
pub use format::check_format;
pub use listen::{Peer, accept_peers, accept_peers_while};
pub use request::{MESSAGES_PER_CHANGE_MAX, fresh_request_id};
pub use role::{PeerRole, ROLE_ADMIN, ROLE_NODE, ROLE_ROUTER};
pub use server::{DirectoryService, GRPC_MESSAGE_OCTETS_MAX, MailService};
pub use store::{DirectoryStore, ItemStream, MailStore, NodeApi};
pub use stream::PeerStream;
pub use tls::{ClusterTls, ClusterTlsFiles};
pub use validity::CERTIFICATE_ENDS_SOON;
