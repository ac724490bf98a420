//! `ember drain` and `ember resume`: a box out of a service, and back into it.

use crate::{args::Drain, client::Client, error::Error, output};
use serde::Deserialize;
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

const PATH: &str = "/ember/v1/drain";
/// Between two looks at what still runs.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
struct Standing {
    requests: u64,
}

pub(crate) fn drain(client: &Client, command: &Drain) -> Result<(), Error> {
    let mut standing = client.post(PATH, &json!({}))?;
    if let Some(ms) = command.wait {
        let until = Instant::now() + Duration::from_millis(ms);
        loop {
            let Standing { requests } = client.typed(&standing)?;
            match requests {
                0 => break,
                _ if Instant::now() >= until => return Err(Error::StillRunning { requests }),
                _ => thread::sleep(PAUSE),
            }
            standing = client.get(PATH)?;
        }
    }
    output::print(command.listing, &standing, || {
        let Standing { requests } = client.typed(&standing)?;
        Ok(format!(
            "drained: load balancers send nothing new from their next check on; {requests} requests run or wait"
        ))
    })
}

pub(crate) fn resume(client: &Client) -> Result<(), Error> {
    client.delete(PATH)?;
    output::note("in service: load balancers send requests again from their next check on");
    Ok(())
}
