//! The directory for routers, nodes and administrators: [`DirectoryStore`] of this node.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use directory::{
    Command, DirectoryError, NewAccount, NewNode, NodeState, PasswordHash, QuotaChange, Start, WAITS_FORMAT,
};
use openraft::BasicNode;
use proto::wire::admin_request::Request;
use proto::wire::change_volume_request::Change;
use proto::wire::{
    AccountResult, AdminReply, AdminRequest, BeginReplicaRequest, ChangeVolumeRequest, CompareShardReply,
    CompareShardRequest, CopyFigures, DamagedShard, DigestShardReply, DigestShardRequest, DirectoryEvent,
    DirectoryWatchRequest, ExportAccountRequest, ExportedPart, GroupStatus, Identity, MoveAccountReply,
    MoveAccountRequest, NewAccounts, NodeStart, NodeStatusReply, RebalanceReply, RebalanceRequest, RegisterNodeRequest,
    ScrubEvent, ScrubRequest, ShardMembersReply, ShardMembersRequest,
};
use proto::{DirectoryStore, GrpcNode, ItemStream};
use storage::{GroupId, HalfName};
use types::{AccountName, DomainName, MailError, MailResult, NodeId, ShardId, format};

use crate::Node;
use crate::bootstrap::{new_node, propose, runs_at};
use crate::mail::{blocking, request_id};
use crate::raft::{RaftGroups, Reply, fatal};
use crate::shard::unix_ms;

pub fn directory_error(error: &DirectoryError) -> MailError {
    match error {
        DirectoryError::Limit(text) => MailError::Limit(text.clone()),
        DirectoryError::NotReady => MailError::Unavailable,
        DirectoryError::AlreadyExists(_) | DirectoryError::NotFound(_) | DirectoryError::InUse(_) => {
            MailError::CannotDo(error.to_string())
        }
        DirectoryError::Invalid(_) => MailError::Invalid(error.to_string()),
        DirectoryError::Corrupt { key, .. } => MailError::Corrupt { key: key.clone() },
    }
}

/// Once: whom it comes to is no leader either while one is elected, and it is asked again.
async fn forward(node: &Node, leader: NodeId, request: RegisterNodeRequest) -> MailResult<()> {
    let address = node.groups().peers.address(leader.0).ok_or(MailError::NotLeader { hint: Some(leader) })?;
    let channel = node.groups().peers.channel(leader.0, &address).map_err(|_| MailError::Unavailable)?;
    GrpcNode::new(channel).register_node(RegisterNodeRequest { forwarded: true, ..request }).await
}

fn start(wire: NodeStart) -> Start {
    Start { starts: wire.starts, run: wire.run }
}

fn domain(name: &str) -> MailResult<DomainName> {
    DomainName::parse(name).map_err(|e| MailError::Invalid(e.to_string()))
}

fn account(name: &str) -> MailResult<AccountName> {
    AccountName::parse(name).map_err(|e| MailError::Invalid(e.to_string()))
}

fn password(hash: &str) -> MailResult<PasswordHash> {
    PasswordHash::parse(hash).map_err(|e| directory_error(&e))
}

fn new_accounts(request: &NewAccounts) -> MailResult<Command> {
    let accounts = request
        .accounts
        .iter()
        .map(|new| Ok(NewAccount { name: account(&new.name)?, password_hash: password(&new.password_hash)? }))
        .collect::<MailResult<_>>()?;
    Ok(Command::CreateAccounts { accounts, unix_s: unix_ms().div_euclid(1000).unsigned_abs() })
}

