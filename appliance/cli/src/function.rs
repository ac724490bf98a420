//! `ember ls`, `show`, `rm`: the functions there are.

use crate::{
    args::{Listing, Show},
    client::Client,
    error::Error,
    output,
};
use appliance_types::FunctionName;
use serde::Deserialize;
use std::time::{SystemTime, UNIX_EPOCH};

const FUNCTIONS: &str = "/ember/v1/functions";

#[derive(Deserialize)]
struct Row {
    name: String,
    model: String,
    model_bytes: Option<u64>,
    task: String,
    tier: String,
    instances: u64,
    max: u64,
    deployed_unix_s: Option<u64>,
}

/// The path of one function.
pub(crate) fn path(function: &FunctionName) -> String {
    format!("{FUNCTIONS}/{function}")
}

pub(crate) fn ls(client: &Client, listing: Listing) -> Result<(), Error> {
    let data = output::data(client.get(FUNCTIONS)?);
    output::print(listing, &data, || {
        let rows: Vec<Row> = client.typed(&data)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = ["FUNCTION", "TASK", "TIER", "INSTANCES", "MODEL", "SIZE", "DEPLOYED"];
        Ok(output::table(header, rows.iter().map(|row| row.cells(now))))
    })
}

pub(crate) fn show(client: &Client, show: Show) -> Result<(), Error> {
    let function = client.get(&path(&show.function))?;
    output::print(show.listing, &function, || Ok(output::leaves(&function)))
}

pub(crate) fn rm(client: &Client, function: &FunctionName) -> Result<(), Error> {
    client.delete(&path(function))?;
    output::note(&format!("removed `{function}`; its model stays in the store (`ember model ls`)"));
    Ok(())
}

impl Row {
    fn cells(&self, now_unix_s: u64) -> [String; 7] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| output::NONE.into());
        let ago = |at| format!("{} ago", output::seconds(now_unix_s.saturating_sub(at)));
        [
            self.name.clone(),
            self.task.clone(),
            self.tier.clone(),
            format!("{}/{}", self.instances, self.max),
            output::short_digest(&self.model),
            or_none(self.model_bytes.map(output::bytes)),
            or_none(self.deployed_unix_s.map(ago)),
        ]
    }
}
