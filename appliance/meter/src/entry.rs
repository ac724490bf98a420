//! An entry as bytes: three records' payloads, or four, so that it needs nothing but itself to be understood.
//!
//! ```text
//!   0 request 16 │ 16 sequence 8 │ 24 came │ 32 ended │ 40 queue │ 48 wake │ 56 prefill │ 64 decode │ 72 first text │
//!  80 memory │ 88 bytes in │ 96 bytes out │ 104 tokens in 4 │ 108 cached 4 │ 112 out 4 │ 116 status 2 │ 118 outcome 1 │
//! 119 tier 1 │ 120 stage 1 │ 121 key's length 1 │ 122 function's 1 │ 123 batch 1, budget reached 2 │ 124 project's length 1 │
//! 128 key, function, project: 128 │ 256 share │ 264 wake share │ 272 CPU │ 280 reserved │ 288 used │ 296 cost │ 304 price version 4 │ 308 peak 4
//! ```
//! Names follow each other; a project that does not fit behind the others begins at 312, in a fourth record that only such entries have.
//! Little endian; eight bytes where none are named. Only programs of one build share a ring, so there is no version: the
//! supervisor starts its children from its own file.

use crate::record::{Fault, Head, PAYLOAD_BYTES, RECORD_WORDS, seal};
use appliance_types::{Entry, NAME_BYTES_MAX, Outcome, ProjectName, Record, RequestId, Stage, Tier};
use std::str::FromStr;

/// Records of an entry, unless its names are long.
pub const ENTRY_RECORDS: u64 = 3;
/// Most records of an entry.
pub(crate) const ENTRY_RECORDS_MAX: u64 = ENTRY_RECORDS + 1;
pub(crate) const ENTRY_BYTES: usize = ENTRY_RECORDS_MAX as usize * PAYLOAD_BYTES;

const OUTCOMES: [Outcome; 7] = [
    Outcome::Completed,
    Outcome::Refused,
    Outcome::Cancelled,
    Outcome::DeadlineExceeded,
    Outcome::RunnerFailed,
    Outcome::Failed,
    Outcome::Interrupted,
];
const TIERS: [Tier; 4] = [Tier::Cold, Tier::Stored, Tier::Parked, Tier::Running];
const STAGES: [Stage; 3] = [Stage::Open, Stage::Progress, Stage::Closed];

const NAMES: usize = 128;
const NAMES_END: usize = 256;
/// Where a project begins that does not fit behind the others.
const FOURTH: usize = ENTRY_RECORDS as usize * PAYLOAD_BYTES;
const _: () = assert!(2 * NAME_BYTES_MAX <= NAMES_END - NAMES && NAME_BYTES_MAX <= ENTRY_BYTES - FOURTH);

/// Every numbered field, with its place: told once, for both directions.
macro_rules! fields {
    ($field:ident) => {
        $field!(came_unix_ms, 24, u64);
        $field!(ended_unix_ms, 32, u64);
        $field!(queue_us, 40, u64);
        $field!(wake_us, 48, u64);
        $field!(prefill_us, 56, u64);
        $field!(decode_us, 64, u64);
        $field!(first_text_us, 72, u64);
        $field!(memory_bytes, 80, u64);
        $field!(bytes_in, 88, u64);
        $field!(bytes_out, 96, u64);
        $field!(tokens_in, 104, u32);
        $field!(tokens_cached, 108, u32);
        $field!(tokens_out, 112, u32);
        $field!(status, 116, u16);
        $field!(share_us, 256, u64);
        $field!(wake_share_us, 264, u64);
        $field!(cpu_us, 272, u64);
        $field!(reserved_byte_ms, 280, u64);
        $field!(used_byte_ms, 288, u64);
        $field!(cost_nanos, 296, u64);
        $field!(price_version, 304, u32);
        $field!(peak_kib, 308, u32);
    };
}

/// How many records an entry of this has: the same for all entries of a request.
pub(crate) fn records(record: &Record) -> u64 {
    let names = record.key.as_str().len() + record.function.as_str().len();
    match &record.project {
        Some(project) if NAMES + names + project.as_str().len() > NAMES_END => ENTRY_RECORDS_MAX,
        _ => ENTRY_RECORDS,
    }
}

/// The bytes of an entry: as many as its [`records`] have, then zeros.
pub(crate) fn encode(stage: Stage, sequence: u64, record: &Record) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    macro_rules! put {
        ($name:ident, $at:literal, $number:ty) => {
            bytes[$at..$at + size_of::<$number>()].copy_from_slice(&record.$name.to_le_bytes());
        };
    }
    fields!(put);
    bytes[..16].copy_from_slice(&record.request.bits().to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[118] = OUTCOMES.iter().position(|outcome| *outcome == record.outcome).unwrap_or(usize::MAX) as u8;
    bytes[119] = record.tier as u8;
    bytes[120] = stage as u8;
    bytes[123] = u8::from(record.batch) | u8::from(record.budget_reached) << 1;
    let (key, function) = (record.key.as_str().as_bytes(), record.function.as_str().as_bytes());
    let project = record.project.as_ref().map_or(&[][..], |project| project.as_str().as_bytes());
    (bytes[121], bytes[122], bytes[124]) = (key.len() as u8, function.len() as u8, project.len() as u8);
    let [key_at, function_at, project_at] = places([key.len(), function.len(), project.len()]);
    bytes[key_at..key_at + key.len()].copy_from_slice(key);
    bytes[function_at..function_at + function.len()].copy_from_slice(function);
    bytes[project_at..project_at + project.len()].copy_from_slice(project);
    bytes
}