fn command(request: Request) -> MailResult<Command> {
    Ok(match request {
        Request::DomainAdd(new) => Command::CreateDomain { name: domain(&new.name)? },
        Request::DomainRemove(name) => Command::RemoveDomain { name: domain(&name)? },
        Request::AccountsAdd(new) => new_accounts(&new)?,
        Request::AccountRemove(name) => Command::RemoveAccount { name: account(&name)? },
        Request::AccountPassword(change) => {
            Command::SetPassword { name: account(&change.name)?, password_hash: password(&change.password_hash)? }
        }
        Request::AccountEnabled(change) => {
            Command::SetEnabled { name: account(&change.name)?, enabled: change.enabled }
        }
        Request::QuotaSet(change) => Command::SetQuota {
            name: account(&change.name)?,
            change: QuotaChange {
                octets: change.octets.map(|limit| limit.max),
                messages: change.messages.map(|limit| limit.max),
            },
        },
        Request::AccountMove(to) => Command::StartAccountMove { name: account(&to.name)?, to: ShardId(to.shard) },
        Request::AccountMoveAbort(name) => Command::AbortAccountMove { name: account(&name)? },
        Request::AliasAdd(alias) => Command::CreateAlias {
            name: account(&alias.name)?,
            targets: alias.targets.iter().map(|target| account(target)).collect::<MailResult<_>>()?,
        },
        Request::AliasRemove(name) => Command::RemoveAlias { name: account(&name)? },
        Request::PostmasterSet(name) => {
            Command::SetPostmaster { account: if name.is_empty() { None } else { Some(account(&name)?) } }
        }
    })
}

#[async_trait]
impl DirectoryStore for Node {
    async fn watch_directory(&self, request: DirectoryWatchRequest) -> MailResult<ItemStream<DirectoryEvent>> {
        if self.groups().directory_state.read().cluster().is_none() {
            return Err(MailError::Unavailable);
        }
        Ok(self.groups().directory_state.watch(request))
    }

    async fn administer(&self, request: AdminRequest) -> MailResult<AdminReply> {
        let id = request_id(&request.request_id)?;
        let request = request.request.ok_or_else(|| MailError::Invalid("nothing asked for".to_owned()))?;
        if !self.groups().takes_entries(GroupId::DIRECTORY) {
            return Err(MailError::DiskFull);
        }
        let command = self.groups().directory_state.once(id, command(request)?);
        let head = command.encode().map_err(|e| directory_error(&e))?;
        let reply = match self.groups().directory().propose(head, None).await?.0 {
            Reply::Directory(reply) => reply.map_err(|e| directory_error(&e))?,
            Reply::None | Reply::Shard(_) => return Err(MailError::Internal("another group's reply".to_owned())),
        };
        let accounts = match reply {
            directory::Reply::Done => Vec::new(),
            directory::Reply::Account(place) => vec![Ok(place)],
            directory::Reply::Accounts(results) => results,
        };
        let accounts = accounts.into_iter().map(|result| match result {
            Ok(place) => AccountResult { error: None, id: place.id.0, shard: place.shard.0 },
            Err(error) => AccountResult { error: Some((&directory_error(&error)).into()), id: 0, shard: 0 },
        });
        let revision = self.groups().directory_state.read().revision();
        Ok(AdminReply { accounts: accounts.collect(), revision })
    }

