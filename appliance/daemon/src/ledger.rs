//! `emberd ledger`: the ledger's files, proved, and its index made anew from them, without a server.

use crate::{
    arguments::Ledger,
    data::{self, LEDGER},
    exit::Failure,
};
use appliance_ledger::{Position, Verified, index, verify};
use serde_json::json;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Most places of damage that are printed for people; `--json` has all.
const DAMAGE_SHOWN_MAX: usize = 64;

/// Does what was asked for. Damage is a failure, told after all else was done.
pub(crate) fn run(command: &Ledger) -> Result<(), Failure> {
    let (Ledger::Verify { place } | Ledger::Rebuild { place }) = command;
    let folder = PathBuf::from(&place.data).join(LEDGER);
    let found = verify(&folder).map_err(|error| Failure::Service(error.to_string()))?;
    let indexed = match command {
        Ledger::Verify { .. } => None,
        Ledger::Rebuild { .. } => {
            // No server may run: it would go on writing to the index that is removed.
            let _lock = data::lock(Path::new(&place.data))?;
            Some(index::rebuild(&folder).map_err(|error| Failure::Service(error.to_string()))?)
        }
    };
    let text = if place.json { document(&found, indexed) } else { lines(&folder, &found, indexed) };
    writeln!(io::stdout().lock(), "{text}").map_err(|source| Failure::io("print", "stdout", source))?;
    match found.damage.len() {
        0 => Ok(()),
        places => Err(Failure::Unusable(format!("{}: damaged in {places} places, all told above", folder.display()))),
    }
}

fn lines(folder: &Path, found: &Verified, indexed: Option<u64>) -> String {
    let Verified { segments, entries, end, torn, damage } = found;
    let mut lines = vec![format!("{}: {segments} segments, {entries} entries, up to {end}", folder.display())];
    lines.extend(torn.map(|(at, bytes)| format!("torn: {at}, {bytes} bytes, which the next start cuts off")));
    lines.extend(damage.iter().take(DAMAGE_SHOWN_MAX).map(|damage| format!("damage: {damage}")));
    if damage.len() > DAMAGE_SHOWN_MAX {
        lines.push(format!("and {} more; --json has all", damage.len() - DAMAGE_SHOWN_MAX));
    }
    lines.extend(indexed.map(|entries| format!("indexed anew: {entries} entries")));
    lines.join("\n")
}

fn document(found: &Verified, indexed: Option<u64>) -> String {
    let place = |at: Position| json!({ "segment": at.segment, "offset": at.offset });
    let damage: Vec<_> = found
        .damage
        .iter()
        .map(|damage| json!({ "at": place(damage.at), "bytes": damage.bytes, "reason": damage.reason.to_string() }))
        .collect();
    let document = json!({
        "segments": found.segments,
        "entries": found.entries,
        "end": place(found.end),
        "torn": found.torn.map(|(at, bytes)| json!({ "at": place(at), "bytes": bytes })),
        "damage": damage,
        "indexed": indexed,
    });
    format!("{document:#}")
}
