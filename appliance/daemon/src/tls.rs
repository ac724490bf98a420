//! The TLS files: made at the first start, renewed when they have to be.
//!
//! ```text
//!  ca.pem, ca.key            no ca.pem ─▶ made together: clients have to trust the new one
//!  server.pem, server.key    none, unreadable, late in life or lacking a name ─▶ issued by the CA
//! ```
//!
//! A CA whose key is lost or does not fit is refused: only the operator may make clients distrust what they know.
//!
//! A pair is two files, and the key is replaced first: a crash between leaves a certificate that does not fit its key,
//! which is found by [`Certificates::load`] at the next start, and issued again. The server reads both again after
//! the supervisor has told it to, so it never meets one half.

use crate::{
    data::{PRIVATE, PUBLIC, SERVER_ID, TLS},
    exit::Failure,
    files::{self, Access},
};
use appliance_edge::{
    Certificates,
    authority::{AuthorityError, Identity, ServerNames, issue_server, make_authority, needs_renewal},
};
use nix::ifaddrs::getifaddrs;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What the server alone reads.
pub(crate) const SERVERS_OWN: Access = Access { id: SERVER_ID, mode: 0o600 };

/// A certificate and its key on the disk.
pub(crate) struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    key_access: Access,
}

/// Sees to it that the server has a certificate for `listen` that clients of this device's CA accept.
pub(crate) fn ensure(data: &Path, listen: IpAddr, now: SystemTime) -> Result<(), Failure> {
    let hostname = hostname();
    ensure_in(&data.join(TLS), &hostname, &ServerNames::new(&hostname, listen, &addresses()), now).map(drop)
}

/// The addresses that this machine has now, but for those that mean nothing without an interface's name.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    let is_of_a_link = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    all.filter(|address| !is_of_a_link(address)).collect()
}

/// The same in any folder, by an authority of its own, which is returned.
pub(crate) fn ensure_in(
    folder: &Path,
    device: &str,
    names: &ServerNames,
    now: SystemTime,
) -> Result<Identity, Failure> {
    let (authority, made) = ensure_authority(&Pair::new(folder, "ca", PRIVATE), device, now)?;
    let server = Pair::new(folder, "server", SERVERS_OWN);
    ensure_server(&server, &authority, made, names, now).map(|()| authority)
}

/// The authority alone.
pub(crate) fn ensure_authority_in(folder: &Path, device: &str, now: SystemTime) -> Result<Identity, Failure> {
    ensure_authority(&Pair::new(folder, "ca", PRIVATE), device, now).map(|(authority, _)| authority)
}

fn ensure_server(
    server: &Pair,
    authority: &Identity,
    made: bool,
    names: &ServerNames,
    now: SystemTime,
) -> Result<(), Failure> {
    if !made && is_current(server, names, now)? {
        return server.protect();
    }
    tracing::info!(certificate = %server.certificate.display(), "issued a certificate");
    server.write(&issue_server(authority, names, now).map_err(cannot_issue)?)
}

/// The CA's pair, and whether it had to be made.
fn ensure_authority(pair: &Pair, hostname: &str, now: SystemTime) -> Result<(Identity, bool), Failure> {
    let refuse = |reason: String| {
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        Failure::Unusable(format!("{reason}; restore {certificate} and {key}, or remove both for a new CA"))
    };
    match pair.read()? {
        Some(identity) => {
            check(&identity).map_err(refuse)?;
            pair.protect()?;
            Ok((identity, false))
        }
        None if pair.certificate.exists() => Err(refuse("the CA's private key is missing".to_owned())),
        None => {
            let authority = make_authority(hostname, now).map_err(cannot_issue)?;
            pair.write(&authority)?;
            Ok((authority, true))
        }
    }
}

fn is_current(pair: &Pair, names: &ServerNames, now: SystemTime) -> Result<bool, Failure> {
    let Some(identity) = pair.read()? else { return Ok(false) };
    let fits = check(&identity).inspect_err(|reason| tracing::warn!(%reason, "the server's certificate is unusable"));
    // A certificate that cannot be read is replaced like one that ran out.
    Ok(fits.is_ok() && !needs_renewal(&identity.certificate_pem, names, now).unwrap_or(true))
}

fn check(identity: &Identity) -> Result<(), String> {
    Certificates::load(&identity.certificate_pem, &identity.key_pem).map(drop).map_err(|error| error.to_string())
}

