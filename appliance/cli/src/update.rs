//! `ember update`: a bundle into the slot that does not run, what the slots have, and back.

use crate::{
    args::{Listing, Update},
    client::Client,
    error::Error,
    output,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{fs::File, path::Path};

const PATH: &str = "/ember/v1/update";

#[derive(Deserialize)]
struct Status {
    running: Option<String>,
    next: Option<String>,
    floor: Option<String>,
    floor_fault: Option<String>,
    slots: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    slot: String,
    version: String,
    state: String,
    trials_left: Option<u32>,
}

pub(crate) fn command(client: &Client, command: &Update) -> Result<(), Error> {
    match command {
        Update::Apply { bundle, listing } => {
            let status = apply(client, bundle)?;
            output::note(match restarts(&status) {
                true => "installed; the machine starts again to try it, and falls back if it does not work",
                false => "installed; the next start of the machine tries it, and falls back if it does not work",
            });
            show(client, *listing, &status)
        }
        Update::Status(listing) => show(client, *listing, &client.get(PATH)?),
        Update::Rollback(listing) => {
            let status = client.post(&format!("{PATH}/rollback"), &json!({}))?;
            output::note(match restarts(&status) {
                true => "the machine starts again, with the other slot",
                false => "the other slot is started from the next start of the machine on",
            });
            show(client, *listing, &status)
        }
    }
}

fn apply(client: &Client, bundle: &Path) -> Result<Value, Error> {
    let unreadable = |source| Error::Read { path: bundle.into(), source };
    let file = File::open(bundle).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let template = "sending {bar:30} {percent:>3}% {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("a constant template");
    let bar = ProgressBar::new(bytes).with_style(style);
    let headers = [("content-type", "application/octet-stream")];
    let reply = client.put_stream(PATH, &headers, bytes, &mut bar.wrap_read(file));
    bar.finish_and_clear();
    reply
}

fn restarts(status: &Value) -> bool {
    status["restarts"] == true
}

fn show(client: &Client, listing: Listing, status: &Value) -> Result<(), Error> {
    output::print(listing, status, || Ok(text(&client.typed(status)?)))
}

fn text(status: &Status) -> String {
    let rows = status.slots.iter().map(|row| {
        let is = |slot: &Option<String>| slot.as_ref() == Some(&row.slot);
        let left = row.trials_left.map(|left| format!(", {left} left")).unwrap_or_default();
        let what = match (is(&status.running), is(&status.next)) {
            (true, true) => "running, next",
            (true, false) => "running",
            (false, true) => "next",
            (false, false) => output::NONE,
        };
        [row.slot.clone(), row.version.clone(), format!("{}{left}", row.state), what.to_owned()]
    });
    let floor = status.floor.as_ref().map(|floor| format!("\nnothing below {floor} is installed any more"));
    let fault = status.floor_fault.as_ref().map(|fault| format!("\n{fault}: the version that runs stands for it"));
    output::table(["SLOT", "VERSION", "STATE", "START"], rows) + &floor.unwrap_or_default() + &fault.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_are_shown_in_the_order_of_trials() {
        let mut status = json!({"running": "a", "next": "b", "floor": "1.1.0", "slots": [
            {"slot": "b", "version": "1.2.0", "state": "on trial", "trials_left": 3},
            {"slot": "a", "version": "1.1.0", "state": "trusted", "trials_left": null},
        ]});
        let shown = |status: &Value| text(&serde_json::from_value(status.clone()).unwrap());
        let text = shown(&status);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        assert!(lines[1].starts_with(&["b"]) && lines[1].ends_with(&["next"]), "{text}");
        assert!(
            text.contains("on trial, 3 left") && text.ends_with("nothing below 1.1.0 is installed any more"),
            "{text}"
        );
        status["floor_fault"] = "update-floor: no version".into();
        assert!(
            shown(&status).ends_with(
                "1.1.0 is installed any more\nupdate-floor: no version: the version that runs stands for it"
            )
        );
    }
}
