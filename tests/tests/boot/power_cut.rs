//! A power cut at any moment of a first boot, an update and its trust leaves a disk that starts.
//!
//! One machine lives through all of that while its writes are recorded. Then its disk is shown as cuts could have left it:
//! at each flush, and with any of the writes that were not flushed (`tests::write_log`). Each state is judged by what reads
//! it next:
//!
//! ```text
//!  partition table   one copy at least is whole; both partitions are where they were
//!  boot partition    fsck.vfat finds nothing but what a cut of FAT leaves; both loaders whole; no slot that could be started is
//!                    not whole; slot a is there; a version that was said to be trusted is
//!  data partition    e2fsck repairs it by itself; each file of ours is absent, old or new; what identifies the machine is
//!                    there since it first served; a trusted version's floor is
//! ```
//! A few are started by QEMU as well. Numbers are printed. `EMBER_TEST_CUTS` says how many random cuts, `EMBER_TEST_SEED`
//! which.

use crate::{
    GIB,
    appliance::{ADMIN_KEY, Appliance, START, Setup, Special, WRITES, built},
    bundles::{Fault, key, uki},
    good, send,
};
use firmware_slots::{Entry as SlotFile, Found, Slot, Slots};
use images_builder::{
    disk::{self, Slice},
    qemu::DiskKind,
    uki,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use tests::{
    Random,
    write_log::{Cut, Disk, Entry, WriteLog, copy_part},
};

const RANDOM_CUTS: usize = 600;
const STARTS: usize = 4;
const VERSION: &str = "9.0.0";
const MIB: u64 = 1 << 20;
/// What a table of partitions takes at each end of a disk.
const TABLE_BYTES: u64 = 34 * 512;
/// Files of the data partition that a cut may not tear.
const FOLDERS: [&str; 3] = ["tls", "server", "telemetry"];
const FILES: [&str; 3] = ["admin.key", "prices.toml", FLOOR];
const FLOOR: &str = "update-floor";
const LAST_GOOD: &str = "machine.toml.last-good";
/// What identifies a machine: once made, it stays.
const IDENTITY: [&str; 5] = ["tls/ca.key", "tls/ca.pem", "server/device.secret", "admin.key", LAST_GOOD];

/// A life that was recorded.
struct Life {
    folder: tempfile::TempDir,
    machine_toml: String,
    /// Entries of the log when the machine served, and when it had said that the update is trusted.
    served: usize,
    trusted: usize,
    ukis: BTreeMap<Slot, blake3::Hash>,
    loader: blake3::Hash,
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn whatever_a_power_cut_leaves_of_a_first_boot_and_of_an_update_starts() {
    let life = live();
    let log = WriteLog::read(&life.folder.path().join(WRITES)).unwrap();
    let number = |name: &str, default| env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let mut random = Random::seeded(number("EMBER_TEST_SEED", 1) as u64);
    let mut judge = Judge::new(life, &log);
    let at_flushes = log.cuts_at_flushes();
    let at_random = log.cuts_at_random(number("EMBER_TEST_CUTS", RANDOM_CUTS), &mut random, judge.block_bytes());
    let flushes = log.entries().iter().filter(|entry| **entry == Entry::Flush).count();
    println!("recorded: {} writes, {flushes} flushes", log.entries().len() - flushes);
    println!("it served by entry {}, and the update was trusted by {}", judge.life.served, judge.life.trusted);

    let began = Instant::now();
    judge.all(&log, &at_flushes, &[]);
    let started: Vec<_> =
        (0..STARTS).map(|part| (part * at_random.len() + random.below(at_random.len())) / STARTS).collect();
    let disks = judge.all(&log, &at_random, &started);
    let states = format!("{} at flushes, {} at random", at_flushes.len(), at_random.len());
    println!("{} states ({states}) in {:.0?}:", judge.found.states, began.elapsed());
    println!("{}", judge.found);
    assert!(judge.found.faults.is_empty(), "{} states have faults", judge.found.faults.len());
    for (at, disk) in started.iter().zip(disks) {
        starts(&disk, &at_random[*at]);
    }
}

/// First boot, update, trust.
fn live() -> Life {
    let public = key().public_text();
    let machine_toml = format!("{}update_key = \"{}\"\n", good(), public.lines().last().unwrap());
    let setup = Setup {
        disk: DiskKind::Virtio,
        nic: "virtio-net-pci",
        machine_toml: &machine_toml,
        disk_bytes: GIB,
        uki: None,
    };
    let mut machine = Appliance::boot_special(&setup, &Special { is_recorded: true, ..Special::default() });
    machine.says("state       serving", 1);
    let served = WriteLog::recorded(&machine.path(WRITES)).unwrap();
    let ca = machine.until("the CA is on its disk", |machine| machine.read_data("/ember/tls/ca.pem"));
    fs::write(machine.path("ca.pem"), ca).unwrap();
    let update = uki(VERSION, &Fault::default());
    send(&machine, VERSION, &update);
    machine.says(&format!("version {VERSION} is trusted now"), 1);
    let trusted = WriteLog::recorded(&machine.path(WRITES)).unwrap();
    machine.says("state       serving", 2);
    // What is trusted stays so, whatever is written afterwards.
    for name in ["one", "two", "three"] {
        machine.ember(&["key", "create", "--name", name]).ok();
    }
    let image = File::open(built()).unwrap();
    let esp = disk::partitions(&image).unwrap().into_iter().find(|slice| slice.name == disk::ESP).unwrap();
    let hash = |path| blake3::hash(&disk::read_boot_file(&image, &esp, path).unwrap().unwrap());
    let ukis = BTreeMap::from([(Slot::A, hash(disk::FIRST_SLOT)), (Slot::B, blake3::hash(&update))]);
    Life { folder: machine.cut_off(), machine_toml, served, trusted, ukis, loader: hash(disk::LOADERS[0]) }
}

/// The machine with this disk serves.
fn starts(disk: &Path, cut: &Cut) {
    let setup = Setup { disk: DiskKind::Virtio, nic: "virtio-net-pci", machine_toml: "", disk_bytes: 0, uki: None };
    let mut machine = Appliance::boot_special(&setup, &Special { image: Some(disk), ..Special::default() });
    machine.until("an answer", |machine| machine.get("/health", None).filter(|(status, _)| *status == 200));
    assert_eq!(machine.get("/ember/v1/functions", Some(ADMIN_KEY)).unwrap().0, 200);
    machine.says("state       serving", 1);
    let said = machine.said();
    let slot = said.lines().rev().find_map(|line| line.split_once(", slot ")).map(|(_, slot)| slot.trim());
    println!("started: {} entries, and {} that were not flushed: slot {slot:?}", cut.flushed, cut.kept.len());
}

/// What was found.
#[derive(Default)]
struct Tally {
    states: usize,
    counts: BTreeMap<String, usize>,
    faults: Vec<String>,
}

impl Tally {
    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts.iter().try_for_each(|(what, count)| writeln!(f, "{count:6} {what}"))?;
        self.faults.iter().take(20).try_for_each(|fault| writeln!(f, "FAULT {fault}"))
    }
}

/// What is known of one partition's state, until something of it changes.
#[derive(Clone, Default)]
struct Verdict {
    counts: Vec<String>,
    faults: Vec<String>,
}

impl Verdict {
    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(otherwise());
        }
    }
}

