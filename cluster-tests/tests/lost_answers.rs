//! Administration whose answers are lost: what is asked for again is done once, and answered as done, whoever leads by then.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, Link, eventually};
use proto::wire::admin_request::Request;
use proto::wire::rebalance_request::Action;
use proto::wire::{
    AccountResult, AdminReply, AdminRequest, MoveShard, NewAccount, NewAccounts, RebalanceReply, RebalanceRequest,
};
use proto::{ClusterTls, DirectoryStore, GrpcNode};
use tokio::runtime::{Builder, Runtime};
use types::{MailError, MailResult};

const PATIENCE: Duration = Duration::from_secs(60);
/// Among groups.
const DIRECTORY: u32 = u32::MAX;
/// Of an import.
const BATCH: usize = 200;
/// Nobody's: hashing takes time.
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Every node leads a shard; this process is known to the proxy as `test`.
fn start() -> Result<Cluster> {
    let options = ClusterOptions { routers: 0, replicas: 1, shards: 3, proxied: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options)?;
    cluster.admin(&["domain", "add", "example.test"])?;
    cluster.proxy.knows("test", std::process::id());
    Ok(cluster)
}

fn node(cluster: &Cluster, address: std::net::SocketAddr) -> Result<GrpcNode> {
    let tls = ClusterTls::load(&cluster.tls_files("admin"))?;
    Ok(GrpcNode::new(proto::connect(&address.to_string(), tls.client)?))
}

/// Asks the directory's leader, whoever that is.
fn administer(cluster: &Cluster, runtime: &Runtime, request: &AdminRequest) -> Result<MailResult<AdminReply>> {
    eventually("the directory's leader answers", PATIENCE, || {
        let leader = cluster.grpc(cluster.directory_leader()?);
        match runtime.block_on(async { anyhow::Ok(node(cluster, leader)?.administer(request.clone()).await) })? {
            Err(again @ (MailError::NotLeader { .. } | MailError::Unavailable | MailError::Deadline)) => bail!(again),
            answered => Ok(answered),
        }
    })
}

fn show(cluster: &Cluster, account: &str) -> Result<serde_json::Value> {
    eventually("the account is there", PATIENCE, || cluster.json(&["account", "show", account]))
}

#[test]
fn a_change_whose_answer_was_lost_is_done_once_whoever_is_asked_again() -> Result<()> {
    let mut cluster = start()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let leader = cluster.directory_leader()?;
    let account = NewAccount { name: "ann@example.test".to_owned(), password_hash: HASH.to_owned() };
    let add = Request::AccountsAdd(NewAccounts { accounts: vec![account] });
    let request = |id: u8| AdminRequest { request: Some(add.clone()), request_id: vec![id; 16].into() };
    let lost = runtime.block_on(async {
        let behind = node(&cluster, cluster.reached(leader))?;
        behind.identify().await?;
        cluster.proxy.set(Some(&cluster.nodes[leader].name), Some("test"), Link::Swallow);
        anyhow::Ok(behind.administer(request(1)).await)
    })?;
    ensure!(lost == Err(MailError::Deadline), "answered {lost:?}");
    cluster.proxy.heal();
    let shown = show(&cluster, "ann@example.test")?;
    let is_that = |result: &AccountResult| result.error.is_none() && shown["id"].as_u64() == Some(result.id);

    let again = administer(&cluster, &runtime, &request(1))??.accounts;
    ensure!(again.len() == 1 && again.iter().all(is_that), "{again:?}, it is {shown}");
    let other = administer(&cluster, &runtime, &request(2))??.accounts;
    ensure!(other.iter().all(|result| result.error.is_some()), "added twice: {other:?}");

    cluster.nodes[leader].kill()?;
    let by_another = administer(&cluster, &runtime, &request(1))??.accounts;
    ensure!(by_another == again, "{by_another:?} after {again:?}");
    cluster.kill_all()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    let from_disk = administer(&cluster, &runtime, &request(1))??.accounts;
    ensure!(from_disk == again, "{from_disk:?} after {again:?}");
    Ok(())
}

#[test]
fn a_move_that_is_asked_for_again_under_its_id_is_done_already() -> Result<()> {
    let cluster = start()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let shards = cluster.json(&["shard", "list"])?;
    let from = shards[0]["wanted"][0].as_str().context("wanted")?.to_owned();
    let to = cluster.nodes.iter().map(|node| node.name.clone()).find(|name| *name != from).context("another")?;
    let ask = |id: u8| -> Result<MailResult<RebalanceReply>> {
        let action = Action::MoveShard(MoveShard { shard: 0, from: from.clone(), to: to.clone() });
        let request = RebalanceRequest { action: Some(action), request_id: vec![id; 16].into(), ..Default::default() };
        eventually("the directory's leader answers", PATIENCE, || {
            let leader = cluster.grpc(cluster.directory_leader()?);
            match runtime.block_on(async { anyhow::Ok(node(&cluster, leader)?.rebalance(request.clone()).await) })? {
                Err(again @ (MailError::NotLeader { .. } | MailError::Unavailable | MailError::Deadline)) => {
                    bail!(again)
                }
                answered => Ok(answered),
            }
        })
    };
    ask(1)??;
    let mut id = 1;
    eventually("it has moved", PATIENCE, || {
        id += 1;
        let other = ask(id)?;
        ensure!(matches!(other, Err(MailError::CannotDo(_))), "{other:?}");
        Ok(())
    })?;
    let again = ask(1)?;
    ensure!(again.is_ok(), "{again:?}");
    Ok(())
}

#[test]
fn an_import_whose_answer_was_lost_goes_on() -> Result<()> {
    let cluster = start()?;
    let leader = &cluster.nodes[cluster.directory_leader()?].name;
    let entries = || Ok::<_, anyhow::Error>(cluster.last_entries()?.get(&DIRECTORY).copied().unwrap_or(0));
    let before = entries()?;
    let mut command = cluster.admin_command(&["account", "import", "-"])?;
    let mut import = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    cluster.proxy.knows("admin", import.id());
    let mut input = import.stdin.take().context("stdin")?;
    let row = |number: usize| format!("user{number}@example.test,\"{HASH}\"\n");
    let first: String = (0..BATCH).map(row).collect();
    input.write_all(format!("account,password_hash\n{first}").as_bytes())?;
    show(&cluster, &format!("user{}@example.test", BATCH - 1))?;
    // It knows the leader by now, and waits for the rest.
    cluster.proxy.set(Some(leader), Some("admin"), Link::Swallow);
    input.write_all(row(BATCH).as_bytes())?;
    drop(input);
    show(&cluster, &format!("user{BATCH}@example.test"))?;
    cluster.proxy.heal();
    let ended = import.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let complained = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.success() && complained.is_empty(), "{}: {said}{complained}", ended.status);
    ensure!(said.contains(&format!("{} accounts imported", BATCH + 1)), "{said}");
    let asked = entries()? - before;
    ensure!(asked > 2, "{asked} times asked for two batches: no answer was lost");
    Ok(())
}
