//! S10: CPU time of the server process a request, ours ÷ hyper on tokio.
//!
//! Sixteen connections kept alive post 200 bytes and read 200 back. The server has one core and the clients another, so
//! that neither takes the other's time; CPU time is what the kernel counted for the server's threads.

use crate::{
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave},
    http_client::{Server, in_thread, tls},
    peers::{self, REPLY, REQUEST},
    process::{Process, Says},
};
use bytes::Bytes;
use std::{net::SocketAddr, path::Path, process::Command};

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 9;
const REQUESTS: usize = 40_000;
const SMOKE_REQUESTS: usize = 50;

pub(crate) struct EdgeCpu;

impl Figure for EdgeCpu {
    fn name(&self) -> &'static str {
        "S10"
    }

    fn title(&self) -> &'static str {
        "CPU time an HTTPS request, edge ÷ hyper on tokio (current_thread, SO_REUSEPORT)"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(1.5)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let requests = if context.smoke { SMOKE_REQUESTS } else { REQUESTS };
        let folder = tempfile::tempdir().map_err(Error::setup)?;
        let ca = peers::write_identity(folder.path())?;
        let cores = Cores::of_this_machine()?;
        let ours = Contender::start("serve-edge", folder.path(), &ca, cores)?;
        let peer = Contender::start("serve-hyper", folder.path(), &ca, cores)?;
        // The first requests of a process pay for what later ones find ready.
        ours.cpu_us_per_request(requests / 5)?;
        peer.cpu_us_per_request(requests / 5)?;
        let rounds = context.rounds(ROUNDS);
        let samples = interleave(rounds, || ours.cpu_us_per_request(requests), || peer.cpu_us_per_request(requests))?;
        let ours = Side { label: "appliance-edge on glommio".into(), samples: samples.0 };
        let peer = Side { label: "hyper on tokio".into(), samples: samples.1 };
        Ok(Measured::new("µs CPU a request", ours, peer))
    }
}

/// CPU time that our edge alone takes for a small HTTPS request, µs: for what is told as a share of it.
pub(crate) fn request_cpu_us(context: &Context) -> Result<f64, Error> {
    let requests = if context.smoke { SMOKE_REQUESTS } else { REQUESTS };
    let folder = tempfile::tempdir().map_err(Error::setup)?;
    let ca = peers::write_identity(folder.path())?;
    let ours = Contender::start("serve-edge", folder.path(), &ca, Cores::of_this_machine()?)?;
    ours.cpu_us_per_request(requests / 5)?;
    ours.cpu_us_per_request(requests)
}

#[derive(Clone, Copy)]
struct Cores {
    server: usize,
    client: usize,
}

impl Cores {
    /// The first core for the server and the last for the client: the same where there is one.
    fn of_this_machine() -> Result<Self, Error> {
        let cores = appliance_runtime::available_cores().map_err(Error::setup)?;
        match (cores.first(), cores.last()) {
            (Some(first), Some(last)) => Ok(Self { server: *first, client: *last }),
            _ => Err(Error::setup("this process may run on no core")),
        }
    }
}

/// One of the two servers, and its clients.
struct Contender {
    process: Process,
    server: Server,
    client_core: usize,
}

impl Contender {
    fn start(subcommand: &str, identity: &Path, ca_pem: &str, cores: Cores) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe().map_err(Error::setup)?);
        command.arg(subcommand).args(["--core", &cores.server.to_string()]).arg("--identity").arg(identity);
        let ready = |line: &str| line.strip_prefix("ready ")?.parse::<SocketAddr>().ok();
        let (process, address) = Process::start(command, Says::Stdout, ready)?;
        let server = Server { address, tls: Some(tls(ca_pem)?), authorization: None };
        Ok(Self { process, server, client_core: cores.client })
    }

    fn cpu_us_per_request(&self, requests: usize) -> Result<f64, Error> {
        in_thread(Some(self.client_core), async || {
            let clients = connect(&self.server).await?;
            let before_us = self.process.cpu_us()?;
            let done = post_all(clients, requests).await?;
            Ok((self.process.cpu_us()? - before_us) / done as f64)
        })
    }
}

type Client = crate::http_client::Connection;

async fn connect(server: &Server) -> Result<Vec<Client>, Error> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        clients.push(server.connect().await?);
    }
    Ok(clients)
}

/// Spreads `requests` over the connections, each posting one after the other; returns how many were answered.
async fn post_all(clients: Vec<Client>, requests: usize) -> Result<usize, Error> {
    let request = Bytes::from_static(&REQUEST);
    let share = requests.div_ceil(clients.len());
    let total = share * clients.len();
    let tasks: Vec<_> = clients.into_iter().map(|client| tokio::spawn(post(client, request.clone(), share))).collect();
    for task in tasks {
        task.await.map_err(Error::setup)??;
    }
    Ok(total)
}

async fn post(mut client: Client, request: Bytes, times: usize) -> Result<(), Error> {
    for _ in 0..times {
        let reply = client.exchange("/v1/chat/completions", request.clone()).await?;
        if reply[..] != REPLY {
            return Err(Error::setup("a server answered something else than the reply"));
        }
    }
    Ok(())
}
