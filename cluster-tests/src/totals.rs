//! What `mailring shard list` says of how much a shard holds, against a recount over IMAP.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::imap::ImapClient;
use crate::reading::status;

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Totals {
    messages: u64,
    octets: u64,
}

impl Cluster {
    /// That the messages and octets of every shard are those of all mailboxes of all accounts in it. Nobody may write
    /// meanwhile, and every account has the tests' password.
    pub(crate) fn check_totals(&self) -> Result<()> {
        let list =
            |noun: &str| -> Result<Vec<Value>> { Ok(serde_json::from_str(&self.admin(&[noun, "list", "--json"])?)?) };
        let mut counted: BTreeMap<u64, Totals> = BTreeMap::new();
        for account in list("account")? {
            let name = account["account"].as_str().context("account")?;
            let totals = counted.entry(account["shard"].as_u64().context("shard")?).or_default();
            recount(&mut self.imap_client(name)?, totals).with_context(|| name.to_owned())?;
        }
        for shard in list("shard")? {
            let number = shard["shard"].as_u64().context("shard")?;
            let said = Totals {
                messages: shard["messages"].as_u64().context("messages")?,
                octets: shard["octets"].as_u64().context("octets")?,
            };
            let is = counted.get(&number).copied().unwrap_or_default();
            ensure!(said == is, "counters: shard {number} says {said:?}, it is {is:?}");
        }
        Ok(())
    }
}

/// Adds what all mailboxes of an account hold.
fn recount(client: &mut ImapClient, totals: &mut Totals) -> Result<()> {
    for listed in client.ok("LIST \"\" \"*\"")? {
        let listed = String::from_utf8_lossy(&listed).into_owned();
        // `* LIST (\HasNoChildren) "/" Archive/2026`
        let Some(mailbox) = listed.strip_prefix("* LIST ").and_then(|rest| rest.rsplit(' ').next()) else { continue };
        let said = status(client, mailbox)?.messages;
        client.ok(&format!("EXAMINE {mailbox}"))?;
        let mut messages = 0;
        if said > 0 {
            for response in client.ok("FETCH 1:* RFC822.SIZE")? {
                let response = String::from_utf8_lossy(&response).into_owned();
                let Some(size) = response.split("RFC822.SIZE ").nth(1) else { continue };
                totals.octets += size.trim_end_matches(')').parse::<u64>().with_context(|| response.clone())?;
                messages += 1;
            }
        }
        ensure!(messages == said, "{mailbox}: STATUS says {said} messages, {messages} are there");
        totals.messages += messages;
    }
    Ok(())
}
