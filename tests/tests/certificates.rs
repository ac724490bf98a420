//! Certificates change while connections stay.

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{fs, process::Command};
use tests::{Ember, Raw, until};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: ember\r\n\r\n";

/// Puts a new certificate, of the device's own CA and for the same names, in the place of the old one.
fn replace_certificate(ember: &Ember) -> CertificateDer<'static> {
    let tls = ember.data().join("tls");
    let ca_key = KeyPair::from_pem(&fs::read_to_string(tls.join("ca.key")).unwrap()).unwrap();
    let ca = Issuer::from_ca_cert_pem(&fs::read_to_string(tls.join("ca.pem")).unwrap(), ca_key).unwrap();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_ascii_lowercase();
    let names = ["127.0.0.1", "::1", "localhost", &hostname].map(str::to_owned);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    // Written in place, so that the key's owner and mode stay.
    fs::write(tls.join("server.key"), key.serialize_pem()).unwrap();
    fs::write(tls.join("server.pem"), certificate.pem()).unwrap();
    CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()
}

fn is_healthy(raw: &mut Raw) -> bool {
    raw.send(HEALTH) && raw.reply().is_some_and(|reply| reply.status == 200)
}

#[test]
fn a_new_certificate_is_shown_to_new_connections() {
    let ember = Ember::start();
    let mut old = ember.raw();
    assert!(is_healthy(&mut old));
    let new = replace_certificate(&ember);
    ember.signal(Signal::SIGHUP);
    until("new connections see the new certificate", || (ember.raw().certificate() == new).then_some(()));
    assert!(is_healthy(&mut ember.raw()));
    assert!(is_healthy(&mut old), "the old connection goes on");
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn whoever_asks_is_told_the_ca() {
    let ember = Ember::start();
    let told = ember.client().without_key().get("/ca.pem").expect(200);
    assert_eq!(told.header("content-type"), "application/x-pem-file");
    let before = ember.ca_pem();
    assert_eq!(told.body, before);
    // A new CA is told once its certificate is in use.
    for file in ["ca.pem", "ca.key"] {
        fs::remove_file(ember.data().join("tls").join(file)).unwrap();
    }
    ember.signal(Signal::SIGHUP);
    let url = format!("https://{}/ca.pem", ember.address());
    until("the new one is told", || {
        let told = Command::new("curl").args(["--silent", "--insecure", &url]).output().expect("curl").stdout;
        (told != before && told == fs::read(ember.data().join("tls/ca.pem")).ok()?).then_some(())
    });
    ember.stop();
}

#[test]
fn a_broken_certificate_is_issued_again() {
    let ember = Ember::start();
    let mut old = ember.raw();
    fs::write(ember.data().join("tls/server.pem"), "not a certificate").unwrap();
    ember.signal(Signal::SIGHUP);
    until("a certificate was issued", || (ember.raw().certificate() != old.certificate()).then_some(()));
    assert!(is_healthy(&mut old), "the old connection goes on");
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn the_device_keeps_its_ca() {
    let mut ember = Ember::start();
    let ca = ember.ca_pem();
    ember.signal(Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    assert_eq!(ember.ca_pem(), ca);
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}
