//! The image boots on the machines that people have, answers, grows, takes updates, and heals itself.
//!
//! Under emulation a boot takes most of a minute, and the programs of an image are a build of their own, so `make test`
//! leaves these out; `make image-test` builds the image and runs them. With `EMBER_TEST_KVM=1` the machines run by KVM, with
//! `EMBER_TEST_MODEL=FILE` their function is of that GGUF, and with `EMBER_TEST_PATIENCE=SECONDS` it is waited for longer.

mod appliance;
mod bundles;
mod power_cut;
mod secure_boot;

use appliance::{ADMIN_KEY, Appliance, Setup, Special};
use bundles::{Fault, boot_file, bundle, key, uki};
use firmware_bundle::minisign::SecretKey;
use images_builder::{
    Preload, data,
    disk::{self, Contents},
    qemu::DiskKind,
    recipe,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use tests::{Function, tree};
use tests_synthetic::Sizes;

const GIB: u64 = 1 << 30;

fn boots(disk: DiskKind, nic: &str, machine_toml: &str, console_says: &[&str]) {
    let mut machine = Appliance::boot(&Setup { disk, nic, machine_toml, disk_bytes: 2 * GIB, uki: None });
    let health = machine.until("an answer", |machine| machine.get("/health", None));
    assert_eq!(health, (200, r#"{"status":"ok"}"#.to_owned()));
    assert_eq!(machine.get("/ember/v1/functions", None).unwrap().0, 401);
    assert_eq!(machine.get("/ember/v1/functions", Some(ADMIN_KEY)).unwrap().0, 200);
    for text in console_says {
        machine.says(text, 1);
    }
    // 64 MiB as they were built, and what two GiB have behind the boot partition.
    machine.says("the data partition has 1854 MiB now", 1);
    machine.says("the data file system has 1854 MiB now", 1);
}

fn good() -> String {
    format!("hostname = \"box-1\"\nadmin_key = \"{ADMIN_KEY}\"\n")
}

const NETWORK: &str = "ember: network eth0: 10.0.2.15/24";

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_virtio() {
    let says =
        [NETWORK, "the watchdog waits 60 s", "the firmware has entries for Ember now", "slot a", "state       serving"];
    boots(DiskKind::Virtio, "virtio-net-pci", &good(), &says);
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_nvme_and_e1000e() {
    boots(DiskKind::Nvme, "e1000e", &good(), &[NETWORK, "https://10.0.2.15:8443"]);
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_ahci_with_a_given_address_and_one_to_listen_on_that_is_not_there() {
    let given = "[network]\naddress = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n";
    let elsewhere = "listen = \"192.0.2.7:8443\"\n";
    let says = [NETWORK, "this machine has no address 192.0.2.7: it listens on all, 0.0.0.0:8443"];
    boots(DiskKind::Ahci, "virtio-net-pci", &(good() + elsewhere + given), &says);
}

/// A machine of a fleet that takes updates, with its CA known.
fn ready() -> Appliance {
    ready_of(None)
}

/// The same, of another image than `make image` built.
fn ready_of(image: Option<&Path>) -> Appliance {
    let fleet = tempfile::tempdir().unwrap();
    let enrol = Command::new(tree::program("ember"))
        .args(["fleet", "--fleet"])
        .arg(fleet.path())
        .args(["enrol", "box-1"])
        .output();
    assert!(enrol.expect("ember").status.success());
    let telemetry = fs::read_to_string(fleet.path().join("boxes/box-1/machine.toml")).unwrap();
    let public = key().public_text();
    let line = public.lines().last().unwrap();
    let machine_toml = format!("{}load_timeout = 3600\nupdate_key = \"{line}\"\n{telemetry}", good());
    let setup = Setup {
        disk: DiskKind::Virtio,
        nic: "virtio-net-pci",
        machine_toml: &machine_toml,
        disk_bytes: 2 * GIB,
        uki: None,
    };
    let mut machine = Appliance::boot_special(&setup, &Special { image, ..Special::default() });
    copy_folder(fleet.path(), &machine.path("fleet"));
    machine.says("state       serving", 1);
    let ca = machine.until("the CA is on its disk", |machine| machine.read_data("/ember/tls/ca.pem"));
    fs::write(machine.path("ca.pem"), ca).unwrap();
    machine
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

/// A function small enough for a processor that is emulated, or of the model that `EMBER_TEST_MODEL` names.
fn deploy(machine: &Appliance) {
    let manifest = manifest(&machine.path(""));
    machine.ember(&["deploy", manifest.to_str().unwrap()]).ok();
}

/// Its manifest, in a folder in which its model is, too.
fn manifest(folder: &Path) -> PathBuf {
    let tiny = folder.join("tiny.gguf");
    tests_synthetic::write(&tree::model(), &tiny, Sizes::TINY).unwrap();
    let model = std::env::var_os("EMBER_TEST_MODEL").map_or(tiny, PathBuf::from);
    // A model of one's own may take seconds a token here: without a chat's template there are few of them.
    let task = if std::env::var_os("EMBER_TEST_MODEL").is_some() { "completion" } else { "chat" };
    let function = Function::named("tiny")
        .model(model.display())
        .task(task)
        .limit("memory = \"512MiB\"")
        .limit("context = 512")
        .limit("output_tokens = 64");
    let manifest = folder.join("tiny.toml");
    fs::write(&manifest, function.to_toml()).unwrap();
    manifest
}

/// The image that `make image` built, with that function: the same slot and boot loader, on a disk of their own.
fn with_function(folder: &Path) -> PathBuf {
    let (image, manifest) = (folder.join("with.img"), manifest(folder));
    let functions = Preload::read(&[recipe::Function { manifest, model: None }]).unwrap().files();
    let [loader, uki] = [disk::LOADERS[0], disk::FIRST_SLOT].map(boot_file);
    let data_bytes = (64 << 20) + data::room_for(&functions);
    let contents = Contents { loader: &loader, uki: &uki, esp_bytes: 192 << 20, data_bytes, data_files: &functions };
    disk::write(&image, &contents).unwrap();
    image
}

fn status(machine: &Appliance) -> Option<Value> {
    let run = machine.ember(&["update", "status", "--json"]);
    (run.code == 0).then(|| run.json())
}

fn slot<'a>(status: &'a Value, slot: &str) -> &'a Value {
    status["slots"].as_array().expect("slots").iter().find(|row| row["slot"] == slot).unwrap_or(&Value::Null)
}

/// Sends a bundle that is taken.
fn update(machine: &Appliance, version: &str, fault: &Fault) {
    send(machine, version, &uki(version, fault));
}

/// Sends a bundle of `uki`, which is taken.
fn send(machine: &Appliance, version: &str, uki: &[u8]) {
    let file = machine.path("bundle");
    fs::write(&file, bundle(uki, version, &key())).unwrap();
    let run = machine.ember(&["update", "apply", file.to_str().unwrap()]);
    assert!(run.stderr.contains("the machine starts again"), "{}{}", run.stdout, run.stderr);
}

/// Waits until the slot on trial was given up, and `running` runs again.
fn falls_back(machine: &mut Appliance, failed: &str, running: &str) {
    machine.until("the machine falls back", |machine| {
        let status = status(machine)?;
        (status["running"] == running && slot(&status, failed)["state"] == "given up").then_some(())
    });
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_function_is_deployed_and_answers_from_outside() {
    let machine = ready();
    let said = machine.said();
    let ca = machine.path("ca.pem");
    let print = Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&ca).output();
    let print = String::from_utf8(print.expect("openssl").stdout).unwrap();
    let print = print.trim().rsplit('=').next().unwrap();
    assert!(print.len() == 95 && said.contains(print), "{print} is not on the console:\n{said}");

    deploy(&machine);
    let first = machine.ember(&["run", "tiny", "Hello", "--max-tokens", "4", "--verbose"]);
    assert!(!first.stdout.trim().is_empty() && first.code == 0, "{}{}", first.stdout, first.stderr);
    let up = machine.ember(&["ps", "--json"]).json();
    assert!(up.to_string().contains("tiny"), "{up}");
    // Down to the disk, and up from its snapshot.
    machine.ember(&["stop", "tiny"]).ok();
    let again = machine.ember(&["run", "tiny", "Hello", "--max-tokens", "4", "--verbose"]);
    println!("the first time:\n{}from its snapshot:\n{}", first.stderr, again.stderr);
    let is_woken = again.stderr.contains("tier     stored");
    assert!(again.code == 0 && is_woken, "{}{}", again.stdout, again.stderr);

    machine.fleet(&["add", "box-1", &machine.telemetry_url()]).ok();
    machine.fleet(&["pull"]).ok();
    let usage = machine.fleet(&["usage", "--by", "function", "--json"]).json().to_string();
    assert!(usage.contains("tiny"), "{usage}");
}

/// A machine of an image that has the function, once that is deployed; and when it was turned on.
fn ready_with_function() -> (Appliance, Instant) {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let image = with_function(folder.path());
    println!("the image was made in {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut machine = ready_of(Some(&image));
    machine.says("what came with the image is deployed", 1);
    println!("the function was deployed {:.0} s after power on", began.elapsed().as_secs_f64());
    (machine, began)
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_function_that_came_with_the_image_answers() {
    let (machine, began) = ready_with_function();
    let asked = machine.ember(&[
        "run",
        "tiny",
        "The capital of France is",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
        "--verbose",
    ]);
    let seconds = began.elapsed().as_secs_f64();
    assert!(!asked.stdout.trim().is_empty() && asked.code == 0, "{}{}", asked.stdout, asked.stderr);
    println!("it answered {seconds:.0} s after power on:\n{}\n{}", asked.stdout, asked.stderr);
    for listing in ["ls", "ps"] {
        let listed = machine.ember(&[listing, "--json"]).json().to_string();
        assert!(listed.contains("tiny"), "{listing}: {listed}");
    }
    let models = machine.ember(&["model", "ls", "--json"]).json().to_string();
    assert_eq!(models.matches("\"sha256\"").count(), 1, "{models}");
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_function_that_came_with_the_image_has_updates_trusted_and_stays_removed() {
    let (mut machine, _) = ready_with_function();
    update(&machine, "9.0.0", &Fault::default());
    machine.says("function tiny answers", 1);
    machine.says("version 9.0.0 is trusted now", 1);
    machine.until("it serves", status);

    machine.ember(&["rm", "tiny"]).ok();
    let back = machine.ember(&["update", "rollback"]);
    assert_eq!(back.code, 0, "{}{}", back.stdout, back.stderr);
    machine.until("the old version runs", |machine| status(machine).filter(|status| status["running"] == "a"));
    let listed = machine.ember(&["ls", "--json"]).json().to_string();
    assert!(!listed.contains("tiny"), "{listed}");
    // Of three starts the first alone had something to deploy.
    assert_eq!(machine.said().matches("what came with the image is being deployed").count(), 1);
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_newer_version_is_tried_and_trusted_and_what_is_wrong_changes_nothing() {
    let mut machine = ready();
    deploy(&machine);
    let before = status(&machine).unwrap();
    assert_eq!((&before["running"], &slot(&before, "b")["state"]), (&"a".into(), &Value::Null));
    let refuse = |bytes: &[u8], reason: &str| {
        let file = machine.path("bundle");
        fs::write(&file, bytes).unwrap();
        let refusal = machine.ember(&["update", "apply", file.to_str().unwrap()]).refused();
        assert!(refusal.contains(reason), "{refusal} is not: {reason}");
        assert_eq!(status(&machine).unwrap(), before, "{reason}: something changed");
    };
    let newer = uki("9.0.0", &Fault::default());
    let mut flipped = bundle(&newer, "9.0.0", &key());
    *flipped.last_mut().unwrap() ^= 1;
    refuse(&flipped, "the BLAKE3 differs");
    refuse(&bundle(&uki("0.0.1", &Fault::default()), "0.0.1", &key()), "0.0.1");
    refuse(&bundle(&newer, "9.0.0", &SecretKey::from_random([8; 40])), "is trusted here");

    update(&machine, "9.0.0", &Fault::default());
    machine.says("function tiny answers", 1);
    machine.says("version 9.0.0 is trusted now", 1);
    let after = machine.until("it serves", status);
    assert_eq!((&after["running"], &slot(&after, "b")["state"]), (&"b".into(), &"trusted".into()));
    assert_eq!(after["floor"], "9.0.0");
    machine.ember(&["run", "tiny", "Hello", "--max-tokens", "2"]).ok();
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_faulty_version_is_given_up_by_itself() {
    let mut machine = ready();
    deploy(&machine);
    // No PID 1: the kernel panics, and starts again.
    update(&machine, "9.1.0", &Fault { programs: vec![("init".into(), b"no program".to_vec())], ..Fault::default() });
    falls_back(&mut machine, "b", "a");

    // The service comes up, and no function answers: the runner is a header and nothing else.
    let mut runner = b"\x7fELF\x02\x01\x01".to_vec();
    runner.resize(64, 0);
    let programs = ["ember-runner", "ember-runner-v4"].map(|name| (name.to_owned(), runner.clone())).into();
    update(&machine, "9.2.0", &Fault { command_line: "ember.start=40", programs });
    falls_back(&mut machine, "b", "a");
    machine.says("it gives no answer: the service is asked to end", 3);
    machine.ember(&["run", "tiny", "Hello", "--max-tokens", "2"]).ok();

    // Back by hand is refused: what is there was given up.
    assert!(machine.ember(&["update", "rollback"]).refused().contains("nothing that can be started"));
}

#[test]
#[ignore = "takes an image, a program built for it and some minutes: `make image-test`"]
fn a_version_that_hangs_is_given_up_by_the_watchdog() {
    let mut machine = ready();
    let programs = [("init", "sandbox-probe"), ("emberd", "emberd")];
    let programs = programs.map(|(to, from)| (to.to_owned(), fs::read(built_for_it(from)).unwrap())).into();
    // Time enough for PID 1, which is frozen as soon as the service starts.
    update(&machine, "9.4.0", &Fault { command_line: "ember.start=86400", programs });
    falls_back(&mut machine, "b", "a");
    let said = machine.said();
    assert!(!said.contains("it gives no answer"), "PID 1 gave it up itself: {said}");
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn a_version_that_cannot_even_be_loaded_is_given_up_in_one_power_cycle() {
    let mut machine = ready();
    let mut unloadable = uki("9.3.0", &Fault::default());
    bundles::spoil(&mut unloadable);
    send(&machine, "9.3.0", &unloadable);
    falls_back(&mut machine, "b", "a");
    let said = machine.said();
    let starts: Vec<_> = (0..4).map(|entry| said.matches(&format!("starting Boot00E{entry}")).count()).collect();
    assert_eq!(starts, [1; 4], "{said}");
}

/// The warden's own tests, in place of emberd's service: PID 1, its kernel and its cgroups are the appliance's.
#[test]
#[ignore = "takes an image, the warden's tests built for it and some minutes: `make image-test`"]
fn no_way_out_of_the_sandbox_gets_through_there() {
    let probe = built_for_it("sandbox-probe");
    // The last is where the tests were told that it would be.
    let places = ["init", "emberd", "warden-tests", probe.to_str().unwrap()];
    let from = [probe.clone(), built_for_it("emberd"), built_for_it("warden-tests"), probe.clone()];
    let programs = places.iter().zip(from).map(|(to, from)| ((*to).to_owned(), fs::read(from).unwrap())).collect();
    let uki = uki("9.0.0", &Fault { command_line: "ember.start=86400", programs });
    let machine_toml = good();
    let setup = Setup {
        disk: DiskKind::Virtio,
        nic: "virtio-net-pci",
        machine_toml: &machine_toml,
        disk_bytes: 2 * GIB,
        uki: Some(uki),
    };
    let mut machine = Appliance::boot(&setup);
    machine.says("running 1 test", 1);
    machine.says("test result:", 1);
    let said = machine.said();
    assert!(said.contains("1 passed; 0 failed"), "{said}");
    let tried = said.lines().filter(|line| line.starts_with("cold ") || line.starts_with("parked ")).count();
    println!("{tried} attempts, none got through");
    // PID 1 may speak in the middle of a line.
    assert!(tried >= 300, "{said}");
}

/// A program as `make image-test` built it for the appliance.
fn built_for_it(name: &str) -> PathBuf {
    let program = tree::root().join("target/image-build/x86_64-unknown-linux-gnu/release").join(name);
    assert!(program.exists(), "{} is not there: run `make image-test`", program.display());
    program
}
