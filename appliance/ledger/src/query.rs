//! What the ledger can be asked, and what it answers: plain values, bounded on both sides.
//!
//! ```text
//!  Ask { id, query }  ──▶  one SEQPACKET packet, at most ASK_BYTES_MAX
//!  Said::Answer { id, answer }  ◀──  one packet, at most ANSWER_BYTES_MAX; longer answers come in pages
//!  Said::Space { low }  ◀──  unasked, while the disk is nearly full
//!  Said::Ready  ◀──  the first packet of each start of the ledger: what was asked before is lost
//! ```
//!
//! A page ends where its packet is full or its limit is reached, and names where the next begins. Only what has ended is
//! counted: a request that still runs shows in [`Query::Request`] alone.

use crate::{frame::Chain, segment::Position};
use appliance_types::{FunctionName, KeyName, Record, RequestId};
use serde::{Deserialize, Serialize};

/// Longest question, bytes.
pub const ASK_BYTES_MAX: usize = 1024;
/// Longest answer, bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most rows of a page, whatever was asked for.
pub const PAGE_ROWS_MAX: u16 = 256;

/// Which requests are meant; all that is absent matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Ended at this time or later, milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Ended before this time, milliseconds since the Unix epoch.
    pub until_unix_ms: Option<u64>,
    /// Paid by this key.
    pub key: Option<KeyName>,
    /// Of this function.
    pub function: Option<FunctionName>,
}

/// What a sum is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The key that pays.
    Key,
    /// The project of that key; the group of those without one is empty.
    Project,
    /// The function.
    Function,
    /// Where the function was found.
    Tier,
    /// The hour in which it ended; the group is its start, milliseconds since the Unix epoch, in decimal.
    Hour,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// The sum of all that match: what a key or a function has spent.
    Total(Filter),
    /// Sums by group, ordered by group.
    Usage {
        /// Which requests.
        filter: Filter,
        /// Grouped by this.
        by: Dimension,
        /// The last group of the page before.
        after: Option<String>,
        /// Most rows of this page; 0 counts as 1, above [`PAGE_ROWS_MAX`] as that.
        limit: u16,
    },
    /// One request.
    Request(RequestId),
    /// Records in the order in which the ledger learnt their ends.
    Records {
        /// Which requests.
        filter: Filter,
        /// Where the page before ended.
        after: Option<Cursor>,
        /// Most rows of this page; 0 counts as 1, above [`PAGE_ROWS_MAX`] as that.
        limit: u16,
    },
    /// The ledger's lines from a position on, packed as `segment << 32 | offset`, with their proofs.
    Lines {
        /// Where the page before ended; 0 is the beginning.
        from: u64,
    },
}

/// A place in the order of [`Query::Records`]. Holds over restarts and a rebuilt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Segment and offset, packed as `segment << 32 | offset`.
    pub position: u64,
    /// The request, since several can end at one place.
    pub request: RequestId,
}

/// Sums over requests. Fields that this version's records lack are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests that ended.
    pub requests: u64,
    /// Of these, completed.
    pub completed: u64,
    /// Of these, cut off by the end of the server.
    pub interrupted: u64,
    /// Waiting for a slot, µs.
    pub queue_us: u64,
    /// Waking, µs.
    pub wake_us: u64,
    /// Feeding prompts, µs.
    pub prefill_us: u64,
    /// Producing tokens, µs.
    pub decode_us: u64,
    /// Time of instances that was these requests', µs.
    pub share_us: u64,
    /// CPU time, µs.
    pub cpu_us: u64,
    /// Tokens of prompts.
    pub tokens_in: u64,
    /// Of these, found in the KV cache.
    pub tokens_cached: u64,
    /// Tokens produced.
    pub tokens_out: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Memory reserved, byte·ms.
    pub reserved_byte_ms: u128,
    /// Memory used, byte·ms.
    pub used_byte_ms: u128,
    /// Billed, nano-units of the currency.
    pub cost_nanos: u64,
}

/// The sums of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The group's key, project, function, tier or hour.
    pub group: String,
    /// Its sums.
    pub totals: Totals,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It runs, as far as the ledger knows; its record says what it has used until now.
    Running,
    /// The server ended before it; its record says what it had used when last heard of.
    Interrupted,
    /// It ended; its record is final.
    Closed,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// How far it came.
    pub fate: Fate,
    /// Its record.
    pub record: Record,
    /// Where the ledger has it.
    pub cursor: Cursor,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Total`].
    Total(Box<Totals>),
    /// To [`Query::Usage`].
    Usage {
        /// The page.
        rows: Vec<UsageRow>,
        /// What to ask for next; absent at the end.
        next: Option<String>,
    },
    /// To [`Query::Request`]; none where the ledger never heard of it, or keeps it no more.
    Request(Option<Box<Known>>),
    /// To [`Query::Records`].
    Records {
        /// The page.
        records: Vec<Known>,
        /// What to ask for next; absent at the end so far.
        next: Option<Cursor>,
    },
    /// To [`Query::Lines`].
    Lines(Box<Page>),
}

/// Lines of the ledger, as they are on its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Where they begin; later than what was asked for where that is no longer kept.
    pub from: u64,
    /// Where they end, and the next page begins.
    pub next: u64,
    /// The chain value before them.
    pub previous: Chain,
    /// The chain value of the last of them.
    pub chain: Chain,
    /// The lines, without their newlines; none at the end so far.
    pub lines: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum QueryError {
    /// Too many questions wait for an answer. Ask again later.
    #[error("the ledger has too many questions to answer")]
    Busy,
    /// The ledger was started again meanwhile, or removed a segment. Ask again.
    #[error("the ledger was started again, or has removed what was asked for")]
    Restarted,
    /// The ledger is gone, and the supervisor with it.
    #[error("the ledger is gone")]
    Gone,
    /// No line ends where the page is to begin.
    #[error("{reason}")]
    Cursor {
        /// What was met.
        reason: String,
    },
    /// The page would begin behind the ledger's end: who asks knows more than is here.
    #[error("the ledger ends at {}, before what was asked for", Position::unpacked(*end))]
    Beyond {
        /// Where it ends.
        end: u64,
    },
    /// The index cannot be read.
    #[error("the ledger's index: {reason}")]
    Index {
        /// What was met.
        reason: String,
    },
}

/// A question on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Chosen by who asks; comes back with the answer.
    pub id: u64,
    /// The question.
    pub query: Query,
}

/// What the ledger says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It has started.
    Ready,
    /// Whether its disk is so full that nothing more may be admitted; said once a second while it is, and when it is no more.
    Space {
        /// It is.
        low: bool,
    },
    /// An answer.
    Answer {
        /// The question's.
        id: u64,
        /// What came of it.
        answer: Result<Answer, QueryError>,
    },
}
