//! The form of commands in the log. Tags are never reused; a new command gets a new tag, and a node that does not
//! know it must stop rather than skip it, since its state would part from that of the others.

mod messages;
mod placements;

use prost::{Message, Oneof};
use types::{AccountId, NodeId, ShardId, format};

use self::messages::{
    AccountForm, Accounts, AliasForm, CreateCluster, Enabled, LimitForm, MoveStepForm, NamedShard, NodeAddress,
    NodeForm, NodeShare, NodeStart, NodeStateForm, NodeVoter, Postmaster, QuotaForm,
};
use self::placements::{
    Ended, GiveUp, PlacementForm, Placements, Shards, StartRebalance, lists, numbers, placement_forms, shards,
};
use super::{Command, NewAccount, NewNode};
use crate::record::{
    account_name, domain_name, move_stage_number, move_stage_of, rebalance_state_number, rebalance_state_of,
    state_number, state_of,
};
use crate::requests::{Request, RequestId};
use crate::values::{ClusterId, PasswordHash, QuotaChange, Start};

#[derive(Clone, PartialEq, Message)]
struct CommandForm {
    #[prost(
        oneof = "Kind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 30, 31, 40, 50"
    )]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    CreateCluster(CreateCluster),
    #[prost(message, tag = "2")]
    RegisterNode(NodeForm),
    #[prost(message, tag = "3")]
    UpdateNodeAddress(NodeAddress),
    #[prost(message, tag = "4")]
    SetNodeState(NodeStateForm),
    #[prost(message, tag = "5")]
    SetNodeVoter(NodeVoter),
    #[prost(string, tag = "6")]
    CreateDomain(String),
    #[prost(string, tag = "7")]
    RemoveDomain(String),
    #[prost(message, tag = "8")]
    CreateAccount(Accounts),
    #[prost(message, tag = "9")]
    CreateAccounts(Accounts),
    #[prost(string, tag = "10")]
    RemoveAccount(String),
    #[prost(message, tag = "11")]
    SetPassword(AccountForm),
    #[prost(message, tag = "12")]
    SetEnabled(Enabled),
    #[prost(message, tag = "13")]
    CreateAlias(AliasForm),
    #[prost(string, tag = "14")]
    RemoveAlias(String),
    #[prost(message, tag = "15")]
    SetPostmaster(Postmaster),
    #[prost(message, tag = "16")]
    SetPlacements(Placements),
    #[prost(uint32, tag = "17")]
    MarkShardInitialised(u32),
    #[prost(message, tag = "18")]
    StartRebalance(StartRebalance),
    #[prost(uint32, tag = "19")]
    SetRebalanceState(u32),
    #[prost(message, tag = "20")]
    BeginMoves(Shards),
    #[prost(message, tag = "21")]
    EndMoves(Ended),
    #[prost(message, tag = "22")]
    UpdateNode(NodeShare),
    #[prost(message, tag = "23")]
    NoteNodeStart(NodeStart),
    #[prost(message, tag = "24")]
    SetQuota(QuotaForm),
    #[prost(message, tag = "25")]
    StartAccountMove(NamedShard),
    #[prost(string, tag = "26")]
    AbortAccountMove(String),
    #[prost(message, tag = "27")]
    StepAccountMove(MoveStepForm),
    #[prost(message, tag = "30")]
    PreferLeaders(Placements),
    #[prost(message, tag = "31")]
    GiveUpNode(GiveUp),
    #[prost(uint32, tag = "40")]
    SetFormat(u32),
    #[prost(message, tag = "50")]
    Once(Once),
}

#[derive(Clone, PartialEq, Message)]
struct Once {
    #[prost(bytes = "vec", tag = "1")]
    request: Vec<u8>,
    #[prost(uint64, tag = "2")]
    unix_ms: u64,
    #[prost(message, optional, boxed, tag = "3")]
    command: Option<Box<CommandForm>>,
}

