//! Why emberd ends, and the code that says so.
//!
//! | code | meaning | who can help |
//! |---|---|---|
//! | 64 | the command line is wrong | the caller |
//! | 65 | the configuration is wrong: file, line, reason | the operator |
//! | 69 | something the machine must have is missing, named | the operator |
//! | 70 | a bug | us |
//! | 75 | try again: a port or folder is taken, the disk is full, … | time |
//!
//! A child ends with the same codes. 65 and 69 are final: to start it again would not help.

use appliance_config::ConfigError;
use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

/// The command line is wrong.
pub(crate) const USAGE: u8 = 64;
const CONFIG: u8 = 65;
const MISSING: u8 = 69;
const BUG: u8 = 70;
const TRY_AGAIN: u8 = 75;

/// Why emberd, or a child of it, ends before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The configuration file is wrong.
    #[error("{file}: {source}", file = file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// Where and what.
        source: ConfigError,
    },
    /// The configuration cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The machine lacks something.
    #[error("{feature} is missing: {fix}")]
    Missing {
        /// What.
        feature: String,
        /// What to do.
        fix: String,
    },
    /// Another emberd owns the data folder.
    #[error("{data} is in use by emberd, pid {pid}; stop it or choose another folder by --data", data = data.display())]
    Locked {
        /// The folder.
        data: PathBuf,
        /// Who holds it.
        pid: String,
    },
    /// The kernel refused; it may be otherwise later.
    #[error("{action} {what}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// With what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A child cannot start, and said why in the log.
    #[error("the {role} ended before it was ready: {status}; its reason is in the log")]
    Child {
        /// Which.
        role: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// A part of the service ended.
    #[error("{0}")]
    Service(String),
    /// A fault of ours.
    #[error("bug: {0}")]
    Bug(String),
}

impl Failure {
    /// A refusal of the kernel.
    pub(crate) fn io(action: &'static str, what: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, what: what.as_ref().display().to_string(), source: source.into() }
    }

    /// A refusal of the kernel, for `map_err`.
    pub(crate) fn of<E: Into<io::Error>>(action: &'static str, what: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |source| Self::io(action, what, source)
    }

    /// A certificate that cannot be served, for `map_err`.
    pub(crate) fn of_tls(error: appliance_edge::CertificateError) -> Self {
        Self::Service(format!("tls: {error}"))
    }

    fn code(&self) -> u8 {
        match self {
            Self::Config { .. } | Self::Unusable(_) => CONFIG,
            Self::Missing { .. } => MISSING,
            Self::Bug(_) => BUG,
            Self::Locked { .. } | Self::Io { .. } | Self::Service(_) => TRY_AGAIN,
            Self::Child { status, .. } => child_code(*status),
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> ExitCode {
        ExitCode::from(failure.code())
    }
}

/// A child's own code where it is one of ours; a crash is a bug.
fn child_code(status: ExitStatus) -> u8 {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code @ (CONFIG | MISSING | TRY_AGAIN)) => code,
        _ => BUG,
    }
}

/// Whether to start a child again that ended so would not help.
pub(crate) fn is_final(status: ExitStatus) -> bool {
    matches!(status.code().and_then(|code| u8::try_from(code).ok()), Some(CONFIG | MISSING))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn every_failure_has_its_code() {
        let config = |text| appliance_config::ServeConfig::parse(text).unwrap_err();
        let bad = Failure::Config { file: "/etc/ember.toml".into(), source: config("\nlisten = 1") };
        assert_eq!(bad.code(), 65);
        assert!(bad.to_string().starts_with("/etc/ember.toml: line 2, column 10: "), "{bad}");
        assert_eq!(Failure::Missing { feature: "x".into(), fix: "y".into() }.code(), 69);
        assert_eq!(Failure::Locked { data: "/d".into(), pid: "1".into() }.code(), 75);
        assert_eq!(Failure::io("open", "/x", nix::errno::Errno::ENOSPC).code(), 75);
        assert_eq!(Failure::Bug("x".into()).code(), 70);
    }

    #[test]
    fn a_childs_code_is_passed_on_and_a_crash_is_a_bug() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let code = |status| Failure::Child { role: "server", status }.code();
        assert_eq!([65, 69, 75, 70, 101, 1].map(|c| code(exit(c))), [65, 69, 75, 70, 70, 70]);
        assert_eq!(code(ExitStatus::from_raw(9)), 70);
        assert_eq!([65, 69, 75, 70, 0].map(|c| is_final(exit(c))), [true, true, false, false, false]);
    }
}
