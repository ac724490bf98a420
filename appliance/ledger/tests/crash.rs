//! The ledger on a disk that is cut: at every effect, at every byte of what was being written, at every subset of the
//! sectors that were not synced.
//!
//! The law: after any crash, and after a crash of the recovery from it, the entries are those that were handed in, in
//! their order, none missing that was acknowledged, none twice; and a crash never looks like damage. `EMBER_CRASH_POINTS`
//! sets how many points are visited at least.

#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

#[path = "crash/sim.rs"]
mod sim;

use appliance_ledger::{
    Config, Log, LogError, Position, Recovery, Space,
    frame::Content,
    segment::{number, scan},
};
use appliance_types::{Entry, Record, RequestId, Stage};
use sim::{Cut, Sim, State};

const CONFIG: Config = Config { segment_bytes: 8192, retain_bytes: 1 << 20, retain_ms: None, free_bytes_min: 0 };
/// Points where nothing else is said.
const POINTS: usize = 20_000;
/// Subsets of at most so many pieces are all visited.
const PIECES_ALL: usize = 8;

fn entry(sequence: u64) -> Entry {
    let record = Record {
        status: 200,
        ..Record::new(RequestId::from_random(sequence.into()), "key".parse().unwrap(), "assistant".parse().unwrap())
    };
    Entry { boot: 1, core: 0, sequence, stage: Stage::Closed, record }
}

fn batch(from: u64, count: u64) -> Vec<Entry> {
    (from..from + count).map(entry).collect()
}

fn open(disk: Sim) -> (Log<Sim>, Recovery) {
    Log::open_on(disk, CONFIG, 1).unwrap()
}

/// The sequences on a disk, in their order.
fn sequences(state: &State) -> Vec<u64> {
    let mut segments: Vec<(u64, &[u8])> =
        state.files().filter_map(|(name, bytes)| Some((number(name)?, bytes))).collect();
    segments.sort_unstable();
    let mut found = Vec::new();
    for (segment, bytes) in segments {
        for (_, frame) in scan(segment, bytes, None).lines {
            if let Content::Entry(entry) = frame.content().unwrap() {
                found.push(entry.sequence);
            }
        }
    }
    found
}

/// A small generator: the points are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Ways to cut the power at a moment: bytes of the last piece, subsets of the pieces, prefixes of the changes of names.
fn cuts(state: &State, random: &mut Random, samples: usize) -> Vec<Cut> {
    let (pieces, all_names) = (state.pieces(), state.name_changes());
    let whole = |names| Cut { pieces: vec![true; pieces], names, torn: None };
    let mut cuts: Vec<Cut> = (0..=all_names).map(whole).collect();
    cuts.extend((0..state.last_piece()).map(|torn| Cut { torn: Some(torn), ..whole(all_names) }));
    // Of the last piece alone a part, with none of the others.
    cuts.extend((0..state.last_piece()).step_by(7).map(|torn| {
        let pieces = (0..pieces).map(|piece| piece + 1 == pieces).collect();
        Cut { pieces, names: all_names, torn: Some(torn) }
    }));
    if pieces <= PIECES_ALL {
        for subset in 0..1_usize << pieces {
            let pieces: Vec<bool> = (0..pieces).map(|piece| subset >> piece & 1 == 1).collect();
            cuts.extend((0..=all_names).map(|names| Cut { pieces: pieces.clone(), names, torn: None }));
        }
    }
    for _ in 0..samples {
        let pieces = (0..pieces).map(|_| random.below(2) == 1).collect();
        let torn = (random.below(2) == 1).then(|| random.below(512));
        cuts.push(Cut { pieces, names: random.below(all_names + 1), torn });
    }
    cuts
}

/// Opens what a crash left; returns how many entries it has.
fn check(left: State, acknowledged: u64, handed_in: u64, what: &str) -> (u64, Sim, Log<Sim>) {
    let disk = Sim::recording(left);
    let (log, recovery) = open(disk.clone());
    let found = sequences(&disk.state());
    let count = found.len() as u64;
    assert_eq!(found, (0..count).collect::<Vec<_>>(), "{what}");
    assert!(count >= acknowledged, "{what}: {count} of {acknowledged} acknowledged");
    assert!(count <= handed_in, "{what}: {count} of {handed_in}");
    assert_eq!((recovery.damage, recovery.entries), (Vec::new(), count), "{what}");
    assert_eq!(log.last(1, 0), count.checked_sub(1), "{what}");
    (count, disk, log)
}

