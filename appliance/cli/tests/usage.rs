//! The program from outside: exit codes and words, where no server is needed.

// Helpers of tests may unwrap as tests may; clippy's own exception stops at the test's function.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    process::{Command, Output, Stdio},
};

fn ember(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    command.args(args);
    for variable in ["EMBER_DATA", "EMBER_SERVER", "EMBER_KEY", "EMBER_CA"] {
        command.env_remove(variable);
    }
    command
}

fn run(args: &[&str]) -> Output {
    ember(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A data folder of a server that has gone: nothing listens on a port that was bound and released.
fn data_of_a_stopped_server() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(dir.path().join("address"), format!("127.0.0.1:{port}\n")).unwrap();
    std::fs::write(dir.path().join("admin.key"), "key\n").unwrap();
    std::fs::create_dir(dir.path().join("tls")).unwrap();
    std::fs::write(dir.path().join("tls/ca.pem"), CERTIFICATE).unwrap();
    dir
}

#[test]
fn usage_errors_exit_64() {
    for args in [
        &["frob"][..],
        &[],
        &["run", "f"],
        &["show", "Not-A-Name"],
        &["model", "rm", "12"],
        &["park"],
        &["snapshot", "create"],
        &["snapshot", "verify", "Not-A-Name"],
        &["model", "add", "ftp://127.0.0.1/m.gguf"],
        &["ls", "--server", "http://h:1"],
        &["sim", "--synthetic", "frob"],
        &["sim", "--svg", "f.svg"],
        &["sim", "t.csv", "--synthetic", "timer"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let both = run(&["ls", "--server", "https://h:1", "--data", "d"]);
    assert_eq!(both.status.code(), Some(64));
    assert!(stderr(&both).contains("--data or --server"), "{}", stderr(&both));
}

#[test]
fn help_is_a_result() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("deploy"));
}

#[test]
fn an_absent_server_exits_69_and_says_how_to_start_it() {
    let output = run(&["ls", "--data", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains("emberd serve --data /nonexistent"), "{}", stderr(&output));
}

#[test]
fn a_stopped_server_exits_69() {
    let dir = data_of_a_stopped_server();
    let output = ember(&["ps"]).env("EMBER_DATA", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot reach https://127.0.0.1:"), "{}", stderr(&output));
}

#[test]
fn a_bad_manifest_is_refused_before_the_server_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    std::fs::write(&file, "name = \"a\"\nmodel = \"m.gguf\"\nmodle = 1\n").unwrap();
    let output = run(&["deploy", file.to_str().unwrap(), "--data", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("a.toml:3:1: "), "{}", stderr(&output));
}

#[test]
fn doctor_needs_no_server() {
    let output = run(&["doctor", "--json", "--data", "/nonexistent"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    let missing = checks.iter().any(|check| check["state"] == "missing");
    assert_eq!(output.status.code(), Some(i32::from(missing)), "{checks:#?}");
    assert!(checks.iter().any(|check| check["name"] == "server" && check["state"] == "note"), "{checks:#?}");
}

#[test]
fn a_reader_that_left_ends_the_program_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ember(&["doctor", "--data", "/nonexistent"])
        .stdout(File::from(std::os::fd::OwnedFd::from(writer)))
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

/// A CA certificate whose key is lost.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUeZYanPu+/SLqxpfvpV8LbLZV6ZEwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGTm9ib2R5MCAXDTI2MTEyNDA0MjkzNVoYDzIxMjYxMDMxMDQy
OTM1WjARMQ8wDQYDVQQDDAZOb2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASkcdSoQI8CDkNnNEGcFfcYcfpas26Aajz9qf7/Y+9mfspDtPwdLTWt5sjJqy5N
4uZRMIIBKxO6DvQ4KU3YF/ymo1MwUTAdBgNVHQ4EFgQUHHBrfQDQEKvOfMLHOY/N
vKGbmcIwHwYDVR0jBBgwFoAUHHBrfQDQEKvOfMLHOY/NvKGbmcIwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiBmjHTFqeEpcr4mnc3GLq6NRSz5CQUD
qk8nli/bEQ66PAIhAJ/LrqJmivGjGcM2/WAXcFu2AtzXBx2pGXERhQ1wN6Cr
-----END CERTIFICATE-----
";

#[test]
fn a_trace_is_replayed_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (trace, picture) = (path("t.csv"), path("t.svg"));
    std::fs::write(&trace, "time_s,function,prompt_tokens,output_tokens\n0,a,10,10\n1000,a,10,10\n").unwrap();
    let table = run(&["sim", &trace, "--svg", &picture]);
    assert_eq!(table.status.code(), Some(0), "{}", stderr(&table));
    let lines: Vec<_> = std::str::from_utf8(&table.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 7, "{lines:?}");
    assert!(lines[1].starts_with("t.csv  ember  ") && lines[1].contains("100.0 %"), "{lines:?}");
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    let json: serde_json::Value = serde_json::from_slice(&run(&["sim", &trace, "--json"]).stdout).unwrap();
    assert_eq!((&json[0]["requests"], &json[0]["policies"][2]["policy"]), (&2.into(), &"fixed 300 s".into()));

    std::fs::write(&trace, "time_s,function,service_ms,key\n0,a,10,ann\n1,a,10,bob\n").unwrap();
    let table = run(&["sim", &trace]).stdout;
    let lines: Vec<_> = std::str::from_utf8(&table).unwrap().lines().skip(8).map(str::to_owned).collect();
    let starts = ["TRACE", "t.csv  turns  ann", "t.csv  turns  bob", "t.csv  fifo   ann", "t.csv  fifo   bob"];
    assert_eq!(lines.len(), 7, "two keys in three orders: {lines:?}");
    assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{lines:?}");

    std::fs::write(&trace, "time_s,function,service_ms\n0,a,x\n").unwrap();
    let refused = run(&["sim", &trace]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("t.csv` cannot be replayed: line 2: `x` is not a time"), "{}", stderr(&refused));
    assert!(refused.stdout.is_empty());
}

#[test]
fn bash_completes_commands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("ember.bash");
    for shell in ["bash", "zsh", "fish"] {
        let completions = run(&["completions", shell]);
        assert!(completions.status.success() && !completions.stdout.is_empty(), "{shell}");
        if shell == "bash" {
            std::fs::write(&script, completions.stdout).unwrap();
        }
    }
    let complete = |words: &[&str]| {
        let ask = "source \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                   _ember ember \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; echo \"${COMPREPLY[@]}\"";
        let output = Command::new("bash").args(["-c", ask]).arg(&script).args(words).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    assert_eq!(complete(&["ember", "fla"]), "flash");
    assert_eq!(complete(&["ember", "snapshot", "ver"]), "verify");
    assert_eq!(complete(&["ember", "run", "--verb"]), "--verbose");
}

#[test]
fn each_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    let written = run(&["man", folder.to_str().unwrap()]);
    assert!(written.status.success(), "{}", stderr(&written));
    for page in ["ember.1", "ember-deploy.1", "ember-image-build.1", "ember-usage-explain.1"] {
        let text = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let in_the_way = run(&["man", "/dev/null"]);
    assert_eq!(in_the_way.status.code(), Some(1));
    assert!(stderr(&in_the_way).contains("cannot write `/dev/null`"), "{}", stderr(&in_the_way));
}

#[test]
fn a_support_file_is_written_where_no_server_runs() {
    let dir = data_of_a_stopped_server();
    let out = dir.path().join("support.json");
    let written = run(&["support", "--out", out.to_str().unwrap(), "--data", dir.path().to_str().unwrap()]);
    assert!(written.status.success(), "{}", stderr(&written));
    let bundle: serde_json::Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert!(bundle["machine"]["memory_bytes"].as_u64() > Some(0) && bundle["checks"].as_array().unwrap().len() > 5);
    let reasons = [&bundle["server"]["functions"], &bundle["server"]["metrics"]];
    assert!(reasons.iter().all(|part| part["error"].as_str().unwrap().starts_with("cannot reach")), "{reasons:?}");
}