pub(super) fn encode(command: &Command) -> Vec<u8> {
    let form = form(command);
    let mut bytes = Vec::with_capacity(1 + form.encoded_len());
    bytes.push(format::octet());
    bytes.extend_from_slice(&form.encode_to_vec());
    bytes
}

fn form(command: &Command) -> CommandForm {
    CommandForm { kind: Some(kind(command)) }
}

fn kind(command: &Command) -> Kind {
    match command {
        Command::CreateCluster { id, shards, replicas, nodes } => Kind::CreateCluster(CreateCluster {
            id: id.0.to_vec(),
            shards: *shards,
            replicas: *replicas,
            nodes: nodes.iter().map(node_form).collect(),
        }),
        Command::RegisterNode(node) => Kind::RegisterNode(node_form(node)),
        Command::UpdateNodeAddress { id, address } => {
            Kind::UpdateNodeAddress(NodeAddress { id: id.0, address: address.clone() })
        }
        Command::SetNodeState { id, state } => {
            Kind::SetNodeState(NodeStateForm { id: id.0, state: state_number(*state) })
        }
        Command::SetNodeVoter { id, voter } => Kind::SetNodeVoter(NodeVoter { id: id.0, voter: *voter }),
        Command::UpdateNode { id, zone, weight } => {
            Kind::UpdateNode(NodeShare { id: id.0, zone: zone.clone(), weight: *weight })
        }
        Command::NoteNodeStart { id, before, now, format } => Kind::NoteNodeStart(NodeStart {
            id: id.0,
            starts_before: before.starts,
            run_before: before.run,
            starts: now.starts,
            run: now.run,
            format: *format,
        }),
        Command::SetFormat { format } => Kind::SetFormat(*format),
        Command::CreateDomain { name } => Kind::CreateDomain(name.to_string()),
        Command::RemoveDomain { name } => Kind::RemoveDomain(name.to_string()),
        Command::CreateAccount { account, unix_s } => {
            Kind::CreateAccount(Accounts { accounts: vec![account_form(account)], unix_s: *unix_s })
        }
        Command::CreateAccounts { accounts, unix_s } => {
            Kind::CreateAccounts(Accounts { accounts: accounts.iter().map(account_form).collect(), unix_s: *unix_s })
        }
        Command::RemoveAccount { name } => Kind::RemoveAccount(name.to_string()),
        Command::SetPassword { name, password_hash } => {
            Kind::SetPassword(AccountForm { name: name.to_string(), password_hash: password_hash.as_str().to_owned() })
        }
        Command::SetEnabled { name, enabled } => {
            Kind::SetEnabled(Enabled { name: name.to_string(), enabled: *enabled })
        }
        Command::SetQuota { name, change } => Kind::SetQuota(QuotaForm {
            name: name.to_string(),
            octets: change.octets.map(|max| LimitForm { max }),
            messages: change.messages.map(|max| LimitForm { max }),
        }),
        Command::StartAccountMove { name, to } => {
            Kind::StartAccountMove(NamedShard { name: name.to_string(), shard: to.0 })
        }
        Command::AbortAccountMove { name } => Kind::AbortAccountMove(name.to_string()),
        Command::StepAccountMove { account, id, stage } => {
            Kind::StepAccountMove(MoveStepForm { account: account.0, id: *id, stage: move_stage_number(*stage) })
        }
        Command::CreateAlias { name, targets } => Kind::CreateAlias(AliasForm {
            name: name.to_string(),
            targets: targets.iter().map(ToString::to_string).collect(),
        }),
        Command::RemoveAlias { name } => Kind::RemoveAlias(name.to_string()),
        Command::SetPostmaster { account } => {
            Kind::SetPostmaster(Postmaster { account: account.as_ref().map(ToString::to_string) })
        }
        Command::SetPlacements { wanted } => Kind::SetPlacements(Placements { wanted: placement_forms(wanted) }),
        Command::MarkShardInitialised { shard } => Kind::MarkShardInitialised(shard.0),
        Command::StartRebalance { targets, replace, unix_s, octets } => Kind::StartRebalance(StartRebalance {
            targets: placement_forms(targets),
            replace: *replace,
            unix_s: *unix_s,
            octets: *octets,
        }),
        Command::GiveUpNode { id, targets, unix_s, octets } => {
            Kind::GiveUpNode(GiveUp { id: id.0, targets: placement_forms(targets), unix_s: *unix_s, octets: *octets })
        }
        Command::SetRebalanceState { state } => Kind::SetRebalanceState(rebalance_state_number(*state)),
        Command::PreferLeaders { leaders } => Kind::PreferLeaders(Placements {
            wanted: leaders.iter().map(|(shard, node)| PlacementForm { shard: shard.0, nodes: vec![node.0] }).collect(),
        }),
        Command::BeginMoves { shards } => Kind::BeginMoves(Shards { shards: numbers(shards) }),
        Command::EndMoves { shards, seen } => Kind::EndMoves(Ended { shards: numbers(shards), seen: *seen }),
        Command::Once { request, command } => Kind::Once(Once {
            request: request.id.0.to_be_bytes().to_vec(),
            unix_ms: request.unix_ms,
            command: Some(Box::new(form(command))),
        }),
    }
}