struct Judge {
    life: Life,
    scratch: tempfile::TempDir,
    esp: Slice,
    data: Slice,
    disk_bytes: u64,
    /// Files of the data partition as the machine has them in the end.
    last: BTreeMap<String, Vec<u8>>,
    found: Tally,
}

impl Judge {
    fn new(life: Life, log: &WriteLog) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let (mut disk, path) = fresh(&life, scratch.path());
        let end = log.cuts_at_flushes().pop().expect("something was written");
        disk.show(log, &end).unwrap();
        let slices = disk::partitions(disk.file()).unwrap();
        let slice = |name: &str| slices.iter().find(|slice| slice.name == name).expect("a partition").clone();
        let (esp, data, disk_bytes) = (slice(disk::ESP), slice(disk::DATA), fs::metadata(&path).unwrap().len());
        let mut judge = Self { life, scratch, esp, data, disk_bytes, last: BTreeMap::new(), found: Tally::default() };
        judge.last = judge.files(disk.file(), &mut Verdict::default());
        judge
    }

    /// A sector is written or not; of the data partition a block of the file system, since ext4 counts on that.
    fn block_bytes(&self) -> impl Fn(u64) -> u64 + use<> {
        let data = self.data.offset;
        move |offset| if offset < data { 512 } else { 4096 }
    }

    /// Judges the states that `cuts` leave; disks with those of `wanted`.
    fn all(&mut self, log: &WriteLog, cuts: &[Cut], wanted: &[usize]) -> Vec<PathBuf> {
        let (mut disk, _) = fresh(&self.life, self.scratch.path());
        let (mut table, mut boot, mut data) = (None, None, None);
        let mut disks = Vec::new();
        for (at, cut) in cuts.iter().enumerate() {
            for range in disk.show(log, cut).unwrap() {
                let touches = |start: u64, bytes: u64| range.start < start + bytes && start < range.end;
                table = table.filter(|_| !touches(0, MIB) && !touches(self.disk_bytes - MIB, MIB));
                boot = boot.filter(|_| !touches(self.esp.offset, self.esp.bytes));
                data = data.filter(|_| !touches(self.data.offset, self.data.bytes));
            }
            let table = table.get_or_insert_with(|| self.table(disk.file()));
            let (boot, is_trusted) = boot.get_or_insert_with(|| self.boot(disk.file()));
            let (data, files) = data.get_or_insert_with(|| self.data(disk.file()));
            let together = self.together(cut.flushed, *is_trusted, files);
            self.add(cut, [&*table, &*boot, &*data, &together]);
            if wanted.contains(&at) {
                disks.push(self.scratch.path().join(format!("state-{at}.img")));
                copy_part(disk.file(), 0..self.disk_bytes, disks.last().unwrap()).unwrap();
            }
        }
        disks
    }

    fn add(&mut self, cut: &Cut, verdicts: [&Verdict; 4]) {
        self.found.states += 1;
        for verdict in verdicts {
            verdict.counts.iter().for_each(|what| self.found.count(what));
        }
        let faults: Vec<_> = verdicts.iter().flat_map(|verdict| &verdict.faults).cloned().collect();
        if !faults.is_empty() {
            self.found.faults.push(format!("{cut:?}: {}", faults.join("; ")));
        }
    }

    fn table(&self, disk: &File) -> Verdict {
        let mut verdict = Verdict::default();
        let copy = |at: u64| {
            let only = self.scratch.path().join("table");
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(only).unwrap();
            file.set_len(self.disk_bytes).unwrap();
            let mut bytes = vec![0; TABLE_BYTES as usize];
            disk.read_exact_at(&mut bytes, at).unwrap();
            file.write_all_at(&bytes, at).unwrap();
            disk::partitions(&file).ok()
        };
        let (first, second) = (copy(0), copy(self.disk_bytes - TABLE_BYTES));
        verdict.counts.push(match (&first, &second) {
            (Some(one), Some(two)) if one == two => "table: both copies".to_owned(),
            (Some(_), Some(_)) => "table: both copies, which differ".to_owned(),
            (Some(_), None) => "table: the first copy only".to_owned(),
            (None, Some(_)) => "table: the second copy only".to_owned(),
            (None, None) => "table: none".to_owned(),
        });
        let places = first.or(second).map(|slices| slices.iter().map(|slice| slice.offset).collect::<Vec<_>>());
        let expected = vec![self.esp.offset, self.data.offset];
        verdict.expect(places.as_ref() == Some(&expected), || format!("partitions at {places:?}"));
        verdict
    }

    /// The boot partition, and whether the update in it is trusted.
    fn boot(&self, disk: &File) -> (Verdict, bool) {
        let mut verdict = Verdict::default();
        let copy = self.scratch.path().join("esp");
        copy_part(disk, self.esp.offset..self.esp.offset + self.esp.bytes, &copy).unwrap();
        let (code, said) = run("fsck.vfat", &["-n"], &copy);
        verdict.expect(code <= 1, || format!("fsck.vfat ends with {code}: {said}"));
        for line in said.lines().map(str::trim).filter(|line| !line.is_empty()) {
            // Of a file it says the path, and then what; of one that is being written nobody reads anything.
            verdict.expect(!line.starts_with("/EFI") || line.ends_with(".new"), || format!("fsck.vfat: {said}"));
        }
        verdict.counts.push(format!("boot: fsck.vfat ends with {code}"));
        for loader in disk::LOADERS {
            let found = disk::read_boot_file(disk, &self.esp, loader).unwrap_or_default();
            verdict.expect(found.is_some_and(|bytes| blake3::hash(&bytes) == self.life.loader), || {
                format!("{loader} is not whole")
            });
        }
        let found = self.slots(disk, &mut verdict);
        let slots = Slots::of(&found);
        let trusted = |slot| slots.get(slot).is_some_and(|installed| installed.entry.counter.is_none());
        verdict.expect(trusted(Slot::A), || "slot a is not there, or not trusted".to_owned());
        let names: Vec<_> = found
            .iter()
            .map(|file| if file.bytes == 0 { format!("{} (empty)", file.name) } else { file.name.clone() })
            .collect();
        verdict.counts.push(format!("boot: {}", names.join(", ")));
        (verdict, trusted(Slot::B))
    }

    /// Files that are slots by their names. One that could be started is whole.
    fn slots(&self, disk: &File, verdict: &mut Verdict) -> Vec<Found> {
        let names = disk::list_boot_files(disk, &self.esp, "EFI/Linux").unwrap_or_else(|error| {
            verdict.faults.push(format!("EFI/Linux: {error}"));
            Vec::new()
        });
        let mut found = Vec::new();
        for name in names {
            let slot = SlotFile::parse(&name).map(|entry| entry.slot);
            let bytes = slot.and_then(|_| disk::read_boot_file(disk, &self.esp, &format!("EFI/Linux/{name}")).ok()?);
            let bytes = bytes.unwrap_or_default();
            if let Some(slot) = slot.filter(|_| !bytes.is_empty()) {
                verdict.expect(blake3::hash(&bytes) == self.life.ukis[&slot], || format!("{name} is not whole"));
            }
            let version = uki::image_version(&bytes).and_then(|version| version.parse().ok());
            found.push(Found { name, bytes: bytes.len() as u64, version });
        }
        found
    }

    /// The data partition, and its files.
    fn data(&self, disk: &File) -> (Verdict, BTreeMap<String, Vec<u8>>) {
        let mut verdict = Verdict::default();
        let files = self.files(disk, &mut verdict);
        for (name, bytes) in &files {
            if let Err(reason) = self.check(name, bytes) {
                verdict.faults.push(format!("{name} is torn: {reason}: {:?}", String::from_utf8_lossy(bytes)));
            }
        }
        verdict.expect(files.contains_key("tls/ca.key") || !files.contains_key("tls/ca.pem"), || {
            "a CA's certificate without its key".to_owned()
        });
        for name in IDENTITY.iter().chain([&FLOOR]).filter(|name| files.contains_key(**name)) {
            verdict.counts.push(format!("data: {name} is there"));
        }
        (verdict, files)
    }

    fn check(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let text = str::from_utf8(bytes).map_err(|error| error.to_string());
        let differs = || "it is not what it was made as".to_owned();
        match name {
            LAST_GOOD => (bytes == self.life.machine_toml.as_bytes()).then_some(()).ok_or_else(differs),
            FLOOR => (text? == format!("{VERSION}\n")).then_some(()).ok_or_else(differs),
            name if IDENTITY.contains(&name) => {
                (Some(bytes) == self.last.get(name).map(Vec::as_slice)).then_some(()).ok_or_else(differs)
            }
            name if name.ends_with(".pem") => {
                CertificateDer::from_pem_slice(bytes).map(drop).map_err(|error| error.to_string())
            }
            name if name.ends_with(".key") => {
                PrivateKeyDer::from_pem_slice(bytes).map(drop).map_err(|error| error.to_string())
            }
            name if name.ends_with(".json") => {
                serde_json::from_slice::<serde_json::Value>(bytes).map(drop).map_err(|error| error.to_string())
            }
            "prices.toml" => (Some(bytes) == self.last.get(name).map(Vec::as_slice)).then_some(()).ok_or_else(differs),
            _ => Ok(()),
        }
    }

    /// What only all partitions together show, after `entries` of the log.
    fn together(&self, entries: usize, is_trusted: bool, files: &BTreeMap<String, Vec<u8>>) -> Verdict {
        let mut verdict = Verdict::default();
        if entries >= self.life.served {
            for name in IDENTITY {
                verdict.expect(files.contains_key(name), || format!("the machine has served, and {name} is not there"));
            }
        }
        verdict.expect(is_trusted || entries < self.life.trusted, || format!("{VERSION} is not trusted any more"));
        verdict.expect(files.contains_key(FLOOR) || !is_trusted, || {
            "slot b is trusted, and the floor is not there".to_owned()
        });
        verdict
    }

    /// Repairs a copy of the data partition as a start does, and reads its files.
    fn files(&self, disk: &File, verdict: &mut Verdict) -> BTreeMap<String, Vec<u8>> {
        let (copy, folder) = (self.scratch.path().join("data"), self.scratch.path().join("files"));
        copy_part(disk, self.data.offset..self.data.offset + self.data.bytes, &copy).unwrap();
        let (code, said) = run("e2fsck", &["-fy"], &copy);
        verdict.counts.push(format!("data: e2fsck ends with {code}"));
        verdict.expect(code <= 1, || format!("e2fsck ends with {code}: {said}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let to = folder.display();
        let mut commands = format!("dump /{LAST_GOOD} {to}/{LAST_GOOD}\n");
        commands.extend(FILES.map(|name| format!("dump /ember/{name} {to}/{name}\n")));
        commands.extend(FOLDERS.map(|name| format!("rdump /ember/{name} {to}\n")));
        let script = self.scratch.path().join("commands");
        fs::write(&script, commands).unwrap();
        run("debugfs", &["-f", script.to_str().unwrap()], &copy);
        let mut files = BTreeMap::new();
        collect(&folder, &folder, &mut files);
        // What is being written has a name of its own, and is not read by anybody.
        files.retain(|name, _| !name.ends_with(".new") && !name.contains("/."));
        files
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// The disk as it was before the first write.
fn fresh(life: &Life, scratch: &Path) -> (Disk, PathBuf) {
    let (from, to) = (File::open(life.folder.path().join(START)).unwrap(), scratch.join("disk"));
    copy_part(&from, 0..from.metadata().unwrap().len(), &to).unwrap();
    (Disk::new(OpenOptions::new().read(true).write(true).open(&to).unwrap()), to)
}

/// The exit code of a checking program, and what it said.
fn run(program: &str, arguments: &[&str], file: &Path) -> (i32, String) {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(arguments).arg(file);
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap_or(-1), said)
}
