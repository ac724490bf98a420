//! Prometheus' HTTP service discovery: which boxes there are to scrape, as JSON, printed or served.
//!
//! ```text
//!  Prometheus ── GET / ──▶ [{ "targets": ["192.0.2.7:9443"], "labels": { "box": "shop-7", … } }]   the roster as it is now
//! ```
//! It names addresses and no secrets, so it is served over plain HTTP; on 127.0.0.1, beside Prometheus, unless told
//! otherwise. Each connection has a few seconds for its head, and its place among [`CONNECTIONS_MAX`].

use crate::{Member, Roster, RosterError};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 16;
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How long a connection lives: Prometheus makes another.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Pause after an accept that failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What Prometheus is told of a roster.
pub fn targets(roster: &Roster) -> Value {
    let target = |member: &Member| {
        json!({
            "targets": [member.address.authority()],
            "labels": { "box": member.name, "__scheme__": "https", "__metrics_path__": "/metrics" },
        })
    };
    roster.members().iter().map(target).collect()
}

/// Serves what [`targets`] says of the roster in a folder.
#[derive(Debug)]
pub struct Discovery {
    listener: TcpListener,
    folder: PathBuf,
}

impl Discovery {
    /// Listens.
    ///
    /// # Errors
    /// The kernel's, and [`RosterError`] where there is a roster that cannot be read.
    pub fn open(address: SocketAddr, folder: &Path) -> Result<Self, RosterError> {
        Roster::open(folder)?;
        let listener = TcpListener::bind(address).map_err(|source| RosterError::Io {
            action: "listen on",
            path: address.to_string().into(),
            source,
        })?;
        Ok(Self { listener, folder: folder.to_owned() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// The kernel's, at the start.
    pub fn serve(self) -> io::Result<()> {
        self.listener.set_nonblocking(true)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let (places, folder) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::<Path>::from(self.folder));
            loop {
                let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let folder = Arc::clone(&folder);
                tokio::spawn(async move {
                    let answer =
                        service_fn(|request| std::future::ready(Ok::<_, Infallible>(reply(&request, &folder))));
                    let mut http = http1::Builder::new();
                    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
                    // A client that goes away, or stays for too long, has had its answers.
                    let _ = timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(stream), answer)).await;
                    drop(place);
                });
            }
        })
    }
}

fn reply(request: &Request<Incoming>, folder: &Path) -> Response<Full<Bytes>> {
    let wrong = |status, what: &str| (status, json!({ "error": what }));
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => match Roster::open(folder) {
            Ok(roster) => (StatusCode::OK, targets(&roster)),
            Err(error) => wrong(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        (&Method::GET, _) => wrong(StatusCode::NOT_FOUND, "it is at /"),
        _ => wrong(StatusCode::METHOD_NOT_ALLOWED, "it answers GET"),
    };
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpStream,
        thread,
    };

    #[test]
    fn it_says_the_roster_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let discovery = Discovery::open(([127, 0, 0, 1], 0).into(), folder.path()).unwrap();
        let address = discovery.address().unwrap();
        thread::spawn(|| discovery.serve());
        let ask = |line: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            reply
        };
        assert!(ask("GET /").ends_with("\r\n\r\n[]"));
        let (name, address) = ("a".parse().unwrap(), "[::1]:9".parse().unwrap());
        let member = Member { name, address, ca: None, cert: None, key: None };
        Roster::open(folder.path()).unwrap().put(member).unwrap();
        let reply = ask("GET /");
        assert!(reply.contains(r#""targets":["[::1]:9"]"#) && reply.contains(r#""box":"a""#), "{reply}");
        assert!(ask("GET /x").starts_with("HTTP/1.1 404 "));
        assert!(ask("POST /").starts_with("HTTP/1.1 405 "));
        std::fs::write(folder.path().join("boxes.json"), "no").unwrap();
        assert!(ask("GET /").starts_with("HTTP/1.1 500 "));
    }
}
