//! Pages of a ledger of the tests' own, as they are, changed, forged and out of place.

use super::*;
use appliance_edge::authority::Signer;
use appliance_ledger::{
    frame::{Head, encode},
    query::Page,
    signed::hex,
};
use appliance_types::{Outcome, Record, RequestId};
use proptest::prelude::*;

/// A ledger of the tests' own: the lines of each segment, each with the chain value after it.
struct Ledger {
    signer: Signer,
    segments: Vec<Vec<(String, Chain)>>,
    chain: Chain,
    entries: u64,
}

impl Ledger {
    fn new() -> Self {
        let signer = Signer::load(&Signer::make().unwrap()).unwrap();
        let mut ledger = Self { signer, segments: Vec::new(), chain: Chain::default(), entries: 0 };
        ledger.next_segment();
        ledger
    }

    fn push(&mut self, content: &impl Serialize) {
        let mut line = Vec::new();
        self.chain = encode(content, 0, self.chain, &mut line);
        let line = String::from_utf8(line).unwrap().trim_end().to_owned();
        self.segments.last_mut().unwrap().push((line, self.chain));
    }

    fn next_segment(&mut self) {
        self.segments.push(Vec::new());
        let head = Head { segment: self.segments.len() as u64, previous: self.chain, begun_unix_ms: 1 };
        self.push(&head);
    }

    fn entry(&mut self, stage: Stage, salt: u64) {
        self.entries += 1;
        let id = RequestId::from_random(u128::from(self.entries));
        let record = Record {
            outcome: Outcome::Completed,
            cost_nanos: salt,
            ..Record::new(id, "key".parse().unwrap(), "f".parse().unwrap())
        };
        self.push(&Entry { boot: 1, core: 0, sequence: self.entries, stage, record });
    }

    /// What its listener would answer, `lines` at most.
    fn page(&self, from: PageCursor, lines: usize) -> SignedPage {
        let mut at = from.0;
        at.segment = at.segment.max(1);
        let (index, mut previous) = loop {
            let (mut offset, mut index) = (0, 0);
            let segment = &self.segments[at.segment as usize - 1];
            let before = |number: usize| {
                if number == 0 { Chain::default() } else { self.segments[number - 1].last().unwrap().1 }
            };
            let mut previous = before(at.segment as usize - 1);
            while offset < at.offset {
                offset += segment[index].0.len() as u32 + 1;
                previous = segment[index].1;
                index += 1;
            }
            assert_eq!(offset, at.offset);
            if index < segment.len() || at.segment as usize == self.segments.len() {
                break (index, previous);
            }
            at = Position { segment: at.segment + 1, offset: 0 };
        };
        let taken = &self.segments[at.segment as usize - 1][index..];
        let taken = &taken[..taken.len().min(lines)];
        let length: usize = taken.iter().map(|(line, _)| line.len() + 1).sum();
        let chain = taken.last().map_or(previous, |(_, chain)| *chain);
        let next = Position { offset: at.offset + length as u32, ..at };
        previous = if index == 0 && taken.is_empty() { chain } else { previous };
        let page = Page {
            from: at.packed(),
            next: next.packed(),
            previous,
            chain,
            lines: taken.iter().map(|(line, _)| line.clone()).collect(),
        };
        self.sign(SignedPage::unsigned("shop-7", self.signer.public(), page))
    }

    fn sign(&self, page: SignedPage) -> SignedPage {
        let signature = self.signer.sign(page.message().as_bytes()).unwrap();
        page.signed(&signature)
    }
}

fn numbers(followed: &Followed) -> Vec<u64> {
    followed.ended.iter().map(|(_, entry)| entry.sequence).collect()
}

/// All of a ledger, in pages of so many lines.
fn pulled(ledger: &Ledger, mut known: Known, lines: usize) -> Result<(Vec<u64>, Known), Fault> {
    let mut all = Vec::new();
    loop {
        let followed = follow("shop-7", &known, &ledger.page(known.cursor, lines))?;
        assert_eq!(followed.gap, None);
        all.extend(numbers(&followed));
        known = followed.known;
        if !followed.more {
            return Ok((all, known));
        }
    }
}