    async fn register_node(&self, request: RegisterNodeRequest) -> MailResult<()> {
        let group = self.groups().directory();
        if request.cluster_id != self.settings().cluster.id {
            return Err(MailError::CannotDo("node belongs to another cluster".to_owned()));
        }
        match group.read_barrier().await {
            // Whoever comes knows the nodes that founded the cluster: another one may lead by now.
            Err(MailError::NotLeader { hint: Some(leader) }) if !request.forwarded && leader != self.id() => {
                return forward(self, leader, request).await;
            }
            asked => asked?,
        }
        let (known, exists, is_founded) = {
            let directory = self.groups().directory_state.read();
            let known = directory.node(NodeId(request.id)).map(|node| node.address.clone());
            (known, directory.cluster().is_some(), directory.placements().next().is_some())
        };
        if !exists {
            return Err(MailError::Unavailable);
        }
        let voter = group.metrics().membership_config.membership().voter_ids().any(|voter| voter == request.id);
        match known {
            Some(address) if address == request.address => {}
            Some(address) => {
                if runs_at(&self.groups().peers, NodeId(request.id), &address).await {
                    return Err(MailError::CannotDo(format!("node {} is running at {address}", request.id)));
                }
                let (id, address) = (NodeId(request.id), request.address.clone());
                propose(self, &Command::UpdateNodeAddress { id, address }).await?;
            }
            None => {
                // It holds nothing and has no vote until somebody has it join.
                let waits = is_founded && format::in_force() >= WAITS_FORMAT;
                propose(self, &Command::RegisterNode(NewNode { waits, ..new_node(&request, voter) })).await?;
                if is_founded && !waits {
                    let (id, state) = (NodeId(request.id), NodeState::Draining);
                    propose(self, &Command::SetNodeState { id, state }).await?;
                }
            }
        }
        let (before, now) = (start(request.start_before.unwrap_or_default()), start(request.start.unwrap_or_default()));
        let known = self.groups().directory_state.read().node(NodeId(request.id)).map(|known| known.start);
        if known != Some(now) {
            let (id, format) = (NodeId(request.id), request.format);
            propose(self, &Command::NoteNodeStart { id, before, now, format }).await?;
        }
        // Every node follows the directory, whether it votes or not.
        self.groups().peers.set_address(request.id, &request.address);
        let member = group.metrics().membership_config.membership().get_node(&request.id).is_some();
        if !member {
            let learner = BasicNode::new(request.address);
            group.raft.add_learner(request.id, learner, false).await.map_err(fatal)?;
        }
        Ok(())
    }

    async fn note_start(&self, request: NodeStart) -> MailResult<NodeStart> {
        let node = request.node;
        let (recorded, removed) = {
            let directory = self.groups().directory_state.read();
            let known = directory.node(NodeId(node));
            (known.map(|known| known.start), known.is_some_and(|known| known.state == NodeState::Removed))
        };
        let mut said = self.groups().starts.lock();
        let newest = [recorded, said.get(&node).copied()].into_iter().flatten().max_by_key(|start| start.starts);
        let known = newest.unwrap_or_default();
        // Few beyond those that the directory knows, so that nobody fills the memory.
        if request.starts > known.starts && (recorded.is_some() || said.len() < directory::limits::NODES_MAX) {
            said.insert(node, start(request));
        }
        Ok(NodeStart { node, starts: known.starts, run: known.run, removed })
    }

