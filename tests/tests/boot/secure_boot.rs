//! Firmware with Secure Boot and keys of one's own starts what was signed with them, and nothing else.
//!
//! ```text
//!  PK, KEK, db (openssl) ─▶ firmware's variables (virt-fw-vars)
//!        db ─▶ ember image build --sign ─▶ systemd-boot, slot a      ─▶ starts
//!        db ─▶ sbsign ─▶ an update        ─▶ slot b                  ─▶ starts, is trusted
//!                        an update of which a bit was turned, or without a signature ─▶ slot a: refused, slot b again
//! ```

use crate::{
    GIB,
    appliance::{ADMIN_KEY, Appliance, Setup, Special, built},
    bundles::{Fault, key, uki},
    deploy, falls_back, good, send, slot, status,
};
use images_builder::{Signer, qemu::DiskKind};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::tree;

/// Whose keys they are said to be.
const OWNER: &str = "8c4f2a10-5d3e-4b6f-9a7c-2e1d0b3f4a59";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Keys as docs/operate.md has them made: who signs, and the variables of a firmware that knows them.
fn keys(folder: &Path) -> (Signer, PathBuf) {
    for name in ["PK", "KEK", "db"] {
        let [key, certificate] = ["key", "crt"].map(|end| folder.join(format!("{name}.{end}")));
        let form = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650"];
        let subject = format!("/CN=Ember test {name}/");
        let mut openssl = Command::new("openssl");
        run(openssl.args(form).args(["-subj", &subject, "-keyout"]).arg(key).arg("-out").arg(certificate));
    }
    let variables = folder.join("variables");
    let program = tree::root().join("target/secure-boot/bin/virt-fw-vars");
    assert!(program.exists(), "{} is not there: run `make image-test`", program.display());
    let mut enrol = Command::new(program);
    enrol.args(["--input", FIRMWARE_VARIABLES, "--output"]).arg(&variables);
    for (flag, name) in [("--set-pk", "PK"), ("--add-kek", "KEK"), ("--add-db", "db")] {
        enrol.args([flag, OWNER]).arg(folder.join(format!("{name}.crt")));
    }
    run(enrol.arg("--secure-boot"));
    (Signer { key: folder.join("db.key"), certificate: folder.join("db.crt") }, variables)
}

/// The image, signed, as its operator has it built.
fn signed_image(signer: &Signer, image: &Path) {
    let mut build = Command::new(tree::program("ember"));
    build.current_dir(tree::root()).args(["image", "build", "--out"]).arg(image);
    run(build.arg("--sign").arg(&signer.key).arg(&signer.certificate));
}

fn machine(image: &Path, variables: &Path) -> Appliance {
    let public = key().public_text();
    let machine_toml = format!("{}update_key = \"{}\"\n", good(), public.lines().last().unwrap());
    let setup = Setup {
        disk: DiskKind::Virtio,
        nic: "virtio-net-pci",
        machine_toml: &machine_toml,
        disk_bytes: 2 * GIB,
        uki: None,
    };
    let special = Special { image: Some(image), secure_boot: Some(variables), ..Special::default() };
    Appliance::boot_special(&setup, &special)
}

/// A version that firmware does not load uses up its tries, and what ran runs again, all in one power cycle.
fn is_refused(machine: &mut Appliance, version: &str, uki: &[u8]) {
    let before = machine.said().len();
    send(machine, version, uki);
    falls_back(machine, "a", "b");
    let said = machine.said().split_off(before);
    let starts: Vec<_> = (0..4).map(|entry| said.matches(&format!("starting Boot00E{entry}")).count()).collect();
    assert_eq!(starts, [1; 4], "{said}");
    assert!(said.contains("Access Denied"), "{said}");
}

#[test]
#[ignore = "takes an image and some minutes: `make image-test`"]
fn with_keys_of_its_own_a_machine_starts_what_they_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (signer, variables) = keys(folder.path());
    let image = folder.path().join("signed.img");
    signed_image(&signer, &image);
    let mut machine = machine(&image, &variables);
    machine.says("secure boot is on", 1);
    machine.says("state       serving", 1);
    let ca = machine.until("the CA is on its disk", |machine| machine.read_data("/ember/tls/ca.pem"));
    fs::write(machine.path("ca.pem"), ca).unwrap();
    assert!(!machine.said().contains("ember: module "), "a module was refused:\n{}", machine.said());

    // The kernel is locked down: what the sandbox and snapshots do is allowed all the same.
    deploy(&machine);
    machine.ember(&["run", "tiny", "Hello", "--max-tokens", "4"]).ok();
    machine.ember(&["stop", "tiny"]).ok();
    let woken = machine.ember(&["run", "tiny", "Hello", "--max-tokens", "4", "--verbose"]);
    let is_woken = woken.stderr.contains("stored") || woken.stderr.contains("parked");
    assert!(woken.code == 0 && is_woken, "{}{}", woken.stdout, woken.stderr);

    let signed = |version| signer.sign(&uki(version, &Fault::default())).unwrap();
    send(&machine, "9.0.0", &signed("9.0.0"));
    machine.says("version 9.0.0 is trusted now", 1);
    machine.says("secure boot is on", 2);
    let now = machine.until("it serves", status);
    assert_eq!((&now["running"], &slot(&now, "b")["state"]), (&"b".into(), &"trusted".into()));

    let mut turned = signed("9.1.0");
    let middle = turned.len() / 2;
    turned[middle] ^= 1;
    is_refused(&mut machine, "9.1.0", &turned);
    is_refused(&mut machine, "9.2.0", &uki("9.2.0", &Fault::default()));
    machine.ember(&["run", "tiny", "Hello", "--max-tokens", "2"]).ok();
    assert_eq!(machine.get("/ember/v1/functions", Some(ADMIN_KEY)).unwrap().0, 200);
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn with_keys_of_its_own_a_machine_does_not_start_an_image_without_a_signature() {
    let folder = tempfile::tempdir().unwrap();
    let (_, variables) = keys(folder.path());
    let mut machine = machine(&built(), &variables);
    machine.says("Access Denied", 1);
    assert!(!machine.said().contains("ember:"), "{}", machine.said());
}
