//! `mailring account`, but for import.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use proto::wire::account_move::Stage;
use proto::wire::admin_request::Request;
use proto::wire::{AccountMove, AccountRecord, AccountShard, EnabledChange, NewAccount, NewAccounts, PasswordChange};
use serde::Serialize;
use tokio::time::sleep;
use types::{AccountName, MailError};

use crate::admin::client::AdminClient;
use crate::admin::import;
use crate::admin::view::DirectoryView;
use crate::cli::{AccountVerb, OutputArgs};
use crate::failure::Failure;
use crate::output::line;
use crate::{names, password};

/// Between looks at a move that is waited for.
const LOOK: Duration = Duration::from_millis(200);
/// One in so many asks all nodes why it does not get on.
const LOOKS_FOR_REASON: u32 = 10;

#[derive(Debug, Serialize)]
struct AccountRow {
    account: String,
    id: u64,
    shard: u32,
    enabled: bool,
    /// RFC 3339, UTC.
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    moving: Option<MoveRow>,
}

/// A move to another shard that is under way.
#[derive(Debug, Serialize)]
struct MoveRow {
    from: u32,
    to: u32,
    /// `copying`, `switched` (it is there, and its old copy is dropped) or `undone` (it stays, and the new copy is dropped).
    stage: &'static str,
    /// Why it does not get on just now, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_because: Option<String>,
}

impl MoveRow {
    fn new(moving: &AccountMove) -> MoveRow {
        let stage = match moving.stage() {
            Stage::Copying => "copying",
            Stage::Switched => "switched",
            Stage::Undone => "undone",
        };
        MoveRow { from: moving.from, to: moving.to, stage, waits_because: None }
    }

    fn shown(&self) -> String {
        let waits = self.waits_because.as_ref().map(|because| format!("; waits: {because}")).unwrap_or_default();
        format!("from shard {} to {}, {}{waits}", self.from, self.to, self.stage)
    }
}

impl AccountRow {
    fn new(record: &AccountRecord) -> AccountRow {
        let created = Timestamp::from_second(record.created_unix_s).map(|time| time.to_string());
        AccountRow {
            account: record.name.clone(),
            id: record.id,
            shard: record.shard,
            enabled: record.enabled,
            created: created.unwrap_or_else(|_| record.created_unix_s.to_string()),
            moving: record.moving.as_ref().map(MoveRow::new),
        }
    }

    fn state(&self) -> &'static str {
        if self.enabled { "enabled" } else { "disabled" }
    }
}

#[derive(Debug, Serialize)]
struct AccountDetails {
    #[serde(flatten)]
    row: AccountRow,
    /// That lead here directly.
    aliases: Vec<String>,
    /// The nodes that should hold the account's shard, the preferred leader first.
    nodes: Vec<String>,
}

#[derive(Serialize)]
struct Changed<'a> {
    account: &'a str,
}

