//! What is known of one request when it has ended: the edge makes it, the ledger keeps it, the caller is shown it.
//!
//! All durations are of one monotonic clock in one process; the wall clock only stamps `ended_unix_ms`.

use crate::{FunctionName, KeyName, ProjectName, Tier};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Names one request for its whole life: header `x-request-id`, logs, ledger. 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String")]
#[serde(try_from = "String")]
pub struct RequestId(u128);

impl RequestId {
    /// An identifier from 128 random bits.
    pub const fn from_random(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits that it was made from.
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req-{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for RequestId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        text.strip_prefix("req-")
            .filter(|hex| hex.len() == 32)
            .and_then(|hex| u128::from_str_radix(hex, 16).ok())
            .map(Self)
            .ok_or("a request id is `req-` and 32 hexadecimal digits")
    }
}

/// How a request ended; exactly one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered in full.
    Completed,
    /// Refused before any work: a fault of the caller, a limit, or a full queue.
    Refused,
    /// The client went away; work stopped within a token.
    Cancelled,
    /// `timeout` or a deadline cut it.
    DeadlineExceeded,
    /// The instance crashed, was killed for its memory, or broke protocol.
    RunnerFailed,
    /// A fault of ours.
    Failed,
    /// The server died before it ended: what is known is what it had used by its last heartbeat.
    Interrupted,
}

/// One request, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The request.
    pub request: RequestId,
    /// Wall clock when it came, milliseconds since the Unix epoch.
    #[serde(default)]
    pub came_unix_ms: u64,
    /// Wall clock at the end, milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// The key that pays.
    pub key: KeyName,
    /// The project of that key when it came, if it had one.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// The function called.
    pub function: FunctionName,
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status that was sent.
    pub status: u16,
    /// Where the function was found.
    pub tier: Tier,
    /// Time waiting for a slot, µs.
    pub queue_us: u64,
    /// Time waking an instance, µs.
    pub wake_us: u64,
    /// Time feeding the prompt, µs.
    pub prefill_us: u64,
    /// Time producing tokens, µs.
    pub decode_us: u64,
    /// Time of its instances that is this request's, µs: where several run in one, that is divided among them.
    #[serde(default)]
    pub share_us: u64,
    /// Its part of the wakes that it waited for, µs.
    #[serde(default)]
    pub wake_share_us: u64,
    /// CPU time of its instances that is this request's, µs.
    #[serde(default)]
    pub cpu_us: u64,
    /// Memory reserved for its instances over its part of their time, byte·ms.
    #[serde(default)]
    pub reserved_byte_ms: u64,
    /// Memory used by its instances over its part of their time, byte·ms.
    #[serde(default)]
    pub used_byte_ms: u64,
    /// Most memory that its instance was seen to use, KiB, rounded up; 0 where nobody looked.
    #[serde(default)]
    pub peak_kib: u32,
    /// From when it came to its first text, µs; 0 where it had none.
    #[serde(default)]
    pub first_text_us: u64,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Of these, tokens found in the KV cache.
    pub tokens_cached: u32,
    /// Tokens produced.
    pub tokens_out: u32,
    /// Memory reserved for the instance, bytes.
    pub memory_bytes: u64,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// Whether it ran when nothing else did, at that price.
    #[serde(default)]
    pub batch: bool,
    /// Whether it was stopped because a budget was used up.
    #[serde(default)]
    pub budget_reached: bool,
    /// What it costs, 10^-9 of the price book's currency.
    #[serde(default)]
    pub cost_nanos: u64,
    /// The version of the prices that this is by; 0 of a request that was never priced.
    #[serde(default)]
    pub price_version: u32,
}

/// How far a request has come when an entry of it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is admitted and has used nothing yet.
    Open,
    /// It goes on; its record says what it has used until now. What is known of it should its end never be told.
    Progress,
    /// It has ended; its record is final.
    Closed,
}

/// What one core of the server says of a request, on its way to the ledger and in it.
///
/// `(boot, core, sequence)` names an entry for ever: within a boot of the server each core counts up from 0 by one. So a
/// reader that was interrupted knows what it has, and whether something is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Random, of one start of the server process.
    pub boot: u64,
    /// The core's number within the server.
    pub core: u16,
    /// The entry's number within boot and core.
    pub sequence: u64,
    /// How far the request has come.
    pub stage: Stage,
    /// What is known of it.
    pub record: Record,
}

impl Record {
    /// What is known of a request when it comes: it has used nothing, and counts as cancelled until it ends otherwise.
    pub const fn new(request: RequestId, key: KeyName, function: FunctionName) -> Self {
        Self {
            request,
            came_unix_ms: 0,
            ended_unix_ms: 0,
            key,
            project: None,
            function,
            outcome: Outcome::Cancelled,
            status: 0,
            tier: Tier::Cold,
            queue_us: 0,
            wake_us: 0,
            prefill_us: 0,
            decode_us: 0,
            share_us: 0,
            wake_share_us: 0,
            cpu_us: 0,
            reserved_byte_ms: 0,
            used_byte_ms: 0,
            peak_kib: 0,
            first_text_us: 0,
            tokens_in: 0,
            tokens_cached: 0,
            tokens_out: 0,
            memory_bytes: 0,
            bytes_in: 0,
            bytes_out: 0,
            batch: false,
            budget_reached: false,
            cost_nanos: 0,
            price_version: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_reads_what_it_writes() {
        let id = RequestId::from_random(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
        assert_eq!(id.to_string(), "req-123456789abcdef00fedcba987654321");
        assert_eq!(RequestId::try_from(id.to_string()), Ok(id));
        for bad in ["", "req-", "req-12", "123456789abcdef00fedcba987654321", "req-+23456789abcdef00fedcba98765432g"] {
            assert!(RequestId::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