/// The records of an entry, sealed for the places from `position` on, as a ring of `boot` holds them; also for whoever carries
/// them otherwise.
#[inline]
pub fn sealed(
    stage: Stage,
    sequence: u64,
    record: &Record,
    boot: u64,
    position: u64,
) -> impl Iterator<Item = [u64; RECORD_WORDS]> {
    let (bytes, parts) = (encode(stage, sequence, record), records(record) as u8);
    (0..parts).map(move |part| {
        let (payload, _) = bytes[usize::from(part) * PAYLOAD_BYTES..].as_chunks::<PAYLOAD_BYTES>();
        seal(Head { part, parts, boot }, position.wrapping_add(part.into()), &payload[0])
    })
}

/// Where names of these lengths begin, none of them longer than a name may be.
fn places([key, function, project]: [usize; 3]) -> [usize; 3] {
    let behind = NAMES + key + function;
    [NAMES, NAMES + key, if behind + project > NAMES_END { FOURTH } else { behind }]
}

/// The entry of `core` that these bytes are.
pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES], boot: u64, core: u16) -> Result<Entry, Fault> {
    macro_rules! number {
        ($at:expr, $number:ty) => {
            <$number>::from_le_bytes(std::array::from_fn(|byte| bytes[$at + byte]))
        };
    }
    let request = RequestId::from_random(number!(0, u128));
    let lengths = [bytes[121], bytes[122], bytes[124]].map(|length| usize::from(length).min(NAME_BYTES_MAX));
    let [key_at, function_at, project_at] = places(lengths);
    let key = name(bytes, key_at, bytes[121], "key")?;
    let function = name(bytes, function_at, bytes[122], "function")?;
    let project: Option<ProjectName> = match bytes[124] {
        0 => None,
        length => Some(name(bytes, project_at, length, "project")?),
    };
    let mut record = Record {
        outcome: one(&OUTCOMES, bytes[118], "outcome")?,
        tier: one(&TIERS, bytes[119], "tier")?,
        batch: bytes[123] & 1 != 0,
        budget_reached: bytes[123] & 2 != 0,
        project,
        ..Record::new(request, key, function)
    };
    macro_rules! take {
        ($name:ident, $at:literal, $number:ty) => {
            record.$name = number!($at, $number);
        };
    }
    fields!(take);
    Ok(Entry { boot, core, sequence: number!(16, u64), stage: one(&STAGES, bytes[120], "stage")?, record })
}

fn one<T: Copy>(all: &[T], number: u8, field: &'static str) -> Result<T, Fault> {
    all.get(usize::from(number)).copied().ok_or(Fault::Field { field })
}

fn name<T: FromStr>(bytes: &[u8; ENTRY_BYTES], at: usize, length: u8, field: &'static str) -> Result<T, Fault> {
    let length = usize::from(length);
    let text = bytes[at..].get(..length).filter(|_| length <= NAME_BYTES_MAX);
    let text = text.and_then(|text| str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).ok_or(Fault::Field { field })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::Value;

    pub(crate) fn record(number: u64) -> Record {
        let record = Record::new(
            RequestId::from_random(u128::from(number)),
            "key".parse().unwrap(),
            "assistant".parse().unwrap(),
        );
        Record { came_unix_ms: number, ..record }
    }

    /// A record of nothing but what it is not by itself: a field that was added and is not encoded shows.
    fn full() -> Record {
        let mut json = serde_json::to_value(record(0)).unwrap();
        for (number, value) in json.as_object_mut().unwrap().values_mut().enumerate() {
            match value {
                Value::Number(_) => *value = (number + 1_000).into(),
                Value::Bool(_) => *value = true.into(),
                Value::Null => *value = "project".into(),
                Value::Array(_) | Value::Object(_) => panic!("how is that encoded?"),
                Value::String(_) => {}
            }
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn every_field_arrives() {
        let name = "x".repeat(NAME_BYTES_MAX);
        let (key, function) = (name.parse().unwrap(), name.replace('x', "y").parse().unwrap());
        let full = Record { request: RequestId::from_random(u128::MAX - 5), key, function, ..full() };
        for outcome in OUTCOMES {
            for (tier, stage) in TIERS.iter().zip(STAGES.iter().cycle()) {
                let record = Record { outcome, tier: *tier, ..full.clone() };
                let decoded = decode(&encode(*stage, 7, &record), 8, 9).unwrap();
                assert_eq!(decoded, Entry { boot: 8, core: 9, sequence: 7, stage: *stage, record });
            }
        }
    }

    #[test]
    fn names_of_any_length_arrive_and_only_long_ones_take_a_fourth_record() {
        for (lengths, expected) in
            [([1, 1, 0], 3), ([1, 1, 63], 3), ([63, 63, 2], 3), ([63, 63, 3], 4), ([63, 63, 63], 4)]
        {
            let [key, function, project] = lengths.map(|length| "n".repeat(length));
            let project = (!project.is_empty()).then(|| project.parse().unwrap());
            let record = Record {
                project,
                ..Record::new(RequestId::from_random(1), key.parse().unwrap(), function.parse().unwrap())
            };
            assert_eq!(records(&record), expected, "{lengths:?}");
            let mut bytes = encode(Stage::Open, 0, &record);
            bytes[expected as usize * PAYLOAD_BYTES..].fill(0);
            assert_eq!(decode(&bytes, 0, 0).unwrap().record, record, "{lengths:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let good = encode(Stage::Open, 0, &record(1));
        for (at, value, field) in [
            (118, 7, "outcome"),
            (119, 4, "tier"),
            (120, 3, "stage"),
            (121, 0, "key"),
            (121, 64, "key"),
            (122, 255, "function"),
            (128, b'/', "key"),
            (131, 0xff, "function"),
            (124, 64, "project"),
            (124, 1, "project"),
        ] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(decode(&bad, 0, 0), Err(Fault::Field { field }), "{at}");
        }
    }
}