fn node_form(node: &NewNode) -> NodeForm {
    NodeForm {
        id: node.id.0,
        name: node.name.clone(),
        address: node.address.clone(),
        zone: node.zone.clone(),
        weight: node.weight,
        voter: node.voter,
        format: node.format,
        waits: node.waits,
    }
}

fn account_form(account: &NewAccount) -> AccountForm {
    AccountForm { name: account.name.to_string(), password_hash: account.password_hash.as_str().to_owned() }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Command, String> {
    match bytes.split_first() {
        None => Err("the command is empty".to_owned()),
        Some((written, form)) if format::reads(u32::from(*written)) => {
            command(CommandForm::decode(form).map_err(|error| error.to_string())?)
        }
        Some((written, _)) => {
            Err(format!("it has format {written}; this program knows formats up to {}", format::known()))
        }
    }
}

fn command(form: CommandForm) -> Result<Command, String> {
    let Some(kind) = form.kind else {
        return Err("commands of this kind are not known".to_owned());
    };
    Ok(match kind {
        Kind::CreateCluster(form) => Command::CreateCluster {
            id: ClusterId(form.id.try_into().map_err(|_| "cluster id is not 16 octets long".to_owned())?),
            shards: form.shards,
            replicas: form.replicas,
            nodes: form.nodes.into_iter().map(new_node).collect(),
        },
        Kind::RegisterNode(form) => Command::RegisterNode(new_node(form)),
        Kind::UpdateNodeAddress(form) => Command::UpdateNodeAddress { id: NodeId(form.id), address: form.address },
        Kind::SetNodeState(form) => Command::SetNodeState { id: NodeId(form.id), state: state_of(form.state)? },
        Kind::SetNodeVoter(form) => Command::SetNodeVoter { id: NodeId(form.id), voter: form.voter },
        Kind::UpdateNode(form) => Command::UpdateNode { id: NodeId(form.id), zone: form.zone, weight: form.weight },
        Kind::NoteNodeStart(form) => Command::NoteNodeStart {
            id: NodeId(form.id),
            before: Start { starts: form.starts_before, run: form.run_before },
            now: Start { starts: form.starts, run: form.run },
            format: form.format,
        },
        Kind::CreateDomain(name) => Command::CreateDomain { name: domain_name(&name)? },
        Kind::RemoveDomain(name) => Command::RemoveDomain { name: domain_name(&name)? },
        Kind::CreateAccount(form) => {
            let [account] = <[AccountForm; 1]>::try_from(form.accounts)
                .map_err(|accounts| format!("{} accounts where one belongs", accounts.len()))?;
            Command::CreateAccount { account: new_account(account)?, unix_s: form.unix_s }
        }
        Kind::CreateAccounts(form) => Command::CreateAccounts {
            accounts: form.accounts.into_iter().map(new_account).collect::<Result<_, _>>()?,
            unix_s: form.unix_s,
        },
        Kind::RemoveAccount(name) => Command::RemoveAccount { name: account_name(&name)? },
        Kind::SetPassword(form) => {
            let NewAccount { name, password_hash } = new_account(form)?;
            Command::SetPassword { name, password_hash }
        }
        Kind::SetEnabled(form) => Command::SetEnabled { name: account_name(&form.name)?, enabled: form.enabled },
        Kind::SetQuota(form) => Command::SetQuota {
            name: account_name(&form.name)?,
            change: QuotaChange {
                octets: form.octets.map(|limit| limit.max),
                messages: form.messages.map(|limit| limit.max),
            },
        },
        Kind::StartAccountMove(form) => {
            Command::StartAccountMove { name: account_name(&form.name)?, to: ShardId(form.shard) }
        }
        Kind::AbortAccountMove(name) => Command::AbortAccountMove { name: account_name(&name)? },
        Kind::StepAccountMove(form) => Command::StepAccountMove {
            account: AccountId(form.account),
            id: form.id,
            stage: move_stage_of(form.stage)?,
        },
        Kind::CreateAlias(form) => Command::CreateAlias {
            name: account_name(&form.name)?,
            targets: form.targets.iter().map(|target| account_name(target)).collect::<Result<_, _>>()?,
        },
        Kind::RemoveAlias(name) => Command::RemoveAlias { name: account_name(&name)? },
        Kind::SetPostmaster(form) => {
            Command::SetPostmaster { account: form.account.as_deref().map(account_name).transpose()? }
        }
        Kind::SetFormat(format) => Command::SetFormat { format },
        Kind::SetPlacements(form) => Command::SetPlacements { wanted: lists(form.wanted) },
        Kind::MarkShardInitialised(shard) => Command::MarkShardInitialised { shard: ShardId(shard) },
        Kind::StartRebalance(form) => Command::StartRebalance {
            targets: lists(form.targets),
            replace: form.replace,
            unix_s: form.unix_s,
            octets: form.octets,
        },
        Kind::GiveUpNode(form) => Command::GiveUpNode {
            id: NodeId(form.id),
            targets: lists(form.targets),
            unix_s: form.unix_s,
            octets: form.octets,
        },
        Kind::SetRebalanceState(state) => Command::SetRebalanceState { state: rebalance_state_of(state)? },
        Kind::PreferLeaders(form) => {
            let leader = |form: PlacementForm| match form.nodes[..] {
                [node] => Ok((ShardId(form.shard), NodeId(node))),
                _ => Err(format!("shard {} has {} leaders", form.shard, form.nodes.len())),
            };
            Command::PreferLeaders { leaders: form.wanted.into_iter().map(leader).collect::<Result<_, _>>()? }
        }
        Kind::BeginMoves(form) => Command::BeginMoves { shards: shards(form.shards) },
        Kind::EndMoves(form) => Command::EndMoves { shards: shards(form.shards), seen: form.seen },
        Kind::Once(once) => {
            let id = once.request.try_into().map_err(|_| "request id is not 16 octets long".to_owned())?;
            let request = Request { id: RequestId(u128::from_be_bytes(id)), unix_ms: once.unix_ms };
            let form = once.command.ok_or_else(|| "a request without a command".to_owned())?;
            match command(*form)? {
                Command::Once { .. } => return Err("a request within a request".to_owned()),
                command => Command::Once { request, command: Box::new(command) },
            }
        }
    })
}

fn new_node(form: NodeForm) -> NewNode {
    NewNode {
        id: NodeId(form.id),
        name: form.name,
        address: form.address,
        zone: form.zone,
        weight: form.weight,
        voter: form.voter,
        format: form.format,
        waits: form.waits,
    }
}

fn new_account(form: AccountForm) -> Result<NewAccount, String> {
    let password_hash = PasswordHash::parse(&form.password_hash).map_err(|error| error.to_string())?;
    Ok(NewAccount { name: account_name(&form.name)?, password_hash })
}
