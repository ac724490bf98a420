//! TLS and TCP by hand, for what no decent client does.

use crate::{Reply, wait::HANG};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

/// A TLS connection whose bytes the test chooses.
pub struct Raw {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Raw {
    /// Connects and ends the handshake.
    pub fn connect(address: SocketAddr, ca_pem: &[u8]) -> Self {
        let name = ServerName::IpAddress(address.ip().into());
        let session = ClientConnection::new(Arc::new(config(ca_pem)), name).expect("a client session");
        let mut stream = StreamOwned::new(session, tcp(address));
        stream.conn.complete_io(&mut stream.sock).expect("the TLS handshake");
        Self { stream: BufReader::new(stream) }
    }

    /// The certificate that the server showed.
    pub fn certificate(&self) -> CertificateDer<'static> {
        let shown = self.stream.get_ref().conn.peer_certificates().expect("the server showed certificates");
        shown[0].clone().into_owned()
    }

    /// Sends bytes; whether the server still took them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let stream = self.stream.get_mut();
        stream.write_all(bytes.as_ref()).and_then(|()| stream.flush()).is_ok()
    }

    /// Reads one reply; none when the server closed instead.
    pub fn reply(&mut self) -> Option<Reply> {
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = HeaderMap::new();
        while let Some((name, value)) = self.line()?.split_once(": ") {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            headers.append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        let length =
            headers.get("content-length").map_or(0, |v| v.to_str().ok().and_then(|v| v.parse().ok()).unwrap_or(0));
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        Some(Reply { status, headers, body })
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// Whether the server ends a connection within [`HANG`], reading what still comes.
pub fn is_closed(connection: &mut impl Read) -> bool {
    let end = connection.read_to_end(&mut Vec::new());
    !end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// A plain TCP connection whose reads and writes end within [`HANG`].
pub fn tcp(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, HANG).expect("connect");
    socket.set_read_timeout(Some(HANG)).expect("a read timeout");
    socket.set_write_timeout(Some(HANG)).expect("a write timeout");
    socket
}

fn config(ca_pem: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem).expect("the CA is PEM")).expect("the CA is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.expect("ring knows the default versions").with_root_certificates(roots).with_no_client_auth()
}
