//! One recipient or many over many shards, aliases, refusals, IDLE over another session, and the limits of the sessions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, LineClient, SmtpClient, eventually};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// As a sending server does: what is deferred, as a slow disk may have it, is sent again.
fn deliver(cluster: &Cluster, recipients: &[&str], message: &[u8]) -> Result<()> {
    eventually("the message is taken", PATIENCE, || {
        let (code, text) = cluster.smtp_client()?.deliver("s@example.test", recipients, message)?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    })
}

#[test]
fn a_thousand_recipients_over_all_shards_each_get_one_copy() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    let locals: Vec<String> = (0..100).map(|i| format!("user{i}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let recipients: Vec<String> = locals.iter().map(|local| format!("{local}@example.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    for _ in 0..2 {
        deliver(&cluster, &recipients, b"Subject: to all\r\n\r\nhello\r\n")?;
    }
    for recipient in recipients {
        // The same mail sent again on purpose is stored again: the first one's fingerprints are settled.
        eventually("both copies are there", PATIENCE, || {
            let mut imap = cluster.imap_client(recipient)?;
            let exists = imap.select("INBOX")?;
            ensure!(exists == 2, "{recipient} has {exists}");
            Ok(())
        })?;
    }
    cluster.check_logs(&[])
}

#[test]
fn the_same_mail_is_stored_again_only_if_its_sender_knew_of_the_first() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&["ann", "ben", "cat"])?;
    let message = b"Subject: the same\r\n\r\nhello\r\n";
    let messages = |local: &str| cluster.imap_client(&format!("{local}@example.test"))?.select("INBOX");
    // A client that reads its 250 and drops the connection, and does all of that again at once.
    for sent in 1..=4 {
        let mut client = cluster.smtp_client()?;
        let (code, text) = client.deliver("s@example.test", &["ann@example.test"], message)?;
        ensure!(code == 250, "{code} {text}");
        drop(client);
        ensure!(messages("ann")? == sent);
    }
    // Clients that do not know: gone before the answer, in peace and by a reset.
    for (local, manner) in [("ben", "closed"), ("cat", "reset")] {
        let to = format!("{local}@example.test");
        let mut client = cluster.smtp_client()?;
        client.command("MAIL FROM:<s@example.test>", 250)?;
        client.command(&format!("RCPT TO:<{to}>"), 250)?;
        client.command("DATA", 354)?;
        client.line.send(&cluster_tests::dot_stuffed(message))?;
        match manner {
            "reset" => client.line.reset()?,
            _ => drop(client),
        }
        eventually("the message is stored", PATIENCE, || {
            ensure!(messages(local)? == 1);
            Ok(())
        })?;
        let mut again = cluster.smtp_client()?;
        let (code, text) = again.deliver("s@example.test", &[&to], message)?;
        ensure!(code == 250, "{code} {text}");
        ensure!(messages(local)? == 1, "{manner}: {} messages", messages(local)?);
        // Now it is known, and meant.
        let (code, text) = again.deliver("s@example.test", &[&to], message)?;
        ensure!(code == 250 && messages(local)? == 2, "{manner}: {code} {text}");
    }
    Ok(())
}

#[test]
fn aliases_postmaster_and_refusals_are_as_configured() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann", "ben"])?;
    cluster.admin(&["alias", "add", "both@example.test", "ann@example.test", "ben@example.test"])?;
    eventually("the alias is known", PATIENCE, || {
        let mut smtp = cluster.smtp_client()?;
        smtp.command("MAIL FROM:<>", 250)?;
        smtp.command("RCPT TO:<both@example.test>", 250)
    })?;
    let mut smtp = cluster.smtp_client()?;
    let (code, _) =
        smtp.deliver("x@elsewhere.test", &["both@example.test", "ann@example.test"], b"Subject: x\r\n\r\ny\r\n")?;
    ensure!(code == 250);
    for user in ["ann@example.test", "ben@example.test"] {
        ensure!(cluster.imap_client(user)?.select("INBOX")? == 1, "{user}");
    }
    smtp.command("MAIL FROM:<x@elsewhere.test>", 250)?;
    for (recipient, code, enhanced) in [
        ("nobody@example.test", 550, "5.1.1"),
        ("ann@elsewhere.test", 550, "5.7.1"),
        ("ann%elsewhere.test@example.test", 550, "5.1.1"),
        ("Postmaster", 250, "2.1.5"),
        ("postmaster@EXAMPLE.test", 250, "2.1.5"),
        ("\"ann\"@example.test", 250, "2.1.5"),
    ] {
        let text = smtp.command(&format!("RCPT TO:<{recipient}>"), code)?;
        ensure!(text.starts_with(enhanced), "{recipient}: {text}");
    }
    cluster.check_logs(&[])
}

