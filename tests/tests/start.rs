//! What emberd refuses at its start, with which exit code, and that it refuses before it touches anything.

use std::{fs, process::Command};
use tempfile::TempDir;
use tests::{Ember, Launch, Run, assistant, tree};

fn emberd(arguments: &[&str]) -> Run {
    Run::of(Command::new(tree::program("emberd")).args(arguments))
}

#[test]
fn a_command_line_that_makes_no_sense_is_64() {
    for arguments in [&["sever"][..], &["serve", "--no-such-flag"], &["serve", "--listen", "nowhere"], &[]] {
        let run = emberd(arguments);
        assert_eq!(run.code, 64, "{arguments:?}: {}", run.stderr);
        assert!(!run.refused().is_empty());
    }
}

#[test]
fn a_wrong_configuration_is_65_and_says_where() {
    let folder = TempDir::new().unwrap();
    let (config, data) = (folder.path().join("emberd.toml"), folder.path().join("data"));
    let serve = |text: &str| {
        fs::write(&config, text).unwrap();
        let [config, data] = [&config, &data].map(|path| path.display().to_string());
        emberd(&["serve", "--config", &config, "--data", &data, "--listen", "127.0.0.1:0"])
    };
    let run = serve("# mine\n[limits]\nconections = 5\n");
    assert_eq!(run.code, 65, "{}", run.stderr);
    let said = run.refused();
    assert!(said.contains("emberd.toml") && said.contains("line 3") && said.contains("connections"), "{said}");
    assert_eq!(serve("drain = \"soon\"\n").code, 65);
    assert_eq!(serve("listen = \n").code, 65);
    assert!(!data.exists(), "nothing was touched");

    let missing = folder.path().join("none.toml").display().to_string();
    let run = emberd(&["serve", "--config", &missing, "--data", &data.display().to_string()]);
    assert_eq!(run.code, 65, "{}", run.stderr);
    assert!(run.refused().contains("none.toml"));

    let run = serve("memory_pressure = \"/proc/version\"\n");
    assert_eq!(run.code, 65, "{}", run.stderr);
    let said = run.refused();
    assert!(said.contains("memory_pressure: /proc/version"), "{said}");
}

#[test]
fn a_folder_in_use_is_75() {
    let ember = Ember::start();
    let second = emberd(&["serve", "--data", &ember.data().display().to_string(), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 75, "{}", second.stderr);
    assert!(second.refused().contains("data"));
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn an_address_in_use_is_named() {
    let ember = Ember::start();
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data").display().to_string();
    let second = emberd(&["serve", "--data", &data, "--listen", &ember.address().to_string()]);
    assert!([65, 69, 75].contains(&second.code), "{}: {}", second.code, second.stderr);
    assert!(second.refused().contains(&ember.address().to_string()));
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn ember_finds_the_server_in_every_way() {
    let ember = Ember::serving(&assistant());
    let (key, ca) = (ember.data().join("admin.key"), ember.data().join("tls/ca.pem"));
    let server = format!("https://{}", ember.address());
    let ember_program = || Command::new(tree::program("ember"));
    let by_flags =
        Run::of(ember_program().args(["ls", "--server", &server]).arg("--key-file").arg(&key).arg("--ca").arg(&ca));
    assert!(by_flags.ok().contains("assistant"));
    let by_environment = Run::of(
        ember_program().arg("ls").env("EMBER_SERVER", &server).env("EMBER_KEY", ember.admin_key()).env("EMBER_CA", &ca),
    );
    assert!(by_environment.ok().contains("assistant"));
    let by_data = Run::of(ember_program().args(["ls", "--data"]).arg(ember.data()));
    assert!(by_data.ok().contains("assistant"));
    assert_eq!(
        fs::read_to_string(ember.data().join("address")).unwrap().trim().trim_start_matches("https://"),
        ember.address().to_string()
    );

    let nowhere = Run::of(ember_program().args(["ls", "--data", "/nowhere"]));
    assert_eq!(nowhere.code, 69);
    assert!(nowhere.refused().contains("emberd serve"), "it says what to do");
    ember.stop();
}

fn without_landlock() -> Vec<String> {
    let script = tree::root().join("tests/src/without_landlock.py");
    ["python3".to_owned(), script.display().to_string()].into()
}

#[test]
fn a_layer_that_the_kernel_lacks_is_69_and_named() {
    let [python, script] = without_landlock().try_into().unwrap();
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let mut command = Command::new(python);
    command.arg(script).arg(tree::program("emberd")).args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
    let run = Run::of(&mut command);
    assert_eq!(run.code, 69, "{}", run.stderr);
    let said = run.refused();
    assert!(said.contains("landlock") && said.contains("lsm="), "{said}");
    assert!(!data.exists(), "nothing was touched");
}

#[test]
fn an_insecure_sandbox_lacks_what_the_kernel_lacks_and_says_so_at_each_start() {
    let launch =
        Launch { launcher: without_landlock(), flags: vec!["--insecure-sandbox".to_owned()], ..Launch::default() };
    let mut ember = Ember::launch(launch, "").with(&assistant());
    let said = |ember: &Ember| ember.log().matches("insecure sandbox: a layer is missing").count();
    assert_eq!(said(&ember), 1);
    // From cold: under a filter of its own the warden may take no snapshots.
    assert!(!ember.run(&["run", "assistant", "Hello", "--max-tokens", "4"]).ok().is_empty());
    ember.signal(nix::sys::signal::Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    assert_eq!(said(&ember), 2);
    ember.stop();

    let whole = Ember::launch(Launch { flags: vec!["--insecure-sandbox".to_owned()], ..Launch::default() }, "");
    assert_eq!(said(&whole), 0, "nothing is missing on this machine");
    whole.stop();
}

#[test]
fn health_is_that_the_service_answers_and_on_demand_a_function_too() {
    let ember = Ember::start();
    let data = ember.data().display().to_string();
    let health = |more: &[&str]| emberd(&[&["health", "--data", &data], more].concat());
    assert_eq!(health(&[]).ok(), "the server answers\n");
    assert_eq!(health(&["--answer"]).ok(), "the server answers; no function is deployed\n");
    let ember = ember.with(&assistant());
    assert_eq!(health(&["--answer", "--within", "60"]).ok(), "function assistant answers\n");
    ember.stop();
    let run = health(&[]);
    assert_eq!(run.code, 75, "{}", run.stderr);
    assert!(run.stderr.contains("address"), "{}", run.stderr);
}