/// A crash, a crash of the recovery from it at each of its effects, and going on afterwards.
fn visit(left: State, acknowledged: u64, handed_in: u64, random: &mut Random, deep: bool, what: &str) -> usize {
    let (count, disk, mut log) = check(left, acknowledged, handed_in, what);
    let mut points = 1;
    if deep {
        for (moment, state) in disk.history().iter().enumerate() {
            let what = format!("{what}, recovery cut at {moment}");
            for cut in cuts(state, random, 1).into_iter().step_by(37) {
                drop(check(state.cut(&cut), acknowledged, handed_in, &what));
                points += 1;
            }
            drop(check(state.kill(), acknowledged, handed_in, &what));
            points += 1;
        }
    }
    // What the recovery told of must outlast a power cut right after it.
    let state = disk.state();
    let none = Cut { pieces: vec![false; state.pieces()], names: 0, torn: None };
    drop(check(state.cut(&none), count, handed_in, &format!("{what}, then the power")));
    // Told to take all of it again, it takes what it lacks.
    log.append(&batch(0, handed_in + 2)).unwrap();
    assert_eq!(sequences(&disk.state()), (0..handed_in + 2).collect::<Vec<_>>(), "{what}");
    points + 1
}

/// Appends batches of 1, 2, 3 … entries over more than two segments; returns each moment with what was acknowledged and
/// handed in by then.
fn workload(random: &mut Random) -> Vec<(State, u64, u64)> {
    let disk = Sim::recording(State::default());
    let mut moments = Vec::new();
    let (mut acknowledged, mut handed_in) = (0, 0);
    let mut note = |disk: &Sim, acknowledged, handed_in| {
        let known = moments.len();
        moments.extend(disk.history().into_iter().skip(known).map(|state| (state, acknowledged, handed_in)));
    };
    let (mut log, _) = open(disk.clone());
    note(&disk, 0, 0);
    while handed_in < 30 {
        let entries = batch(handed_in, 1 + random.below(6) as u64);
        handed_in += entries.len() as u64;
        log.append(&entries).unwrap();
        note(&disk, acknowledged, handed_in);
        acknowledged = handed_in;
        log.tend(2).unwrap();
        note(&disk, acknowledged, handed_in);
    }
    assert!(log.end().segment >= 3, "{}", log.end());
    moments
}

#[test]
fn no_cut_loses_or_doubles_what_was_acknowledged() {
    let wanted = std::env::var("EMBER_CRASH_POINTS").ok().and_then(|points| points.parse().ok()).unwrap_or(POINTS);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut points, mut rounds) = (0, 0);
    while points < wanted {
        let moments = workload(&mut random);
        for (number, (state, acknowledged, handed_in)) in moments.iter().enumerate() {
            let what = format!("round {rounds}, effect {number}");
            for (index, cut) in cuts(state, &mut random, 16).into_iter().enumerate() {
                let what = format!("{what}, cut {index}");
                let deep = random.below(64) == 0;
                points += visit(state.cut(&cut), *acknowledged, *handed_in, &mut random, deep, &what);
            }
            points += visit(state.kill(), *acknowledged, *handed_in, &mut random, true, &format!("{what}, killed"));
        }
        rounds += 1;
    }
    println!("{points} crash points in {rounds} rounds");
}

