//! The index: what the segments say, in SQLite, for questions. Made from them alone, and made again from them at will.
//!
//! ```text
//!  segments ──▶ catch_up: entries up to the log's end, in one transaction with the place reached ──▶ index.db (WAL)
//!                 Open, Progress ─▶ running          ┐                                                   │
//!                 Closed ─▶ closed                   ├ one row a request                                 ▼
//!                 first entry of a new boot:         │                                       ask: pages of sums, records
//!                   what ran in others ─▶ interrupted┘
//! ```
//!
//! Invariants: the index is never ahead of what the log has synced, and holds the place up to which it has come, so a
//! crash at any moment leaves it behind and no more; rows of removed segments go with them. An index of another version,
//! or one that SQLite cannot read, is made anew. A row keeps the whole record, so that fields which came later need no
//! column; columns are what is filtered and summed. Sums that could pass 2⁶³ are made in halves.

mod ask;

pub(crate) use ask::Reader;

use crate::{
    frame::Content,
    segment::{self, Position, name},
};
use appliance_types::{Entry, Outcome, Record, Stage};
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter, types::Value};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

/// The file's name in the ledger's folder.
pub const FILE_NAME: &str = "index.db";
/// Of the tables below.
const VERSION: i64 = 2;
const BUSY: Duration = Duration::from_secs(5);
/// Fields of a record that are summed as they are; those that this version's records lack are 0.
pub(crate) const SUMS: [&str; 10] = [
    "queue_us",
    "wake_us",
    "prefill_us",
    "decode_us",
    "share_us",
    "cpu_us",
    "tokens_in",
    "tokens_cached",
    "tokens_out",
    "bytes_in",
];
/// Fields that are summed in halves, but for `bytes_out`, which is among them to keep the two lists short.
pub(crate) const WIDE_SUMS: [&str; 4] = ["bytes_out", "reserved_byte_ms", "used_byte_ms", "cost_nanos"];
/// Greatest value of [`SUMS`] that is kept: 32,768 of them can be summed. As µs, nine years.
const SUM_MAX: u64 = 1 << 48;

pub(crate) const RUNNING: i64 = 0;
pub(crate) const INTERRUPTED: i64 = 1;
pub(crate) const CLOSED: i64 = 2;

/// Why the index cannot be used. The segments are not touched by it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite's.
    #[error("index {path}: {source}")]
    Sql {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// A segment, or the file itself.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The index, open for writing by one thread.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    sql: Connection,
}

impl Index {
    /// Opens the index in `folder`, or makes it.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        match Self::connect(folder) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the ledger's index is made anew"),
        }
        remove(folder)?;
        let index = Self::connect(folder).map_err(|source| fault(folder, source))?;
        index.ok_or_else(|| fault(folder, rusqlite::Error::InvalidQuery))
    }

    /// None where another version made it.
    fn connect(folder: &Path) -> rusqlite::Result<Option<Self>> {
        let sql = Connection::open(folder.join(FILE_NAME))?;
        sql.busy_timeout(BUSY)?;
        sql.pragma_update(None, "journal_mode", "WAL")?;
        sql.pragma_update(None, "synchronous", "NORMAL")?;
        let version: i64 = sql.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 = sql.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            sql.execute_batch(&schema())?;
        } else if version != VERSION {
            return Ok(None);
        }
        Ok(Some(Self { folder: folder.to_owned(), sql }))
    }

    /// Up to where it has come.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn place(&self) -> Result<Position, IndexError> {
        let place = self.sql.query_row("SELECT place FROM state", [], |row| row.get::<_, i64>(0));
        place.map(|place| Position::unpacked(place as u64)).map_err(|source| fault(&self.folder, source))
    }

    /// Takes in what the log has up to `end`, and drops what it no longer keeps; `oldest` is its oldest segment. Returns
    /// how many entries it took. An index that is ahead belongs to other segments, and is emptied first.
    ///
    /// # Errors
    /// [`IndexError`]; nothing of the segment at hand was taken then.
    pub fn catch_up(&mut self, oldest: u64, end: Position) -> Result<u64, IndexError> {
        if self.place()? > end {
            tracing::error!(%end, "the ledger ends before what was indexed of it: synced entries are gone; indexing anew");
            self.clear()?;
        }
        let mut from = self.place()?.max(Position { segment: oldest, offset: 0 });
        let mut taken = 0;
        loop {
            let until = if from.segment == end.segment { Some(end.offset) } else { None };
            taken += self.take_segment(from, until, oldest)?;
            if from.segment >= end.segment {
                return Ok(taken);
            }
            from = Position { segment: from.segment + 1, offset: 0 };
        }
    }

    fn clear(&self) -> Result<(), IndexError> {
        let cleared = self.sql.execute_batch(
            "BEGIN; DELETE FROM requests; DELETE FROM boots; UPDATE state SET place = 0, newest = NULL; COMMIT;",
        );
        cleared.map_err(|source| fault(&self.folder, source))
    }

    fn take_segment(&mut self, from: Position, until: Option<u32>, oldest: u64) -> Result<u64, IndexError> {
        let bytes = read(&self.folder.join(name(from.segment)), from.offset, until)?;
        let failed = |source| fault(&self.folder, source);
        let transaction = self.sql.transaction().map_err(failed)?;
        let taken = take(&transaction, from, until, &bytes).map_err(failed)?;
        prune(&transaction, oldest).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(taken)
    }
}

