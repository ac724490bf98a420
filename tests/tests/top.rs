//! `ember` on a terminal: what a deploy waits for, and `ember top`, also without one.

use serde_json::json;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};
use tests::{Ember, Function, Run, chat, tree, until};

/// Turns the terminal's second screen on and off.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// A program on a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
}

impl OnTerminal {
    /// `ember` on a terminal of 50 rows and 140 columns, by util-linux' `script`; the shell says last whether the terminal is
    /// set as it was.
    fn ember(ember: &Ember, arguments: &str) -> Self {
        let command = format!(
            "stty rows 50 cols 140; before=$(stty -g); {} {arguments}; code=$?; \
             [ \"$before\" = \"$(stty -g)\" ] && echo as it was; exit $code",
            tree::program("ember").display()
        );
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env("EMBER_DATA", ember.data()).env("TERM", "xterm-256color");
        let script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = script.spawn().expect("util-linux has `script`");
        let (mut screen, shown) = (child.stdout.take().unwrap(), Arc::<Mutex<String>>::default());
        let into = Arc::clone(&shown);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut piece) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
            }
        });
        Self { keys: child.stdin.take().unwrap(), child, shown }
    }

    /// Waits for a word: only cells that change are drawn, so what lies between words may not be.
    fn shows(&self, text: &str) {
        until(&format!("the terminal shows {text}"), || self.shown.lock().unwrap().contains(text).then_some(()));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// What it ended with, and all that was shown.
    fn ended(mut self) -> (i32, String) {
        let status = until("it ends", || self.child.try_wait().unwrap());
        self.shows("as it was");
        let shown = self.shown.lock().unwrap().clone();
        (status.code().unwrap_or(-1), shown)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_shows_what_the_box_does_and_gives_the_terminal_back() {
    let ember = Ember::start();
    let model = ember.scratch().join("tiny.gguf");
    tests_synthetic::write(&tree::model(), &model, tests_synthetic::Sizes::TINY).unwrap();
    let tiny = Function::named("tiny").model(model.display());
    let (code, shown) = OnTerminal::ember(&ember, &format!("deploy {}", ember.manifest(&tiny))).ended();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("loading and taking a snapshot of `tiny`") && shown.contains("deployed tiny"), "{shown:?}");
    let key = ember.run(&["key", "create", "--name", "someone"]).ok();
    let ask = || ember.client().with_key(key.trim()).ask(&chat("tiny", "Hello.", json!({"max_tokens": 4}))).expect(200);
    ask();
    ember.client().with_key(key.trim()).ask(&chat("none", "Hello.", json!({}))).expect(404);
    until("the ledger has it", || (ember.ledger().len() == 1).then_some(()));

    // Before anything is shown on a terminal: the same as text, for pipes.
    let frame = until("the index has it, too", || {
        let frame = ember.run(&["top", "--once"]).ok();
        frame.lines().any(|line| line.starts_with("someone") || line.contains("  someone ")).then_some(frame)
    });
    for part in ["ember top", "cores", "memory", "first token", "functions: 1", "tiny", "last wakes", "spent in 24 h"] {
        assert!(frame.contains(part), "{part} is not in\n{frame}");
    }
    assert!(frame.contains("model_not_found") && !frame.contains("q quit"), "{frame}");
    assert!(!frame.contains('\x1b'), "{frame:?}");
    assert_eq!(ember.run(&["top"]).code, 64, "stdout is no terminal");
    let refused = Run::of(ember.command(&["top", "--once"]).env("EMBER_DATA", ember.scratch()));
    assert_eq!(refused.code, 69, "{refused:?}");

    let before = ember.run(&["ps", "--json"]).json();
    let mut top = OnTerminal::ember(&ember, "top --interval 500ms");
    top.shows("functions:");
    top.press("s");
    top.shows("name");
    top.press("p");
    top.shows("PAUSED");
    top.press("q");
    let (code, shown) = top.ended();
    assert_eq!(code, 0);
    assert!(shown.find(ENTER) < shown.rfind(LEAVE) && shown.contains("tiny"), "{shown:?}");
    let after = ember.run(&["ps", "--json"]).json();
    let up = |ps: &serde_json::Value| {
        let rows = ps.as_array().expect("a list").iter().filter(|row| row["tier"] == "running");
        rows.map(|row| row["instance"].to_string()).collect::<BTreeSet<_>>()
    };
    assert!(up(&after).is_subset(&up(&before)), "it woke nothing: {before} {after}");

    // A server that ends while it is looked at.
    let mut top = OnTerminal::ember(&ember, "top --interval 500ms");
    top.shows("functions:");
    ember.stop();
    top.shows("cannot");
    top.press("q");
    assert_eq!(top.ended().0, 0);
}
