//! The device's own certificate authority, and the server certificates that it issues.
//!
//! ECDSA P-256 throughout, which every client of the last decade verifies. The extensions are those that the strictest
//! take for granted: key identifiers on both ends (Python 3.13), basic constraints, key usages, server authentication,
//! and a life of no more than 825 days (Apple). Nothing here touches a file: texts in, texts out.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SigningKey,
};
use sha2::{Digest, Sha256};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem};

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3653 * 24 * 3600);
const SERVER_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// A server certificate is renewed when less than this is left of it.
const SERVER_RENEWAL: Duration = Duration::from_secs(132 * 24 * 3600);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key pair or the certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A certificate's text cannot be read.
    #[error("cannot read the certificate: {0}")]
    Read(String),
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate; not secret.
    pub certificate_pem: String,
    /// Its private key, PKCS#8; secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// Makes a device's authority, valid for ten years. `device` tells it from those of other devices.
pub fn make_authority(device: &str, now: SystemTime) -> Result<Identity, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(&format!("Ember device CA {device}"), now, AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// Issues a server certificate with a new key for `names`, valid for 397 days.
pub fn issue_server(authority: &Identity, names: &ServerNames, now: SystemTime) -> Result<Identity, AuthorityError> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, KeyPair::from_pem(&authority.key_pem)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params("Ember server", now, SERVER_LIFE);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = names.alternatives()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// Issues a certificate with a new key by which a client called `name` shows who it is, valid for 397 days.
pub fn issue_client(authority: &Identity, name: &str, now: SystemTime) -> Result<Identity, AuthorityError> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, KeyPair::from_pem(&authority.key_pem)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(name, now, SERVER_LIFE);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// Whether a text holds certificates of authorities, and nothing that is none.
///
/// # Errors
/// What is wrong with it.
pub fn check_authority(pem: &str) -> Result<(), AuthorityError> {
    crate::tls::roots(pem).map(drop).map_err(unreadable)
}

/// Whether what a box is given by its fleet is of use to it: the fleet's CA, and the box's certificate with its key.
///
/// # Errors
/// What is wrong with it.
pub fn check_enrolment(authority_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<(), AuthorityError> {
    check_authority(authority_pem)?;
    crate::Certificates::load(certificate_pem, key_pem).map(drop).map_err(unreadable)
}

/// SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
///
/// # Errors
/// Where the text is no certificate.
pub fn fingerprint(pem: &str) -> Result<String, AuthorityError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(unreadable)?;
    pem.parse_x509().map_err(unreadable)?;
    let bytes = Sha256::digest(&pem.contents);
    Ok(bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":"))
}

/// A key that a box signs with what it says of itself: Ed25519.
#[derive(Debug)]
pub struct Signer(KeyPair);

impl Signer {
    /// A new one, as PKCS#8 PEM; secret.
    pub fn make() -> Result<String, AuthorityError> {
        Ok(KeyPair::generate_for(&PKCS_ED25519)?.serialize_pem())
    }

    /// Reads one.
    pub fn load(pem: &str) -> Result<Self, AuthorityError> {
        Ok(Self(KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ED25519)?))
    }

    /// The signature of `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        Ok(self.0.sign(message)?)
    }

    /// The public key, 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.0.public_key_raw()
    }

    /// The same, as PEM.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }
}

/// Whether `signature` is that of a [`Signer`] with this public key over `message`.
pub fn is_signed(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let known = rustls::crypto::ring::default_provider().signature_verification_algorithms.mapping;
    let ways = known.iter().find(|(scheme, _)| *scheme == rustls::SignatureScheme::ED25519);
    ways.is_some_and(|(_, ways)| ways.iter().any(|way| way.verify_signature(public, message, signature).is_ok()))
}

/// True when a server certificate runs out within a third of its life, or lacks one of `names`.
pub fn needs_renewal(certificate_pem: &str, names: &ServerNames, now: SystemTime) -> Result<bool, AuthorityError> {
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).map_err(unreadable)?;
    let certificate = pem.parse_x509().map_err(unreadable)?;
    let ends = end(&certificate);
    let alternatives = certificate.subject_alternative_name().map_err(unreadable)?;
    let held = alternatives.map_or(&[][..], |extension| &extension.value.general_names);
    Ok(now + SERVER_RENEWAL > ends || !names.are_in(held))
}

