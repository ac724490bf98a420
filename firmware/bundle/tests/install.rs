//! Bundles into a folder that stands for the boot partition's: what is taken, what is refused, what a cut leaves.

use firmware_bundle::{
    BundleError, Manifest, Place, Reader,
    minisign::{PublicKey, SecretKey},
    write,
};
use firmware_slots::{Slot, Unblessed, Version};
use images_uki::{Parts, build, least_stub};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::Path,
    process::Command,
};

const MACHINE: &str = "ember-x86-64";

fn version(minor: u32) -> Version {
    Version([1, minor, 0])
}

fn uki(minor: u32) -> Vec<u8> {
    let os_release = format!("ID=ember\nIMAGE_VERSION={}\n", version(minor));
    let (linux, initrd) = (vec![1; 3 << 20], vec![minor as u8; 5000]);
    let stub = least_stub();
    let parts = Parts {
        stub: &stub,
        os_release: &os_release,
        command_line: "quiet",
        release: "6.12.1",
        linux: &linux,
        initrd: &initrd,
    };
    build(&parts).expect("the parts fit")
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_random([number; 40])
}

fn bundle(minor: u32) -> Vec<u8> {
    let uki = uki(minor);
    signed(&uki, &Manifest::of(&uki, version(minor), version(0), MACHINE), &key(1))
}

fn signed(uki: &[u8], manifest: &Manifest, key: &SecretKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, uki, manifest, key).expect("a Vec takes all");
    bytes
}

/// A box that runs version 1.1.0 in slot a.
fn place(folder: &Path) -> Place {
    fs::create_dir(folder.join("slots")).expect("a new folder");
    fs::write(folder.join("slots/ember-a.efi"), uki(1)).expect("room");
    Place {
        folder: folder.join("slots"),
        floor: folder.join("floor"),
        key: Some(PublicKey::parse(&key(1).public_text()).expect("its own text")),
        machine: MACHINE.to_owned(),
        running: Some(Slot::A),
    }
}

fn files(place: &Place) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(&place.folder).expect("the folder").flatten();
    let read = |path: &Path| fs::read(path).expect("a file");
    entries.map(|entry| (entry.file_name().into_string().expect("UTF-8"), read(&entry.path()))).collect()
}

fn names(place: &Place) -> Vec<String> {
    files(place).into_keys().collect()
}

#[test]
fn a_bundle_goes_into_the_other_slot_on_trial_and_is_blessed_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = place(folder.path());
    let installed = place.apply(bundle(2).as_slice()).unwrap();
    assert_eq!((installed.slot, installed.manifest.version.as_str()), (Slot::B, "1.2.0"));
    assert_eq!(names(&place), ["ember-a.efi", "ember-b+3.efi"]);
    assert!(files(&place)["ember-b+3.efi"] == uki(2));
    assert_eq!(place.status().unwrap().slots.order()[0].version, version(2));

    // systemd-boot counts, the machine starts, and it works.
    fs::rename(place.folder.join("ember-b+3.efi"), place.folder.join("ember-b+2-1.efi")).unwrap();
    place.running = Some(Slot::B);
    assert!(place.apply(bundle(3).as_slice()).unwrap_err().to_string().contains("on trial"));
    assert_eq!(place.bless(Some(Slot::B), Some(Slot::B)).unwrap(), Ok(version(2)));
    assert_eq!(place.bless(Some(Slot::B), Some(Slot::B)).unwrap(), Err(Unblessed::Already));
    assert_eq!(names(&place), ["ember-a.efi", "ember-b.efi"]);
    assert_eq!(place.status().unwrap().floor, Some(version(2)));

    // Back to the first, from which only what is not older than the second is installed.
    place.roll_back().unwrap();
    assert_eq!(names(&place), ["ember-a.efi", "ember-b+0.efi"]);
    assert_eq!(place.status().unwrap().slots.order()[0].version, version(1));
    place.running = Some(Slot::A);
    place.apply(bundle(2).as_slice()).unwrap();
    assert_eq!(names(&place), ["ember-a.efi", "ember-b+3.efi"]);
}

#[test]
fn nothing_is_trusted_before_its_floor_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = place(folder.path());
    fs::write(place.folder.join("ember-b+2-1.efi"), uki(2)).unwrap();
    place.running = Some(Slot::B);
    place.floor = folder.path().join("nowhere/floor");
    place.bless(Some(Slot::B), Some(Slot::B)).unwrap_err();
    assert_eq!(names(&place), ["ember-a.efi", "ember-b+2-1.efi"]);
}

