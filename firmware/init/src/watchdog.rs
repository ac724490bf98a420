//! The machine's watchdog: a timer in its hardware that starts the machine again unless it is fed.
//!
//! Fed by each step of a start, and then only while the service is healthy, or has still time to become so, it ends what
//! nothing else can: a kernel that hangs, or a PID 1 that does.

use crate::console::say;
use sandbox_kernel::hardware::set_watchdog_timeout;
use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::fd::AsFd,
};

const DEVICE: &str = "/dev/watchdog";
/// How long it waits to be fed: more than a stop takes, which nobody feeds it through.
const TIMEOUT_SECONDS: u32 = 60;
/// Switches it off when it is closed next.
const OFF: &[u8] = b"V";

/// A watchdog that runs, where the machine has one.
#[derive(Debug)]
pub(crate) struct Watchdog(Option<File>);

impl Watchdog {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let Ok(device) = OpenOptions::new().write(true).open(DEVICE) else {
            say("this machine has no watchdog");
            return Self(None);
        };
        match set_watchdog_timeout(device.as_fd(), TIMEOUT_SECONDS) {
            Ok(seconds) => say(format_args!("the watchdog waits {seconds} s")),
            Err(errno) => say(format_args!("the watchdog waits as long as it does: {}", errno.desc())),
        }
        Self(Some(device))
    }

    /// Has it wait again.
    pub(crate) fn feed(&mut self) {
        // It starts the machine again when this fails, which is what it is for.
        let _ = self.0.as_mut().map(|device| device.write_all(b"\0"));
    }

    /// Stops it: a machine that is off must not start by itself.
    pub(crate) fn stop(self) {
        let _ = self.0.map(|mut device| device.write_all(OFF));
    }
}