/// Makes the index in `folder` anew from its segments, for whom the folder belongs to; returns how many entries it took. For
/// a ledger that does not run.
///
/// # Errors
/// [`IndexError`].
pub fn rebuild(folder: &Path) -> Result<u64, IndexError> {
    remove(folder)?;
    let taken = fill(folder)?;
    give(folder)?;
    Ok(taken)
}

fn fill(folder: &Path) -> Result<u64, IndexError> {
    let mut index = Index::open(folder)?;
    let failed = |source| IndexError::Io { action: "list", path: folder.to_owned(), source };
    let segments = crate::reader::segments(folder).map_err(|error| failed(io::Error::other(error)))?;
    let (Some(oldest), Some(newest)) = (segments.first(), segments.last()) else { return Ok(0) };
    let bytes = read(&folder.join(name(*newest)), 0, None)?;
    let scan = segment::scan(*newest, &bytes, None);
    let end = Position { segment: *newest, offset: scan.torn().unwrap_or(scan.used) };
    index.catch_up(*oldest, end)
}

/// Gives the index's file to the owner of the folder, as which the ledger's process runs.
fn give(folder: &Path) -> Result<(), IndexError> {
    let path = folder.join(FILE_NAME);
    let owner = |path: &Path| fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid()));
    let given = || match (owner(folder)?, owner(&path)?) {
        ((uid, gid), has) if has != (uid, gid) => chown(&path, Some(uid), Some(gid)),
        _ => Ok(()),
    };
    given().map_err(|source| IndexError::Io { action: "give away", path: path.clone(), source })
}

