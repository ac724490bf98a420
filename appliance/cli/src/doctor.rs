//! `ember doctor`: what Ember needs of this machine, tried one by one, then whether the server answers.
//!
//! Works without a server, which is when it is needed most: a server that does not run is a note, not a failure, but one
//! that runs and is not trusted or refuses the key is.

use crate::{args::Listing, client::Client, error::Error, output, target::Target};
use sandbox_kernel::probe::{self, Probe};
use serde::Serialize;
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Worth knowing, and Ember works without it.
    Note,
    Missing,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    name: String,
    state: State,
    /// What was found, or what to do.
    detail: String,
}

pub(crate) fn doctor(target: Result<Target, Error>, listing: Listing) -> Result<(), Error> {
    let checks = checks(target.as_ref());
    output::print(listing, &json!(checks), || Ok(table(&checks)))?;
    match checks.iter().any(|check| check.state == State::Missing) {
        true => Err(Error::Unhealthy),
        false => Ok(()),
    }
}

/// All that can be tried, tried.
pub(crate) fn checks(target: Result<&Target, &Error>) -> Vec<Check> {
    let machine = probe::all().into_iter().map(Check::of_probe);
    machine.chain([Check::of_server(server(target))]).collect()
}

fn table(checks: &[Check]) -> String {
    output::table(["CHECK", "STATE", "DETAIL"], checks.iter().map(Check::cells))
}

fn server(target: Result<&Target, &Error>) -> Result<String, (State, String)> {
    let answer = |target: &Target| {
        let client = Client::connect(target)?;
        client.get("/v1/models")?;
        Ok(client.url().to_owned())
    };
    match target {
        Ok(target) => answer(target).map_err(|error| fault(&error)),
        Err(error) => Err(fault(error)),
    }
}

/// How bad an error is, and what to do.
fn fault(error: &Error) -> (State, String) {
    let words = [Some(error.to_string()), error.hint()].into_iter().flatten().collect::<Vec<_>>();
    (state_of(error), words.join("; "))
}

impl Check {
    fn of_probe(probe: Probe) -> Self {
        let (state, detail) = match (probe.outcome, probe.needed) {
            (Ok(found), _) => (State::Ok, found),
            (Err(fix), true) => (State::Missing, fix),
            (Err(fix), false) => (State::Note, fix),
        };
        Self { name: probe.name.to_owned(), state, detail }
    }

    fn of_server(answer: Result<String, (State, String)>) -> Self {
        let (state, detail) = match answer {
            Ok(url) => (State::Ok, format!("{url} answers, its certificate and the key are good")),
            Err(fault) => fault,
        };
        Self { name: "server".to_owned(), state, detail }
    }

    fn cells(&self) -> [String; 3] {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "missing",
        };
        [self.name.clone(), state.to_owned(), self.detail.clone()]
    }
}

fn state_of(error: &Error) -> State {
    match error {
        Error::NoServer { .. } | Error::Unreachable { .. } => State::Note,
        _ => State::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_and_absent_is_missing() {
        let probe = |needed, outcome| Check::of_probe(Probe { name: "p", needed, outcome }).state;
        assert_eq!(probe(true, Ok("ok".into())), State::Ok);
        assert_eq!(probe(true, Err("fix".into())), State::Missing);
        assert_eq!(probe(false, Err("fix".into())), State::Note);
    }

    #[test]
    fn a_server_that_does_not_run_is_a_note() {
        let check = Check::of_server(Err(fault(&Error::NoServer { dir: "d".into() })));
        assert_eq!(check.state, State::Note);
        assert!(check.detail.contains("emberd serve --data d"), "{}", check.detail);
        let refused = Error::Refused { status: 401, code: None, message: "no such key".into() };
        assert_eq!(Check::of_server(Err(fault(&refused))).state, State::Missing);
    }
}
