//! What `mailring shard list` says of how much a shard holds, and `mailring quota show` of an account, against a recount
//! over IMAP.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use types::Usage;

use crate::cluster::Cluster;
use crate::imap::ImapClient;
use crate::reading::status;

impl Cluster {
    /// What an account is said to hold; an error if it is not what its mailboxes hold. Nobody may write meanwhile.
    pub fn usage(&self, account: &str) -> Result<Usage> {
        let said: Value = serde_json::from_str(&self.admin(&["quota", "show", account, "--json"])?)?;
        let said = Usage {
            octets: said["octets_used"].as_u64().context("octets_used")?,
            messages: said["messages_used"].as_u64().context("messages_used")?,
        };
        let is = recount(&mut self.imap_client(account)?).with_context(|| account.to_owned())?;
        ensure!(said == is, "counters: {account} is said to hold {said:?}, it is {is:?}");
        Ok(is)
    }

    /// That the messages and octets of every shard, and of every account, are those of all its mailboxes. Nobody may
    /// write meanwhile, and every account has the tests' password.
    pub(crate) fn check_totals(&self) -> Result<()> {
        let list =
            |noun: &str| -> Result<Vec<Value>> { Ok(serde_json::from_str(&self.admin(&[noun, "list", "--json"])?)?) };
        let mut counted: BTreeMap<u64, Usage> = BTreeMap::new();
        for account in list("account")? {
            let name = account["account"].as_str().context("account")?;
            let totals = counted.entry(account["shard"].as_u64().context("shard")?).or_default();
            let held = self.usage(name)?;
            totals.octets += held.octets;
            totals.messages += held.messages;
        }
        for shard in list("shard")? {
            let number = shard["shard"].as_u64().context("shard")?;
            let said = Usage {
                messages: shard["messages"].as_u64().context("messages")?,
                octets: shard["octets"].as_u64().context("octets")?,
            };
            let is = counted.get(&number).copied().unwrap_or_default();
            ensure!(said == is, "counters: shard {number} says {said:?}, it is {is:?}");
        }
        Ok(())
    }
}

/// What all mailboxes of an account hold.
fn recount(client: &mut ImapClient) -> Result<Usage> {
    let mut held = Usage::default();
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
                held.octets += size.trim_end_matches(')').parse::<u64>().with_context(|| response.clone())?;
                messages += 1;
            }
        }
        ensure!(messages == said, "{mailbox}: STATUS says {said} messages, {messages} are there");
        held.messages += messages;
    }
    Ok(held)
}
