//! What was pulled, in SQLite.
//!
//! ```text
//!  boxes     one a box: generation, key, cursor and chain value of what was pulled last; when it was seen, and how it stood
//!  records   one a request that ended: (box, request), where its box has it, what is filtered and summed, all of it as JSON
//!  flags     what is wrong with a box: (box, flag, generation), where and since when; the first stays, the last is counted
//! ```
//!
//! Invariants: a cursor moves in the transaction that puts the records before it in, and only from where it was when the
//! page was asked for, so that two pulls at once, or one that was killed, take nothing twice; a record that is there is
//! never changed. Who takes a box's ledger for a new one begins a generation: what was pulled stays, and so do its flags.

use crate::{
    BoxName, Fault, Flag, Followed, Known,
    usage::{Row, Usage},
};
use appliance_ledger::{Position, frame::Chain, signed::PageCursor};
use appliance_price::{Book, Prices};
use appliance_types::{Outcome, Record};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Of the tables below.
const VERSION: i64 = 1;
/// How long a write waits for that of another process.
const BUSY: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE boxes(
        name TEXT PRIMARY KEY, generation INTEGER NOT NULL DEFAULT 0, key TEXT, cursor INTEGER NOT NULL DEFAULT 0,
        chain TEXT NOT NULL, seen_ms INTEGER, tried_ms INTEGER, error TEXT, skew_ms INTEGER, version TEXT,
        functions INTEGER, disk_free_bytes INTEGER, started_ms INTEGER, prices TEXT) WITHOUT ROWID;
    CREATE TABLE records(
        box TEXT NOT NULL, request TEXT NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
        ended_ms INTEGER NOT NULL, key TEXT NOT NULL, project TEXT NOT NULL, function TEXT NOT NULL,
        completed INTEGER NOT NULL, tokens_in INTEGER NOT NULL, tokens_cached INTEGER NOT NULL,
        tokens_out INTEGER NOT NULL, wake_us INTEGER NOT NULL, work_us INTEGER NOT NULL, cost_nanos INTEGER NOT NULL,
        record TEXT NOT NULL, PRIMARY KEY (box, request)) WITHOUT ROWID;
    CREATE INDEX by_end ON records(ended_ms);
    CREATE TABLE flags(
        box TEXT NOT NULL, flag TEXT NOT NULL, generation INTEGER NOT NULL, at TEXT NOT NULL, detail TEXT NOT NULL,
        since_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL, times INTEGER NOT NULL,
        PRIMARY KEY (box, flag, generation)) WITHOUT ROWID;";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's.
    #[error("database `{}`: {source}", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// There is no room for more of it.
    #[error("no room for the database `{}`: its disk is full; nothing of the last page was taken", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another version made it.
    #[error("database `{}` is of version {found}, and this `ember` reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
    /// Another pull has taken in more of the box meanwhile; nothing was taken.
    #[error("another pull goes on with this box")]
    Moved,
}

impl StoreError {
    /// What SQLite said of the file at `path`.
    fn of(path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full { path: path.to_owned() },
            _ => Self::Sql { path: path.to_owned(), source },
        }
    }
}

/// How a box stood when it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its version of Ember.
    pub version: String,
    /// Its clock less ours, ms.
    pub skew_ms: i64,
    /// Functions deployed.
    pub functions: u64,
    /// Free bytes of its disk.
    pub disk_free_bytes: Option<u64>,
    /// When it last started, by its clock, ms since the Unix epoch.
    pub started_ms: Option<u64>,
}

/// A box as the database has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The box.
    #[serde(rename = "box")]
    pub name: String,
    /// How often its ledger was taken for a new one.
    pub generation: u32,
    /// Its public key, hexadecimal.
    pub key: Option<String>,
    /// Behind what was pulled.
    pub cursor: String,
    /// Records pulled.
    pub records: u64,
    /// When it last answered, ms since the Unix epoch.
    pub seen_unix_ms: Option<u64>,
    /// When it was last asked, ms since the Unix epoch.
    pub tried_unix_ms: Option<u64>,
    /// Why the last pull of it did not come to its end.
    pub error: Option<String>,
    /// Its clock less ours, ms.
    pub skew_ms: Option<i64>,
    /// Its version of Ember.
    pub version: Option<String>,
    /// Functions deployed.
    pub functions: Option<u64>,
    /// Free bytes of its disk.
    pub disk_free_bytes: Option<u64>,
    /// When it last started, by its clock, ms since the Unix epoch.
    pub started_unix_ms: Option<u64>,
    /// What is wrong with it.
    pub flags: Vec<FlagRow>,
}

