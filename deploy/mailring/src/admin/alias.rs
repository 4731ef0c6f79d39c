//! `mailring alias`.

use proto::wire::AliasRecord;
use proto::wire::admin_request::Request;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::cli::AliasVerb;
use crate::failure::Failure;
use crate::names;

#[derive(Debug, Serialize)]
struct AliasRow {
    alias: String,
    targets: Vec<String>,
}

#[derive(Serialize)]
struct AliasName<'a> {
    alias: &'a str,
}

pub async fn run(client: &mut AdminClient, verb: AliasVerb) -> Result<(), Failure> {
    match verb {
        AliasVerb::Add { alias, targets, output } => {
            let name = names::account(&alias)?;
            let targets = targets
                .iter()
                .map(|target| names::account(target).map(|name| name.to_string()))
                .collect::<Result<Vec<_>, _>>()?;
            let row = AliasRow { alias: name.to_string(), targets };
            let record = AliasRecord { name: row.alias.clone(), targets: row.targets.clone() };
            client.administer(Request::AliasAdd(record)).await?;
            output.done(&row, &format!("alias {} added for {}", row.alias, row.targets.join(", ")))?;
        }
        AliasVerb::Remove { alias, output } => {
            let name = names::account(&alias)?;
            client.administer(Request::AliasRemove(name.to_string())).await?;
            output.done(&AliasName { alias: name.as_str() }, &format!("alias {name} removed"))?;
        }
        AliasVerb::List { domain, output } => {
            let domain = domain.map(|domain| names::domain(&domain)).transpose()?;
            let view = client.view().await?;
            let row =
                |(alias, targets): (&String, &Vec<String>)| AliasRow { alias: alias.clone(), targets: targets.clone() };
            let rows: Vec<AliasRow> = match &domain {
                Some(domain) => view.aliases_of(domain.as_str()).map(row).collect(),
                None => view.aliases.iter().map(row).collect(),
            };
            output.list(&["alias", "targets"], &rows, |row| vec![row.alias.clone(), row.targets.join(", ")])?;
        }
    }
    Ok(())
}
