//! What a fleet knows the box by, made at the first start with a telemetry listener, in `DIR/telemetry`.
//!
//! ```text
//!  ca.pem, ca.key           the box's telemetry CA, apart from the one for its callers
//!  server.pem, server.key   its certificate, with the box's name; renewed like that in tls/
//!  clients.pem              whose clients are told anything: the fleet's CA (`telemetry_ca`), or ca.pem
//!  client.pem, client.key   for one client, issued by ca.pem; of use while there is no fleet's CA
//!  box.key, box.pub         signs ledger pages, Ed25519; a new one is another box to who checks them
//!  name                     what the box is called
//!  boots                    the last starts, a JSON line each
//!  fleet/                   what `ember fleet enrol` made: ca.pem, server.pem, server.key, name
//! ```
//!
//! Where there is a `fleet/`, its certificate is served, its name is the box's, and its CA's clients are told; the
//! configuration's `telemetry_name` and `telemetry_ca` go before that. The box renews nothing of it: who enrolled it does.

use crate::{
    data::{PRIVATE, PUBLIC, TELEMETRY},
    exit::Failure,
    files,
    tls::{self, Pair, SERVERS_OWN},
};
use appliance_config::ServeConfig;
use appliance_edge::authority::{Identity, ServerNames, Signer, check_enrolment, issue_client, needs_renewal};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Starts that are remembered.
const BOOTS_MAX: usize = 16;
/// Longest file of a fleet's CA.
const AUTHORITY_BYTES_MAX: u64 = 64 << 10;
/// What the client is called whose certificate is made here.
const CLIENT: &str = "operator";

/// A start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// When, ms since the Unix epoch.
    pub(crate) unix_ms: u64,
    /// Of which version.
    pub(crate) version: String,
    /// The kernel's: another one after each boot of the machine.
    pub(crate) machine_boot: String,
}

/// The file with what the box is called in telemetry.
pub(crate) const NAME: &str = "name";
/// The folder that `ember fleet enrol` made.
const ENROLLED: &str = "fleet";
/// Longest name.
const NAME_BYTES_MAX: usize = 253;

/// Sees to it that all of that is there for a listener at `address`.
pub(crate) fn ensure(data: &Path, config: &ServeConfig, address: SocketAddr, now: SystemTime) -> Result<(), Failure> {
    let folder = data.join(TELEMETRY);
    let enrolled = Enrolled::read(&folder.join(ENROLLED))?;
    let named = config.telemetry_name.clone().or_else(|| enrolled.as_ref().map(|enrolled| enrolled.name.clone()));
    let name = named.unwrap_or_else(|| tls::hostname().to_ascii_lowercase());
    write(&folder.join(NAME), &name, PUBLIC)?;
    let names = ServerNames::new(&name, address.ip(), &tls::addresses());
    let authority = match &enrolled {
        Some(enrolled) => {
            Pair::new(&folder, "server", SERVERS_OWN).write(&enrolled.server)?;
            tls::ensure_authority_in(&folder, &name, now)?
        }
        None => tls::ensure_in(&folder, &name, &names, now)?,
    };
    let clients = match (&config.telemetry_ca, enrolled) {
        (Some(path), _) => fleet_authority(Path::new(path), "telemetry_ca")?,
        (None, Some(enrolled)) => enrolled.authority_pem,
        (None, None) => authority.certificate_pem.clone(),
    };
    write(&folder.join("clients.pem"), &clients, PUBLIC)?;
    let client = Pair::new(&folder, "client", PRIVATE);
    let no_names = ServerNames::none();
    let current =
        client.read()?.is_some_and(|pair| !needs_renewal(&pair.certificate_pem, &no_names, now).unwrap_or(true));
    match current {
        true => client.protect()?,
        false => client.write(&issue_client(&authority, CLIENT, now).map_err(tls::cannot_issue)?)?,
    }
    ensure_signer(&folder)
}

/// Remembers this start.
pub(crate) fn note_boot(data: &Path, now: SystemTime) -> Result<(), Failure> {
    let path = data.join(TELEMETRY).join("boots");
    let text = files::read(&path).map_err(|source| Failure::io("read", &path, source))?.unwrap_or_default();
    let machine_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let unix_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let mut boots = read_boots(&text);
    boots.push(Boot { unix_ms, version: env!("CARGO_PKG_VERSION").to_owned(), machine_boot });
    let kept = &boots[boots.len().saturating_sub(BOOTS_MAX)..];
    let line = |boot: &Boot| serde_json::to_string(boot).expect("text and a number") + "\n";
    write(&path, &kept.iter().map(line).collect::<String>(), PUBLIC)
}

/// The starts in the file's text; lines that are none are passed over.
pub(crate) fn read_boots(text: &str) -> Vec<Boot> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What `ember fleet enrol` made of a box.
struct Enrolled {
    authority_pem: String,
    server: Identity,
    name: String,
}

impl Enrolled {
    /// None where there is no such folder; a folder that is not whole is refused.
    fn read(folder: &Path) -> Result<Option<Self>, Failure> {
        if !folder.exists() {
            return Ok(None);
        }
        let unusable = |reason: String| {
            let folder = folder.display();
            Failure::Unusable(format!("{folder}: {reason}; copy it again, or remove it"))
        };
        let pair = Pair::new(folder, "server", PRIVATE);
        let server = pair.read()?.ok_or_else(|| unusable("server.pem or server.key is missing".to_owned()))?;
        let path = folder.join("ca.pem");
        let authority_pem = fleet_authority(&path, "the fleet's CA")?;
        check_enrolment(&authority_pem, &server.certificate_pem, &server.key_pem)
            .map_err(|error| unusable(error.to_string()))?;
        pair.protect()?;
        let path = folder.join(NAME);
        let name = files::read(&path).map_err(|source| Failure::io("read", &path, source))?.unwrap_or_default();
        let name = name.trim().to_owned();
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
            return Err(unusable("`name` holds no box's name".to_owned()));
        }
        Ok(Some(Self { authority_pem, server, name }))
    }
}