fn flag(known: &Known, page: &SignedPage) -> Option<Flag> {
    follow("shop-7", known, page).err().map(|fault| fault.flag)
}

/// A ledger of two segments, and what is known of it after its first page of four lines.
fn begun() -> (Ledger, Known) {
    let mut ledger = Ledger::new();
    for _ in 0..2 {
        for salt in 0..6 {
            ledger.entry(Stage::Closed, salt);
        }
        ledger.next_segment();
    }
    let known = follow("shop-7", &Known::default(), &ledger.page(PageCursor::default(), 4)).unwrap().known;
    (ledger, known)
}

proptest! {
    /// However a ledger grows, whatever its pages hold, and wherever a pull begins again: each end once, in order.
    #[test]
    fn each_end_is_taken_once(steps in prop::collection::vec((0..12u8, 1..9usize), 1..60)) {
        let mut ledger = Ledger::new();
        let (mut known, mut taken, mut expected) = (Known::default(), Vec::new(), Vec::new());
        for (step, lines) in steps {
            match step {
                0..6 => { ledger.entry(Stage::Closed, 1); expected.push(ledger.entries); }
                6 | 7 => ledger.entry(Stage::Open, 1),
                8 => ledger.next_segment(),
                9 => { let (more, now) = pulled(&ledger, known, lines).unwrap(); taken.extend(more); known = now; }
                _ => {
                    // A page whose taking was cut short leaves what was known.
                    let page = ledger.page(known.cursor, lines);
                    prop_assert!(follow("shop-7", &known, &page).is_ok());
                }
            }
        }
        taken.extend(pulled(&ledger, known, 7).unwrap().0);
        prop_assert_eq!(taken, expected);
    }

    /// Whatever byte of a page's text is changed: it is no page, or a fault, or says the same.
    #[test]
    fn a_changed_byte_is_never_taken(at in any::<prop::sample::Index>(), bit in 0..7u8) {
        let (ledger, known) = begun();
        let page = ledger.page(known.cursor, 3);
        let good = follow("shop-7", &known, &page).unwrap();
        let mut bytes = serde_json::to_vec(&page).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(changed) = serde_json::from_slice::<SignedPage>(&bytes) {
            prop_assert!(follow("shop-7", &known, &changed).map_or(true, |followed| followed == good));
        }
    }
}

#[test]
fn another_past_is_a_fork_and_takes_nothing() {
    let (ledger, known) = begun();
    let mut other = Ledger::new();
    for salt in 0..6 {
        other.entry(Stage::Closed, salt + u64::from(salt > 1));
    }
    let other = Ledger { signer: ledger.signer, ..other };
    assert_eq!(flag(&known, &other.page(known.cursor, 9)), Some(Flag::Forked));
}

