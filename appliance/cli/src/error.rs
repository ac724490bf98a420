//! Why a command failed, what the operator can do about it, and the exit code that tells scripts apart whose turn it is.
//!
//! The hint stands beside the error, not in its message: a message says what is so, a hint what to try.

use appliance_types::ModelDigest;
use std::{io, path::PathBuf};

/// Exit code for a command line that makes no sense.
pub(crate) const EXIT_USAGE: u8 = 64;
/// Exit code when no server answers.
pub(crate) const EXIT_UNREACHABLE: u8 = 69;
const EXIT_FAILED: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("no server has run in `{}`: there is no `address` file", dir.display())]
    NoServer { dir: PathBuf },
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} does not prove who it is: {reason}")]
    Untrusted { url: String, reason: String },
    #[error("cannot read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{0}")]
    Manifest(String),
    #[error("`{}` cannot be replayed: {reason}", path.display())]
    Trace { path: PathBuf, reason: String },
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` is no model: a GGUF file begins with `GGUF`", path.display())]
    NotAModel { path: PathBuf },
    #[error("`{}` has SHA-256 {got}, not {wanted}", path.display())]
    WrongDigest { path: PathBuf, wanted: ModelDigest, got: ModelDigest },
    #[error("cannot fetch {url}: {reason}")]
    Fetch { url: String, reason: String },
    #[error(transparent)]
    Image(#[from] images_builder::ImageError),
    #[error(transparent)]
    Bundle(#[from] firmware_bundle::BundleError),
    #[error(transparent)]
    Flash(#[from] firmware_flash::FlashError),
    #[error("{word:?} was not typed, so `{}` is as it was", path.display())]
    Unconfirmed { path: PathBuf, word: String },
    #[error(transparent)]
    Roster(#[from] appliance_fleet::RosterError),
    #[error(transparent)]
    Enrol(#[from] appliance_fleet::EnrolError),
    #[error(transparent)]
    Database(#[from] appliance_fleet::StoreError),
    #[error(transparent)]
    NoPull(#[from] appliance_fleet::PullError),
    #[error("nothing was pulled yet: there is no `{}`", path.display())]
    NothingPulled { path: PathBuf },
    #[error("there is no `{}`", path.display())]
    NoCredentials { path: PathBuf },
    /// What came of each box has been printed.
    #[error("{failed} of {boxes} boxes were not pulled to their end")]
    Pull { failed: usize, boxes: usize, unreached: bool },
    /// The file is written, without them.
    #[error("left out, since they never told by which prices they charge: {}", boxes.join(", "))]
    NoPrices { boxes: Vec<String> },
    #[error("the server refused: {message} ({status})")]
    Refused { status: u16, code: Option<String>, message: String },
    #[error("{requests} requests still run or wait; the box is drained all the same")]
    StillRunning { requests: u64 },
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
    #[error("{url} sent what `ember` cannot read: {reason}")]
    Reply { url: String, reason: String },
    /// The reader of our output has left: nothing to say, and nobody to say it to.
    #[error("nobody reads the output")]
    OutputClosed,
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// `doctor` has printed what is missing and how to fix it.
    #[error("something that Ember needs is missing")]
    Unhealthy,
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::OutputClosed => 0,
            Error::Usage(_) => EXIT_USAGE,
            Error::NoServer { .. } | Error::Unreachable { .. } => EXIT_UNREACHABLE,
            Error::Pull { failed, boxes, unreached: true } if failed == boxes => EXIT_UNREACHABLE,
            _ => EXIT_FAILED,
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self, Error::OutputClosed)
    }

    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Error::NoServer { dir } => Some(format!(
                "start it with `emberd serve --data {}`, or name another server with --data, or --server, --key-file and --ca",
                dir.display()
            )),
            Error::Unreachable { .. } => Some("start it with `emberd serve --data DIR`, or check the address".into()),
            Error::Untrusted { reason, .. } if reason.contains("not valid for name") => {
                Some("call it by a name or address that its certificate has: its host's, or what it listens on".into())
            }
            Error::Untrusted { .. } => {
                Some("give the CA that signed its certificate: --ca FILE (on its machine: DIR/tls/ca.pem)".into())
            }
            Error::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "run as the user who owns it (the admin key is root's), or make a key: `ember key create --name N`"
                    .into(),
            ),
            Error::Flash(error) if !error.nothing_written() => {
                Some("the disk is not whole, and has a mark that says so: flash it again".into())
            }
            Error::Flash(firmware_flash::FlashError::Refused { .. }) => {
                Some("`ember flash` lists the disks; --force writes one that is in use".into())
            }
            Error::NothingPulled { .. } => Some("`ember fleet pull` makes it".into()),
            Error::NoCredentials { .. } => {
                Some("enrol the box (`ember fleet enrol NAME`), or name the files: --ca, --cert and --key".into())
            }
            Error::Pull { .. } => Some(
                "pull again for those that were not reached; `ember fleet report` says what is wrong with the others"
                    .into(),
            ),
            Error::StillRunning { .. } => {
                Some("wait longer (--wait), or stop emberd: it cuts them after `drain` of its configuration".into())
            }
            Error::Refused { status, code, .. } => refusal_hint(*status, code.as_deref()).map(Into::into),
            _ => None,
        }
    }
}

fn refusal_hint(status: u16, code: Option<&str>) -> Option<&'static str> {
    match (status, code) {
        (401, _) => Some("check the key: --key-file FILE, or EMBER_KEY"),
        (403, _) => Some(
            "functions and the box are the admin key's (DIR/admin.key); a call needs a key that allows the function",
        ),
        (404, Some("model_not_found")) => Some("`ember ls` shows the functions there are"),
        (429, Some("insufficient_quota")) => {
            Some("a budget is used up: `ember budget ls` shows whose, `ember budget set` gives more")
        }
        (429 | 503, _) => Some("the server is busy: try again in a moment"),
        _ => None,
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Error::OutputClosed,
            _ => Error::Output(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_whose_turn_it_is() {
        let code = |error: Error| error.exit_code();
        assert_eq!(code(Error::Usage(String::new())), 64);
        assert_eq!(code(Error::NoServer { dir: "d".into() }), 69);
        assert_eq!(code(Error::Unreachable { url: String::new(), reason: String::new() }), 69);
        assert_eq!(code(Error::Unhealthy), 1);
        let pull = |failed, unreached| Error::Pull { failed, boxes: 3, unreached };
        assert_eq!([pull(3, true), pull(3, false), pull(1, false)].map(code), [69, 1, 1]);
        assert_eq!(code(io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }
}
