//! Keys over real files.

use super::*;
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    sync::Barrier,
};
use tempfile::TempDir;

const NOW: u64 = 1_700_000_000;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn name(name: &str) -> KeyName {
    name.parse().unwrap()
}

fn user(key: &str) -> NewKey {
    NewKey { name: name(key), kind: Kind::User, functions: None, rates: Rates::default(), project: None, budget: None }
}

/// What a store knows of a text.
fn shown(store: &KeyStore, text: &str) -> Result<Arc<Key>, Unauthorized> {
    store.authenticate(text).map(|caller| caller.key)
}

fn open(folder: &TempDir) -> KeyStore {
    KeyStore::open(folder.path()).unwrap()
}

/// What opening says of a folder that it refuses.
fn refusal(folder: &TempDir) -> String {
    KeyStore::open(folder.path()).err().unwrap().to_string()
}

fn names(store: &KeyStore) -> Vec<String> {
    store.list().iter().map(|key| key.name.to_string()).collect()
}

#[test]
fn a_key_works_until_it_is_revoked_and_survives_a_restart() {
    let folder = folder();
    let store = open(&folder);
    let text = store.create(user("bob"), NOW).unwrap();
    let other = store.create(user("amy"), NOW).unwrap();
    assert_eq!(shown(&store, text.as_str()).unwrap().name, name("bob"));
    let again = open(&folder);
    assert_eq!(names(&again), ["amy", "bob"]);
    assert_eq!(shown(&again, text.as_str()), shown(&store, text.as_str()));
    store.revoke(&name("bob")).unwrap();
    assert_eq!(shown(&store, text.as_str()), Err(Unauthorized::Unknown));
    assert_eq!(shown(&open(&folder), text.as_str()), Err(Unauthorized::Unknown));
    assert!(shown(&store, other.as_str()).is_ok());
}

#[test]
fn a_revoked_key_opens_nothing_on_any_core() {
    let folder = folder();
    let store = open(&folder);
    let text = store.create(user("bob"), NOW).unwrap();
    let revoked = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            revoked.wait();
            assert_eq!(shown(&store, text.as_str()), Err(Unauthorized::Unknown));
        });
        assert!(shown(&store, text.as_str()).is_ok());
        store.revoke(&name("bob")).unwrap();
        revoked.wait();
    });
}

