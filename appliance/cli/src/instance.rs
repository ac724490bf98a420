//! `ember ps`, `wake`, `park`, `stop`: what is in memory, and moving a function by hand.

use crate::{args::Listing, client::Client, error::Error, function, output};
use appliance_types::FunctionName;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Row {
    function: String,
    instance: Option<Value>,
    tier: String,
    private_bytes: Option<u64>,
    parked_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    reserved_bytes: Option<u64>,
    cores: Option<Value>,
    slots: Option<u64>,
    slots_busy: Option<u64>,
    until_s: Option<f64>,
    wake_p50_ms: Option<f64>,
}

pub(crate) fn ps(client: &Client, listing: Listing) -> Result<(), Error> {
    let data = output::data(client.get("/ember/v1/instances")?);
    output::print(listing, &data, || {
        let rows: Vec<Row> = client.typed(&data)?;
        let header =
            ["FUNCTION", "INSTANCE", "TIER", "MEM", "SHARED", "CORES", "SLOTS", "UNTIL", "WAKE-P50", "RESERVED"];
        Ok(output::table(header, rows.iter().map(Row::cells)))
    })
}

pub(crate) fn wake(client: &Client, function: &FunctionName) -> Result<(), Error> {
    client.post(&format!("{}/wake", function::path(function)), &json!({}))?;
    output::note(&format!("`{function}` is running"));
    Ok(())
}

pub(crate) fn park(client: &Client, function: &FunctionName) -> Result<(), Error> {
    let reply = client.post(&format!("{}/park", function::path(function)), &json!({}))?;
    let bytes = reply["parked_bytes"].as_u64().unwrap_or_default();
    output::note(&format!("`{function}` is parked in {}; the next request wakes it", output::bytes(bytes)));
    Ok(())
}

pub(crate) fn stop(client: &Client, function: &FunctionName) -> Result<(), Error> {
    client.post(&format!("{}/stop", function::path(function)), &json!({}))?;
    output::note(&format!("`{function}` is stopped; the next request wakes it"));
    Ok(())
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| output::NONE.into());
        [
            self.function.clone(),
            or_none(self.instance.as_ref().map(plain)),
            self.tier.clone(),
            or_none(self.private_bytes.or(self.parked_bytes).map(output::bytes)),
            or_none(self.shared_bytes.map(output::bytes)),
            or_none(self.cores.as_ref().map(plain)),
            or_none(self.slots.zip(self.slots_busy).map(|(all, busy)| format!("{busy}/{all}"))),
            or_none(self.until_s.map(|s| output::seconds(s.round() as u64))),
            or_none(self.wake_p50_ms.map(|ms| format!("{ms:.0} ms"))),
            or_none(self.reserved_bytes.map(output::bytes)),
        ]
    }
}

/// A number, text or list of either, as a cell.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_is_known() {
        let row = json!({"function": "f", "instance": 3, "tier": "running", "private_bytes": 1 << 20, "shared_bytes": null,
            "reserved_bytes": 384 << 20, "cores": [0, 1], "slots": 4, "slots_busy": 1, "until_s": null, "wake_p50_ms": 131.4});
        let row: Row = serde_json::from_value(row).unwrap();
        assert_eq!(row.cells(), ["f", "3", "running", "1.0 MiB", "-", "0,1", "1/4", "-", "131 ms", "384.0 MiB"]);
        let row =
            json!({"function": "f", "instance": null, "tier": "parked", "parked_bytes": 2 << 20, "until_s": 61.2});
        let row: Row = serde_json::from_value(row).unwrap();
        assert_eq!(row.cells(), ["f", "-", "parked", "2.0 MiB", "-", "-", "-", "1m01s", "-", "-"]);
    }
}
