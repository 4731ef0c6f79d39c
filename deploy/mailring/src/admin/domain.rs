//! `mailring domain`.

use std::collections::HashMap;

use proto::wire::DomainRecord;
use proto::wire::admin_request::Request;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::cli::DomainVerb;
use crate::failure::Failure;
use crate::names;

#[derive(Debug, Serialize)]
struct DomainRow {
    domain: String,
    accounts: usize,
    aliases: usize,
}

#[derive(Serialize)]
struct DomainName<'a> {
    domain: &'a str,
}

pub async fn run(client: &mut AdminClient, verb: DomainVerb) -> Result<(), Failure> {
    match verb {
        DomainVerb::Add { domain, output } => {
            let name = names::domain(&domain)?;
            client.administer(Request::DomainAdd(DomainRecord { name: name.to_string() })).await?;
            output.done(&DomainName { domain: name.as_str() }, &format!("domain {name} added"))?;
        }
        DomainVerb::Remove { domain, output } => {
            let name = names::domain(&domain)?;
            client.administer(Request::DomainRemove(name.to_string())).await?;
            output.done(&DomainName { domain: name.as_str() }, &format!("domain {name} removed"))?;
        }
        DomainVerb::List(output) => {
            let view = client.view().await?;
            // Counted in one pass: a listing of a thousand domains should not read a million accounts each.
            let accounts = counts(view.accounts.keys());
            let aliases = counts(view.aliases.keys());
            let count = |of: &HashMap<&str, usize>, domain: &str| of.get(domain).copied().unwrap_or(0);
            let rows: Vec<DomainRow> = view
                .domains
                .iter()
                .map(|domain| DomainRow {
                    domain: domain.clone(),
                    accounts: count(&accounts, domain),
                    aliases: count(&aliases, domain),
                })
                .collect();
            output.list(&["domain", "accounts", "aliases"], &rows, |row| {
                vec![row.domain.clone(), row.accounts.to_string(), row.aliases.to_string()]
            })?;
        }
        DomainVerb::Show { domain, output } => {
            let name = names::domain(&domain)?;
            let view = client.view().await?;
            if !view.domains.contains(name.as_str()) {
                return Err(Failure::Refused(format!("no domain {name}")));
            }
            let row = DomainRow {
                domain: name.to_string(),
                accounts: view.accounts_of(name.as_str()).count(),
                aliases: view.aliases_of(name.as_str()).count(),
            };
            let fields = [
                ("domain", row.domain.clone()),
                ("accounts", row.accounts.to_string()),
                ("aliases", row.aliases.to_string()),
            ];
            output.show(&row, &fields)?;
        }
    }
    Ok(())
}

fn counts<'a>(names: impl Iterator<Item = &'a String>) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for (_, domain) in names.filter_map(|name| name.rsplit_once('@')) {
        *counts.entry(domain).or_default() += 1;
    }
    counts
}
