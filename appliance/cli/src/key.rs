//! `ember key`: who may call. A key is shown once, when it is made; the server keeps only its hash.

use crate::{args::Key, client::Client, error::Error, output};
use serde::Deserialize;
use serde_json::json;

const KEYS: &str = "/ember/v1/keys";

#[derive(Deserialize)]
struct Row {
    name: String,
    functions: Option<Vec<String>>,
    rates: Rates,
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
        Key::Create { name, functions, rates, listing } => {
            let reply = client.post(KEYS, &json!({ "name": name, "functions": functions, "rates": rates }))?;
            if !listing.json {
                output::note(&format!("key `{name}`, shown this once only:"));
            }
            output::print(listing, &reply, || Ok(client.typed::<Created>(&reply)?.key))
        }
        Key::Ls(listing) => {
            let data = output::data(client.get(KEYS)?);
            output::print(listing, &data, || {
                let rows: Vec<Row> = client.typed(&data)?;
                Ok(output::table(["KEY", "FUNCTIONS", "RPM", "TPM", "AT-ONCE", "WEIGHT"], rows.iter().map(Row::cells)))
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
    fn cells(&self) -> [String; 6] {
        let functions = self.functions.as_ref().map_or("all".into(), |functions| functions.join(","));
        let limit = |limit: Option<u32>| limit.map_or(output::NONE.to_owned(), |limit| limit.to_string());
        let Rates { rpm, tpm, concurrency, weight } = self.rates;
        [self.name.clone(), functions, limit(rpm), limit(tpm), limit(concurrency), weight.to_string()]
    }
}
