//! What a person at the console sees: a line a step.

use std::{fmt::Display, fs::OpenOptions, io::Write};

/// The serial line or whatever the kernel was told last, and the screen. The kernel's own log is kept quiet, so it is no
/// way to them.
const CONSOLES: [&str; 2] = ["/dev/console", "/dev/tty0"];

/// Says something on every console. One that is not there, or takes nothing, is no reason to stop.
pub(crate) fn say(text: impl Display) {
    let line = format!("ember: {text}\r\n");
    for path in CONSOLES {
        let _ = OpenOptions::new().write(true).open(path).and_then(|mut console| console.write_all(line.as_bytes()));
    }
}
