//! `ember update` against a server whose slots are a folder: what is installed, what is refused, and who may.

use firmware_bundle::{MACHINE, Manifest, minisign::SecretKey, write};
use firmware_slots::Version;
use images_builder::{
    disk::{self, Contents},
    uki::{self, Parts},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{Ember, Run, tree};

fn uki(version: &str) -> Vec<u8> {
    let (stub, os_release) = (uki::least_stub(), format!("ID=ember\nIMAGE_VERSION={version}\n"));
    let linux = vec![1; 5 << 20];
    let parts = Parts {
        stub: &stub,
        os_release: &os_release,
        command_line: "quiet",
        release: "6.12.1",
        linux: &linux,
        initrd: b"initrd",
    };
    uki::build(&parts).expect("the parts fit")
}

/// A folder that stands for a boot partition: slots, the key's two files, and the server's configuration.
struct Boot {
    folder: tempfile::TempDir,
}

impl Boot {
    fn new() -> Self {
        let made = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir(made.slots()).expect("a folder");
        fs::write(made.slots().join("ember-a.efi"), uki("1.1.0")).expect("room");
        Run::of(Command::new(tree::program("ember")).args(["image", "key"]).arg(made.path("key"))).ok();
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn slots(&self) -> PathBuf {
        self.path("slots")
    }

    fn config(&self) -> String {
        let (slots, key) = (self.slots(), self.path("key.pub"));
        format!("[update]\nslots = \"{}\"\nkey = \"{}\"\nrunning = \"a\"\n", slots.display(), key.display())
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.slots()).expect("the slots").flatten();
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        entries.map(|entry| (name(&entry.path()), fs::read(entry.path()).expect("a file"))).collect()
    }

    /// A bundle by `ember image bundle`, of an image with this version.
    fn bundle(&self, version: &str) -> PathBuf {
        let (image, bundle) = (self.path("image"), self.path(&format!("{version}.bundle")));
        let _ = fs::remove_file(&image);
        let uki = uki(version);
        let contents =
            Contents { loader: b"loader", uki: &uki, esp_bytes: 72 << 20, data_bytes: 16 << 20, data_files: &[] };
        disk::write(&image, &contents).expect("the contents fit");
        let mut command = Command::new(tree::program("ember"));
        command.args(["image", "bundle"]).arg(&image).arg("--key").arg(self.path("key")).arg("--out").arg(&bundle);
        Run::of(&mut command).ok();
        bundle
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("room");
        path
    }
}

fn apply(ember: &Ember, bundle: &Path) -> Run {
    ember.run(&["update", "apply", bundle.to_str().expect("UTF-8"), "--json"])
}

fn state<'a>(status: &'a Value, slot: &str) -> &'a Value {
    let slots = status["slots"].as_array().expect("slots");
    slots.iter().find(|row| row["slot"] == slot).expect("the slot")
}

#[test]
fn a_bundle_is_installed_on_trial_and_rolled_back() {
    let place = Boot::new();
    let ember = Ember::start_with(&place.config());
    let before = ember.run(&["update", "status", "--json"]).json();
    assert_eq!((&before["running"], &before["next"], &before["floor"]), (&"a".into(), &"a".into(), &Value::Null));
    let status = apply(&ember, &place.bundle("1.2.0")).json();
    assert_eq!((&status["running"], &status["next"]), (&"a".into(), &"b".into()));
    assert_eq!(state(&status, "b")["state"], "on trial");
    assert_eq!(state(&status, "b")["trials_left"], 3);
    let files = place.files();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["ember-a.efi", "ember-b+3.efi"]);
    assert!(files["ember-b+3.efi"] == uki("1.2.0") && files["ember-a.efi"] == uki("1.1.0"));
    // Again, while the first is not tried yet: it takes its place.
    let status = apply(&ember, &place.bundle("1.3.0")).json();
    assert_eq!(state(&status, "b")["version"], "1.3.0");
    let shown = ember.run(&["update", "status"]).ok();
    assert!(shown.contains("on trial, 3 left") && shown.contains("running"), "{shown}");
    // The slot that runs is given up: the other one is started.
    let status = ember.run(&["update", "rollback", "--json"]).json();
    assert_eq!((&status["next"], &state(&status, "a")["state"]), (&"b".into(), &"given up".into()));
    ember.stop();
}

