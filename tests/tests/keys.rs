//! Keys: made once, used, revoked at once, and never stored in the clear.

use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use tests::{Ember, assistant, chat};

/// Every file below `folder` that holds `secret`.
fn files_holding(folder: &Path, secret: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let holds =
        |path: &&std::path::PathBuf| fs::read(path).unwrap().windows(secret.len()).any(|w| w == secret.as_bytes());
    let small = |path: &&std::path::PathBuf| path.extension().is_none_or(|extension| extension != "gguf");
    let here = files.iter().filter(small).filter(holds).map(|path| path.display().to_string());
    here.chain(folders.iter().flat_map(|folder| files_holding(folder, secret))).collect()
}

#[test]
fn a_key_works_until_it_is_revoked() {
    let ember = Ember::serving(&assistant());
    let hello = chat("assistant", "Hello.", json!({"max_tokens": 1}));
    let key = ember.run(&["key", "create", "--name", "app"]).ok().trim().to_owned();
    assert!(key.len() >= 32 && !key.contains(char::is_whitespace), "the key, and nothing else");
    let app = ember.client().with_key(&key);
    app.ask(&hello).expect(200);
    assert!(ember.run(&["key", "ls"]).ok().contains("app"));
    assert!(!ember.run(&["key", "ls", "--json"]).ok().contains(&key), "a key is shown once");
    ember.run(&["key", "create", "--name", "app"]).refused();

    ember.run(&["key", "revoke", "app"]).ok();
    for _ in 0..8 {
        app.ask(&hello).error(401);
    }
    ember.run(&["key", "revoke", "app"]).refused();
    let again = ember.run(&["key", "create", "--name", "app"]).ok();
    assert_ne!(again.trim(), key);
    app.ask(&hello).error(401);
    ember.client().with_key(again.trim()).ask(&hello).expect(200);
    ember.stop();
}

#[test]
fn keys_outlive_a_restart() {
    let mut ember = Ember::start();
    let key = ember.run(&["key", "create", "--name", "app"]).ok();
    ember.signal(nix::sys::signal::Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    ember.client().with_key(key.trim()).get("/v1/models").expect(200);
    ember.run(&["key", "revoke", "app"]).ok();
    ember.kill();
    ember.start_again();
    ember.client().with_key(key.trim()).get("/v1/models").error(401);
    ember.stop();
}

#[test]
fn secrets_are_closed() {
    let ember = Ember::serving(&assistant());
    let key = ember.run(&["key", "create", "--name", "app"]).ok().trim().to_owned();
    ember.client().with_key(&key).ask(&chat("assistant", "Hello.", json!({"max_tokens": 1}))).expect(200);
    assert_eq!(files_holding(&ember.data(), &key), [""; 0]);
    assert_eq!(files_holding(&ember.data(), key.strip_prefix("ember-").unwrap()), [""; 0]);
    assert_eq!(
        files_holding(&ember.data(), &ember.admin_key()),
        [ember.data().join("admin.key").display().to_string()]
    );
    assert!(!ember.log().contains(&key) && !ember.log().contains(&ember.admin_key()));

    for closed in ["admin.key", "tls/ca.key", "tls/server.key", "server/device.secret", "server/keys.json"] {
        let mode = fs::metadata(ember.data().join(closed))
            .unwrap_or_else(|error| panic!("{closed}: {error}"))
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{closed} has mode {mode:o}");
    }
    ember.stop();
}
