//! What emberd refuses before it touches anything, each with its exit code.
#![expect(clippy::unwrap_used, reason = "a panic is the report; clippy knows unit tests only")]

use std::{
    fs,
    process::{Command, Output, Stdio},
};

fn emberd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_emberd")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = emberd(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_wrong_command_line_is_64() {
    refused(&[], 64, &["Usage"]);
    refused(&["serve", "--listen", "here"], 64, &["--listen"]);
    refused(&["serve", "--log-format", "xml"], 64, &["text", "json"]);
    refused(&["child", "cook"], 64, &["warden", "server", "ledger"]);
}

#[test]
fn a_wrong_configuration_is_65_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("ember.toml"));
    fs::write(&file, "drain = \"5s\"\n[limits]\nstreams = 0\n").unwrap();
    let [data_text, file_text] = [&data, &file].map(|path| path.to_str().unwrap());
    let arguments = ["serve", "--data", data_text, "--config", file_text];
    refused(&arguments, 65, &[file_text, "line 3, column 11", "streams"]);
    fs::remove_file(&file).unwrap();
    refused(&arguments, 65, &[file_text]);
    refused(&["serve", "--data", data_text, "--log", "a=b=c"], 65, &["EMBER_LOG"]);
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn help_is_0_and_hides_the_children() {
    let output = emberd(&["--help"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("serve") && !said.contains("child"), "{said}");
}

#[test]
fn a_child_without_a_supervisor_ends() {
    for role in ["warden", "server", "ledger"] {
        refused(&["child", role], 75, &["receive from the supervisor"]);
    }
}
