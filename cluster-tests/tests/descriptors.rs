//! A router or a node runs out of file descriptors: clients are turned away in their protocol's words, sessions under way go on,
//! and all is well again when there are descriptors.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, LineClient, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
/// Beyond the descriptors that are open at first.
const ROOM: usize = 16;

#[test]
fn a_router_out_of_descriptors_turns_clients_away_and_recovers() -> Result<()> {
    let options = ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    cluster.add_accounts(&["ann"])?;
    let message = |subject: &str| format!("Subject: {subject}\r\n\r\nx\r\n").into_bytes();
    let mut busy = cluster.smtp_client()?;
    let mut reader = cluster.imap_client("ann@example.test")?;
    reader.select("INBOX")?;
    let open = cluster.routers[0].descriptors()?;
    let limit = open.iter().max().map_or(0, |last| last + 1) + ROOM;
    cluster.routers[0].limit_descriptors(limit)?;
    let protocols = [
        (cluster.smtp(0), "220 ", "421 "),
        (cluster.imap(0), "* OK", "* BYE"),
        (cluster.pop3(0), "+OK", "-ERR [SYS/TEMP]"),
    ];
    let mut clients = Vec::new();
    let (mut greeted, mut turned_away) = (0, 0);
    for round in 0..limit - open.len() {
        for (address, greeting, refusal) in protocols {
            let mut client = LineClient::connect(address)?;
            client.set_patience(PATIENCE / 6)?;
            match client.line() {
                Ok(line) if line.starts_with(greeting) => greeted += 1,
                Ok(line) => {
                    ensure!(line.starts_with(refusal), "client {round}: {line}");
                    turned_away += 1;
                    client.set_patience(PATIENCE)?;
                    ensure!(client.closes(), "client {round} is not let go");
                }
                // Its close may overtake its words.
                Err(_) => turned_away += 1,
            }
            clients.push(client);
        }
    }
    ensure!(greeted > 0 && turned_away > ROOM, "{greeted} greeted, {turned_away} turned away");
    // Sessions that are there go on, over connections that are there.
    let (code, text) = busy.deliver("s@x.test", &["ann@example.test"], &message("meanwhile"))?;
    ensure!(code == 250, "{code} {text}");
    ensure!(reader.select("INBOX")? == 1, "the message is not there");
    ensure!(cluster.routers[0].is_running(), "the router has ended");
    drop(clients);
    eventually("clients are served again", PATIENCE, || {
        let (code, text) = cluster.smtp_client()?.deliver("s@x.test", &["ann@example.test"], &message("afterwards"))?;
        ensure!(code == 250, "{code} {text}");
        cluster.imap_client("ann@example.test")?.select("INBOX")?;
        cluster.pop3_client("ann@example.test").map(drop)
    })?;
    println!("{greeted} clients greeted, {turned_away} turned away, {limit} descriptors");
    cluster.check_logs(&["clients are turned away", "accept failed"])
}

#[test]
fn a_node_out_of_descriptors_turns_strangers_away_and_serves_on() -> Result<()> {
    let options = ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    cluster.add_accounts(&["ann"])?;
    let mut busy = cluster.smtp_client()?;
    let mut deliver = |subject: usize| -> Result<()> {
        let message = format!("Subject: {subject}\r\n\r\nx\r\n");
        let (code, text) = busy.deliver("s@x.test", &["ann@example.test"], message.as_bytes())?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    };
    deliver(0)?;
    let last = cluster.nodes[0].descriptors()?.into_iter().max().unwrap_or(0);
    cluster.nodes[0].limit_descriptors(last + 1 + ROOM)?;
    let mut strangers = Vec::new();
    let mut delivered = 1;
    // Longer than between two looks at the write-ahead log.
    let until = std::time::Instant::now() + PATIENCE / 6;
    while std::time::Instant::now() < until {
        // They say nothing, and stay for as long as they are let.
        strangers.extend((0..ROOM).filter_map(|_| TcpStream::connect(cluster.grpc(0)).ok()));
        strangers.drain(..strangers.len().saturating_sub(4 * ROOM));
        deliver(delivered)?;
        delivered += 1;
        ensure!(cluster.nodes[0].is_running(), "the node has ended");
    }
    drop(strangers);
    let mut reader = cluster.imap_client("ann@example.test")?;
    ensure!(reader.select("INBOX")? as usize == delivered, "not all of {delivered} messages are there");
    println!("{delivered} deliveries beside strangers");
    cluster.check_logs(&["peers are turned away", "accept failed"])
}
