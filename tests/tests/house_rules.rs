//! The tree keeps the house rules, and each rule catches what breaks it.

use std::process::Command;
use tests::{
    rules::{
        arrows::{self, Dependency, Package, World},
        docs, metrics, source,
    },
    tree,
};

fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

fn workspace() -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(arguments).current_dir(tree::root()).output().expect("run cargo");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    arrows::packages(&String::from_utf8(output.stdout).unwrap())
}

fn sources() -> Vec<(String, String)> {
    tree::files(".rs").into_iter().map(|path| (path.clone(), tree::text(&path))).collect()
}

mod the_tree {
    use super::*;

    #[test]
    fn packages_are_named_like_their_paths() {
        none(arrows::names_unlike_paths(&workspace()));
    }

    #[test]
    fn arrows_go_down_the_layers() {
        none(arrows::backward_arrows(&workspace()));
        none(arrows::sandbox_names_appliance(&workspace()));
        none(arrows::request_path_looks_back(&workspace()));
    }

    #[test]
    fn each_foreign_world_has_one_owner() {
        none(arrows::strangers_in_worlds(&workspace(), arrows::WORLDS));
    }

    #[test]
    fn every_file_says_what_it_is_for() {
        none(sources().iter().filter_map(|(path, text)| source::without_header(path, text)).collect());
    }

    #[test]
    fn every_unsafe_is_fenced_and_argued() {
        none(sources().iter().flat_map(|(path, text)| source::unsafe_misplaced_or_unargued(path, text)).collect());
    }

    #[test]
    fn nothing_is_put_off() {
        none(sources().iter().flat_map(|(path, text)| source::unfinished(path, text)).collect());
    }

    #[test]
    fn every_file_is_compiled() {
        none(source::dead_files(&sources()));
    }

    #[test]
    fn every_metric_is_counted_and_written() {
        let sources = sources();
        let is_server = |path: &str| path.starts_with("appliance/daemon/src/server/");
        let callers: Vec<_> =
            sources.iter().filter(|(path, _)| is_server(path)).map(|(_, text)| text.as_str()).collect();
        let text = |file: &str| tree::text(&format!("appliance/telemetry/src/{file}.rs"));
        none(metrics::never_incremented(&text("shard"), &callers));
        none(metrics::never_written(&text("standing"), &text("families")));
    }

    #[test]
    fn the_docs_a_reader_counts_on_are_there() {
        let there = |doc: &&&str| tree::root().join(doc).is_file();
        none(docs::REQUIRED.iter().filter(|doc| !there(doc)).map(|doc| format!("{doc} is missing")).collect());
    }

    #[test]
    fn every_path_in_the_docs_is_there() {
        let exists = |path: &str| tree::root().join(path).exists();
        let pages = tree::files(".md");
        none(pages.iter().flat_map(|page| docs::paths_missing(page, &tree::text(page), exists)).collect());
    }
}

mod the_rules {
    use super::*;

    fn package(name: &str, names: &[&str]) -> Package {
        let dependencies = names.iter().map(|name| Dependency { name: (*name).to_owned(), dev: false }).collect();
        Package { name: name.to_owned(), path: name.replacen('-', "/", 1), dependencies }
    }

