//! Where things are: the workspace, its files, the programs built from it, and the default model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Folders that hold no work of ours.
const SKIPPED: &[&str] = &[".git", "target", "models", "ember-data", "runs"];

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// Every file of ours whose name ends in `suffix`, as paths from the root, sorted.
pub fn files(suffix: &str) -> Vec<String> {
    let root = root();
    let mut found = Vec::new();
    visit(&root, &mut |path| {
        let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
        if path.ends_with(suffix) {
            found.push(path);
        }
    });
    found.sort();
    found
}

/// The text of a file of ours.
pub fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn visit(folder: &Path, found: &mut impl FnMut(&Path)) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
    for entry in entries.map(|entry| entry.expect("a directory entry")) {
        let (path, name) = (entry.path(), entry.file_name());
        match path.is_dir() {
            true if SKIPPED.iter().any(|skipped| name == **skipped) => {}
            true => visit(&path, found),
            false => found(&path),
        }
    }
}

/// A program of ours, from the folder that this test was built into.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let deps = test.parent().expect("a test lies in a folder");
    let path = deps.parent().expect("deps lies in the profile's folder").join(name);
    assert!(path.is_file(), "{} is not there: run `make build`", path.display());
    path
}

/// `prometheus` or `promtool`, as `make prometheus` unpacks them.
pub fn prometheus(program: &str) -> PathBuf {
    let path = root().join("target/prometheus/usr/bin").join(program);
    assert!(path.is_file(), "{} is not there: run `make prometheus`", path.display());
    path
}

/// HAProxy, as `make haproxy` unpacks it, with the folder of its libraries in the environment.
pub fn haproxy() -> Command {
    let path = root().join("target/haproxy/usr/sbin/haproxy");
    assert!(path.is_file(), "{} is not there: run `make haproxy`", path.display());
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", root().join("target/haproxy/usr/lib/x86_64-linux-gnu"));
    command
}

/// The default model.
pub fn model() -> PathBuf {
    let path = root().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is not there: run `make model`", path.display());
    path
}