/// Something wrong with a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlagRow {
    /// What.
    pub flag: Flag,
    /// Where in its ledger, when it was first met.
    pub at: String,
    /// In words, as it was first met.
    pub detail: String,
    /// When it was first met, ms since the Unix epoch.
    pub since_unix_ms: u64,
    /// When it was last met, ms since the Unix epoch.
    pub last_unix_ms: u64,
    /// In how many pulls.
    pub times: u64,
}

/// The database, open.
#[derive(Debug)]
pub struct Store {
    sql: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the database at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::of(path, source);
        let sql = Connection::open(path).map_err(failed)?;
        match prepare(&sql).map_err(failed)? {
            VERSION => Ok(Self { sql, path: path.to_owned() }),
            found => Err(StoreError::Version { path: path.to_owned(), found }),
        }
    }

    /// What is known of a box's ledger.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn known(&self, name: &BoxName) -> Result<Known, StoreError> {
        let query = "SELECT generation, key, cursor, chain FROM boxes WHERE name = ?1";
        let row = self.sql.query_row(query, [name.as_str()], |row| {
            Ok(Known {
                generation: row.get(0)?,
                key: row.get(1)?,
                cursor: cursor_of(row.get(2)?),
                chain: chain_of(row.get(3)?)?,
            })
        });
        Ok(row.optional().map_err(self.fault())?.unwrap_or_default())
    }

    /// Takes in what a page gave, in one transaction with where it ended; returns how many records were new, and for what the box
    /// was flagged. `before` is what was known when the page was asked for. A record that is there with another content stays.
    ///
    /// # Errors
    /// [`StoreError::Moved`] where `before` is no longer what is known; nothing was taken.
    pub fn take(
        &mut self,
        name: &BoxName,
        before: &Known,
        page: &Followed,
        now_ms: u64,
    ) -> Result<(u64, Option<Fault>), StoreError> {
        let path = self.path.clone();
        let failed = |source| StoreError::of(&path, source);
        let transaction = self.sql.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        ensure(&transaction, name).map_err(failed)?;
        if !advance(&transaction, name, before, &page.known).map_err(failed)? {
            return Err(StoreError::Moved);
        }
        let (fresh, contradicted) = insert(&transaction, name, page).map_err(failed)?;
        for fault in contradicted.iter().chain(&page.gap) {
            note(&transaction, name, fault, now_ms).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok((fresh, contradicted.or_else(|| page.gap.clone())))
    }

    /// Flags a box.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn flag(&mut self, name: &BoxName, fault: &Fault, now_ms: u64) -> Result<(), StoreError> {
        self.change(|sql| {
            ensure(sql, name)?;
            note(sql, name, fault, now_ms)
        })
    }

    /// Takes a flag off a box, if it is one that passes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unflag(&mut self, name: &BoxName, flag: Flag) -> Result<(), StoreError> {
        if !flag.passes() {
            return Ok(());
        }
        let delete = "DELETE FROM flags WHERE box = ?1 AND flag = ?2";
        self.change(|sql| sql.execute(delete, params![name.as_str(), flag.word()]).map(drop))
    }

    /// Notes how a box stood at `now_ms`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn seen(&mut self, name: &BoxName, seen: &Seen, now_ms: u64) -> Result<(), StoreError> {
        self.change(|sql| {
            ensure(sql, name)?;
            let update = "UPDATE boxes SET seen_ms = ?2, skew_ms = ?3, version = ?4, functions = ?5,
                disk_free_bytes = ?6, started_ms = ?7 WHERE name = ?1";
            let values = params![
                name.as_str(),
                int(now_ms),
                seen.skew_ms,
                seen.version,
                int(seen.functions),
                seen.disk_free_bytes.map(int),
                seen.started_ms.map(int),
            ];
            sql.execute(update, values).map(drop)
        })
    }

    /// Keeps the prices that a box told, once a page has proved whose they are and before its records are taken. Prices that make
    /// no book are passed over. Returns the fault where they are in another currency than what was kept of the box: then they
    /// are refused, since amounts would be summed as what they are not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn priced(&mut self, name: &BoxName, prices: Vec<Prices>) -> Result<Option<Fault>, StoreError> {
        let text = serde_json::to_string(&prices).expect("numbers and text");
        let Ok(told) = Book::new(prices) else { return Ok(None) };
        let mut contradicted = None;
        self.change(|sql| {
            let known = book(sql, name.as_str())?.map(|book| book.currency());
            let other = known.filter(|known| *known != told.currency());
            if let (Some(known), true) = (other, has_records(sql, name)?) {
                let detail = format!("it charges in {}, and did in {known}; that stays", told.currency());
                let at =
                    sql.query_row("SELECT cursor FROM boxes WHERE name = ?1", [name.as_str()], |row| row.get(0))?;
                contradicted = Some(Fault::new(Flag::Contradicted, cursor_of(at), detail));
                return Ok(());
            }
            ensure(sql, name)?;
            sql.execute("UPDATE boxes SET prices = ?2 WHERE name = ?1", params![name.as_str(), text]).map(drop)
        })?;
        Ok(contradicted)
    }

    /// Notes that a pull of a box has ended at `now_ms`, and why where it was not at its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tried(&mut self, name: &BoxName, error: Option<&str>, now_ms: u64) -> Result<(), StoreError> {
        self.change(|sql| {
            ensure(sql, name)?;
            let update = "UPDATE boxes SET tried_ms = ?2, error = ?3 WHERE name = ?1";
            sql.execute(update, params![name.as_str(), int(now_ms), error]).map(drop)
        })
    }

    /// Takes what a box has now for a new ledger: it is pulled from its beginning, by whatever key it shows, and no flag stays.
    /// Records that were pulled stay, and are not counted again. False where nothing was ever pulled of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn accept(&mut self, name: &BoxName) -> Result<bool, StoreError> {
        let chain = String::from(Chain::default());
        let update = "UPDATE boxes SET generation = generation + 1, key = NULL, cursor = 0, chain = ?2 WHERE name = ?1";
        let changed = self.sql.execute(update, params![name.as_str(), chain]).map_err(self.fault())?;
        Ok(changed > 0)
    }

    /// All boxes that were ever asked, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn standings(&self) -> Result<Vec<Standing>, StoreError> {
        let query = "SELECT name, generation, key, cursor, (SELECT count(*) FROM records WHERE box = name), seen_ms,
            tried_ms, error, skew_ms, version, functions, disk_free_bytes, started_ms FROM boxes ORDER BY name";
        let mut statement = self.sql.prepare(query).map_err(self.fault())?;
        let rows = statement.query_map([], |row| {
            let number = |index| row.get::<_, Option<i64>>(index).map(|number| number.map(|number| number as u64));
            Ok(Standing {
                name: row.get(0)?,
                generation: row.get(1)?,
                key: row.get(2)?,
                cursor: cursor_of(row.get(3)?).to_string(),
                records: row.get::<_, i64>(4)? as u64,
                seen_unix_ms: number(5)?,
                tried_unix_ms: number(6)?,
                error: row.get(7)?,
                skew_ms: row.get(8)?,
                version: row.get(9)?,
                functions: number(10)?,
                disk_free_bytes: number(11)?,
                started_unix_ms: number(12)?,
                flags: Vec::new(),
            })
        });
        let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(self.fault())?;
        rows.into_iter().map(|row| Ok(Standing { flags: self.flags(&row.name)?, ..row })).collect()
    }

    /// What is wrong with a box, the gravest first.
    fn flags(&self, name: &str) -> Result<Vec<FlagRow>, StoreError> {
        let query = "SELECT flag, at, detail, since_ms, last_ms, times FROM flags
            JOIN boxes ON boxes.name = flags.box AND boxes.generation = flags.generation WHERE box = ?1";
        let mut statement = self.sql.prepare(query).map_err(self.fault())?;
        let rows = statement.query_map([name], |row| {
            let word: String = row.get(0)?;
            let number = |index| row.get::<_, i64>(index).map(|number| number as u64);
            let (since_unix_ms, last_unix_ms, times) = (number(3)?, number(4)?, number(5)?);
            let (at, detail) = (row.get(1)?, row.get(2)?);
            Ok(Flag::of_word(&word).map(|flag| FlagRow { flag, at, detail, since_unix_ms, last_unix_ms, times }))
        });
        let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(self.fault())?;
        let mut rows: Vec<_> = rows.into_iter().flatten().collect();
        rows.sort_by_key(|row| row.flag);
        Ok(rows)
    }

    /// Adds up all requests that ended at `since_ms` or later, by their boxes' clocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn usage(&self, since_ms: u64, usage: &mut Usage) -> Result<(), StoreError> {
        let query = "SELECT box, key, project, function, ended_ms, completed, tokens_in, tokens_cached, tokens_out,
            wake_us, work_us, cost_nanos FROM records WHERE ended_ms >= ?1";
        let mut statement = self.sql.prepare(query).map_err(self.fault())?;
        let mut rows = statement.query([int(since_ms)]).map_err(self.fault())?;
        while let Some(row) = rows.next().map_err(self.fault())? {
            usage.add(&usage_row(row).map_err(self.fault())?);
        }
        Ok(())
    }

    /// Gives `take` each record of a box that ended at `since_ms` or later, by request.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn records(&self, name: &str, since_ms: u64, mut take: impl FnMut(&Record)) -> Result<(), StoreError> {
        let query = "SELECT record FROM records WHERE box = ?1 AND ended_ms >= ?2";
        let mut statement = self.sql.prepare(query).map_err(self.fault())?;
        let mut rows = statement.query(params![name, int(since_ms)]).map_err(self.fault())?;
        while let Some(row) = rows.next().map_err(self.fault())? {
            let text: String = row.get(0).map_err(self.fault())?;
            take(&record_of(&text).map_err(self.fault())?);
        }
        Ok(())
    }

    /// The prices that a box last told; none where it told none that make a book.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn book(&self, name: &str) -> Result<Option<Book>, StoreError> {
        book(&self.sql, name).map_err(self.fault())
    }

    fn change(&mut self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let path = &self.path;
        let failed = |source| StoreError::of(path, source);
        let transaction = self.sql.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        change(&transaction).and_then(|()| transaction.commit()).map_err(failed)
    }

    fn fault(&self) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        |source| StoreError::of(&self.path, source)
    }
}