/// Whole days that a certificate still holds; none left is 0.
///
/// # Errors
/// It is no certificate.
pub fn days_left(certificate_pem: &str, now: SystemTime) -> Result<u64, AuthorityError> {
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).map_err(unreadable)?;
    let left = end(&pem.parse_x509().map_err(unreadable)?).duration_since(now).unwrap_or_default();
    Ok(left.as_secs() / DAY.as_secs())
}

fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(certificate.validity().not_after.timestamp().max(0) as u64)
}

/// What clients may call the server by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    addresses: Vec<IpAddr>,
    hosts: Vec<String>,
}

impl ServerNames {
    /// The loopback addresses, `localhost`, the machine's `hostname` and the address listened on; where all are listened on,
    /// those that are `here`. What no certificate can name is left out: an unspecified address, a host name that is none.
    pub fn new(hostname: &str, listen: IpAddr, here: &[IpAddr]) -> Self {
        let mut addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let listened = if listen.is_unspecified() { here } else { std::slice::from_ref(&listen) };
        for address in listened {
            if !addresses.contains(address) && !address.is_unspecified() {
                addresses.push(*address);
            }
        }
        let mut hosts = vec!["localhost".to_owned()];
        let hostname = hostname.to_ascii_lowercase();
        if is_host(&hostname) && !hosts.contains(&hostname) {
            hosts.push(hostname);
        }
        Self { addresses, hosts }
    }

    /// These, and another host name or address.
    #[must_use]
    pub fn and(mut self, host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        match host.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() && !self.addresses.contains(&address) => {
                self.addresses.push(address);
            }
            Err(_) if is_host(&host) && !self.hosts.contains(&host) => self.hosts.push(host),
            _ => {}
        }
        self
    }

    /// No names: for a certificate that nobody is called by.
    pub const fn none() -> Self {
        Self { addresses: Vec::new(), hosts: Vec::new() }
    }

    fn alternatives(&self) -> Result<Vec<SanType>, rcgen::Error> {
        let addresses = self.addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
        let hosts = self.hosts.iter().map(|host| Ok(SanType::DnsName(host.as_str().try_into()?)));
        addresses.chain(hosts).collect()
    }

    fn are_in(&self, held: &[GeneralName<'_>]) -> bool {
        let address = |wanted: &IpAddr| {
            held.iter().any(|name| matches!(name, GeneralName::IPAddress(b) if is_address(b, wanted)))
        };
        let host = |wanted: &String| held.iter().any(|name| matches!(name, GeneralName::DNSName(h) if h == wanted));
        self.addresses.iter().all(address) && self.hosts.iter().all(host)
    }
}

fn is_address(bytes: &[u8], wanted: &IpAddr) -> bool {
    match wanted {
        IpAddr::V4(address) => bytes == address.octets(),
        IpAddr::V6(address) => bytes == address.octets(),
    }
}

fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Valid from an hour ago, for clients whose clock is behind.
fn params(common_name: &str, now: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - DAY / 24).into();
    params.not_after = (now - DAY / 24 + life).into();
    params
}