    #[test]
    fn read_cargo_metadata() {
        let metadata = r#"{"workspace_root": "/w", "packages": [{"name": "appliance-keys",
            "manifest_path": "/w/appliance/keys/Cargo.toml",
            "dependencies": [{"name": "blake3", "kind": null}, {"name": "tempfile", "kind": "dev"}]}]}"#;
        let mut expected = package("appliance-keys", &["blake3", "tempfile"]);
        expected.dependencies[1].dev = true;
        assert_eq!(arrows::packages(metadata), [expected]);
    }

    #[test]
    fn catch_a_name_unlike_its_path() {
        let good = package("appliance-keys", &[]);
        let bad = Package { name: "keys".to_owned(), ..good.clone() };
        assert_eq!(arrows::names_unlike_paths(&[good, bad]), ["appliance/keys: the package is called keys"]);
    }

    #[test]
    fn catch_arrows_that_go_up_or_along() {
        let tree = [
            package("appliance-types", &["serde"]),
            package("appliance-api", &["appliance-types"]),
            package("appliance-edge", &["appliance-api", "appliance-keys", "appliance-daemon"]),
            package("appliance-keys", &["appliance-types"]),
            package("appliance-daemon", &["appliance-edge"]),
            package("appliance-misc", &[]),
        ];
        let expected = [
            "appliance-edge (stages) names appliance-keys",
            "appliance-edge (stages) names appliance-daemon",
            "appliance-misc: in no layer",
        ];
        assert_eq!(arrows::backward_arrows(&tree), expected);
    }

    #[test]
    fn catch_a_sandbox_that_names_the_appliance() {
        let tree = [package("sandbox-warden", &["appliance-types", "appliance-config"])];
        assert_eq!(arrows::sandbox_names_appliance(&tree), ["sandbox-warden names appliance-config"]);
    }

    #[test]
    fn catch_a_request_path_that_names_the_ledger() {
        let tree =
            [package("appliance-pool", &["appliance-ledger"]), package("appliance-daemon", &["appliance-ledger"])];
        assert_eq!(arrows::request_path_looks_back(&tree), ["appliance-pool names appliance-ledger"]);
    }

    #[test]
    fn catch_a_second_crate_in_a_foreign_world() {
        let world = World { crates: &["hyper"], owner: "appliance-edge", also: &[("bench", "is the peer")] };
        let tree = [
            package("appliance-edge", &["hyper"]),
            package("appliance-pool", &["hyper-util"]),
            package("appliance-keys", &["hyperbolic"]),
            package("bench", &[]),
        ];
        let expected = [
            "appliance-pool names hyper-util; only appliance-edge may",
            "bench no longer names hyper: take it off the list",
        ];
        assert_eq!(arrows::strangers_in_worlds(&tree, &[world]), expected);
    }

    #[test]
    fn catch_a_file_without_a_header() {
        assert_eq!(source::without_header("a.rs", "//! Holds the keys.\n\nfn f() {}"), None);
        for bad in ["", "fn f() {}", "\n//! Holds the keys.", "//!", "// Holds the keys."] {
            assert!(source::without_header("a.rs", bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn catch_unsafe_outside_a_fence() {
        let block = "// SAFETY: f asks for nothing.\nfn g() { unsafe { f() } }";
        let violations = source::unsafe_misplaced_or_unargued("appliance/edge/src/lib.rs", block);
        assert_eq!(violations, ["appliance/edge/src/lib.rs:2: unsafe outside the fences"]);
    }

    #[test]
    fn catch_unsafe_without_a_note() {
        let argued = |text: &str| source::unsafe_misplaced_or_unargued("sandbox/kernel/src/lib.rs", text).is_empty();
        for good in [
            "fn g() {\n    // SAFETY: f asks for nothing.\n    unsafe { f() }\n}",
            "fn g() {\n    // SAFETY: f asks\n    // for nothing.\n    let x =\n        unsafe { f() };\n}",
            "// SAFETY: holds no thread's data.\n#[allow(dead_code)]\nunsafe impl Send for X {}",
            "unsafe extern \"C\" fn g(x: *const u8) {}",
            "/// Calls.\n///\n/// # Safety\n/// `x` is valid.\npub unsafe fn g(x: *const u8) {}",
            "type Call = unsafe extern \"C\" fn(i32);",
            "// unsafe {}\nconst WORD: &str = \"unsafe {}\";",
        ] {
            assert!(argued(good), "{good}");
        }
        for bad in [
            "fn g() {\n    unsafe { f() }\n}",
            "fn g() {\n    // SAFETY: f asks for nothing.\n    f();\n    unsafe { f() }\n}",
            "fn g() {\n    // It is fine.\n    unsafe { f() }\n}",
            "unsafe impl Send for X {}",
            "// SAFETY: f asks for nothing.\nmatch unsafe { f() } {\n    None => unsafe { g() },\n}",
            "macro_rules! m { () => { unsafe { f() } } }",
            "unsafe extern \"C\" { fn f(); }",
        ] {
            assert!(!argued(bad), "{bad}");
        }
    }

    #[test]
    fn catch_what_is_put_off() {
        let text = "// todo!()\nfn f() {\n    todo!()\n}\nfn g(todo: bool) { unimplemented!(\"x\") }";
        assert_eq!(source::unfinished("a.rs", text), ["a.rs:3: todo!", "a.rs:5: unimplemented!"]);
    }

    #[test]
    fn catch_a_file_that_nobody_compiles() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let tree = [
            file("a/src/lib.rs", "pub mod one; mod two; // mod three;"),
            file("a/src/one.rs", "mod inner;"),
            file("a/src/one/inner.rs", ""),
            file("a/src/two/mod.rs", "mod deep;"),
            file("a/src/two/deep.rs", ""),
            file("a/src/three.rs", ""),
            file("a/tests/suite.rs", ""),
        ];
        assert_eq!(source::dead_files(&tree), ["a/src/three.rs: no `mod` names it"]);
    }

    #[test]
    fn catch_a_metric_that_nobody_increments() {
        let shard = "pub struct Counts { pub(crate) waits: u64, idle: BTreeMap<(Tier, &'static str), u64>, gone: u64 }
            impl Shard { pub fn waited(&self) { self.0.lock().waits += 1; } pub fn unused(&self) {} }
            impl Counts { fn f(&mut self) { *self.idle.entry(1).or_default() += 1; } fn add(&mut self, more: Self) { self.gone += more.gone; } }";
        let expected = ["the count `gone`: nothing adds to it", "`Shard::unused`: nobody calls it"];
        assert_eq!(metrics::never_incremented(shard, &["fn f() { shard.waited(); }"]), expected);
        let standing = "pub struct Standing { pub shown: u64, pub hidden: Option<Vec<u64>> }";
        let written = "fn f() { out(standing.shown) }";
        assert_eq!(metrics::never_written(standing, written), ["`hidden` is learnt and never written"]);
    }

    #[test]
    fn catch_a_path_that_is_not_there() {
        let page = "See `appliance/{edge,gone}`, `tests/src/lib.rs:12`, `bench/runs/<date>`, `text/plain`, `target/x`,\n\
                    [design](DESIGN.md#words), [up](../README.md), [site](https://example.org/docs/x).\n\
                    ```\nls `docs/nothing`\n```\n";
        let named = ["appliance/edge", "appliance/gone", "tests/src/lib.rs", "docs/DESIGN.md", "README.md"];
        assert_eq!(docs::paths_named("docs/A.md", page), named);
        let there = |path: &str| path != "appliance/gone";
        let missing = ["docs/A.md: names `appliance/gone`, which is not there"];
        assert_eq!(docs::paths_missing("docs/A.md", page, there), missing);
    }
}