#[test]
fn a_failed_sync_is_final_until_the_disk_is_read_again() {
    let failing = |number: usize| {
        let disk = Sim::new(State::default());
        let (mut log, _) = open(disk.clone());
        let at_open = disk.syncs();
        disk.fail_sync(at_open + number);
        let mut acknowledged = 0;
        while acknowledged < 30 {
            match log.append(&batch(acknowledged, 3)) {
                Ok(()) => acknowledged += 3,
                Err(LogError::Io { .. }) => break,
                Err(other) => panic!("{other}"),
            }
            drop(log.tend(2));
        }
        let synced = disk.syncs();
        if acknowledged < 30 {
            assert!(matches!(log.append(&batch(acknowledged, 3)), Err(LogError::Failed { .. })));
            assert!(matches!(log.tend(2), Err(LogError::Failed { .. })));
            assert_eq!(disk.syncs(), synced, "nothing is tried after a failure");
        }
        drop(log);
        drop(check(disk.state().kill(), acknowledged, 33, &format!("sync {number} failed")));
        (acknowledged < 30, synced > at_open + number)
    };
    let outcomes: Vec<_> = (0..40).map(failing).take_while(|(_, reached)| *reached).collect();
    assert!(outcomes.len() > 10 && outcomes.iter().filter(|(failed, _)| *failed).count() > 10, "{outcomes:?}");
}

#[test]
fn every_flipped_bit_is_reported_by_position() {
    let disk = Sim::new(State::default());
    let (mut log, _) = open(disk.clone());
    (0..7).for_each(|number| log.append(&batch(2 * number, 2)).unwrap());
    assert!(log.end().segment >= 2);
    let end = log.end();
    drop(log);
    let whole = disk.state();
    let files: Vec<(String, usize)> = whole
        .files()
        .filter(|(name, _)| number(name).is_some())
        .map(|(name, bytes)| (name.clone(), bytes.len()))
        .collect();
    let mut flips = 0;
    for (file, length) in &files {
        let segment = number(file).unwrap();
        // Of the zeros behind the end, some.
        let last = if segment == end.segment { (end.offset as usize + 64).min(*length) } else { *length };
        for bit in 0..last * 8 {
            let mut state = whole.clone();
            state.flip(file, bit);
            let disk = Sim::new(state);
            let (_, recovery) = open(disk.clone());
            let at = Position { segment, offset: (bit / 8) as u32 };
            let damaged = recovery.damage.iter().any(|damage| {
                damage.at <= at && at.offset < damage.at.offset + damage.bytes && damage.at.segment == segment
            });
            let cut = recovery
                .cut
                .is_some_and(|(from, bytes)| from <= at && at.offset < from.offset + bytes && from.segment == segment);
            assert!(damaged || cut, "bit {bit} of {file}: {recovery:?}");
            let found = sequences(&disk.state());
            assert!(found.is_sorted() && found.len() >= 10, "bit {bit} of {file}: {found:?}");
            flips += 1;
        }
    }
    println!("{flips} flipped bits");
}

#[test]
fn a_lost_segment_is_reported() {
    let disk = Sim::new(State::default());
    let (mut log, _) = open(disk.clone());
    (0..30).for_each(|number| log.append(&batch(number, 1)).unwrap());
    assert!(log.end().segment >= 3);
    drop(log);
    appliance_ledger::disk::Disk::remove(&disk, "00000002.log").unwrap();
    let (_, recovery) = open(disk);
    assert_eq!(recovery.damage.len(), 1);
    assert_eq!(recovery.damage[0].at, Position { segment: 2, offset: 0 });
}

#[test]
fn a_full_disk_takes_what_was_admitted_and_says_so_before() {
    let disk = Sim::new(State::default());
    disk.limit(4 * 8192 + 100);
    let (mut log, _) = open(disk.clone());
    assert_eq!(log.space(), Space::Ample);
    let mut next = 0;
    while log.space() == Space::Ample {
        log.append(&batch(next, 1)).unwrap();
        next += 1;
        log.tend(2).unwrap();
    }
    let admitted = next;
    let full = loop {
        match log.append(&batch(next, 1)) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, LogError::NoSpace { .. }), "{full}");
    assert!(next - admitted >= 5, "half of a segment was left: {}", next - admitted);
    assert!(matches!(log.append(&batch(next, 1)), Err(LogError::NoSpace { .. })), "and again");
    disk.limit(8192 + 1);
    log.append(&batch(next, 1)).unwrap();
    assert_eq!(sequences(&disk.state()), (0..=next).collect::<Vec<_>>());
}