#[test]
fn limits_survive_a_restart_and_are_counted_once() {
    let folder = folder();
    let store = open(&folder);
    let rates: Rates = serde_json::from_str(r#"{"rpm": 1, "weight": 3}"#).unwrap();
    let text = store.create(NewKey { rates, ..user("bob") }, NOW).unwrap();
    let free = store.create(user("amy"), NOW).unwrap();
    store.revoke(&name("amy")).unwrap();
    assert_eq!(shown(&store, free.as_str()), Err(Unauthorized::Unknown));
    let now = std::time::Instant::now();
    let ask = |store: &KeyStore| {
        let caller = store.authenticate(text.as_str()).unwrap();
        caller.limiter.expect("it has a limit").lock().unwrap().ask(now, 0).is_ok()
    };
    assert!(ask(&store));
    store.create(user("zoe"), NOW).unwrap();
    assert!(!ask(&store), "the same count before and after a change of keys");
    let again = open(&folder);
    assert_eq!(shown(&again, text.as_str()).unwrap().rates, rates);
    assert_eq!(rates.weight.get(), 3);
    let unlimited = store.create(user("amy"), NOW).unwrap();
    assert!(store.authenticate(unlimited.as_str()).unwrap().limiter.is_none());
}

#[test]
fn keys_of_before_there_were_limits_are_read_and_wrong_limits_are_not() {
    let old = r#"{"name":"bob","kind":"user","functions":null,"created_unix_s":1}"#;
    let key: Key = serde_json::from_str(old).unwrap();
    assert_eq!((key.rates, key.rates.weight.get()), (Rates::default(), 1));
    for wrong in [
        r#"{"rpm":0}"#,
        r#"{"tpm":-1}"#,
        r#"{"concurrency":1.5}"#,
        r#"{"weight":0}"#,
        r#"{"weight":1001}"#,
        r#"{"rps":1}"#,
    ] {
        assert!(serde_json::from_str::<Rates>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_mistyped_key_is_told_from_an_unknown_one() {
    let (here, there) = (folder(), folder());
    let store = open(&here);
    let stranger = open(&there).create(user("bob"), NOW).unwrap();
    assert_eq!(shown(&store, stranger.as_str()), Err(Unauthorized::Unknown));
    let typed = stranger.as_str().replace("ember-", "ember_");
    let refused = |text: &str| shown(&store, text).unwrap_err().to_string();
    assert!(refused(&typed).starts_with("this is not an Ember key: a key is"));
    let mut mistyped = stranger.to_string();
    let last = if mistyped.pop() == Some('A') { 'B' } else { 'A' };
    mistyped.push(last);
    assert!(refused(&mistyped).starts_with("this is not an Ember key: its checksum"));
    assert!(refused("").starts_with("this is not an Ember key"));
}

#[test]
fn nothing_at_rest_is_a_key() {
    let folder = folder();
    let text = open(&folder).create(user("bob"), NOW).unwrap();
    let json = fs::read_to_string(folder.path().join(KEYS_FILE)).unwrap();
    let encoded = text.as_str().strip_prefix("ember-").unwrap();
    assert!(!json.contains(encoded));
    assert!(!json.contains(blake3::hash(text.secret()).to_hex().as_str()));
    for file in [KEYS_FILE, SECRET_FILE] {
        assert_eq!(fs::metadata(folder.path().join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn names_are_unique_and_the_admin_key_is_roots() {
    let folder = folder();
    let store = open(&folder);
    store.create(user("bob"), NOW).unwrap();
    assert!(matches!(store.create(user("bob"), NOW), Err(KeyError::Exists(_))));
    assert!(matches!(store.revoke(&name("amy")), Err(KeyError::Missing(_))));
    assert!(matches!(store.revoke(&name("admin")), Err(KeyError::Admin)));
    let functions = Some(vec!["f".parse().unwrap()]);
    let admin = NewKey { kind: Kind::Admin, functions: functions.clone(), ..user("amy") };
    assert!(matches!(store.create(admin, NOW), Err(KeyError::AdminWithFunctions)));
    let text = store.create(NewKey { functions, ..user("amy") }, NOW).unwrap();
    let key = shown(&store, text.as_str()).unwrap();
    assert!(!key.is_admin() && key.may_call(&"f".parse().unwrap()) && !key.may_call(&"g".parse().unwrap()));
    assert_eq!(key.created_unix_s, NOW);
}

#[test]
fn a_new_key_is_read_strictly() {
    let read = |json: &str| serde_json::from_str::<NewKey>(json);
    assert_eq!(read(r#"{"name": "bob"}"#).unwrap(), user("bob"));
    assert_eq!(read(r#"{"name": "bob", "kind": "admin"}"#).unwrap().kind, Kind::Admin);
    assert!(read(r#"{"name": "bob", "budget": 5}"#).is_err());
    assert!(read(r#"{"name": "Bob"}"#).is_err());
}

#[test]
fn the_admin_key_is_made_once_kept_and_replaced() {
    let folder = folder();
    let file = Path::new("/data/admin.key");
    let store = open(&folder);
    let first = store.ensure_admin(file, None, NOW).unwrap();
    assert!(shown(&store, first.as_str()).unwrap().is_admin());
    let kept = open(&folder).ensure_admin(file, Some(&format!("{first}\n")), NOW + 1).unwrap();
    assert_eq!(kept, first);
    assert_eq!(open(&folder).list()[0].created_unix_s, NOW);
    let second = store.ensure_admin(file, None, NOW).unwrap();
    assert_eq!(shown(&store, first.as_str()), Err(Unauthorized::Unknown));
    fs::remove_file(folder.path().join(KEYS_FILE)).unwrap();
    let restored = open(&folder);
    assert_eq!(restored.ensure_admin(file, Some(second.as_str()), NOW).unwrap(), second);
    assert!(shown(&restored, second.as_str()).unwrap().is_admin());
    let error = store.ensure_admin(file, Some("x"), NOW).unwrap_err().to_string();
    assert!(error.starts_with("/data/admin.key: this is not an Ember key"), "{error}");
}

#[test]
fn root_makes_files_for_another_and_follows_no_link() {
    let (folder, elsewhere) = (folder(), folder());
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, folder.path().join("keys.json.new")).unwrap();
    let store = KeyStore::open_as(folder.path(), Owner { uid: 2_000_000_001, gid: 2_000_000_001 }).unwrap();
    store.ensure_admin(Path::new("admin.key"), None, NOW).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    for file in [KEYS_FILE, SECRET_FILE] {
        assert_eq!(fs::metadata(folder.path().join(file)).unwrap().uid(), 2_000_000_001, "{file}");
    }
    fs::remove_file(folder.path().join(KEYS_FILE)).unwrap();
    symlink(&victim, folder.path().join(KEYS_FILE)).unwrap();
    assert!(refusal(&folder).ends_with("keys.json: it is not a plain file"));
}

#[test]
fn damaged_files_are_named() {
    let folder = folder();
    open(&folder).create(user("bob"), NOW).unwrap();
    let (keys, secret) = (folder.path().join(KEYS_FILE), folder.path().join(SECRET_FILE));
    let whole = fs::read(&keys).unwrap();
    for cut in 0..whole.len() {
        fs::write(&keys, &whole[..cut]).unwrap();
        let error = refusal(&folder);
        assert!(error.contains("keys.json: not a file of keys (EOF"), "{cut}: {error}");
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    fs::write(&keys, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(refusal(&folder).ends_with("keys.json: version 2 of the format; this Ember reads version 1"));
    fs::write(&keys, text.replace("\"kind\"", "\"kin\"")).unwrap();
    assert!(refusal(&folder).contains("unknown field `kin`"));
    fs::write(&keys, &whole).unwrap();
    fs::write(&secret, "short").unwrap();
    assert!(refusal(&folder).ends_with("device.secret: 5 bytes instead of 32; restore it from a copy"));
    fs::remove_file(&secret).unwrap();
    assert!(refusal(&folder).contains("device.secret: it is missing, and without it none of the 1 keys"));
    assert!(!secret.exists());
}

#[test]
fn a_change_that_cannot_be_stored_does_not_show() {
    let folder = folder();
    let store = open(&folder);
    let text = store.create(user("bob"), NOW).unwrap();
    fs::create_dir(folder.path().join("keys.json.new")).unwrap();
    assert!(store.revoke(&name("bob")).unwrap_err().to_string().starts_with("cannot write "));
    assert!(store.create(user("amy"), NOW).is_err());
    assert!(shown(&store, text.as_str()).is_ok());
    assert_eq!(names(&store), ["bob"]);
}

#[test]
fn one_store_serves_all_cores() {
    fn shared<T: Send + Sync>() {}
    shared::<KeyStore>();
}