#[test]
fn what_is_wrong_is_refused_with_the_reason_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path());
    fs::write(place.folder.join("ember-b.efi"), uki(0)).unwrap();
    fs::write(&place.floor, "1.3.0\n").unwrap();
    let before = files(&place);
    let (good, content) = (bundle(4), uki(4));
    let manifest = Manifest::of(&content, version(4), version(0), MACHINE);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let of = |manifest: Manifest| signed(&content, &manifest, &key(1));
    for (bundle, reason) in [
        (good[..10].to_vec(), "it is truncated: it ends within its first 16 bytes"),
        (good[..100].to_vec(), "it is truncated: it ends within its manifest"),
        (good[..good.len() - 1].to_vec(), "it is truncated: it ends 1 bytes early"),
        ([good.clone(), vec![0]].concat(), "there are bytes behind them"),
        (flipped(0), "it does not begin with EMBERUPD"),
        (flipped(11), "its manifest has 16777"),
        (flipped(20), "its signature does not hold: it is not of this manifest"),
        (flipped(good.len() - 1000), "its contents are not those that were signed: the BLAKE3 differs"),
        (signed(&content, &manifest, &key(2)), "0202020202020202, and 0101010101010101 is trusted here"),
        (bundle(1), "it is version 1.1.0, and 1.1.0 is running"),
        (bundle(0), "it is version 1.0.0, and 1.1.0 is running"),
        (bundle(2), "it is version 1.2.0; nothing below 1.3.0 is installed here any more"),
        (of(Manifest { minimum: "1.2.0".into(), ..manifest.clone() }), "it needs version 1.2.0 to be installed from"),
        (of(Manifest { compatible: "ember-arm64".into(), ..manifest.clone() }), "it is for \"ember-arm64\""),
        (of(Manifest { version: "1.5.0".into(), ..manifest.clone() }), "the UKI's own version is 1.4.0, not 1.5.0"),
    ] {
        let error = place.apply(bundle.as_slice()).unwrap_err();
        assert!(error.to_string().contains(reason) && error.is_of_bundle(), "{error} is not: {reason}");
        assert!(files(&place) == before, "{reason}: something changed");
    }
    place.apply(good.as_slice()).unwrap();
}

#[test]
fn a_damaged_floor_is_the_version_that_runs_and_keeps_no_update_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = place(folder.path());
    for damage in [&b""[..], b"1.x", &[0xff; 4096]] {
        fs::write(&place.floor, damage).unwrap();
        let status = place.status().unwrap();
        let fault = status.floor_fault.expect("it is damaged");
        assert!(status.floor == Some(version(1)) && fault.contains(place.floor.to_str().unwrap()), "{fault}");
    }
    assert!(place.apply(bundle(0).as_slice()).is_err(), "older than what runs");
    place.apply(bundle(2).as_slice()).unwrap();
    place.running = Some(Slot::B);
    assert_eq!(place.bless(Some(Slot::B), Some(Slot::B)).unwrap(), Ok(version(2)));
    let status = place.status().unwrap();
    assert_eq!((status.floor, status.floor_fault), (Some(version(2)), None), "it is written anew");
}

#[test]
fn a_stream_that_breaks_off_changes_nothing() {
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::other("the line is dead")) } else { self.0.read(bytes) }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path());
    let (before, whole) = (files(&place), bundle(2));
    let error = place.apply(Broken(&whole[..whole.len() / 2])).unwrap_err();
    assert!(error.to_string().contains("the line is dead") && !error.is_of_bundle(), "{error}");
    assert!(files(&place) == before);
}

#[test]
fn what_a_cut_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path());
    fs::write(place.folder.join("ember-b.new"), &uki(2)[..1000]).unwrap();
    fs::write(place.folder.join("ember-b+3.efi"), "").unwrap();
    fs::write(place.folder.join("other.efi"), "").unwrap();
    assert_eq!(place.sweep().unwrap(), 2);
    assert_eq!(names(&place), ["ember-a.efi", "other.efi"]);
}

#[test]
fn minisign_checks_what_is_signed_here_and_its_keys_sign() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let minisign = |arguments: &[&str]| {
        let output = Command::new("minisign").args(arguments).output();
        let output = output.expect("minisign, of a Debian package that `make test` installs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(path("manifest"), "version = \"1.2.3\"\n").unwrap();
    fs::write(path("ours.pub"), key(5).public_text()).unwrap();
    fs::write(path("ours.minisig"), key(5).sign(b"version = \"1.2.3\"\n", "Ember 1.2.3")).unwrap();
    minisign(&["-V", "-p", &path("ours.pub"), "-x", &path("ours.minisig"), "-m", &path("manifest")]);

    minisign(&["-G", "-W", "-p", &path("theirs.pub"), "-s", &path("theirs.key")]);
    let theirs = SecretKey::parse(&fs::read_to_string(path("theirs.key")).unwrap()).unwrap();
    let public = PublicKey::parse(&fs::read_to_string(path("theirs.pub")).unwrap()).unwrap();
    public.verify(b"hello", &theirs.sign(b"hello", "x")).unwrap();
    minisign(&["-S", "-s", &path("theirs.key"), "-x", &path("theirs.minisig"), "-m", &path("manifest")]);
    let signature = fs::read_to_string(path("theirs.minisig")).unwrap();
    public.verify(b"version = \"1.2.3\"\n", &signature).unwrap();
}

#[test]
fn a_reader_says_what_was_signed_before_anything_else() {
    let whole = bundle(2);
    let key = PublicKey::parse(&key(1).public_text()).unwrap();
    let reader = Reader::open(&whole[..600], &key).unwrap();
    assert_eq!((reader.manifest().version.as_str(), reader.offer().version), ("1.2.0", version(2)));
    let rest = reader.copy(io::sink(), BundleError::Read);
    assert!(matches!(rest, Err(BundleError::Truncated(_))), "{rest:?}");
}

#[test]
fn without_a_key_nothing_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place { key: None, ..place(folder.path()) };
    let before = files(&place);
    assert!(matches!(place.apply(bundle(2).as_slice()), Err(BundleError::NoKey)));
    assert_eq!(files(&place), before);
}
