//! `ember snapshot`: what functions wake from.

use crate::{
    args::{Listing, Snapshot},
    client::Client,
    error::Error,
    function, output,
};
use appliance_types::FunctionName;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Row {
    function: String,
    file_bytes: u64,
    parked_bytes: u64,
    current: bool,
}

pub(crate) fn command(client: &Client, command: Snapshot) -> Result<(), Error> {
    match command {
        Snapshot::Ls(listing) => ls(client, listing),
        Snapshot::Create { function, listing } => {
            let message = format!("taking a snapshot of `{function}` ...");
            let entry = output::waiting(&message, || client.post(&path(&function), &json!({})))?;
            show(client, listing, &entry, "took")
        }
        Snapshot::Verify { function, listing } => {
            let entry = client.post(&format!("{}/verify", path(&function)), &json!({}))?;
            show(client, listing, &entry, "verified")
        }
        Snapshot::Rm { function } => {
            client.delete(&path(&function))?;
            output::note(&format!("`{function}` has no snapshot any more; its next cold wake takes one"));
            Ok(())
        }
    }
}

fn ls(client: &Client, listing: Listing) -> Result<(), Error> {
    let reply = client.get("/ember/v1/snapshots")?;
    if let Some(retired @ 1..) = reply["retired"].as_u64() {
        output::note(&format!("{retired} could not be used since the server began; its log says why"));
    }
    let data = output::data(reply);
    output::print(listing, &data, || {
        let rows: Vec<Row> = client.typed(&data)?;
        Ok(output::table(["FUNCTION", "FILE", "PARKED", "CURRENT"], rows.iter().map(Row::cells)))
    })
}

fn show(client: &Client, listing: Listing, entry: &Value, done: &str) -> Result<(), Error> {
    output::print(listing, entry, || {
        let row: Row = client.typed(entry)?;
        Ok(format!("{done} the snapshot of {}: {}", row.function, output::bytes(row.file_bytes.max(row.parked_bytes))))
    })
}

fn path(function: &FunctionName) -> String {
    format!("{}/snapshot", function::path(function))
}

impl Row {
    fn cells(&self) -> [String; 4] {
        let unless_zero = |bytes| if bytes == 0 { output::NONE.to_owned() } else { output::bytes(bytes) };
        let current = if self.current { "yes" } else { "no" };
        [self.function.clone(), unless_zero(self.file_bytes), unless_zero(self.parked_bytes), current.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_where_the_snapshot_is() {
        let row = json!({"function": "f", "file_bytes": 3 << 20, "parked_bytes": 0, "current": false});
        let row: Row = serde_json::from_value(row).unwrap();
        assert_eq!(row.cells(), ["f", "3.0 MiB", "-", "no"]);
    }
}
