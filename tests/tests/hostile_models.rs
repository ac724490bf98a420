//! Models that are broken or do not fit: clear errors, through the real sandbox, and no harm to server or neighbours.

use serde_json::json;
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tests::{Ember, Function, Role, Run, assistant, chat, tree};

/// Where the model is cut: inside each part of the header, inside the tensors, and just before the end.
const CUTS: &[u64] = &[0, 1, 4, 8, 23, 24, 100, 4096, 100_000, 1_500_000, 3_000_000, 40_000_000, 98_362_431];

/// Header bytes that are flipped: magic, version, counts, the first keys and values, and some far in.
const FLIPS: &[u64] = &[
    0, 3, 4, 7, 8, 12, 15, 16, 20, 23, 24, 31, 32, 40, 52, 56, 60, 64, 90, 128, 256, 700, 1024, 2048, 50_000, 900_000,
];

fn assert_unharmed(ember: &Ember) {
    ember.client().without_key().get("/health").expect(200);
    ember.client().ask(&chat("assistant", "Hello.", json!({"max_tokens": 2}))).expect(200);
}

fn deploy(ember: &Ember, model: &Path) -> Run {
    ember.deploy(&Function::named("broken").model(model.display()))
}

/// What the operator is told about a model that must not work.
#[track_caller]
fn refused(ember: &Ember, model: &Path, what: &str) -> String {
    let run = deploy(ember, model);
    assert_ne!(run.code, 0, "{what}: deployed");
    let said = run.refused();
    assert!(said.len() > 30 && !said.contains("internal_error"), "{what}: {said}");
    said
}

fn copy(ember: &Ember, name: &str) -> PathBuf {
    let path = ember.scratch().join(name);
    fs::copy(tree::model(), &path).unwrap();
    path
}

#[test]
fn a_model_cut_at_any_length_is_refused() {
    let ember = Ember::serving(&assistant());
    let path = copy(&ember, "cut.gguf");
    for length in CUTS.iter().rev() {
        File::options().write(true).open(&path).unwrap().set_len(*length).unwrap();
        refused(&ember, &path, &format!("cut at {length}"));
    }
    assert_unharmed(&ember);
    ember.stop();
}

#[test]
fn a_model_with_a_flipped_header_is_refused_or_works() {
    let ember = Ember::serving(&assistant());
    let path = copy(&ember, "flipped.gguf");
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let original = fs::read(&path).unwrap();
    let mut write = |at: u64, byte: u8| {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    for (n, at) in FLIPS.iter().enumerate() {
        let byte = original[usize::try_from(*at).unwrap()];
        write(*at, byte ^ [0xff, 0x01, 0x80][n % 3]);
        // A flip in a name or a token can leave a model that loads: then it must deploy like any other.
        if deploy(&ember, &path).code != 0 {
            refused(&ember, &path, &format!("byte {at} flipped"));
        }
        write(*at, byte);
    }
    assert_unharmed(&ember);
    deploy(&ember, &path).ok();
    ember.stop();
}

#[test]
fn what_is_no_model_is_refused() {
    let ember = Ember::serving(&assistant());
    let file = |name: &str, bytes: &[u8]| {
        let path = ember.scratch().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let text = file("text.gguf", &b"This is not a model. ".repeat(1000));
    assert!(refused(&ember, &text, "text").contains("GGUF"));
    let header = file("header.gguf", &[b"GGUF".as_slice(), &3u32.to_le_bytes(), &[0xff; 4096]].concat());
    refused(&ember, &header, "counts of 2^64 - 1");
    refused(&ember, &file("zeros.gguf", &[0; 1 << 20]), "zeros");
    let missing = ember.scratch().join("missing.gguf");
    assert!(refused(&ember, &missing, "missing").contains("missing.gguf"));
    refused(&ember, ember.scratch(), "a folder");
    let digest = Function::named("broken").model(format!("sha256:{}", "0".repeat(64)));
    assert!(ember.deploy(&digest).refused().contains("not in the store"));

    assert_unharmed(&ember);
    assert!(!ember.run(&["ls", "--json"]).ok().contains("broken"));
    ember.stop();
}

#[test]
fn a_function_with_too_little_memory_dies_alone() {
    let ember = Ember::serving(&assistant());
    let said = ember.deploy(&Function::named("broken").limit("memory = \"16MiB\"")).refused();
    assert!(said.contains("memory") && said.contains("16 MiB"), "{said}");
    assert_unharmed(&ember);
    ember.stop();
}

#[test]
fn a_function_that_outgrows_its_memory_dies_alone() {
    // So little that it is given all of it: one that is killed with less than that is tried again with all.
    let hungry = Function::named("hungry").limit("memory = \"400MiB\"");
    let mut ember = Ember::serving(&assistant()).with(&hungry).awake("hungry");
    let runner = ember.process(Role::Runner);
    // What it has, and too little more for a long prompt.
    runner.limit_memory(runner.memory_charged() + (512 << 10));
    let long = chat("hungry", &"many words ".repeat(400), json!({"max_tokens": 4}));
    let error = ember.client().ask(&long).error(502);
    let message = error["message"].as_str().unwrap();
    assert!(error["code"] == "runner_failed" && message.contains("memory limit"), "{error}");
    assert_unharmed(&ember);
    ember.client().ask(&long).expect(200);
    ember.stop();
}

#[test]
fn the_store_keeps_models_by_their_digest() {
    let ember = Ember::start();
    let path = copy(&ember, "copy.gguf");
    let added = ember.run(&["model", "add", &path.display().to_string(), "--json"]).json();
    let digest = added["sha256"].as_str().unwrap_or_else(|| panic!("no sha256 in {added}")).to_owned();
    fs::remove_file(&path).unwrap();
    ember.deploy(&assistant().model(format!("sha256:{digest}"))).ok();
    assert_unharmed(&ember);
    let in_use = ember.run(&["model", "rm", &digest]).refused();
    assert!(in_use.contains("use"), "{in_use}");
    ember.run(&["rm", "assistant"]).ok();
    ember.run(&["model", "rm", &digest]).ok();
    assert!(!ember.run(&["model", "ls", "--json"]).ok().contains(&digest));

    let wrong = ["model", "add", &tree::model().display().to_string(), "--sha256", &"0".repeat(64)].map(str::to_owned);
    ember.run(&wrong.each_ref().map(String::as_str)).refused();
    assert!(!ember.run(&["model", "ls", "--json"]).ok().contains(&digest));
    ember.stop();
}
