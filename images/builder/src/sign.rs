//! Signs what firmware starts, for Secure Boot: by `sbsign`, of Debian's sbsigntool.
//!
//! A signature stands behind the program's sections and names the time of signing, so that signed images are not the same
//! bytes twice.

use crate::{ImageError, debian::run};
use std::{fs, path::PathBuf};

/// Who signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The secret key, PEM.
    pub key: PathBuf,
    /// The certificate of that key that firmware knows, PEM.
    pub certificate: PathBuf,
}

impl Signer {
    /// `program`, a PE program, with the signature.
    ///
    /// # Errors
    /// [`ImageError::Program`] where sbsign is missing, cannot read key or certificate, or finds no program.
    pub fn sign(&self, program: &[u8]) -> Result<Vec<u8>, ImageError> {
        let folder = tempfile::tempdir().map_err(ImageError::at("a temporary folder"))?;
        let [from, to] = ["plain", "signed"].map(|name| folder.path().join(name));
        fs::write(&from, program).map_err(ImageError::at(&from))?;
        let paths = [&self.key, &self.certificate, &to, &from].map(|path| path.to_string_lossy());
        let [key, certificate, signed, plain] = paths.each_ref().map(AsRef::as_ref);
        run("sbsign", &["--key", key, "--cert", certificate, "--output", signed, plain], None)?;
        fs::read(&to).map_err(ImageError::at(&to))
    }
}