pub(crate) fn cannot_issue(error: AuthorityError) -> Failure {
    Failure::Unusable(error.to_string())
}

pub(crate) fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

impl Pair {
    pub(crate) fn new(folder: &Path, name: &str, key_access: Access) -> Self {
        let path = |kind: &str| folder.join(format!("{name}.{kind}"));
        Self { certificate: path("pem"), key: path("key"), key_access }
    }

    pub(crate) fn read(&self) -> Result<Option<Identity>, Failure> {
        let read = |path: &Path| files::read(path).map_err(|source| Failure::io("read", path, source));
        let pems = read(&self.certificate)?.zip(read(&self.key)?);
        Ok(pems.map(|(certificate_pem, key_pem)| Identity { certificate_pem, key_pem }))
    }

    pub(crate) fn write(&self, identity: &Identity) -> Result<(), Failure> {
        let write = |path: &Path, pem: &str, access| {
            files::replace(path, pem.as_bytes(), access).map_err(|source| Failure::io("write", path, source))
        };
        write(&self.key, &identity.key_pem, self.key_access)?;
        write(&self.certificate, &identity.certificate_pem, PUBLIC)
    }

    pub(crate) fn protect(&self) -> Result<(), Failure> {
        for (path, access) in [(&self.certificate, PUBLIC), (&self.key, self.key_access)] {
            let changed = files::ensure_file(path, access).map_err(|source| Failure::io("protect", path, source))?;
            if changed {
                tracing::warn!(path = %path.display(), "owner or mode was wrong and has been set right");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        net::Ipv4Addr,
        os::unix::fs::{MetadataExt, PermissionsExt},
        time::Duration,
    };

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const NAMES: [&str; 4] = ["ca.pem", "ca.key", "server.pem", "server.key"];

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join(TLS)).unwrap();
            Self(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(TLS).join(name)
        }

        fn ensure(&self, listen: IpAddr, now: SystemTime) -> [String; 4] {
            ensure(self.0.path(), listen, now).unwrap();
            NAMES.map(|name| fs::read_to_string(self.path(name)).unwrap())
        }
    }

    #[test]
    fn made_once_renewed_for_a_new_name_and_in_time() {
        let (files, now) = (Files::new(), SystemTime::now());
        let first = files.ensure(LOCALHOST, now);
        assert_eq!(files.ensure(LOCALHOST, now), first);
        let second = files.ensure([192, 0, 2, 1].into(), now);
        assert!(second[..2] == first[..2] && second[2] != first[2] && second[3] != first[3]);
        let later = files.ensure(LOCALHOST, now + Duration::from_secs(300 * 24 * 3600));
        assert!(later[..2] == first[..2] && later[2] != second[2]);
    }

    #[test]
    fn only_the_server_reads_its_key_and_only_root_the_authoritys() {
        let files = Files::new();
        files.ensure(LOCALHOST, SystemTime::now());
        fs::set_permissions(files.path("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
        files.ensure(LOCALHOST, SystemTime::now());
        let found = NAMES.map(|name| {
            let metadata = fs::metadata(files.path(name)).unwrap();
            (metadata.uid(), metadata.mode() & 0o7777)
        });
        assert_eq!(found, [(0, 0o644), (0, 0o600), (0, 0o644), (SERVER_ID, 0o600)]);
    }

    #[test]
    fn half_a_pair_and_a_pair_that_does_not_fit_are_issued_again() {
        let (files, now) = (Files::new(), SystemTime::now());
        let first = files.ensure(LOCALHOST, now);
        fs::remove_file(files.path("server.pem")).unwrap();
        let second = files.ensure(LOCALHOST, now);
        assert!(second[..2] == first[..2] && second[3] != first[3]);
        fs::write(files.path("server.key"), &first[3]).unwrap();
        let third = files.ensure(LOCALHOST, now);
        assert!(third[3] != first[3] && third[3] != second[3]);
    }

    #[test]
    fn a_broken_authority_is_not_replaced_behind_the_clients_backs() {
        let (files, now) = (Files::new(), SystemTime::now());
        files.ensure(LOCALHOST, now);
        let refused = || ensure(files.0.path(), LOCALHOST, now).unwrap_err().to_string();
        fs::write(files.path("ca.key"), "x").unwrap();
        assert!(refused().contains("ca.key"));
        fs::remove_file(files.path("ca.key")).unwrap();
        assert!(refused().contains("is missing"));
    }
}
