//! `ember key`: who may call. A key is shown once, when it is made; the server keeps only its hash.

use crate::{args::Key, client::Client, error::Error, output};
use appliance_price::Budget;
use serde::Deserialize;
use serde_json::json;

const HEADER: [&str; 8] = ["KEY", "FUNCTIONS", "RPM", "TPM", "AT-ONCE", "WEIGHT", "PROJECT", "BUDGET"];
const KEYS: &str = "/ember/v1/keys";

#[derive(Deserialize)]
struct Row {
    name: String,
    functions: Option<Vec<String>>,
    rates: Rates,
    project: Option<String>,
    budget: Option<Budget>,
}

#[derive(Deserialize)]
struct Rates {
    rpm: Option<u32>,
    tpm: Option<u32>,
    concurrency: Option<u32>,
    weight: u32,
}

#[derive(Deserialize)]
struct Created {
    key: String,
}

pub(crate) fn command(client: &Client, command: Key) -> Result<(), Error> {
    match command {
        Key::Create { name, telemetry, functions, rates, budget, budget_soft, project, listing } => {
            let budget = budget.map(|budget| Budget { soft_nanos: budget_soft, ..budget });
            let mut new = json!({ "name": name, "functions": functions, "rates": rates });
            if telemetry {
                new["kind"] = json!("telemetry");
            }
            if let Some(budget) = budget {
                new["budget"] = json!(budget);
            }
            if let Some(project) = project {
                new["project"] = json!(project);
            }
            let reply = client.post(KEYS, &new)?;
            if !listing.json {
                output::note(&format!("key `{name}`, shown this once only:"));
            }
            output::print(listing, &reply, || Ok(client.typed::<Created>(&reply)?.key))
        }
        Key::Ls(listing) => {
            let data = output::data(client.get(KEYS)?);
            output::print(listing, &data, || {
                let rows: Vec<Row> = client.typed(&data)?;
                Ok(output::table(HEADER, rows.iter().map(Row::cells)))
            })
        }
        Key::Revoke { name } => {
            client.delete(&format!("{KEYS}/{name}"))?;
            output::note(&format!("key `{name}` no longer works"));
            Ok(())
        }
    }
}

impl Row {
    fn cells(&self) -> [String; 8] {
        let functions = self.functions.as_ref().map_or("all".into(), |functions| functions.join(","));
        let limit = |limit: Option<u32>| limit.map_or(output::NONE.to_owned(), |limit| limit.to_string());
        let Rates { rpm, tpm, concurrency, weight } = self.rates;
        let project = self.project.clone().unwrap_or_else(|| output::NONE.to_owned());
        let budget = self.budget.map_or(output::NONE.to_owned(), |budget| budget.to_string());
        let [rpm, tpm, concurrency] = [rpm, tpm, concurrency].map(limit);
        [self.name.clone(), functions, rpm, tpm, concurrency, weight.to_string(), project, budget]
    }
}
