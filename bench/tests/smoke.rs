//! The bench from outside, with its tiniest input, so that it cannot rot.

use std::{fs, process::Command};

#[test]
fn s9_and_s10_run_and_leave_a_report() {
    let runs = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = command.args(["run", "--smoke", "--only", "S9,S10", "--runs"]).arg(runs.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(matches!(lines[..], [first, second] if first.starts_with("S9 ") && second.starts_with("S10 ")), "{stdout}");
    assert!(lines.iter().all(|line| line.contains(" (bar 1.50) ")), "{stdout}");
    let folder = fs::read_dir(runs.path()).unwrap().next().unwrap().unwrap().path();
    assert!(folder.join("report.json").is_file() && folder.join("report.html").is_file());
}

#[test]
fn an_unknown_figure_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["run", "--only", "S99"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no figure `S99`"));
}

#[test]
fn flash_is_timed_against_its_peers() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let folder = tempfile::tempdir().unwrap();
    command.args(["flash", "--mib", "16", "--rounds", "1", "--folder"]).arg(folder.path());
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    for name in ["ember flash --no-verify", "ember flash ", "bmaptool copy", "dd oflag=direct"] {
        assert!(stdout.lines().any(|line| line.starts_with(name)), "{stdout}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}
