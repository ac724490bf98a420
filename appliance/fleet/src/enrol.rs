//! Enrolment: what makes a box one of the fleet's, by certificates that the fleet's CA issues.
//!
//! ```text
//!  FLEET/boxes/NAME/fleet/  ── copied to the box ──▶ DIR/telemetry/fleet/      read by emberd at its start and at SIGHUP
//!      ca.pem                   whose clients are told anything
//!      server.pem, server.key   the box's certificate, with its name
//!      name                     what it calls itself
//!  FLEET/boxes/NAME/machine.toml  the same as a section of an appliance's machine.toml
//! ```
//!
//! A certificate lasts 397 days: enrolling again makes a new one, of the same CA. The CA's key never leaves the fleet's folder.

use crate::{
    BoxName,
    roster::{RosterError, lock, replace},
};
use appliance_edge::authority::{
    AuthorityError, Identity, ServerNames, days_left, issue_client, issue_server, make_authority, needs_renewal,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;
/// What the client is called that pulls.
const CLIENT: &str = "fleet";

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The folder that the box is given.
    pub folder: PathBuf,
    /// The section of an appliance's `machine.toml`.
    pub machine_toml: PathBuf,
    /// Whether the fleet's CA was made with it.
    pub made_authority: bool,
}

/// Why a box is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A file.
    #[error(transparent)]
    File(#[from] RosterError),
    /// A certificate.
    #[error(transparent)]
    Certificate(#[from] AuthorityError),
    /// Half of the CA is there.
    #[error("of `{}` and `ca.key` beside it only one is there: restore both, or remove both for a new fleet", path.display())]
    HalfAnAuthority {
        /// Its certificate.
        path: PathBuf,
    },
}

/// Makes what a box called `name`, that is also reached as `hosts`, is given. Makes the fleet's CA and its client's
/// certificate where there are none yet, and renews the latter when it is due.
///
/// # Errors
/// [`EnrolError`].
pub fn enrol(fleet: &Path, name: &BoxName, hosts: &[String], now: SystemTime) -> Result<Enrolled, EnrolError> {
    let _lock = lock(fleet)?;
    let folder = fleet.join("boxes").join(name.as_str());
    make_folder(&folder.join("fleet"))?;
    let (authority, made_authority) = authority(fleet, now)?;
    ensure_client(fleet, &authority, made_authority, now)?;
    let names = hosts.iter().fold(ServerNames::none().and(name.as_str()), |names, host| names.and(host));
    let server = issue_server(&authority, &names, now)?;
    let own = folder.join("fleet");
    write_pair(&own, "server", &server)?;
    replace(&own.join("ca.pem"), authority.certificate_pem.as_bytes(), PUBLIC)?;
    replace(&own.join("name"), format!("{name}\n").as_bytes(), PUBLIC)?;
    let machine_toml = folder.join("machine.toml");
    replace(&machine_toml, machine_section(name, &authority, &server).as_bytes(), PRIVATE)?;
    Ok(Enrolled { folder: own, machine_toml, made_authority })
}

/// Renews the certificate that the fleet's client shows, where it is due and the CA's key is here. Whether it did.
///
/// # Errors
/// [`EnrolError`].
pub fn renew_client(fleet: &Path, now: SystemTime) -> Result<bool, EnrolError> {
    if !fleet.join("ca.key").exists() || client_is_current(fleet, now)? {
        return Ok(false);
    }
    let _lock = lock(fleet)?;
    match read_pair(fleet, "ca")? {
        (Some(certificate_pem), Some(key_pem)) => {
            ensure_client(fleet, &Identity { certificate_pem, key_pem }, false, now)
        }
        _ => Ok(false),
    }
}

/// Whole days for which what the fleet issued holds: its client's certificate, or a box's; none where there is none.
pub fn certificate_days(fleet: &Path, of: Option<&BoxName>, now: SystemTime) -> Option<u64> {
    let path = match of {
        Some(name) => fleet.join("boxes").join(name.as_str()).join("fleet/server.pem"),
        None => fleet.join("client.pem"),
    };
    days_left(&fs::read_to_string(path).ok()?, now).ok()
}

/// The fleet's CA, and whether it had to be made.
fn authority(fleet: &Path, now: SystemTime) -> Result<(Identity, bool), EnrolError> {
    match read_pair(fleet, "ca")? {
        (Some(certificate_pem), Some(key_pem)) => Ok((Identity { certificate_pem, key_pem }, false)),
        (None, None) => {
            let authority = make_authority("fleet", now)?;
            write_pair(fleet, "ca", &authority)?;
            Ok((authority, true))
        }
        _ => Err(EnrolError::HalfAnAuthority { path: fleet.join("ca.pem") }),
    }
}

/// Whether one had to be made.
fn ensure_client(fleet: &Path, authority: &Identity, made: bool, now: SystemTime) -> Result<bool, EnrolError> {
    if !made && client_is_current(fleet, now)? {
        return Ok(false);
    }
    write_pair(fleet, "client", &issue_client(authority, CLIENT, now)?)?;
    Ok(true)
}

fn client_is_current(fleet: &Path, now: SystemTime) -> Result<bool, RosterError> {
    Ok(match read_pair(fleet, "client")? {
        (Some(certificate), Some(_)) => !needs_renewal(&certificate, &ServerNames::none(), now).unwrap_or(true),
        _ => false,
    })
}

fn machine_section(name: &BoxName, authority: &Identity, server: &Identity) -> String {
    let pem = |pem: &str| format!("\"\"\"\n{}\n\"\"\"", pem.trim());
    format!(
        "[telemetry]                   # who belongs to a fleet; put this into the box's machine.toml\nname = \"{name}\"\nca = {}\ncertificate = {}\nkey = {}\n",
        pem(&authority.certificate_pem),
        pem(&server.certificate_pem),
        pem(&server.key_pem),
    )
}

fn make_folder(path: &Path) -> Result<(), RosterError> {
    fs::create_dir_all(path).map_err(|source| RosterError::Io { action: "make", path: path.to_owned(), source })
}

/// The key first: a crash between leaves a certificate that does not fit, and enrolling again mends it.
fn write_pair(folder: &Path, name: &str, identity: &Identity) -> Result<(), RosterError> {
    replace(&folder.join(format!("{name}.key")), identity.key_pem.as_bytes(), PRIVATE)?;
    replace(&folder.join(format!("{name}.pem")), identity.certificate_pem.as_bytes(), PUBLIC)
}

fn read_pair(folder: &Path, name: &str) -> Result<(Option<String>, Option<String>), RosterError> {
    let read = |kind: &str| {
        let path = folder.join(format!("{name}.{kind}"));
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RosterError::Io { action: "read", path, source }),
        }
    };
    Ok((read("pem")?, read("key")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::PermissionsExt, thread, time::Duration};

    #[test]
    fn one_authority_for_all_boxes_and_private_keys_stay_private() {
        let folder = tempfile::tempdir().unwrap();
        let (fleet, now) = (folder.path().join("fleet"), SystemTime::now());
        let read = |path: &str| fs::read_to_string(fleet.join(path)).unwrap();
        let first = enrol(&fleet, &"shop-7".parse().unwrap(), &["192.0.2.7".to_owned()], now).unwrap();
        let (authority, client) = (read("ca.pem"), read("client.pem"));
        let second = enrol(&fleet, &"shop-8".parse().unwrap(), &[], now).unwrap();
        assert_eq!((first.made_authority, second.made_authority), (true, false));
        assert_eq!((read("ca.pem"), read("client.pem")), (authority.clone(), client));
        assert_eq!(read("boxes/shop-8/fleet/ca.pem"), authority);
        assert_eq!(read("boxes/shop-8/fleet/name"), "shop-8\n");
        let names = ServerNames::none().and("shop-7").and("192.0.2.7");
        let certificate = read("boxes/shop-7/fleet/server.pem");
        assert!(!needs_renewal(&certificate, &names, now).unwrap());
        assert!(needs_renewal(&certificate, &names.and("shop-8"), now).unwrap(), "it has no other box's name");
        for key in ["ca.key", "client.key", "boxes/shop-7/fleet/server.key", "boxes/shop-7/machine.toml"] {
            assert_eq!(fs::metadata(fleet.join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
        }
        assert!(read("boxes/shop-7/machine.toml").contains("BEGIN PRIVATE KEY"));
    }

    #[test]
    fn who_enrols_at_once_makes_one_authority() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..8).map(|number| format!("shop-{number}")).collect();
        let made = thread::scope(|scope| {
            let run = |name: &String| enrol(folder.path(), &name.parse().unwrap(), &[], SystemTime::now()).unwrap();
            let running: Vec<_> = names.iter().map(|name| scope.spawn(move || run(name))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap());
            ended.filter(|enrolled| enrolled.made_authority).count()
        });
        assert_eq!(made, 1);
        let read = |path: &str| fs::read_to_string(folder.path().join(path)).unwrap();
        for name in &names {
            assert_eq!(read(&format!("boxes/{name}/fleet/ca.pem")), read("ca.pem"), "{name}");
        }
    }

    #[test]
    fn the_clients_certificate_is_renewed_late_in_its_life_where_the_ca_is() {
        let folder = tempfile::tempdir().unwrap();
        let (fleet, shop) = (folder.path(), "shop-7".parse().unwrap());
        let now = SystemTime::now();
        let later = |days: u32| now + days * Duration::from_secs(24 * 3600);
        assert!(!renew_client(&fleet.join("none"), now).unwrap() && !fleet.join("none").exists());
        enrol(fleet, &shop, &[], now).unwrap();
        assert!(!renew_client(fleet, later(200)).unwrap());
        assert_eq!(certificate_days(fleet, None, later(300)), Some(96));
        fs::rename(fleet.join("ca.key"), fleet.join("elsewhere")).unwrap();
        assert!(!renew_client(fleet, later(300)).unwrap(), "the CA's key is elsewhere");
        fs::rename(fleet.join("elsewhere"), fleet.join("ca.key")).unwrap();
        assert!(renew_client(fleet, later(300)).unwrap() && !renew_client(fleet, later(300)).unwrap());
        let days = [None, Some(&shop)].map(|of| certificate_days(fleet, of, later(300)));
        assert_eq!(days, [Some(396), Some(96)], "a box's is renewed by who enrols it again");
    }

    #[test]
    fn half_an_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shop = "shop-7".parse().unwrap();
        enrol(folder.path(), &shop, &[], SystemTime::now()).unwrap();
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        let error = enrol(folder.path(), &shop, &[], SystemTime::now()).unwrap_err();
        assert!(matches!(error, EnrolError::HalfAnAuthority { .. }), "{error}");
    }
}
