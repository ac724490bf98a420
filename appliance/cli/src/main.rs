//! `ember`, the operator's command line: each command is one or two requests to a server's HTTP API.
//!
//! ```text
//!  args ──▶ target (which server, which key) ──▶ client ──▶ one file a command group ──▶ output
//! ```
//!
//! Invariants: results go to stdout and nothing else does; progress and messages go to stderr; what can be refused
//! without the server (usage, a manifest's syntax, a missing file) is refused before it is asked. A failed command
//! says what failed, why, and what to do, and its exit code tells whose turn it is ([`error::Error::exit_code`]).
//! Left out: anything that decides. The server does that, so that every client gets the same answer.

mod args;
mod budget;
mod client;
mod deploy;
mod doctor;
mod drain;
mod error;
mod fetch;
mod flash;
mod fleet;
mod function;
mod image;
mod instance;
mod key;
mod machine;
mod model;
mod output;
mod records;
mod report;
mod run;
mod shell;
mod sim;
mod snapshot;
mod sse;
mod support;
mod target;
mod top;
mod update;
mod usage;

use args::{Args, Command};
use clap::Parser;
use client::Client;
use error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Args::try_parse() {
        Ok(args) => end(command(args)),
        Err(refusal) => usage(&refusal),
    }
}

fn command(args: Args) -> Result<(), Error> {
    let target = || target::resolve(&args.target, &target::Environment::of_process());
    let client = || Client::connect(&target()?);
    match args.command {
        Command::Deploy(deploy) => deploy::deploy(deploy, client),
        Command::Ls(listing) => function::ls(&client()?, listing),
        Command::Show(show) => function::show(&client()?, show),
        Command::Rm { function } => function::rm(&client()?, &function),
        Command::Model(model) => model::command(model, client),
        Command::Run(run) => run::run(&client()?, &run),
        Command::Ps(listing) => instance::ps(&client()?, listing),
        Command::Top(top) => top::top(client()?, &top),
        Command::Wake { function } => instance::wake(&client()?, &function),
        Command::Park { function } => instance::park(&client()?, &function),
        Command::Stop { function } => instance::stop(&client()?, &function),
        Command::Drain(command) => drain::drain(&client()?, &command),
        Command::Resume => drain::resume(&client()?),
        Command::Snapshot(command) => snapshot::command(&client()?, command),
        Command::Key(key) => key::command(&client()?, key),
        Command::Budget(command) => budget::command(&client()?, command),
        Command::Usage(command) => usage::command(&client()?, command),
        Command::Report(command) => report::command(&client()?, &command),
        Command::Sim(sim) => sim::sim(&sim),
        Command::Image(command) => image::command(&command),
        Command::Update(command) => update::command(&client()?, &command),
        Command::Flash(command) => flash::command(&command),
        Command::Fleet(command) => fleet::command(command, args.target.ca.clone()),
        Command::Doctor(listing) => doctor::doctor(target(), listing),
        Command::Support(support) => support::support(target(), &support),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { folder } => shell::man(&folder),
    }
}

fn end(result: Result<(), Error>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if !error.is_quiet() {
        eprintln!("ember: {error}");
    }
    if let Some(hint) = error.hint() {
        eprintln!("  {hint}");
    }
    ExitCode::from(error.exit_code())
}

/// Prints what clap has to say: help and version on stdout, a usage error on stderr.
fn usage(refusal: &clap::Error) -> ExitCode {
    match refusal.print() {
        Ok(()) if !refusal.use_stderr() => ExitCode::SUCCESS,
        _ => ExitCode::from(error::EXIT_USAGE),
    }
}