fn unreadable(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Read(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTEN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    #[test]
    fn names_leave_out_what_no_certificate_can_say() {
        let names = ServerNames::new("Edge_1", IpAddr::V4(Ipv4Addr::UNSPECIFIED), &[]);
        assert_eq!(names.hosts, ["localhost"]);
        assert_eq!(names.addresses.len(), 2);
        let here = [LISTEN, Ipv4Addr::LOCALHOST.into()];
        let all = ServerNames::new("edge", IpAddr::V4(Ipv4Addr::UNSPECIFIED), &here);
        assert_eq!((all.addresses.len(), all.addresses[2]), (3, LISTEN), "who listens on all is called by each");
        assert_eq!(ServerNames::new("edge", Ipv4Addr::LOCALHOST.into(), &here).addresses.len(), 2);
        assert_eq!(ServerNames::new("Edge-1.lan", LISTEN, &[]).hosts, ["localhost", "edge-1.lan"]);
        let more = ServerNames::none().and("Shop-7").and("192.0.2.9").and("192.0.2.9").and("0.0.0.0").and("a b");
        assert_eq!((more.hosts, more.addresses), (vec!["shop-7".to_owned()], vec!["192.0.2.9".parse().unwrap()]));
    }

    #[test]
    fn a_fingerprint_is_of_the_certificate_and_not_of_its_text() {
        let authority = make_authority("box", SystemTime::now()).unwrap();
        let print = fingerprint(&authority.certificate_pem).unwrap();
        assert_eq!(print.len(), 32 * 3 - 1);
        assert_eq!(fingerprint(&format!("\n{}", authority.certificate_pem)).unwrap(), print);
        assert_ne!(fingerprint(&make_authority("box", SystemTime::now()).unwrap().certificate_pem).unwrap(), print);
        assert!(fingerprint("no certificate").is_err() && fingerprint(&authority.key_pem).is_err());
    }

    #[test]
    fn a_signature_is_the_keys_and_holds_for_its_message_alone() {
        let pem = Signer::make().unwrap();
        let (signer, again) = (Signer::load(&pem).unwrap(), Signer::load(&pem).unwrap());
        let signature = signer.sign(b"page").unwrap();
        assert_eq!((signature.len(), signer.public().len()), (64, 32));
        assert_eq!(again.sign(b"page").unwrap(), signature, "Ed25519 draws nothing");
        let holds = |message: &[u8]| is_signed(signer.public(), message, &signature);
        assert!(holds(b"page") && !holds(b"pagf"));
        assert!(!is_signed(&signer.public()[1..], b"page", &signature) && !is_signed(signer.public(), b"page", b""));
        assert!(Signer::load("no key").is_err());
    }

    #[test]
    fn an_enrolment_is_whole_and_its_key_fits() {
        let now = SystemTime::now();
        let authority = make_authority("fleet", now).unwrap();
        let [server, other] =
            ["shop-7", "shop-8"].map(|name| issue_server(&authority, &ServerNames::none().and(name), now).unwrap());
        let (ca, certificate, key) = (&authority.certificate_pem, &server.certificate_pem, &server.key_pem);
        check_enrolment(ca, certificate, key).unwrap();
        let less = |pem: &str| {
            let lines: Vec<_> =
                pem.lines().enumerate().filter(|(number, _)| *number != 2).map(|(_, line)| line).collect();
            lines.join("\n")
        };
        for (what, ca, certificate, key) in [
            ("a CA with a line missing", &less(ca), certificate, key),
            ("a certificate with a line missing", ca, &less(certificate), key),
            ("a key with a line missing", ca, certificate, &less(key)),
            ("another's key", ca, certificate, &other.key_pem),
            ("no CA", &String::new(), certificate, key),
        ] {
            assert!(check_enrolment(ca, certificate, key).is_err(), "{what}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_late_in_life_and_when_a_name_is_new() {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let authority = make_authority("test", now).unwrap();
        let names = ServerNames::new("edge", LISTEN, &[]);
        let pem = issue_server(&authority, &names, now).unwrap().certificate_pem;
        let needed = |names: &ServerNames, days: u32| needs_renewal(&pem, names, now + days * DAY).unwrap();
        assert!(!needed(&names, 0) && !needed(&names, 264) && needed(&names, 266));
        let left = |days: u32| days_left(&pem, now + days * DAY).unwrap();
        assert_eq!([0, 100, 396, 400].map(left), [396, 296, 0, 0]);
        assert!(!needed(&ServerNames::new("edge", Ipv4Addr::LOCALHOST.into(), &[]), 0), "fewer names are fine");
        assert!(needed(&ServerNames::new("other", LISTEN, &[]), 0));
        assert!(!needed(&ServerNames::new("edge", Ipv6Addr::UNSPECIFIED.into(), &[]), 0));
        assert!(needed(
            &ServerNames::new("edge", Ipv6Addr::UNSPECIFIED.into(), &[Ipv4Addr::new(192, 0, 2, 8).into()]),
            0
        ));
        assert!(needs_renewal("no pem", &names, now).is_err());
    }
}
