//! Where the configuration comes from: the flags, and the text of a file. Kept as such, so that a child can be given it
//! in a packet and reads the very same; [`Source::resolve`] is pure.

use crate::{arguments::Flags, exit::Failure};
use appliance_config::ServeConfig;
use serde::{Deserialize, Serialize};
use std::{fs::File, io::Read, path::PathBuf};

/// Longest configuration file.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Flags and text, not yet read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Source {
    flags: Flags,
    text: String,
}

impl Source {
    /// Reads the file that the flags name, if they name one.
    pub(crate) fn read(flags: &Flags) -> Result<Self, Failure> {
        let text = flags.config.as_ref().map_or(Ok(String::new()), text)?;
        Ok(Self { flags: flags.clone(), text })
    }

    /// Whether a sandbox may lack a layer that the kernel does not have. A flag alone says so: a file is forgotten.
    pub(crate) fn may_lack_layers(&self) -> bool {
        self.flags.insecure_sandbox
    }

    /// Flags before file before defaults.
    pub(crate) fn resolve(&self) -> Result<ServeConfig, Failure> {
        let file = self.flags.config.clone().unwrap_or_default();
        let config = ServeConfig::parse(&self.text).map_err(|source| Failure::Config { file, source })?;
        Ok(ServeConfig {
            data: self.flags.data.clone().unwrap_or(config.data),
            listen: self.flags.listen.unwrap_or(config.listen),
            telemetry_listen: self.flags.telemetry_listen.or(config.telemetry_listen),
            agent_listen: self.flags.agent_listen.or(config.agent_listen),
            ..config
        })
    }
}

fn text(path: &PathBuf) -> Result<String, Failure> {
    let unusable = |reason: String| Failure::Unusable(format!("{}: {reason}", path.display()));
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| unusable(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unusable(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_before_the_file() {
        let text = "data = \"/file\"\nlisten = \"127.0.0.1:1\"\ndrain = \"1s\"".to_owned();
        let flags = Flags { data: Some("/flag".into()), ..Flags::default() };
        let config = Source { flags, text }.resolve().unwrap();
        assert_eq!((config.data.as_str(), config.listen.port(), config.drain_ms), ("/flag", 1, 1_000));
        assert_eq!(Source::default().resolve().unwrap(), ServeConfig::default());
    }

    #[test]
    fn a_file_that_is_not_there_or_too_long_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("long.toml");
        std::fs::write(&long, "#".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
        for path in [folder.path().join("none.toml"), long] {
            let flags = Flags { config: Some(path.clone()), ..Flags::default() };
            let failure = Source::read(&flags).unwrap_err();
            assert!(failure.to_string().starts_with(path.to_str().unwrap()), "{failure}");
        }
    }
}