    async fn identify(&self) -> MailResult<Identity> {
        let directory = self.groups().directory_state.read();
        Ok(Identity {
            node_id: self.id().0,
            name: self.settings().name.clone(),
            cluster_id: directory.cluster().map(|cluster| cluster.cluster_id.to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: format::known(),
            format_in_force: format::in_force(),
        })
    }

    async fn node_status(&self) -> MailResult<NodeStatusReply> {
        let identity = Some(self.identify().await?);
        let groups = self.groups().clone();
        let statistics = groups.volumes.statistics();
        let figures = groups.peers.throttle.figures();
        let directory_revision = groups.directory_state.read().revision();
        let all = groups.clone();
        groups.volumes.look_at_disks().await;
        let volumes = groups.volumes.list().iter();
        let volumes = volumes.map(|volume| volume.status(groups.replicas_on(volume) as u32)).collect();
        // Totals are counted once after a start, from the disk.
        let statuses = blocking(move || {
            let mut statuses = vec![all.directory().status()];
            for shard in all.shards() {
                // What cannot be read must not keep the node from saying how it is.
                let totals = shard.state().totals().unwrap_or_default();
                statuses.push(GroupStatus {
                    accounts: totals.accounts,
                    messages: totals.messages,
                    octets: totals.bytes,
                    operations: shard.operations.load(Ordering::Relaxed),
                    ..shard.group.status()
                });
            }
            Ok(statuses)
        })
        .await?;
        Ok(NodeStatusReply {
            identity,
            groups: statuses,
            uptime_s: self.inner.started.elapsed().as_secs(),
            directory_revision,
            synced_writes: statistics.synced_writes,
            appended_entries: statistics.appended_entries,
            disk_free_octets: groups.free_octets(),
            disk_full: groups.is_full(),
            volumes,
            lost_shards: groups.lost().iter().map(|shard| shard.0).collect(),
            disk_stalled: groups.stall.is_on(),
            absent_shards: groups.absent().iter().map(|shard| shard.0).collect(),
            damaged_shards: (groups.damaged().into_iter())
                .map(|(shard, reason)| DamagedShard { shard: shard.0, reason })
                .collect(),
            copies: Some(CopyFigures {
                octets: figures.octets,
                waits: figures.waits,
                slowed: figures.slowed,
                octets_per_s: figures.octets_per_s,
                octets_per_s_seen: figures.octets_per_s_seen,
                octets_per_s_max: figures.octets_per_s_max,
                held: groups.peers.held() as u32,
            }),
            account_moves: Some(self.account_moves().to_wire()),
            account_move_waits: self.account_moves().waits(),
            recent_round_ms: groups.volumes.recent_round_ms(),
            short_shards: crate::rebalance::told_short(self),
            certificate_ends_unix_s: self.inner.certificate_ends_unix_s,
        })
    }

    async fn compare_shard(&self, request: CompareShardRequest) -> MailResult<CompareShardReply> {
        crate::scrub::compare(self, ShardId(request.shard)).await
    }

    async fn scrub(&self, request: ScrubRequest) -> MailResult<ItemStream<ScrubEvent>> {
        crate::scrub::volumes(self, request)
    }

    async fn begin_replica(&self, request: BeginReplicaRequest) -> MailResult<()> {
        crate::membership::begin(self, request).await
    }

    async fn rebalance(&self, request: RebalanceRequest) -> MailResult<RebalanceReply> {
        crate::rebalance::ask(self, request).await
    }

    async fn move_account(&self, request: MoveAccountRequest) -> MailResult<MoveAccountReply> {
        crate::account_move::step(self, request).await
    }

    async fn export_account(&self, request: ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>> {
        crate::account_move::export(self, request).await
    }

    async fn shard_members(&self, request: ShardMembersRequest) -> MailResult<ShardMembersReply> {
        crate::membership::members(self, ShardId(request.shard)).await
    }

    async fn change_volume(&self, request: ChangeVolumeRequest) -> MailResult<()> {
        let half = match request.half.as_str() {
            "" => None,
            "a" => Some(HalfName::A),
            "b" => Some(HalfName::B),
            other => return Err(MailError::Invalid(format!("no half {}: a or b", other.escape_debug()))),
        };
        let volumes = self.groups().volumes.clone();
        let volume = volumes.numbered(request.volume)?;
        let (node, cluster) = (self.id(), self.settings().cluster.id.clone());
        let change = request.change();
        blocking(move || {
            volumes.check_apart()?;
            match change {
                Change::Replace => volume.replace(half, node, &cluster),
                Change::Resilver => volume.resilver(half),
            }
        })
        .await
    }

    async fn digest_shard(&self, request: DigestShardRequest) -> MailResult<DigestShardReply> {
        let shard = self.groups().shard(ShardId(request.shard))?;
        let export = match <[u8; 16]>::try_from(&request.mark[..]) {
            Ok(mark) => Some(shard.marked(u128::from_be_bytes(mark)).await?),
            Err(_) if request.mark.is_empty() => None,
            Err(_) => return Err(MailError::Invalid("a mark has 16 octets".to_owned())),
        };
        let octets_per_s_max = self.settings().scrub_octets_per_s;
        let digest = tokio::task::spawn_blocking(move || shard.digest(export, octets_per_s_max)).await;
        digest.map_err(|e| MailError::Internal(e.to_string()))?
    }
}