pub async fn run(client: &mut AdminClient, verb: AccountVerb) -> Result<(), Failure> {
    match verb {
        AccountVerb::Add { account, password_stdin, output } => {
            let name = names::account(&account)?;
            let password_hash = password::hash(&password::obtain(password_stdin)?)?;
            add(client, vec![NewAccount { name: name.to_string(), password_hash }])
                .await?
                .pop()
                .unwrap_or_else(|| Err(MailError::Internal("no reply".to_owned())))?;
            output.done(&Changed { account: name.as_str() }, &format!("account {name} added"))?;
        }
        AccountVerb::List { domain, output } => {
            let domain = domain.map(|domain| names::domain(&domain)).transpose()?;
            let view = client.view().await?;
            let rows: Vec<AccountRow> = match &domain {
                Some(domain) => view.accounts_of(domain.as_str()).map(AccountRow::new).collect(),
                None => view.accounts.values().map(AccountRow::new).collect(),
            };
            output.list(&["account", "id", "shard", "state", "created"], &rows, |row| {
                let shard = match &row.moving {
                    Some(moving) if moving.stage == "copying" => format!("{} -> {}", row.shard, moving.to),
                    _ => row.shard.to_string(),
                };
                vec![row.account.clone(), row.id.to_string(), shard, row.state().to_owned(), row.created.clone()]
            })?;
        }
        AccountVerb::Show { account, output } => {
            let name = names::account(&account)?;
            let view = client.view().await?;
            let record = view.accounts.get(name.as_str());
            let record = record.ok_or_else(|| Failure::Refused(format!("no account {name}")))?;
            let leads_here = |targets: &Vec<String>| targets.iter().any(|target| target == name.as_str());
            let wanted = view.placements.get(&record.shard).map(Vec::as_slice).unwrap_or_default();
            let mut details = AccountDetails {
                row: AccountRow::new(record),
                aliases: view.aliases.iter().filter(|(_, to)| leads_here(to)).map(|(alias, _)| alias.clone()).collect(),
                nodes: wanted.iter().map(|id| view.node_name(*id)).collect(),
            };
            if let Some(moving) = &mut details.row.moving {
                moving.waits_because = waits_because(client, &view, details.row.id).await;
            }
            let moving = details.row.moving.as_ref().map(|moving| ("moving", moving.shown()));
            let mut fields = vec![
                ("account", details.row.account.clone()),
                ("id", details.row.id.to_string()),
                ("state", details.row.state().to_owned()),
                ("created", details.row.created.clone()),
                ("shard", details.row.shard.to_string()),
                ("nodes", details.nodes.join(", ")),
                ("aliases", details.aliases.join(", ")),
            ];
            fields.extend(moving);
            output.show(&details, &fields)?;
        }
        AccountVerb::Move { account, shard, wait, abort: _, output } => {
            let name = names::account(&account)?;
            let request = match shard {
                Some(shard) => Request::AccountMove(AccountShard { name: name.to_string(), shard }),
                None => Request::AccountMoveAbort(name.to_string()),
            };
            client.administer(request).await?;
            if wait {
                wait_for_move(client, &name, shard, output).await?;
            }
            let text = match shard {
                Some(shard) if wait => format!("account {name} is on shard {shard}"),
                Some(shard) => format!("account {name} moves to shard {shard}"),
                None => format!("the move of account {name} is undone"),
            };
            output.done(&Changed { account: name.as_str() }, &text)?;
        }
        AccountVerb::Set { account, enable, disable, postmaster, password, password_stdin, output } => {
            let name = names::account(&account)?;
            if password || password_stdin {
                let password_hash = password::hash(&password::obtain(password_stdin)?)?;
                let change = PasswordChange { name: name.to_string(), password_hash };
                client.administer(Request::AccountPassword(change)).await?;
            }
            if enable || disable {
                let change = EnabledChange { name: name.to_string(), enabled: enable };
                client.administer(Request::AccountEnabled(change)).await?;
            }
            if postmaster {
                client.administer(Request::PostmasterSet(name.to_string())).await?;
            }
            output.done(&Changed { account: name.as_str() }, &format!("account {name} changed"))?;
        }
        AccountVerb::Remove { account, yes, output } => {
            let name = names::account(&account)?;
            if !yes {
                confirm(&name)?;
            }
            client.administer(Request::AccountRemove(name.to_string())).await?;
            output.done(&Changed { account: name.as_str() }, &format!("account {name} removed"))?;
        }
        AccountVerb::Import { file, output } => import::run(client, &file, output).await?,
    }
    Ok(())
}

/// Adds a batch and says what became of each, in order.
pub async fn add(client: &mut AdminClient, accounts: Vec<NewAccount>) -> Result<Vec<Result<(), MailError>>, Failure> {
    let asked = accounts.len();
    let reply = client.administer(Request::AccountsAdd(NewAccounts { accounts })).await?;
    if reply.accounts.len() != asked {
        return Err(Failure::Refused("the directory's reply does not fit the request".to_owned()));
    }
    let results = reply.accounts.iter().map(|result| result.error.as_ref().map_or(Ok(()), |e| Err(e.into())));
    Ok(results.collect())
}

/// Until no move is under way. Refused if the account is then not where it was to be.
async fn wait_for_move(
    client: &mut AdminClient,
    name: &AccountName,
    shard: Option<u32>,
    output: OutputArgs,
) -> Result<(), Failure> {
    let (mut said, mut looks) = (None, 0_u32);
    loop {
        let view = client.view().await?;
        let record = view.accounts.get(name.as_str());
        let record = record.ok_or_else(|| Failure::Refused(format!("account {name} was removed")))?;
        if record.moving.is_none() {
            return match shard {
                Some(shard) if shard != record.shard => {
                    Err(Failure::Refused(format!("the move was undone: account {name} is on shard {}", record.shard)))
                }
                _ => Ok(()),
            };
        }
        looks = looks.wrapping_add(1);
        if !output.json && looks.is_multiple_of(LOOKS_FOR_REASON) {
            let because = waits_because(client, &view, record.id).await;
            if let Some(because) = because.as_ref().filter(|_| because != said) {
                line(&format!("account {name} waits: {because}"))?;
            }
            said = because;
        }
        sleep(LOOK).await;
    }
}

/// Why an account does not get on, as the node says that it goes to.
async fn waits_because(client: &mut AdminClient, view: &DirectoryView, account: u64) -> Option<String> {
    let statuses = client.statuses(view.nodes.values().map(|node| node.address.as_str())).await;
    let mut waits = statuses.into_values().flatten().flat_map(|status| status.account_move_waits);
    waits.find(|wait| wait.account == account).map(|wait| wait.because)
}

fn confirm(name: &AccountName) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!("no terminal to ask at whether to remove {name}: use --yes")));
    }
    eprint!("Remove {name} and all of its mail? Type the account's name to go on: ");
    io::stderr().flush().context("write to the terminal")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    if answer.trim() != name.as_str() {
        return Err(Failure::Refused(format!("{name} is not removed")));
    }
    Ok(())
}
