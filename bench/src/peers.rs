//! The two servers of S10, doing the same work: read 200 bytes, answer 200 bytes of JSON, over TLS.
//!
//! Each runs in a process of its own, on one core, says `ready ADDR` on stdout, and ends with the bench that started it.

use crate::{error::Error, http_client, process};
use appliance_edge::{
    Certificates, Edge, Handler, Limits, ReplyBody, Request,
    authority::{Identity, ServerNames, issue_server, make_authority},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::sys::{prctl, signal::Signal};
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    convert::Infallible,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What a client sends, and what it is answered.
pub(crate) const REQUEST: [u8; 200] = *include_bytes!("request.json");
pub(crate) const REPLY: [u8; 200] = *include_bytes!("reply.json");
const BACKLOG: u32 = 1024;
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How one of the servers is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The core to serve on
    #[arg(long)]
    core: usize,
    /// Folder of certificate.pem and key.pem
    #[arg(long)]
    identity: PathBuf,
}

/// Writes a server's identity into `folder`; returns the certificate of the CA that signed it.
pub(crate) fn write_identity(folder: &Path) -> Result<String, Error> {
    let now = SystemTime::now();
    let authority = make_authority("bench", now).map_err(Error::setup)?;
    let names = ServerNames::new("localhost", Ipv4Addr::LOCALHOST.into(), &[]);
    let server = issue_server(&authority, &names, now).map_err(Error::setup)?;
    for (name, text) in [("certificate.pem", server.certificate_pem), ("key.pem", server.key_pem)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|source| Error::File { path, source })?;
    }
    Ok(authority.certificate_pem)
}

fn read_identity(folder: &Path) -> Result<Identity, Error> {
    let read = |name| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    };
    Ok(Identity { certificate_pem: read("certificate.pem")?, key_pem: read("key.pem")? })
}

/// The kernel ends this process when the bench is gone, however that ended.
fn end_with_parent() -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Error::setup)
}

/// Ember's edge on glommio.
pub(crate) fn edge(serve: &Serve) -> Result<(), Error> {
    end_with_parent()?;
    let identity = read_identity(&serve.identity)?;
    let certificates = Certificates::load(&identity.certificate_pem, &identity.key_pem).map_err(Error::setup)?;
    let edge = Edge::new(Arc::new(certificates), Limits::default()).map_err(Error::setup)?;
    let listener = appliance_runtime::listeners(ANYWHERE, 1).map_err(Error::setup)?.pop();
    let listener = listener.ok_or_else(|| Error::setup("no listener"))?;
    let address = listener.local_addr().map_err(Error::setup)?;
    let mut begin = Some((edge, listener));
    let cores = appliance_runtime::run_per_core(&[serve.core], "edge", |_| {
        let begun = begin.take();
        move || async move {
            let (edge, listener) = begun.expect("one core, so one main future");
            edge.serve(listener, Rc::new(Answer)).await
        }
    });
    println!("ready {address}");
    cores.map_err(Error::setup)?.join();
    Ok(())
}

/// Answers every request alike.
struct Answer;

impl Handler for Answer {
    async fn call(self: Rc<Self>, request: Request) -> Response<ReplyBody> {
        match request.body.collect(REQUEST.len()).await {
            Ok(_) => reply(ReplyBody::from(Bytes::from_static(&REPLY))),
            Err(_) => {
                let mut refusal = reply(ReplyBody::empty());
                *refusal.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                refusal
            }
        }
    }
}

fn reply<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// hyper on tokio's current-thread runtime.
pub(crate) fn hyper(serve: &Serve) -> Result<(), Error> {
    end_with_parent()?;
    process::pin(serve.core)?;
    let tls = TlsAcceptor::from(server_config(&read_identity(&serve.identity)?)?);
    http_client::block_on(async move {
        let socket = TcpSocket::new_v4().map_err(Error::setup)?;
        socket.set_reuseport(true).map_err(Error::setup)?;
        socket.bind(ANYWHERE).map_err(Error::setup)?;
        let listener = socket.listen(BACKLOG).map_err(Error::setup)?;
        println!("ready {}", listener.local_addr().map_err(Error::setup)?);
        loop {
            let (stream, _) = listener.accept().await.map_err(Error::setup)?;
            tokio::spawn(connection(tls.clone(), stream));
        }
    })
}

async fn connection(tls: TlsAcceptor, stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Ok(stream) = tls.accept(stream).await else { return };
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    // The client ends its connections without a word.
    let _ended = served.await;
}

async fn answer(request: hyper::Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = reply(Full::new(Bytes::from_static(&REPLY)));
    if request.into_body().collect().await.is_err() {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    Ok(response)
}

fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(Error::setup)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::setup)?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(Error::setup)?, key)
        .map_err(Error::setup)?;
    Ok(Arc::new(config))
}
