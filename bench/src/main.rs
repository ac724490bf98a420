//! `make bench`: Ember's figures, each a ratio to a real peer that does the same work on the same machine.
//!
//! ```text
//!  figures ─▶ interleaved rounds (ours, peer, peer, ours, …) ─▶ ratio pair by pair ─▶ line · report.json · report.html
//! ```
//! What is measured (the bars are those of `docs/SPECIFICATION.md`):
//! - S1 and S2 first token from parked ÷ from a running instance, and from stored ÷ llama-server from its exec ([`wake`]);
//! - S3 and S4 memory of a second instance ÷ a second llama-server, and a snapshot's size ÷ its model's ([`memory`]);
//! - S5 decode rate of one stream through HTTPS ÷ that of llama-server, and S6 of eight at once ([`decode`]);
//! - S7 two functions busy at once ÷ two llama-servers ([`together`]);
//! - S8 a sealed restore ÷ `crun run` ([`restore`]);
//! - S9 the meter's producer side ÷ the crate rtrb ([`meter`]);
//! - S10 the edge's CPU time a request ÷ that of hyper on tokio ([`edge`]);
//! - S11 the size of an image, and its boot ÷ one to a shell, where `make image` built one ([`image`]).
//!
//! Invariants: both sides of a ratio come from one run on one machine, and every raw sample is in the report. Wall time
//! on a shared machine is noisy, so no test asserts one. Left out: comparing runs with each other.

mod chat;
mod decode;
mod edge;
mod ember;
mod error;
mod figure;
mod flash;
mod http_client;
mod image;
mod llama_server;
mod load;
mod machine;
mod memory;
mod meter;
mod overload;
mod peers;
mod process;
mod report;
mod restore;
mod steps;
mod svg;
mod together;
mod wake;
mod waterfall;

use clap::{Parser, Subcommand};
use error::Error;
use figure::{Context, Figure, Outcome};
use machine::Machine;
use report::Report;
use std::{fs, path::PathBuf, process::ExitCode};
use tests_synthetic::Sizes;

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
    /// Load Ember to half, to four fifths and to four times what it can do, and print what callers see
    Overload(Overload),
    /// Write a model of 1.2 GB with random weights: what a larger one costs, where none is at hand
    Larger(Larger),
    /// Write an image to a file by `ember flash`, bmaptool and dd, in turns
    Flash(Flash),
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

#[derive(Debug, clap::Args)]
struct Overload {
    /// The GGUF to run
    #[arg(long, value_name = "FILE", default_value = "models/SmolLM2-135M-Instruct.Q4_1.gguf")]
    model: PathBuf,
    /// How long each level lasts
    #[arg(long, value_name = "S", default_value_t = 30)]
    seconds: u64,
}

#[derive(Debug, clap::Args)]
struct Flash {
    /// Where image and target are written; its file system is measured
    #[arg(long, value_name = "DIR", default_value = "target")]
    folder: PathBuf,
    /// Length of the image; half of it is data
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    mib: u64,
    /// How often each writes
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

#[derive(Debug, clap::Args)]
struct Larger {
    /// The GGUF whose architecture (llama) and vocabulary it has
    #[arg(long, value_name = "FILE", default_value = "models/SmolLM2-135M-Instruct.Q4_1.gguf")]
    from: PathBuf,
    /// 270 million weights with a vocabulary of 262,144 words, in place of 1.2 GB
    #[arg(long)]
    wordy: bool,
    /// The GGUF to write
    #[arg(value_name = "FILE")]
    to: PathBuf,
}

impl Larger {
    fn sizes(&self) -> Sizes {
        if self.wordy { Sizes::WORDY } else { Sizes::LARGE }
    }
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(run) => measure(&run),
        Command::Larger(larger) => tests_synthetic::write(&larger.from, &larger.to, larger.sizes())
            .map_err(Error::setup)
            .map(|bytes| println!("{} MB in {}", bytes / 1_000_000, larger.to.display())),
        Command::Overload(overload) => overload::run(&overload.model, overload.seconds),
        Command::Flash(flash) => flash::measure(&flash.folder, flash.mib, flash.rounds),
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
    let machine = Machine::this();
    let context = Context { model: run.model.clone(), smoke: run.smoke };
    // Not every figure needs a model; those that do say so where there is none.
    let model_bytes = fs::metadata(&run.model).map_or(0, |model| model.len());
    let mut outcomes = Vec::new();
    for figure in figures {
        let outcome = Outcome::of(figure.as_ref(), figure.bar_for(model_bytes), figure.measure(&context)?);
        println!("{outcome}");
        outcome.measured.notes.iter().for_each(|note| eprintln!("    {note}"));
        outcomes.push(outcome);
    }
    let folder = Report::new(machine, outcomes).write(&run.runs)?;
    eprintln!("written to {}", folder.display());
    Ok(())
}

fn all() -> Vec<Box<dyn Figure>> {
    let mut all: Vec<Box<dyn Figure>> = vec![Box::new(wake::FromParked)];
    all.extend(wake::FROM_STORED.map(|figure| Box::new(figure) as _));
    all.push(Box::new(memory::SecondInstance));
    all.push(Box::new(memory::SnapshotSize));
    all.push(Box::new(decode::DecodeRate));
    all.push(Box::new(decode::SharedDecodeRate));
    all.extend(together::BOTH.map(|figure| Box::new(figure) as _));
    all.extend(restore::BOTH.map(|figure| Box::new(figure) as _));
    all.push(Box::new(meter::ProducerSide));
    all.push(Box::new(edge::EdgeCpu));
    all.push(Box::new(image::ImageSize));
    all.push(Box::new(image::Boot));
    all
}

/// Figures by name; `S2` is also all of `S2-…`.
fn chosen(only: &[String]) -> Result<Vec<Box<dyn Figure>>, Error> {
    let all = all();
    let is_meant = |figure: &dyn Figure, name: &str| {
        let rest = figure.name().strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if let Some(unknown) = only.iter().find(|name| !all.iter().any(|figure| is_meant(figure.as_ref(), name))) {
        let known = all.iter().map(|figure| figure.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownFigure { name: unknown.clone(), known });
    }
    let is_chosen =
        |figure: &dyn Figure| only.is_empty() && figure.is_ready() || only.iter().any(|name| is_meant(figure, name));
    Ok(all.into_iter().filter(|figure| is_chosen(figure.as_ref())).collect())
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
        let all = names(&[]).unwrap();
        // S11 is among them where there is an image.
        assert_eq!((all.first(), all.get(14)), (Some(&"S1"), Some(&"S10")));
        assert_eq!(names(&["S11"]).unwrap(), ["S11", "S11-boot"]);
        assert_eq!(names(&["S10", "S1"]).unwrap(), ["S1", "S10"]);
        assert_eq!(names(&["S2"]).unwrap(), ["S2", "S2-disk", "S2-prompt", "S2-prompt-disk"]);
        assert_eq!(names(&["S2-prompt-disk"]).unwrap(), ["S2-prompt-disk"]);
        assert!(matches!(names(&["S99"]), Err(Error::UnknownFigure { .. })));
    }
}
