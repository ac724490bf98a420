//! The image boots on the machines that people have, and answers.
//!
//! Under emulation a boot takes most of a minute, and the programs of an image are a build of their own, so `make test`
//! leaves these out; `make image-test` builds the image and runs them.

use images_builder::qemu::{DiskKind, Machine};
use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};
use tests::tree;

/// Of a box that never was: keys have a checksum, so it was made by one.
const ADMIN_KEY: &str = "ember-aoKMRGKujeTqhUn_VdHW_Y_GOjkWSCrNl1dkx6blgQtSabnU";
const BOOT_MAX: Duration = Duration::from_secs(240);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What curl prints: the body, a newline, the status. `None` while nobody answers.
fn get(port: u16, path: &str, key: Option<&str>) -> Option<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--max-time", "20", "--write-out", "\n%{http_code}"]);
    if let Some(key) = key {
        curl.args(["--header", &format!("authorization: Bearer {key}")]);
    }
    let output = curl.arg(format!("https://127.0.0.1:{port}{path}")).output().expect("curl");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n')?;
    status.parse().ok().filter(|status| *status != 0).map(|status| (status, body.to_owned()))
}

fn with_machine_toml(image: &Path, text: &str) {
    let file = image.with_extension("toml");
    fs::write(&file, text).unwrap();
    let volume = format!("{}@@1M", image.display());
    let status = Command::new("mcopy").args(["-i", &volume]).arg(&file).arg("::machine.toml").status().expect("mtools");
    assert!(status.success());
}

fn boots(disk: DiskKind, nic: &str, machine_toml: &str, console_says: &[&str]) {
    let built = tree::root().join("target/image/ember.img");
    let folder = tempfile::tempdir().unwrap();
    let (image, console) = (folder.path().join("ember.img"), folder.path().join("console"));
    fs::copy(&built, &image).unwrap_or_else(|error| panic!("{}: {error}; run `make image`", built.display()));
    with_machine_toml(&image, machine_toml);
    let port = free_port();
    let machine =
        Machine { image, port, memory: 2 << 30, cpus: 2, disk, nic: nic.to_owned(), write: false, kvm: false };
    let mut running = machine.start(File::create(&console).unwrap().into()).unwrap();

    let until = Instant::now() + BOOT_MAX;
    let health = loop {
        if let Some(answer) = get(port, "/health", None) {
            break answer;
        }
        let said = || String::from_utf8_lossy(&fs::read(&console).unwrap()).into_owned();
        assert!(Instant::now() < until && !running.is_off(), "no answer; the console:\n{}", said());
        sleep(Duration::from_millis(500));
    };
    assert_eq!(health, (200, r#"{"status":"ok"}"#.to_owned()));
    assert_eq!(get(port, "/ember/v1/functions", None).unwrap().0, 401);
    assert_eq!(get(port, "/ember/v1/functions", Some(ADMIN_KEY)).unwrap().0, 200);
    let said = String::from_utf8_lossy(&fs::read(&console).unwrap()).into_owned();
    for text in console_says {
        assert!(said.contains(text), "{text} is not in the console:\n{said}");
    }
    drop(running);
}

fn good() -> String {
    format!("hostname = \"box-1\"\nadmin_key = \"{ADMIN_KEY}\"\n")
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_virtio() {
    boots(DiskKind::Virtio, "virtio-net-pci", &good(), &["ember: network eth0: 10.0.2.15/24"]);
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_nvme_and_e1000e() {
    boots(DiskKind::Nvme, "e1000e", &good(), &["ember: network eth0: 10.0.2.15/24"]);
}

#[test]
#[ignore = "takes an image and a minute: `make image-test`"]
fn on_ahci_with_a_given_address() {
    let given = "[network]\naddress = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n";
    boots(DiskKind::Ahci, "virtio-net-pci", &(good() + given), &["ember: network eth0: 10.0.2.15/24"]);
}