fn remove(folder: &Path) -> Result<(), IndexError> {
    for suffix in ["", "-wal", "-shm"] {
        let path = folder.join(format!("{FILE_NAME}{suffix}"));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IndexError::Io { action: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn fault(folder: &Path, source: rusqlite::Error) -> IndexError {
    IndexError::Sql { path: folder.join(FILE_NAME), source }
}

fn schema() -> String {
    let measures: String =
        SUMS.iter().chain(&WIDE_SUMS).map(|measure| format!("{measure} INTEGER NOT NULL, ")).collect();
    format!(
        "BEGIN;
         CREATE TABLE state(place INTEGER NOT NULL, newest INTEGER);
         INSERT INTO state VALUES (0, NULL);
         CREATE TABLE boots(boot INTEGER PRIMARY KEY);
         CREATE TABLE requests(
             request TEXT PRIMARY KEY, position INTEGER NOT NULL, fate INTEGER NOT NULL, boot INTEGER NOT NULL,
             ended INTEGER NOT NULL, key TEXT NOT NULL, project TEXT NOT NULL, function TEXT NOT NULL, tier TEXT NOT NULL,
             completed INTEGER NOT NULL, {measures} record TEXT NOT NULL) WITHOUT ROWID;
         CREATE INDEX by_position ON requests(position, request);
         CREATE INDEX by_end ON requests(ended);
         CREATE INDEX by_key ON requests(key, ended);
         CREATE INDEX by_function ON requests(function, ended);
         CREATE INDEX running ON requests(boot) WHERE fate = 0;
         PRAGMA user_version = {VERSION};
         COMMIT;"
    )
}

/// The bytes of a segment from an offset on; none where it was removed meanwhile.
fn read(path: &Path, from: u32, until: Option<u32>) -> Result<Vec<u8>, IndexError> {
    let failed = |source| IndexError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let end = file.metadata().map_err(failed)?.len().min(until.map_or(u64::MAX, u64::from));
    let mut bytes = vec![0; end.saturating_sub(from.into()) as usize];
    file.read_exact_at(&mut bytes, from.into()).map_err(failed)?;
    Ok(bytes)
}

/// Takes the lines of a part of a segment in. Damage was reported when the log was opened; here it is passed by.
fn take(sql: &Transaction<'_>, from: Position, until: Option<u32>, bytes: &[u8]) -> rusqlite::Result<u64> {
    let scan = segment::scan_at(from, bytes, None);
    let columns = 10 + SUMS.len() + WIDE_SUMS.len() + 1;
    let places: Vec<String> = (1..=columns).map(|number| format!("?{number}")).collect();
    let names = ["position", "fate", "boot", "ended", "key", "project", "function", "tier", "completed"].iter();
    let set: Vec<String> = names
        .chain(&SUMS)
        .chain(&WIDE_SUMS)
        .chain(&["record"])
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let mut insert = sql.prepare(&format!(
        "INSERT INTO requests VALUES ({}) ON CONFLICT DO UPDATE SET {} WHERE excluded.fate >= requests.fate",
        places.join(", "),
        set.join(", ")
    ))?;
    let mut newest: Option<i64> = sql.query_row("SELECT newest FROM state", [], |row| row.get(0))?;
    let mut taken = 0;
    for (offset, frame) in &scan.lines {
        let Ok(Content::Entry(entry)) = frame.content() else { continue };
        let position = Position { segment: from.segment, offset: *offset };
        let boot = entry.boot as i64;
        if newest != Some(boot) && is_new(sql, boot)? {
            newest = Some(boot);
            let cut = "UPDATE requests SET fate = ?1, position = ?2 WHERE fate = 0 AND boot <> ?3";
            sql.execute(cut, params![INTERRUPTED, position.packed() as i64, boot])?;
        }
        insert.execute(params_from_iter(row(position, &entry, newest == Some(boot))))?;
        taken += 1;
    }
    let place = Position { segment: from.segment, offset: until.unwrap_or(from.offset + bytes.len() as u32) };
    sql.execute("UPDATE state SET place = ?1, newest = ?2", params![place.packed() as i64, newest])?;
    Ok(taken)
}

/// Whether a boot was never heard of before; notes it.
fn is_new(sql: &Transaction<'_>, boot: i64) -> rusqlite::Result<bool> {
    Ok(sql.execute("INSERT OR IGNORE INTO boots VALUES (?1)", [boot])? > 0)
}

fn prune(sql: &Transaction<'_>, oldest: u64) -> rusqlite::Result<()> {
    let first = Position { segment: oldest, offset: 0 }.packed() as i64;
    let old = "SELECT 1 FROM requests WHERE position < ?1 LIMIT 1";
    if sql.query_row(old, [first], |_| Ok(())).optional()?.is_some() {
        sql.execute("DELETE FROM requests WHERE position < ?1", [first])?;
    }
    Ok(())
}

fn row(position: Position, entry: &Entry, newest: bool) -> Vec<Value> {
    let record = &entry.record;
    let fate = match entry.stage {
        Stage::Closed => CLOSED,
        _ if newest => RUNNING,
        _ => INTERRUPTED,
    };
    let mut row = vec![
        Value::Text(record.request.to_string()),
        Value::Integer(position.packed() as i64),
        Value::Integer(fate),
        Value::Integer(entry.boot as i64),
        Value::Integer(i64::try_from(ended(record)).unwrap_or(i64::MAX)),
        Value::Text(record.key.as_str().to_owned()),
        Value::Text(record.project.as_ref().map_or(String::new(), |project| project.as_str().to_owned())),
        Value::Text(record.function.as_str().to_owned()),
        Value::Text(record.tier.to_string()),
        Value::Integer((entry.stage == Stage::Closed && record.outcome == Outcome::Completed).into()),
    ];
    let fields = serde_json::to_value(record).expect("text keys, finite numbers");
    let field = |name: &&str| fields.get(*name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let sums = SUMS.iter().map(|name| field(name).min(SUM_MAX) as i64);
    let wide = WIDE_SUMS.iter().map(|name| i64::try_from(field(name)).unwrap_or(i64::MAX));
    row.extend(sums.chain(wide).map(Value::Integer));
    row.push(Value::Text(fields.to_string()));
    row
}

/// When it ended, or was last heard of.
fn ended(record: &Record) -> u64 {
    record.ended_unix_ms.max(record.came_unix_ms)
}

#[cfg(test)]
mod tests;
