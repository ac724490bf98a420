//! `emberd`: one program, four processes.
//!
//! ```text
//!  emberd serve ── supervisor ──┬── emberd child warden    root, no network: models, sandboxes
//!                               ├── emberd child server    faces the network, unprivileged
//!                               └── emberd child ledger    unprivileged, no network: the record of each request
//! ```
//!
//! Reading order: [`supervisor`] (what lives when), [`children`] (what each may do), [`control`] and [`setup`] (what
//! they are given), [`data`] and [`tls`] (what lies on the disk), [`server`] (what is answered).

mod arguments;
mod children;
mod control;
mod data;
mod exit;
mod files;
mod health;
mod ledger;
mod logging;
mod machine;
mod meters;
mod own;
mod preload;
mod processes;
mod resources;
mod server;
mod setup;
mod source;
mod supervisor;
mod telemetry_files;
mod tls;

use crate::{arguments::Command, exit::Failure};
use appliance_edge::authority::{check_enrolment, fingerprint};
use firmware_init::Certificates;
use std::{panic::catch_unwind, process::ExitCode};

fn main() -> ExitCode {
    if firmware_init::is_init() {
        return firmware_init::run(Certificates {
            check_fleet: |ca, certificate, key| {
                check_enrolment(ca, certificate, key).map_err(|error| error.to_string())
            },
            fingerprint: |pem| fingerprint(pem).map_err(|error| error.to_string()),
        });
    }
    let arguments = match arguments::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let ended = catch_unwind(|| {
        logging::start(arguments.log_format, &arguments.log)?;
        match &arguments.command {
            Command::Serve(flags) => supervisor::serve(flags, arguments.log_format, &arguments.log),
            Command::Ledger(command) => ledger::run(command),
            Command::Health(flags) => health::run(flags),
            Command::Preload(flags) => preload::run(flags),
            Command::Child { role } => children::run(*role),
        }
    });
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            eprintln!("emberd: {failure}");
            ExitCode::from(&failure)
        }
        // The panic has printed itself.
        Err(_) => ExitCode::from(&Failure::Bug("a panic".to_owned())),
    }
}
