//! `ember flash` as an operator types it: what it asks, what it refuses, and what a killed one leaves.

use images_builder::disk::{self, Contents};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tests::{Run, tree, until};

const MIB: u64 = 1 << 20;

fn ember(arguments: &[&str]) -> Command {
    let mut command = Command::new(tree::program("ember"));
    command.arg("flash").args(arguments);
    command
}

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("ember.img");
    let uki = vec![3; 4 << 20];
    let contents =
        Contents { loader: b"loader", uki: &uki, esp_bytes: 72 * MIB, data_bytes: 16 * MIB, data_files: &[] };
    disk::write(&path, &contents).expect("the contents fit");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs with `typed` on its stdin.
fn typing(arguments: &[&str], typed: &str) -> Run {
    let mut child = ember(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start ember");
    child.stdin.take().expect("a pipe").write_all(typed.as_bytes()).expect("it reads what is typed");
    let output = child.wait_with_output().expect("its output");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_disk_is_overwritten_only_when_its_name_was_typed() {
    let folder = tempfile::tempdir().unwrap();
    let (image, target) = (image(folder.path()), folder.path().join("stick"));
    fs::write(&target, "precious").unwrap();
    let arguments = [text(&image), text(&target)];
    let refusal = typing(&arguments, "yes\n").refused();
    assert!(refusal.contains("\"stick\" was not typed"), "{refusal}");
    assert!(typing(&arguments, "").refused().contains("is as it was"));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    let report = typing(&[arguments.as_slice(), &["--json"]].concat(), "stick\n").json();
    assert_eq!(report["image_bytes"], 90 * MIB);
    assert!(report["verify_s"].is_number() && report["written_bytes"].as_u64().unwrap() < 12 * MIB, "{report}");
    assert!(fs::read(&target).unwrap() == fs::read(&image).unwrap());
    // A file that is not there yet loses nothing.
    Run::of(&mut ember(&[text(&image), text(&folder.path().join("new"))])).ok();
}

#[test]
fn what_can_be_refused_is_refused_before_the_target_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let (image, target, config) =
        (image(folder.path()), folder.path().join("disk"), folder.path().join("machine.toml"));
    fs::write(&target, "precious").unwrap();
    fs::write(&config, "hostname = \"box 1\"\n").unwrap();
    let refusal = |arguments: &[&str]| Run::of(&mut ember(arguments)).refused();
    let (image, disk) = (text(&image), text(&target));
    assert!(refusal(&[image, disk, "--yes", "--config", text(&config)]).contains("hostname is \"box 1\""));
    assert!(refusal(&["-", disk]).contains("--yes"));
    assert!(refusal(&[image]).contains("name the disk"));
    assert!(refusal(&["/no/image", disk, "--yes"]).contains("/no/image"));
    assert!(refusal(&[image, "/dev/null", "--yes"]).contains("neither a disk nor a file"));
    assert!(refusal(&[image, disk, "--yes", "--bmap", text(&config)]).contains("block map"));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn disks_are_listed_and_system_disks_only_if_asked_for() {
    let listed = |arguments: &[&str]| Run::of(&mut ember(arguments)).json();
    let is_system = |disk: &Value| disk["system"] == true;
    let (shown, all) = (listed(&["--json"]), listed(&["--json", "--force"]));
    assert!(!shown.as_array().unwrap().iter().any(is_system), "{shown}");
    let hidden = all.as_array().unwrap().iter().filter(|disk| is_system(disk)).count();
    assert_eq!(all.as_array().unwrap().len() - shown.as_array().unwrap().len(), hidden);
}

#[test]
fn a_killed_flash_is_told_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (image, target) = (image(folder.path()), folder.path().join("disk"));
    File::create(&target).unwrap().set_len(128 * MIB).unwrap();
    let mut child = ember(&["-", text(&target), "--yes"]).stdin(Stdio::piped()).spawn().expect("start ember");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut half = vec![0; 40 << 20];
    File::open(&image).unwrap().read_exact(&mut half).unwrap();
    // More than pipe and buffers hold, so it has written; less than all, so it waits.
    stdin.write_all(&half).expect("it reads");
    let is_marked = || fs::read(&target).ok().filter(|disk| disk.starts_with(b"ember flash:"));
    until("the disk is marked", is_marked);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).expect("kill ember");
    child.wait().expect("it ended");
    drop(stdin);
    let config = folder.path().join("machine.toml");
    fs::write(&config, "hostname = \"box-1\"\n").unwrap();
    let mut again = ember(&["-", text(&target), "--yes", "--config", text(&config)]);
    let mut child = again.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start ember");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&fs::read(&image).unwrap()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("an earlier flash did not end"), "{said}");
    let disk = OpenOptions::new().read(true).open(&target).unwrap();
    let partitions = disk::partitions(&disk).unwrap();
    let found = disk::read_boot_file(&disk, &partitions[0], "machine.toml").unwrap();
    assert_eq!(found.as_deref(), Some(b"hostname = \"box-1\"\n".as_slice()));
}