/// Sets the connection up; the version of its tables, which are made in an empty file.
fn prepare(sql: &Connection) -> rusqlite::Result<i64> {
    sql.busy_timeout(BUSY)?;
    sql.pragma_update(None, "journal_mode", "WAL")?;
    sql.pragma_update(None, "synchronous", "NORMAL")?;
    let version = || sql.pragma_query_value(None, "user_version", |row| row.get(0));
    if version()? == 0 {
        // Another process may make them at the same time: who comes second finds them.
        sql.execute_batch("BEGIN IMMEDIATE")?;
        let tables: i64 = sql.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let made = match tables {
            0 => sql.execute_batch(&format!("{SCHEMA} PRAGMA user_version = {VERSION};")),
            _ => Ok(()),
        };
        sql.execute_batch(if made.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        made?;
    }
    version()
}

fn book(sql: &Connection, name: &str) -> rusqlite::Result<Option<Book>> {
    let query = "SELECT prices FROM boxes WHERE name = ?1";
    let text = sql.query_row(query, [name], |row| row.get::<_, Option<String>>(0)).optional()?.flatten();
    let versions = text.and_then(|text| serde_json::from_str::<Vec<Prices>>(&text).ok());
    Ok(versions.and_then(|versions| Book::new(versions).ok()))
}

fn has_records(sql: &Transaction<'_>, name: &BoxName) -> rusqlite::Result<bool> {
    sql.query_row("SELECT EXISTS(SELECT 1 FROM records WHERE box = ?1)", [name.as_str()], |row| row.get(0))
}

fn ensure(sql: &Transaction<'_>, name: &BoxName) -> rusqlite::Result<()> {
    let insert = "INSERT OR IGNORE INTO boxes(name, chain) VALUES (?1, ?2)";
    sql.execute(insert, params![name.as_str(), String::from(Chain::default())]).map(drop)
}

/// Moves a box's cursor; false where it is not where it was.
fn advance(sql: &Transaction<'_>, name: &BoxName, before: &Known, after: &Known) -> rusqlite::Result<bool> {
    let update = "UPDATE boxes SET key = ?2, cursor = ?3, chain = ?4
        WHERE name = ?1 AND generation = ?5 AND key IS ?6 AND cursor = ?7 AND chain = ?8";
    let values = params![
        name.as_str(),
        after.key,
        int(after.cursor.0.packed()),
        String::from(after.chain),
        before.generation,
        before.key,
        int(before.cursor.0.packed()),
        String::from(before.chain)
    ];
    Ok(sql.execute(update, values)? > 0)
}

/// Puts records in; how many were new, and the first that was there with another content.
fn insert(sql: &Transaction<'_>, name: &BoxName, page: &Followed) -> rusqlite::Result<(u64, Option<Fault>)> {
    let mut insert = sql.prepare(
        "INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?;
    let mut there = sql.prepare("SELECT record FROM records WHERE box = ?1 AND request = ?2")?;
    let (mut fresh, mut contradicted) = (0, None);
    for (at, entry) in &page.ended {
        let record = &entry.record;
        let request = record.request.to_string();
        let values = params![
            name.as_str(),
            request,
            page.known.generation,
            int(at.0.packed()),
            int(record.ended_unix_ms.max(record.came_unix_ms)),
            record.key.as_str(),
            record.project.as_ref().map_or("", |project| project.as_str()),
            record.function.as_str(),
            record.outcome == Outcome::Completed,
            record.tokens_in,
            record.tokens_cached,
            record.tokens_out,
            int(record.wake_us),
            int(record.prefill_us.saturating_add(record.decode_us)),
            int(record.cost_nanos),
            serde_json::to_string(record).expect("text keys, finite numbers")
        ];
        if insert.execute(values)? > 0 {
            fresh += 1;
        } else if contradicted.is_none() {
            let known: String = there.query_row(params![name.as_str(), request], |row| row.get(0))?;
            let detail = || format!("{request} was told before with another content; that stays");
            contradicted = (record_of(&known)? != *record).then(|| Fault::new(Flag::Contradicted, *at, detail()));
        }
    }
    Ok((fresh, contradicted))
}

fn note(sql: &Transaction<'_>, name: &BoxName, fault: &Fault, now_ms: u64) -> rusqlite::Result<()> {
    let insert = "INSERT INTO flags SELECT name, ?2, generation, ?3, ?4, ?5, ?5, 1 FROM boxes WHERE name = ?1
        ON CONFLICT DO UPDATE SET last_ms = excluded.last_ms, times = times + 1";
    let values = params![name.as_str(), fault.flag.word(), fault.at.to_string(), fault.detail, int(now_ms)];
    sql.execute(insert, values).map(drop)
}

fn usage_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let number = |index| row.get::<_, i64>(index).map(|number| number as u64);
    Ok(Row {
        name: row.get(0)?,
        key: row.get(1)?,
        project: row.get(2)?,
        function: row.get(3)?,
        ended_ms: number(4)?,
        completed: row.get(5)?,
        tokens_in: number(6)?,
        tokens_cached: number(7)?,
        tokens_out: number(8)?,
        wake_us: number(9)?,
        work_us: number(10)?,
        cost_nanos: number(11)?,
    })
}

fn record_of(text: &str) -> rusqlite::Result<Record> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

fn cursor_of(packed: i64) -> PageCursor {
    PageCursor(Position::unpacked(packed as u64))
}

fn chain_of(text: String) -> rusqlite::Result<Chain> {
    Chain::try_from(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, error.into()))
}

/// The greatest that is kept is 2^63 - 1.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