#[test]
fn what_does_not_prove_itself_is_a_lie() {
    let (ledger, known) = begun();
    let page = ledger.page(known.cursor, 3);
    let with = |change: &dyn Fn(&mut SignedPage)| {
        let mut page = page.clone();
        change(&mut page);
        flag(&known, &ledger.sign(page))
    };
    assert_eq!(with(&|_| ()), None);
    for (what, change) in [
        ("another name", &(|page: &mut SignedPage| page.name = "shop-8".into()) as &dyn Fn(&mut SignedPage)),
        ("a line less", &|page: &mut SignedPage| drop(page.lines.pop())),
        ("a line twice", &|page: &mut SignedPage| page.lines.push(page.lines[0].clone())),
        ("lines swapped", &|page: &mut SignedPage| page.lines.swap(0, 1)),
        ("no line", &|page: &mut SignedPage| page.lines.clear()),
        ("two lines in one", &|page: &mut SignedPage| page.lines = vec![page.lines.join("\n")]),
        ("another end", &|page: &mut SignedPage| page.next.0.offset += 1),
        ("another chain", &|page: &mut SignedPage| page.chain = Chain::default()),
        ("an end without end", &|page: &mut SignedPage| page.more = false),
        ("an earlier place", &|page: &mut SignedPage| page.from.0.offset = 0),
        ("a later place", &|page: &mut SignedPage| page.from.0.offset += 1),
        ("a later segment's midst", &|page: &mut SignedPage| page.from.0.segment += 1),
    ] {
        assert_eq!(with(change), Some(Flag::Lied), "{what}");
    }
    let unsigned = SignedPage { signature: hex(&[0; 64]), ..page.clone() };
    assert_eq!(flag(&known, &unsigned), Some(Flag::Lied));
    let shouted = SignedPage { signature: page.signature.to_uppercase(), ..page.clone() };
    assert_eq!(flag(&known, &shouted), Some(Flag::Lied));
    // A changed record with proofs made anew, in the place of the one that was promised.
    let mut forged = Ledger::new();
    for salt in 0..3 {
        forged.entry(Stage::Closed, salt);
    }
    forged.entry(Stage::Closed, 1_000_000);
    let (line, _) = forged.segments[0].last().unwrap().clone();
    assert_eq!(with(&|page| page.lines[0].clone_from(&line)), Some(Flag::Lied));
}

#[test]
fn a_page_is_no_longer_than_a_box_makes_them() {
    let mut ledger = Ledger::new();
    while ledger.page(PageCursor::default(), 1024).bytes() <= 64 << 10 {
        ledger.entry(Stage::Open, 1);
    }
    let whole = ledger.page(PageCursor::default(), 1024);
    assert_eq!(flag(&Known::default(), &whole), Some(Flag::Lied));
    let less = ledger.page(PageCursor::default(), whole.lines.len() - 1);
    assert_eq!(flag(&Known::default(), &less), None);
}

#[test]
fn another_key_is_another_box() {
    let (ledger, known) = begun();
    let stranger = Ledger { signer: Signer::load(&Signer::make().unwrap()).unwrap(), ..ledger };
    assert_eq!(flag(&known, &stranger.page(known.cursor, 3)), Some(Flag::Rekeyed));
    let anew = Known { key: None, ..known };
    assert_eq!(flag(&anew, &stranger.page(anew.cursor, 3)), None);
}

#[test]
fn what_was_removed_unseen_is_a_gap_that_is_gone_over() {
    let (ledger, known) = begun();
    let third = PageCursor(Position { segment: 3, offset: 0 });
    let followed = follow("shop-7", &known, &ledger.page(third, 9)).unwrap();
    let gap = followed.gap.unwrap();
    assert_eq!((gap.flag, gap.at), (Flag::Gap, known.cursor));
    let (_, at_the_end) = pulled(&ledger, Known::default(), 9).unwrap();
    assert_eq!(followed.known, at_the_end);
    let begun = |generation| Known { generation, ..Known::default() };
    let gap = |generation| follow("shop-7", &begun(generation), &ledger.page(third, 9)).unwrap().gap;
    assert!(gap(0).is_some() && gap(1).is_none(), "who accepted it has seen what there is");
}

#[test]
fn a_line_of_another_version_is_told_and_waits() {
    let (mut ledger, _) = begun();
    let (_, known) = pulled(&ledger, Known::default(), 9).unwrap();
    ledger.push(&serde_json::json!({ "boot": 1, "core": 0, "sequence": 1, "stage": "paused" }));
    let page = ledger.page(known.cursor, 9);
    assert_eq!(flag(&known, &page), Some(Flag::Unreadable));
}

#[test]
fn what_a_box_says_is_fit_to_be_shown() {
    let fault = Fault::new(Flag::Lied, PageCursor::default(), format!("\u{1b}[2J{}", "x".repeat(10_000)));
    assert!(fault.detail.len() < 1_000 && !fault.detail.contains('\u{1b}'));
    assert_eq!(shown("a\u{202e}b\u{2066}c\u{200b}d\u{200f}e\u{2069}ü"), "a b c d e ü");
}
