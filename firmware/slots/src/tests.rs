//! Names and refusals by example; the rest over random lives of a machine, whose boot loader does what systemd-boot's
//! documentation and its runs under QEMU say.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn version(minor: u32) -> Version {
    Version([1, minor, 0])
}

fn found(name: &str, minor: u32) -> Found {
    Found { name: name.to_owned(), bytes: 9, version: Some(version(minor)) }
}

fn offer(minor: u32) -> Offer {
    Offer { version: version(minor), minimum: version(0), compatible: "ember-x86-64".to_owned() }
}

#[test]
fn names_are_read_and_written() {
    let counter = |left, done| Some(Counter { left, done });
    for (name, slot, counter) in [
        ("ember-a.efi", Slot::A, None),
        ("ember-b+3.efi", Slot::B, counter(3, 0)),
        ("ember-b+2-1.efi", Slot::B, counter(2, 1)),
        ("ember-a+0-12.efi", Slot::A, counter(0, 12)),
    ] {
        let entry = Entry { slot, counter };
        assert_eq!((Entry::parse(name), entry.to_string().as_str()), (Some(entry), name));
        let path = format!("\\EFI\\Linux\\{}", name.to_ascii_uppercase());
        assert_eq!(Entry::parse(&path), Some(entry), "as firmware writes it");
    }
    for name in
        ["ember-c.efi", "ember-a", "ember-a+.efi", "ember-a+-1.efi", "ember-a++3.efi", "ember-a+3-.efi", "a.efi"]
    {
        assert_eq!(Entry::parse(name), None, "{name}");
    }
}

#[test]
fn versions_are_three_numbers() {
    assert_eq!("1.20.3".parse(), Ok(Version([1, 20, 3])));
    assert!("1.20.3".parse::<Version>().unwrap() > "1.3.20".parse().unwrap());
    for text in ["", "1.2", "1.2.3.4", "1.2.x", "1.02.3", "1.+2.3", "1.2.3-rc1", "1..3", "9999999999.0.0"] {
        assert!(text.parse::<Version>().is_err(), "{text}");
    }
}

#[test]
fn what_a_cut_left_is_swept_and_nothing_else() {
    let empty = Found { bytes: 0, version: None, ..found("ember-b+3.efi", 2) };
    let fresh = Found { version: None, ..found("ember-b.new", 2) };
    let slots = Slots::of(&[found("ember-a.efi", 1), empty, fresh, found("other.efi", 1)]);
    assert_eq!(slots.leftovers, ["ember-b+3.efi", "ember-b.new"]);
    assert_eq!((slots.get(Slot::A).map(|a| a.version), slots.get(Slot::B)), (Some(version(1)), None));
    let twice = Slots::of(&[found("ember-a+3.efi", 2), found("ember-a.efi", 1)]);
    assert_eq!((twice.get(Slot::A).unwrap().entry.counter, twice.leftovers), (None, vec!["ember-a+3.efi".to_owned()]));
}

#[test]
fn a_bundle_is_refused_with_the_reason() {
    let slots = Slots::of(&[found("ember-a.efi", 3), found("ember-b.efi", 2)]);
    let place = |offer: &Offer, floor| slots.place(offer, Some(Slot::A), Some(version(floor)), "ember-x86-64");
    let reason = |offer: &Offer, floor| place(offer, floor).unwrap_err().to_string();
    assert_eq!(place(&offer(4), 3), Ok(Slot::B));
    assert_eq!(reason(&offer(3), 3), "it is version 1.3.0, and 1.3.0 is running");
    assert_eq!(reason(&offer(4), 5), "it is version 1.4.0; nothing below 1.5.0 is installed here any more");
    let far = Offer { minimum: version(4), ..offer(5) };
    assert_eq!(reason(&far, 3), "it needs version 1.4.0 to be installed from; 1.3.0 is running");
    let other = Offer { compatible: "ember-arm64".to_owned(), ..offer(4) };
    assert_eq!(reason(&other, 3), "it is for \"ember-arm64\", this machine is \"ember-x86-64\"");
    let trial = Slots::of(&[found("ember-a.efi", 2), found("ember-b+2-1.efi", 3)]);
    let reason = trial.place(&offer(4), Some(Slot::B), None, "ember-x86-64").unwrap_err().to_string();
    assert!(reason.contains("on trial"), "{reason}");
    assert_eq!(trial.place(&offer(4), None, None, "ember-x86-64"), Err(Refusal::Unknown));
}

#[test]
fn only_what_was_counted_is_blessed() {
    let slots = Slots::of(&[found("ember-a.efi", 1), found("ember-b+2-1.efi", 2)]);
    let rename = Rename { from: "ember-b+2-1.efi".to_owned(), to: "ember-b.efi".to_owned() };
    assert_eq!(slots.bless(Some(Slot::B), Some(Slot::B)), Ok(rename));
    // After a fall-back within one power cycle the count still names the slot that failed.
    assert_eq!(slots.bless(Some(Slot::A), Some(Slot::B)), Err(Unblessed::Already));
    let both = Slots::of(&[found("ember-a+1-2.efi", 1), found("ember-b+2-1.efi", 2)]);
    assert_eq!(both.bless(Some(Slot::A), Some(Slot::B)), Err(Unblessed::OtherCounted(Slot::B)));
    assert_eq!(both.bless(None, Some(Slot::B)), Err(Unblessed::Unknown));
    assert_eq!(both.bless(Some(Slot::A), None), Err(Unblessed::Unknown));
}

