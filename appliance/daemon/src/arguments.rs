//! The command line. Arguments are read here; what they mean together with a configuration file is in [`crate::source`].

use crate::{
    control::Role,
    exit::{Failure, USAGE},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// Serverless inference on one machine.
#[derive(Debug, Parser)]
#[command(name = "emberd", version, about)]
pub(crate) struct Arguments {
    /// How log lines look on stderr.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level, or `target=level` pairs.
    #[arg(long, global = true, env = "EMBER_LOG", default_value = "info")]
    pub(crate) log: String,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer requests until SIGTERM or SIGINT; SIGHUP reloads configuration and certificates.
    Serve(Flags),
    /// The ledger's files.
    #[command(subcommand)]
    Ledger(Ledger),
    /// Whether the service answers; 0 if it does. For who watches it from this machine, as PID 1 of the appliance does.
    Health(Health),
    /// Deploy what came with an appliance's image and is not deployed yet. PID 1 of the appliance runs it once a start.
    #[command(hide = true)]
    Preload(Preload),
    /// A child of `serve`.
    #[command(hide = true)]
    Child {
        /// Which.
        role: Role,
    },
}

/// What is asked of a service.
#[derive(Args, Debug)]
pub(crate) struct Health {
    /// Folder that holds everything.
    #[arg(long, value_name = "DIR", default_value = "./ember-data")]
    pub(crate) data: String,
    /// Also have a function compute one token, if any is deployed; it is billed to the admin key.
    #[arg(long)]
    pub(crate) answer: bool,
    /// Longest time for all of it.
    #[arg(long, value_name = "SECONDS", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) within: u64,
}

/// Whose functions are deployed.
#[derive(Args, Debug)]
pub(crate) struct Preload {
    /// Folder that holds everything.
    #[arg(long, value_name = "DIR", default_value = "./ember-data")]
    pub(crate) data: String,
    /// Longest time for all of it, from the wait for the service on.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) within: u64,
}

/// What can be done to a ledger.
#[derive(Debug, Subcommand)]
pub(crate) enum Ledger {
    /// Check every line and the chain over all segments, and tell damage by segment and offset; changes nothing.
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Make the index anew from the segments, after checking them.
    Rebuild {
        #[command(flatten)]
        place: Place,
    },
}

/// Which ledger, and how its state is told.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Folder that holds everything.
    #[arg(long, value_name = "DIR", default_value = "./ember-data")]
    pub(crate) data: String,
    /// One JSON document on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `serve` can be told. A flag goes before the same key of the configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flags {
    /// Configuration file, TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder that holds everything [default: ./ember-data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Where requests are answered; port 0 picks a free one [default: 127.0.0.1:8443].
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where telemetry is answered.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) telemetry_listen: Option<SocketAddr>,
    /// Where a load balancer is told how much this box could take: HAProxy's agent check.
    #[arg(long, value_name = "ADDR:PORT")]
    #[serde(default)]
    pub(crate) agent_listen: Option<SocketAddr>,
    /// Start even where the kernel lacks Landlock, and say so. For trying Ember out; nothing else of the sandbox is given up.
    #[arg(long)]
    #[serde(default)]
    pub(crate) insecure_sandbox: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The value as the command line takes it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Reads the command line. `Err` is the code to exit with: the text was printed.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| {
        let printed = error.print();
        match (error.use_stderr(), printed) {
            (false, Ok(())) => ExitCode::SUCCESS,
            (false, Err(error)) => ExitCode::from(&Failure::io("print", "stdout", error)),
            (true, _) => ExitCode::from(USAGE),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        for format in LogFormat::value_variants() {
            assert_eq!(format.to_possible_value().unwrap().get_name(), format.as_str());
        }
    }
}
