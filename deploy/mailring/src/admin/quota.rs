//! `mailring quota`.

use proto::wire::admin_request::Request;
use proto::wire::{Limit, QuotaChange, UsageReply};
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::cli::QuotaVerb;
use crate::failure::Failure;
use crate::names;

#[derive(Debug, Serialize)]
struct QuotaRow {
    account: String,
    octets_used: u64,
    /// None: no limit.
    octets_max: Option<u64>,
    messages_used: u64,
    messages_max: Option<u64>,
}

impl QuotaRow {
    fn new(account: &str, usage: &UsageReply) -> QuotaRow {
        QuotaRow {
            account: account.to_owned(),
            octets_used: usage.octets,
            octets_max: usage.octets_max,
            messages_used: usage.messages,
            messages_max: usage.messages_max,
        }
    }
}

#[derive(Serialize)]
struct Changed<'a> {
    account: &'a str,
}

pub async fn run(client: &mut AdminClient, verb: QuotaVerb) -> Result<(), Failure> {
    match verb {
        QuotaVerb::Set { account, octets, messages, output } => {
            let name = names::account(&account)?;
            let change = QuotaChange {
                name: name.to_string(),
                octets: octets.map(|limit| Limit { max: limit.0 }),
                messages: messages.map(|limit| Limit { max: limit.0 }),
            };
            client.administer(Request::QuotaSet(change)).await?;
            output.done(&Changed { account: name.as_str() }, &format!("quota of {name} changed"))?;
        }
        QuotaVerb::Show { account, output } => {
            let name = names::account(&account)?;
            let view = client.view().await?;
            let record = view.accounts.get(name.as_str());
            let record = record.ok_or_else(|| Failure::Refused(format!("no account {name}")))?;
            let row = QuotaRow::new(name.as_str(), &client.usage(&view, record).await?);
            let fields = [
                ("account", row.account.clone()),
                ("octets", used_of(row.octets_used, row.octets_max)),
                ("messages", used_of(row.messages_used, row.messages_max)),
            ];
            output.show(&row, &fields)?;
        }
    }
    Ok(())
}

fn used_of(used: u64, max: Option<u64>) -> String {
    match max {
        Some(max) => format!("{used} of {max}"),
        None => format!("{used}, no limit"),
    }
}
