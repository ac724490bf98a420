//! TLS: versions, ALPN, certificates that strict clients take, and swapping them.

use crate::harness::{Server, limits, names, until_raw_closed};
use appliance_edge::{
    CertificateError, Certificates, Limits,
    authority::{Identity, issue_server, make_authority},
};
use rustls::{
    ProtocolVersion,
    version::{TLS12, TLS13},
};
use std::{fs, io::Write, process::Command, time::Duration, time::SystemTime};

#[test]
fn both_versions_of_tls_and_both_of_http_are_offered() {
    let server = Server::start(limits());
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut client = server.client_with(&[version], &[b"http/1.1"]);
        assert_eq!(client.get("/hello").body, b"hello");
        assert_eq!(client.stream.conn.protocol_version(), Some(expected));
        assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(client.stream.conn.peer_certificates().unwrap().len(), 1);
    }
    let mut both = server.client_with(&[&TLS13], &[b"http/1.1", b"h2"]);
    both.send("");
    both.stream.conn.complete_io(&mut both.stream.sock).unwrap();
    assert_eq!(both.stream.conn.alpn_protocol(), Some(&b"h2"[..]), "http/2 is preferred");
    assert_eq!(server.client_with(&[&TLS13], &[]).get("/hello").body, b"hello", "no alpn is http/1.1");
}

#[test]
fn sessions_resume() {
    let server = Server::start(limits());
    let config = crate::harness::client_config(&server.authority, &[&TLS13], &[b"http/1.1"]);
    let kinds: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.client();
            client.stream.conn = rustls::ClientConnection::new(config.clone(), server.address.ip().into()).unwrap();
            assert_eq!(client.get("/hello").body, b"hello");
            client.stream.conn.handshake_kind().unwrap()
        })
        .collect();
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[test]
fn a_swap_serves_new_handshakes_and_leaves_live_connections_alone() {
    let server = Server::start(limits());
    let mut before = server.client();
    assert_eq!(before.get("/hello").body, b"hello");
    let next = issue_server(&server.authority, &names(), SystemTime::now()).unwrap();
    server.certificates.swap(&next.certificate_pem, &next.key_pem).unwrap();
    let mut after = server.client();
    assert_eq!(after.get("/hello").body, b"hello");
    assert_eq!(before.get("/hello").body, b"hello", "a live connection lives on");
    let served = |client: &crate::harness::Client| client.stream.conn.peer_certificates().unwrap()[0].to_vec();
    assert_ne!(served(&before), served(&after));
}

#[test]
fn a_bad_certificate_is_refused_and_the_current_one_stays() {
    let server = Server::start(limits());
    let (good, other) = (identity(), identity());
    let swap = |chain: &str, key: &str| server.certificates.swap(chain, key);
    assert!(matches!(swap(&good.certificate_pem, &other.key_pem), Err(CertificateError::Unusable(_))));
    assert!(matches!(swap("", &good.key_pem), Err(CertificateError::Empty)));
    assert!(matches!(swap(&good.certificate_pem, "no key"), Err(CertificateError::Key(_))));
    assert!(Certificates::load("-----BEGIN CERTIFICATE-----\n*", &good.key_pem).is_err());
    assert!(server.answers());
}

fn identity() -> Identity {
    let now = SystemTime::now();
    issue_server(&make_authority("test", now).unwrap(), &names(), now).unwrap()
}

#[test]
fn handshakes_that_stall_or_are_none_end() {
    let server = Server::start(Limits { handshake_timeout: Duration::from_millis(20), ..limits() });
    let mut half = server.raw();
    // The first bytes of a ClientHello that promises more.
    half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).unwrap();
    until_raw_closed(half);
    until_raw_closed(server.raw());
    let mut plain = server.raw();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    until_raw_closed(plain);
    server.wait_until(|counts| counts.handshakes_failed == 3);
}

#[test]
fn openssl_takes_the_certificates_at_its_strictest() {
    let now = SystemTime::now();
    let authority = make_authority("test", now).unwrap();
    let server = issue_server(&authority, &names(), now).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (ca, leaf) = (folder.path().join("ca.pem"), folder.path().join("server.pem"));
    fs::write(&ca, authority.certificate_pem).unwrap();
    fs::write(&leaf, server.certificate_pem).unwrap();
    for name in [["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"], ["-verify_hostname", "localhost"]] {
        let verify = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver"])
            .args(name)
            .arg("-CAfile")
            .args([&ca, &leaf])
            .output()
            .unwrap();
        assert!(verify.status.success(), "{name:?}: {}", String::from_utf8_lossy(&verify.stderr));
    }
}

#[test]
fn curl_takes_them_over_either_http() {
    let server = Server::start(limits());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &server.authority.certificate_pem).unwrap();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let output = Command::new("curl")
            .args(["-sS", flag, "-w", " %{http_version}", "--cacert"])
            .arg(&ca)
            .arg(format!("https://localhost:{}/hello", server.address.port()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("hello {version}"));
    }
}