#[test]
fn rolling_back_needs_something_to_go_back_to() {
    let slots = Slots::of(&[found("ember-a.efi", 1), found("ember-b.efi", 2)]);
    let rename = slots.roll_back(Some(Slot::B)).unwrap();
    assert_eq!((rename.from.as_str(), rename.to.as_str()), ("ember-b.efi", "ember-b+0.efi"));
    assert_eq!(Slots::of(&[found("ember-a.efi", 1)]).roll_back(Some(Slot::A)), Err(Refusal::NoOther));
    let given_up = Slots::of(&[found("ember-a+0-3.efi", 1), found("ember-b.efi", 2)]);
    assert_eq!(given_up.roll_back(Some(Slot::B)), Err(Refusal::NoOther));
}

/// What can happen to a machine.
#[derive(Clone, Debug)]
enum Event {
    /// An update of this version, which works or not; cut after so many of its steps.
    Update { minor: u32, works: bool, steps: usize },
    /// Power off and on.
    Start,
    /// The operator goes back.
    RollBack,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1..30_u32, any::<bool>(), 0..7_usize).prop_map(|(minor, works, steps)| Event::Update { minor, works, steps }),
        4 => Just(Event::Start),
        1 => Just(Event::RollBack),
    ];
    prop::collection::vec(event, 0..40)
}

/// A machine: the files of its slots, each with its version and whether it works.
struct Machine {
    files: BTreeMap<String, (u64, u32, bool)>,
    running: Option<Slot>,
    floor: Option<Version>,
}

impl Machine {
    fn new() -> Self {
        let files = BTreeMap::from([("ember-a.efi".to_owned(), (9, 0, true))]);
        Self { files, running: Some(Slot::A), floor: Some(version(0)) }
    }

    fn slots(&self) -> Slots {
        let found = |(name, (bytes, minor, _)): (&String, &(u64, u32, bool))| Found {
            name: name.clone(),
            bytes: *bytes,
            version: (*bytes > 0).then(|| version(*minor)),
        };
        Slots::of(&self.files.iter().map(found).collect::<Vec<_>>())
    }

    fn put(&mut self, name: &str, file: (u64, u32, bool)) {
        self.files.insert(name.to_owned(), file);
    }

    fn rename(&mut self, rename: &Rename) {
        let file = self.files.remove(&rename.from).expect("what is renamed is there");
        self.files.insert(rename.to.clone(), file);
    }

    /// systemd-boot and what it starts, until something works, as many times as the counters allow.
    fn start(&mut self) {
        for _ in 0..2 * TRIES + 2 {
            let slots = self.slots();
            let first = slots.order()[0];
            let mut entry = first.entry;
            if let Some(Counter { left, done }) = entry.counter {
                let counted = entry.renamed(Some(Counter { left: left.saturating_sub(1), done: done + 1 }));
                self.rename(&counted);
                entry = Entry::parse(&counted.to).expect("its own name");
            }
            if self.files[&entry.to_string()].2 {
                self.running = Some(entry.slot);
                for name in self.slots().leftovers {
                    self.files.remove(&name);
                }
                if let Ok(rename) = self.slots().bless(Some(entry.slot), Some(entry.slot)) {
                    self.rename(&rename);
                    self.floor = Some(raise(self.floor, first.version));
                }
                return;
            }
        }
        panic!("nothing works: {:?}", self.files);
    }

    /// Writes an update, up to a cut.
    fn update(&mut self, minor: u32, works: bool, steps: usize) {
        let slots = self.slots();
        let Ok(slot) = slots.place(&offer(minor), self.running, self.floor, "ember-x86-64") else { return };
        assert_ne!(Some(slot), self.running, "what runs is never written");
        let (fresh, last) = (slot.fresh(), Entry::on_trial(slot).to_string());
        let old: Vec<String> = slots.get(slot).map(|old| old.entry.to_string()).into_iter().collect();
        let write: [&dyn Fn(&mut Self); 5] = [
            &|machine| machine.files.retain(|name, _| !old.contains(name)),
            &|machine| machine.put(&fresh, (4, minor, false)),
            &|machine| machine.put(&fresh, (9, minor, works)),
            &|machine| machine.put(&last, (0, minor, false)),
            &|machine| {
                machine.files.remove(&fresh);
                machine.put(&last, (9, minor, works));
            },
        ];
        write.iter().take(steps).for_each(|step| step(self));
    }
}

proptest! {
    #[test]
    fn whatever_happens_something_that_works_is_started(events in events()) {
        let mut machine = Machine::new();
        for event in events {
            match event {
                Event::Update { minor, works, steps } => machine.update(minor, works, steps),
                Event::Start => {}
                Event::RollBack => {
                    if let Ok(rename) = machine.slots().roll_back(machine.running) {
                        machine.rename(&rename);
                    }
                }
            }
            let floor = machine.floor;
            machine.start();
            prop_assert!(machine.floor >= floor);
            let running = machine.slots().get(machine.running.unwrap()).unwrap();
            prop_assert_eq!(running.entry.counter.filter(|counter| counter.left > 0), None, "it is trusted, or given up and the only one");
            prop_assert!(machine.slots().leftovers.is_empty());
        }
    }

    #[test]
    fn any_name_is_read_without_a_fault(name in "(ember-[abc])?[+0-9-]{0,14}(\\.efi|\\.new)?") {
        if let Some(entry) = Entry::parse(&name) {
            prop_assert_eq!(Entry::parse(&entry.to_string()), Some(entry));
        }
    }
}
