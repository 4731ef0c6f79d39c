//! Clients that ask for much and read nothing: everybody else is served as before.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, PASSWORD, eventually};

/// More than all buffers between a node and a client that does not read would hold of a few.
const LARGE_OCTETS: usize = 16 << 20;
const READERS: usize = 40;
/// Messages to others meanwhile, and times that somebody who reads gets the large one.
const SERVED: u32 = 4;

#[test]
fn clients_that_do_not_read_what_they_fetch_hold_up_nobody_else() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::DEFAULT })?;
    cluster.add_accounts(&["slow", "ann"])?;
    let mut message = b"Subject: large\r\n\r\n".to_vec();
    while message.len() < LARGE_OCTETS {
        message.extend_from_slice(b"This line is one of very many that nobody ever reads.\r\n");
    }
    cluster.imap_client("slow@example.test")?.append("INBOX", &message)?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader = ImapClient::login(cluster.imap(0), "slow@example.test", PASSWORD)?;
        reader.select("INBOX")?;
        reader.send("FETCH 1 BODY.PEEK[]")?;
        readers.push(reader);
    }
    for reader in &mut readers {
        // The first octets have come: the fetch is under way.
        ensure!(reader.line.exact(1)? == b"*");
    }
    for number in 0..SERVED {
        let text = format!("Subject: {number}\r\n\r\nhello\r\n");
        cluster.smtp_client()?.deliver("s@example.test", &["ann@example.test"], text.as_bytes())?;
        let mut ann = cluster.imap_client("ann@example.test")?;
        let seen = ann.select("INBOX")?;
        ensure!(seen == number + 1, "{seen} of {} messages", number + 1);
        let mut slow = cluster.imap_client("slow@example.test")?;
        slow.select("INBOX")?;
        ensure!(slow.body(1)?.is_some_and(|body| body.len() == message.len()), "somebody who reads gets it all");
    }
    // Those who do read on get every octet.
    for reader in readers.iter_mut().take(3) {
        eventually("the rest comes", Duration::from_secs(60), || reader.line.exact(message.len()).map(drop))?;
    }
    cluster.check_logs(&[])
}
