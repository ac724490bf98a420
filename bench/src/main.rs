//! `make bench`: Ember's figures, each a ratio to a real peer that does the same work on the same machine.
//!
//! ```text
//!  figures ─▶ interleaved rounds (ours, peer, peer, ours, …) ─▶ ratio pair by pair ─▶ line · report.json · report.html
//! ```
//! What is measured (the bars are those of `docs/SPECIFICATION.md`):
//! - S5 decode rate of one stream through HTTPS ÷ that of llama-server, and S6 of eight at once ([`decode`]);
//! - S10 the edge's CPU time a request ÷ that of hyper on tokio ([`edge`]).
//!
//! Invariants: both sides of a ratio come from one run on one machine, and every raw sample is in the report. Wall time
//! on a shared machine is noisy, so no test asserts one. Left out: comparing runs with each other.

mod decode;
mod edge;
mod error;
mod figure;
mod http_client;
mod machine;
mod peers;
mod process;
mod report;
mod svg;

use clap::{Parser, Subcommand};
use error::Error;
use figure::{Context, Figure, Outcome};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Parser)]
#[command(name = "bench", version, about = "Measure Ember against its peers")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure figures, print one line each, write report.json and report.html
    Run(Run),
    /// Serve S10's work with Ember's edge
    #[command(hide = true)]
    ServeEdge(peers::Serve),
    /// Serve S10's work with hyper on tokio
    #[command(hide = true)]
    ServeHyper(peers::Serve),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Figures to measure; all without this
    #[arg(long, value_name = "S5,S10", value_delimiter = ',')]
    only: Vec<String>,
    /// The GGUF that both sides run
    #[arg(long, value_name = "FILE", default_value = "models/SmolLM2-135M-Instruct.Q4_1.gguf")]
    model: PathBuf,
    /// Where runs are written, each into a folder of its own
    #[arg(long, value_name = "DIR", default_value = "bench/runs")]
    runs: PathBuf,
    /// One round of tiny input: shows that the bench works, measures nothing
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(run) => measure(&run),
        Command::ServeEdge(serve) => peers::edge(&serve),
        Command::ServeHyper(serve) => peers::hyper(&serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(run: &Run) -> Result<(), Error> {
    let figures = chosen(&run.only)?;
    let context = Context { model: run.model.clone(), smoke: run.smoke };
    let mut outcomes = Vec::new();
    for figure in figures {
        let outcome = Outcome::of(figure.as_ref(), figure.measure(&context)?);
        println!("{outcome}");
        outcomes.push(outcome);
    }
    let folder = write(&run.runs, outcomes)?;
    eprintln!("written to {}", folder.display());
    Ok(())
}

fn write(runs: &Path, figures: Vec<Outcome>) -> Result<PathBuf, Error> {
    let machine = machine::Machine::this();
    let report = report::Report::new(machine, figures);
    report.write(runs)
}

fn chosen(only: &[String]) -> Result<Vec<Box<dyn Figure>>, Error> {
    let all: [Box<dyn Figure>; 3] =
        [Box::new(decode::DecodeRate), Box::new(decode::SharedDecodeRate), Box::new(edge::EdgeCpu)];
    if let Some(unknown) = only.iter().find(|name| !all.iter().any(|figure| figure.name() == **name)) {
        let known = all.iter().map(|figure| figure.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownFigure { name: unknown.clone(), known });
    }
    Ok(all.into_iter().filter(|figure| only.is_empty() || only.iter().any(|name| name == figure.name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_chosen_by_name() {
        let names = |only: &[&str]| {
            let only: Vec<_> = only.iter().map(|name| (*name).to_owned()).collect();
            chosen(&only).map(|figures| figures.iter().map(|figure| figure.name()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["S5", "S6", "S10"]);
        assert_eq!(names(&["S10"]).unwrap(), ["S10"]);
        assert!(matches!(names(&["S1"]), Err(Error::UnknownFigure { .. })));
    }
}
