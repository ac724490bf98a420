//! What a person at the console sees: a line a step.

use std::{fmt::Display, fs::OpenOptions, io::Write};

/// Says something on every console. A console that cannot be written to is no reason to stop.
pub(crate) fn say(text: impl Display) {
    let line = format!("ember: {text}\r\n");
    let written = OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
    // Before /dev is there, the kernel has given PID 1 its console.
    if written.is_err() {
        drop(std::io::stderr().write_all(line.as_bytes()));
    }
}
