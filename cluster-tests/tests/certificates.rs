//! A node whose certificate is not its own, or of another authority: it is not taken, and both ends say why.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, eventually};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const PEERS: &str = "certificate of a peer is refused";
const OWN: &str = "own certificate is refused by a peer";

/// A cluster of one node, and the place of another one that is ready to be started, with files of another authority beside.
fn prepared() -> Result<(Cluster, usize)> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::DEFAULT })?;
    let node = cluster.prepare_node()?;
    let (other, name) = (cluster.path().join("other"), cluster.nodes[node].name.clone());
    let other = other.to_string_lossy();
    cluster.admin(&["ca", "create", "--dir", &other])?;
    cluster.admin(&["ca", "issue", "--dir", &other, "--role", "node", "--name", &name])?;
    Ok((cluster, node))
}

fn is_told(cluster: &Cluster, node: usize, text: &str) -> Result<()> {
    eventually("the refusal is told", PATIENCE, || {
        let name = &cluster.nodes[node].name;
        ensure!(
            cluster.nodes[node].logged(text)? > 0,
            "{name} says nothing of it:\n{}",
            cluster.nodes[node].log_tail()
        );
        Ok(())
    })
}

#[test]
fn a_node_of_another_authority_is_told_and_told_of() -> Result<()> {
    let (mut cluster, node) = prepared()?;
    let (ca, other) = (cluster.path().join("ca"), cluster.path().join("other"));
    let (ca, other) = (ca.to_string_lossy().into_owned(), other.to_string_lossy().into_owned());
    cluster.nodes[node].reconfigure(&ca, &other)?;
    cluster.nodes[node].start()?;
    // It does not take the cluster's certificates itself.
    is_told(&cluster, node, PEERS)?;
    is_told(&cluster, 0, OWN)?;
    let listed = cluster.admin(&["node", "list"])?;
    ensure!(!listed.contains(&cluster.nodes[node].name), "it was taken: {listed}");
    cluster.check_logs(&[PEERS, OWN])
}

#[test]
fn a_node_that_trusts_the_cluster_and_shows_a_certificate_of_another_authority_is_told_of() -> Result<()> {
    let (mut cluster, node) = prepared()?;
    let name = cluster.nodes[node].name.clone();
    cluster.nodes[node].reconfigure(&format!("/ca/{name}."), &format!("/other/{name}."))?;
    cluster.nodes[node].start()?;
    is_told(&cluster, 0, PEERS)?;
    is_told(&cluster, node, OWN)?;
    let listed = cluster.admin(&["node", "list"])?;
    ensure!(!listed.contains(&name), "it was taken: {listed}");
    cluster.check_logs(&[PEERS, OWN])
}

#[test]
fn a_node_with_the_certificate_of_another_one_does_not_start() -> Result<()> {
    let (mut cluster, node) = prepared()?;
    let name = cluster.nodes[node].name.clone();
    cluster.nodes[node].reconfigure(&format!("/ca/{name}."), "/ca/node1.")?;
    cluster.nodes[node].start()?;
    let (code, log) = cluster.nodes[node].ended()?;
    ensure!(code == Some(1), "it ended with {code:?}:\n{log}");
    let said = format!("is of node1, and this is node {name};");
    ensure!(log.contains(&said), "{said} is not in:\n{log}");
    let listed = cluster.admin(&["node", "list"])?;
    ensure!(!listed.contains(&name), "it was taken: {listed}");
    Ok(())
}
