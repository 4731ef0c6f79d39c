//! The admin commands: each asks the running cluster over gRPC as an admin, and prints what it learnt or did.

mod account;
mod alias;
mod client;
mod domain;
mod import;
mod node;
mod quorum;
mod quota;
mod rebalance;
mod safe_to_stop;
mod scrub;
mod shard;
mod status;
mod survey;
mod view;
mod volume;

use crate::admin::client::AdminClient;
use crate::cli::{
    AccountVerb, AliasVerb, DomainVerb, NodeVerb, OutputArgs, QuotaVerb, RebalanceVerb, ShardVerb, VolumeVerb,
};
use crate::failure::Failure;
use crate::settings::AdminFile;

pub enum Action {
    Status(OutputArgs),
    Node(NodeVerb),
    Shard(ShardVerb),
    Rebalance(RebalanceVerb),
    Volume(VolumeVerb),
    Scrub { shard: Option<u32>, output: OutputArgs },
    Domain(DomainVerb),
    Account(AccountVerb),
    Alias(AliasVerb),
    Quota(QuotaVerb),
}

pub async fn run(settings: AdminFile, action: Action) -> Result<(), Failure> {
    let mut client = AdminClient::new(&settings)?;
    match action {
        Action::Status(output) => status::status(&mut client, output).await,
        Action::Node(NodeVerb::List(output)) => node::list(&mut client, output).await,
        Action::Node(NodeVerb::Join(join)) => rebalance::join(&mut client, join).await,
        Action::Node(NodeVerb::Drain(place)) => rebalance::drain(&mut client, place).await,
        Action::Node(NodeVerb::Remove { node, output }) => rebalance::remove(&mut client, node, output).await,
        Action::Node(NodeVerb::SafeToStop { node, output }) => safe_to_stop::run(&mut client, node, output).await,
        Action::Rebalance(verb) => rebalance::run(&mut client, verb).await,
        Action::Shard(verb) => shard::run(&mut client, verb).await,
        Action::Volume(verb) => volume::run(&mut client, verb).await,
        Action::Scrub { shard, output } => scrub::run(&mut client, shard, output).await,
        Action::Domain(verb) => domain::run(&mut client, verb).await,
        Action::Account(verb) => account::run(&mut client, verb).await,
        Action::Alias(verb) => alias::run(&mut client, verb).await,
        Action::Quota(verb) => quota::run(&mut client, verb).await,
    }
}