#[test]
fn what_is_wrong_is_refused_with_the_reason_and_nothing_changes() {
    let place = Boot::new();
    let ember = Ember::start_with(&place.config());
    fs::write(ember.data().join("update-floor"), "1.3.0\n").unwrap();
    let good = fs::read(place.bundle("1.4.0")).unwrap();
    let before = place.files();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let content = uki("1.4.0");
    let version = |text: &str| text.parse::<Version>().unwrap();
    let signed = |compatible: &str, key: &SecretKey| {
        let manifest = Manifest::of(&content, version("1.4.0"), version("0.0.0"), compatible);
        let mut bytes = Vec::new();
        write(&mut bytes, &content, &manifest, key).unwrap();
        bytes
    };
    let ours = SecretKey::parse(&fs::read_to_string(place.path("key")).unwrap()).unwrap();
    for (bundle, reason) in [
        (good[..good.len() - 1].to_vec(), "truncated: it ends 1 bytes early"),
        (good[..30].to_vec(), "truncated: it ends within its manifest"),
        (flipped(20), "its signature does not hold"),
        (flipped(good.len() - 9), "the BLAKE3 differs"),
        (signed(MACHINE, &SecretKey::from_random([1; 40])), "is trusted here"),
        (signed("ember-arm64", &ours), "it is for \"ember-arm64\""),
        (fs::read(place.bundle("1.0.0")).unwrap(), "it is version 1.0.0, and 1.1.0 is running"),
        (fs::read(place.bundle("1.2.0")).unwrap(), "nothing below 1.3.0 is installed here any more"),
        (b"hello".to_vec(), "truncated"),
    ] {
        let refusal = apply(&ember, &place.file("bad.bundle", &bundle)).refused();
        assert!(refusal.contains(reason) && refusal.contains("(422)"), "{refusal} is not: {reason}");
        assert!(place.files() == before, "{reason}: something changed");
    }
    apply(&ember, &place.file("good.bundle", &good)).json();
    ember.stop();
}

#[test]
fn where_the_machine_is_to_start_again_emberd_ends_once_a_slot_was_changed() {
    let place = Boot::new();
    let mut ember = Ember::start_with(&format!("{}restart = true\n", place.config()));
    let refused = place.file("bad.bundle", b"hello");
    apply(&ember, &refused).refused();
    assert_eq!(ember.run(&["update", "status", "--json"]).json()["restarts"], true);
    let run = ember.run(&["update", "apply", place.bundle("1.2.0").to_str().unwrap()]);
    assert!(run.stderr.contains("the machine starts again to try it"), "{}", run.stderr);
    ember.has_stopped();
    ember.start_again();
    let run = ember.run(&["update", "rollback"]);
    assert!(run.stderr.contains("the machine starts again, with the other slot"), "{}", run.stderr);
    ember.has_stopped();
    let [a, b] = ["ember-a+0.efi", "ember-b+3.efi"];
    assert_eq!(place.files().keys().collect::<Vec<_>>(), [a, b]);
}

#[test]
fn without_a_key_no_bundle_is_taken() {
    let place = Boot::new();
    let ember = Ember::start_with(&format!("[update]\nslots = \"{}\"\nrunning = \"a\"\n", place.slots().display()));
    let refusal = apply(&ember, &place.bundle("1.2.0")).refused();
    assert!(refusal.contains("update_key") && refusal.contains("(422)"), "{refusal}");
    ember.stop();
}

#[test]
fn only_the_admin_key_updates_and_only_a_machine_that_has_slots() {
    let place = Boot::new();
    let ember = Ember::start_with(&place.config());
    let key = ember.run(&["key", "create", "--name", "app", "--json"]).json();
    let file = place.file("app.key", key["key"].as_str().expect("the key").as_bytes());
    let bundle = place.bundle("1.2.0");
    let before = place.files();
    let with_key = ["--key-file", file.to_str().unwrap(), "update", "apply", bundle.to_str().unwrap()];
    let address = format!("https://{}", ember.address());
    let ca = place.file("ca.pem", &ember.ca_pem());
    let as_app = [&["--server", &address, "--ca", ca.to_str().unwrap()], with_key.as_slice()].concat();
    let refusal = Run::of(Command::new(tree::program("ember")).args(as_app)).refused();
    assert!(refusal.contains("no admin key") && place.files() == before, "{refusal}");
    ember.stop();

    let ember = Ember::start();
    let refusal = apply(&ember, &bundle).refused();
    assert!(refusal.contains("this machine has no slots") && refusal.contains("(409)"), "{refusal}");
    assert!(ember.run(&["update", "status"]).refused().contains("no slots"));
    ember.stop();
}
