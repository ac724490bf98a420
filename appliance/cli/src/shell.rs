//! What a shell and `man` know of `ember`: made of the definitions that a command line is parsed by, so that neither can say
//! what is not so.

use crate::{args::Args, error::Error};
use clap::CommandFactory;
use clap_complete::Shell;
use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ember", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

/// Writes a manual page for each command into a folder.
pub(crate) fn man(folder: &Path) -> Result<(), Error> {
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Args::command(), folder));
    written.map_err(|source| Error::Write { path: folder.to_owned(), source })
}