#[test]
fn idle_is_told_of_new_mail_and_of_other_sessions() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { routers: 2, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    let mut idle = cluster.imap_client("ann@example.test")?;
    idle.select("INBOX")?;
    let tag = idle.send("IDLE")?;
    ensure!(idle.response()?.starts_with(b"+"));
    let mut smtp = SmtpClient::connect(cluster.smtp(1))?;
    smtp.deliver("s@example.test", &["ann@example.test"], b"Subject: x\r\n\r\ny\r\n")?;
    wait_for(&mut idle, "* 1 EXISTS")?;
    let mut other = cluster_tests::ImapClient::login(cluster.imap(1), "ann@example.test", cluster_tests::PASSWORD)?;
    other.select("INBOX")?;
    other.ok("STORE 1 +FLAGS (\\Deleted $Work)")?;
    wait_for(&mut idle, "* 1 FETCH (")?;
    other.ok("EXPUNGE")?;
    wait_for(&mut idle, "* 1 EXPUNGE")?;
    idle.line.send(b"DONE\r\n")?;
    let (_, tagged) = idle.finish(&tag)?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    cluster.check_logs(&[])
}

fn wait_for(client: &mut cluster_tests::ImapClient, prefix: &str) -> Result<()> {
    loop {
        let line = String::from_utf8_lossy(&client.response()?).into_owned();
        if line.starts_with(prefix) {
            return Ok(());
        }
        ensure!(line.starts_with("* "), "{line}");
    }
}

#[test]
fn tls_works_on_every_protocol_and_plaintext_commands_do_not_cross_it() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    let ca = cluster.ca()?;
    let mut imaps = cluster_tests::ImapClient::greeted(LineClient::connect_tls(cluster.imaps(0), &ca)?)?;
    imaps.ok(&format!("LOGIN ann@example.test {}", cluster_tests::PASSWORD))?;
    let mut smtp = SmtpClient::connect(cluster.smtp(0))?;
    // RFC 3207 §4.2: what was sent with STARTTLS in one packet is never executed.
    smtp.line.send(b"STARTTLS\r\nNOOP\r\nQUIT\r\n")?;
    smtp.expect(220)?;
    smtp.line = smtp.line.start_tls(&ca)?;
    let (code, text) = {
        smtp.line.send(b"MAIL FROM:<>\r\n")?;
        smtp.reply()?
    };
    ensure!(code == 503, "EHLO is needed again after TLS: {code} {text}");
    smtp.command("EHLO client.test", 250)?;
    smtp.command("STARTTLS", 503)?;
    cluster.check_logs(&[])
}

#[test]
fn slow_and_silent_connections_cost_little_and_nobody_waits_for_them() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    let before = cluster.routers[0].memory_kib()?;
    let mut held = Vec::new();
    for i in 0..1_000 {
        let address = [cluster.smtp(0), cluster.imap(0), cluster.pop3(0)][i % 3];
        let mut client = LineClient::connect(address).with_context(|| format!("connection {i}"))?;
        client.line()?;
        // A command that never ends, and a literal that never comes.
        client.send(match i % 3 {
            0 => b"EHLO client.tes",
            1 => b"a LOGIN {10",
            _ => b"USER an",
        })?;
        held.push(client);
    }
    let mut imap = cluster.imap_client("ann@example.test")?;
    imap.select("INBOX")?;
    let growth = cluster.routers[0].memory_kib()?.saturating_sub(before);
    ensure!(growth < 256 * 1024, "1,000 connections cost {growth} KiB");
    drop(held);
    ensure!(cluster.routers[0].is_running() && cluster.nodes[0].is_running());
    cluster.check_logs(&[])
}

#[test]
fn large_messages_go_through_in_chunks() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&["ann"])?;
    let line = format!("{}\r\n", "x".repeat(998));
    let message = [b"Subject: large\r\n\r\n".to_vec(), line.repeat(20_000).into_bytes()].concat();
    deliver(&cluster, &["ann@example.test"], &message)?;
    let mut imap = cluster.imap_client("ann@example.test")?;
    imap.select("INBOX")?;
    let stored = imap.body(1)?.context("no body")?;
    ensure!(stored.ends_with(&message), "the large message came back changed");
    let untagged = imap.ok("UID FETCH 1 BODY.PEEK[]<1000000.10>")?;
    let expected = &stored[1_000_000..1_000_010];
    ensure!(untagged.iter().any(|line| line.windows(10).any(|ten| ten == expected)), "partial fetch");
    cluster.check_logs(&[])
}
