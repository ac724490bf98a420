//! What a person at the console sees: a line a step, and a few lines of how the machine does whenever that changes.

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use qrcode::{QrCode, render::unicode::Dense1x2};
use std::{fmt::Display, fs::OpenOptions, io::Write, net::SocketAddr, os::unix::fs::OpenOptionsExt};

/// The serial line or whatever the kernel was told last, and the screen. The kernel's own log is kept quiet, so it is no
/// way to them.
const CONSOLES: [&str; 2] = ["/dev/console", "/dev/tty0"];

/// Says something on every console. One that is not there, or takes nothing, is no reason to stop or to wait: a key or a
/// byte on the line can hold what is written to it for ever.
pub(crate) fn say(text: impl Display) {
    let line = format!("ember: {text}\r\n");
    for path in CONSOLES {
        let console = OpenOptions::new().write(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path);
        let _ = console.and_then(|mut console| console.write_all(line.as_bytes()));
    }
}

/// How the machine does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Who it is: name, version, slot.
    pub(crate) name: String,
    /// What it is at.
    pub(crate) state: &'static str,
    /// Where it answers, once it has an address.
    pub(crate) address: Option<SocketAddr>,
    /// SHA-256 of its CA, once there is one.
    pub(crate) fingerprint: Option<String>,
    /// What went wrong last.
    pub(crate) fault: Option<String>,
}

impl Screen {
    /// Shows it, unless it is as it was in `shown`.
    pub(crate) fn show(&self, shown: &mut Self) {
        if self == shown {
            return;
        }
        self.news(shown).iter().for_each(say);
        if (self.address, &self.fingerprint) != (shown.address, &shown.fingerprint) {
            self.code().iter().for_each(say);
        }
        shown.clone_from(self);
    }

    /// What to say of it to who saw `shown`: where all else is as it was, the last error alone.
    fn news(&self, shown: &Self) -> Vec<String> {
        let mut lines = self.lines();
        let others = |screen: &Self| Self { fault: None, ..screen.clone() };
        let from = if others(self) == others(shown) { lines.len() - 1 } else { 0 };
        lines.split_off(from)
    }

    fn lines(&self) -> Vec<String> {
        let none = || "none so far".to_owned();
        let address = self.address.map_or_else(none, |address| format!("https://{address}"));
        vec![
            format!("--- {}", self.name),
            format!("    state       {}", self.state),
            format!("    address     {address}"),
            format!("    CA, SHA-256 {}", self.fingerprint.clone().unwrap_or_else(none)),
            format!("    last error  {}", self.fault.as_deref().unwrap_or("none")),
        ]
    }

    /// Address and fingerprint as a QR code, once both are known.
    fn code(&self) -> Vec<String> {
        let (Some(address), Some(fingerprint)) = (self.address, &self.fingerprint) else { return Vec::new() };
        let text = format!("https://{address}/#sha256={}", fingerprint.replace(':', ""));
        let Ok(code) = QrCode::new(text) else { return Vec::new() };
        code.render::<Dense1x2>().build().lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_has_what_a_person_needs() {
        let mut screen = Screen { name: "box-1".to_owned(), state: "starting", ..Screen::default() };
        assert!(screen.lines().join("\n").contains("address     none so far") && screen.code().is_empty());
        screen.address = Some("192.0.2.7:8443".parse().unwrap());
        screen.fingerprint = Some("AB:CD".to_owned());
        screen.fault = Some("disk full".to_owned());
        let lines = screen.lines().join("\n");
        for part in ["box-1", "https://192.0.2.7:8443", "AB:CD", "last error  disk full"] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
        // Version 3 of QR codes, 29 modules, with four of margin on each side; two rows a line.
        let code = screen.code();
        assert_eq!((code.len(), code[0].chars().count()), (19, 37));
    }

    #[test]
    fn what_did_not_change_is_not_shown_again() {
        let (screen, mut shown) = (Screen { state: "serving", ..Screen::default() }, Screen::default());
        assert_eq!(screen.news(&shown).len(), 5);
        screen.show(&mut shown);
        assert_eq!(shown, screen);
        let worse = Screen { fault: Some("disk full".to_owned()), ..screen.clone() };
        assert_eq!(worse.news(&shown), ["    last error  disk full"]);
    }
}