fn fleet_authority(path: &Path, what: &str) -> Result<String, Failure> {
    let unusable = |reason: String| Failure::Unusable(format!("{what} {}: {reason}", path.display()));
    let length = fs::metadata(path).map_err(|error| unusable(error.to_string()))?.len();
    if length > AUTHORITY_BYTES_MAX {
        return Err(unusable(format!("longer than {AUTHORITY_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    appliance_edge::authority::check_authority(&text).map_err(|error| unusable(error.to_string()))?;
    Ok(text)
}

fn ensure_signer(folder: &Path) -> Result<(), Failure> {
    let path = folder.join("box.key");
    let signer = match files::read(&path).map_err(|source| Failure::io("read", &path, source))? {
        Some(pem) => Signer::load(&pem).map_err(|error| {
            let path = path.display();
            Failure::Unusable(format!(
                "{path}: {error}; restore it, or remove it for a new one, which is a new box to its fleet"
            ))
        })?,
        None => {
            let pem = Signer::make().map_err(tls::cannot_issue)?;
            write(&path, &pem, SERVERS_OWN)?;
            Signer::load(&pem).map_err(tls::cannot_issue)?
        }
    };
    files::ensure_file(&path, SERVERS_OWN).map_err(|source| Failure::io("protect", &path, source))?;
    write(&folder.join("box.pub"), &signer.public_pem(), PUBLIC)
}

fn write(path: &Path, text: &str, access: files::Access) -> Result<(), Failure> {
    files::replace(path, text.as_bytes(), access).map_err(|source| Failure::io("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_whose_clients_are_told_follows_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(TELEMETRY)).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(TELEMETRY).join(name)).unwrap();
        let (address, now) = (([127, 0, 0, 1], 1).into(), SystemTime::now());
        let mut config = ServeConfig { telemetry_name: Some("shop-7".into()), ..ServeConfig::default() };
        ensure(folder.path(), &config, address, now).unwrap();
        let names = ["ca.pem", "server.pem", "client.pem", "box.key", "box.pub", "clients.pem"];
        let first = names.map(read);
        assert_eq!(first[0], first[5], "without a fleet's CA the box's own");
        ensure(folder.path(), &config, address, now).unwrap();
        assert_eq!(names.map(read), first);

        let fleet = folder.path().join("fleet.pem");
        config.telemetry_ca = Some(fleet.display().to_string());
        assert!(ensure(folder.path(), &config, address, now).unwrap_err().to_string().contains("fleet.pem"));
        fs::write(&fleet, "no certificate").unwrap();
        assert!(ensure(folder.path(), &config, address, now).unwrap_err().to_string().contains("fleet.pem"));
        let other = appliance_edge::authority::make_authority("fleet", now).unwrap();
        fs::write(&fleet, &other.certificate_pem).unwrap();
        ensure(folder.path(), &config, address, now).unwrap();
        assert_eq!((read("clients.pem"), read("box.key")), (other.certificate_pem, first[3].clone()));
    }

    #[test]
    fn what_a_fleet_enrolled_serves_its_certificate_under_its_name() {
        let data = tempfile::tempdir().unwrap();
        let given = data.path().join(TELEMETRY).join(ENROLLED);
        fs::create_dir_all(&given).unwrap();
        let read = |name: &str| fs::read_to_string(data.path().join(TELEMETRY).join(name)).unwrap();
        let (address, now) = (([127, 0, 0, 1], 1).into(), SystemTime::now());
        let config = ServeConfig::default();
        let authority = appliance_edge::authority::make_authority("fleet", now).unwrap();
        let names = ServerNames::none().and("shop-7");
        let server = appliance_edge::authority::issue_server(&authority, &names, now).unwrap();
        for (name, text) in [("ca.pem", &authority.certificate_pem), ("server.pem", &server.certificate_pem)] {
            fs::write(given.join(name), text).unwrap();
        }
        let error = ensure(data.path(), &config, address, now).unwrap_err().to_string();
        assert!(error.contains("server.key"), "{error}");
        fs::write(given.join("server.key"), &server.key_pem).unwrap();
        fs::write(given.join("name"), "shop/7").unwrap();
        assert!(ensure(data.path(), &config, address, now).unwrap_err().to_string().contains("name"));
        fs::write(given.join("name"), "shop-7\n").unwrap();
        ensure(data.path(), &config, address, now).unwrap();
        assert_eq!(
            [read("name"), read("clients.pem"), read("server.pem")],
            ["shop-7".to_owned(), authority.certificate_pem, server.certificate_pem]
        );
        let named = ServeConfig { telemetry_name: Some("other".into()), ..ServeConfig::default() };
        ensure(data.path(), &named, address, now).unwrap();
        assert_eq!(read("name"), "other");
    }

    #[test]
    fn the_last_starts_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(TELEMETRY)).unwrap();
        for second in 0..20 {
            note_boot(folder.path(), UNIX_EPOCH + std::time::Duration::from_secs(second)).unwrap();
        }
        let boots = read_boots(&fs::read_to_string(folder.path().join("telemetry/boots")).unwrap());
        assert_eq!((boots.len(), boots[0].unix_ms, boots[15].unix_ms), (16, 4_000, 19_000));
    }
}
