//! `ember key`: who may call. A key is shown once, when it is made; the server keeps only its hash.

use crate::{args::Key, client::Client, error::Error, output};
use serde::Deserialize;
use serde_json::json;

const KEYS: &str = "/ember/v1/keys";

#[derive(Deserialize)]
struct Row {
    name: String,
    functions: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Created {
    key: String,
}

pub(crate) fn command(client: &Client, command: Key) -> Result<(), Error> {
    match command {
        Key::Create { name, functions, listing } => {
            let reply = client.post(KEYS, &json!({ "name": name, "functions": functions }))?;
            if !listing.json {
                output::note(&format!("key `{name}`, shown this once only:"));
            }
            output::print(listing, &reply, || Ok(client.typed::<Created>(&reply)?.key))
        }
        Key::Ls(listing) => {
            let data = output::data(client.get(KEYS)?);
            output::print(listing, &data, || {
                let rows: Vec<Row> = client.typed(&data)?;
                Ok(output::table(["KEY", "FUNCTIONS"], rows.iter().map(Row::cells)))
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
    fn cells(&self) -> [String; 2] {
        let functions = self.functions.as_ref().map_or("all".into(), |functions| functions.join(","));
        [self.name.clone(), functions]
    }
}
