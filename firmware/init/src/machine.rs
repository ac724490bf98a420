//! `machine.toml` on the boot partition: what an operator says of this one box.
//!
//! ```toml
//! hostname = "ember-7"
//! listen = "0.0.0.0:8443"
//! agent_listen = "0.0.0.0:9444" # HAProxy's agent check; without it there is none
//! admin_key = "…"               # without it one is made, on the data partition; of use at the first boot only
//! update_key = "RW…"            # whose bundles are installed: the public key's line; an image may bring its own
//! load_timeout = 600            # seconds that a model may take to load; 120 without it
//! [network]                     # without it: DHCP
//! address = "192.168.1.7/24"
//! gateway = "192.168.1.1"
//! [clock]
//! servers = ["192.168.1.1"]     # time servers, by address; without them, those that DHCP names
//! [telemetry]                   # of a fleet; `ember fleet enrol` writes all but `listen`
//! listen = "0.0.0.0:9443"
//! name = "shop-7"
//! ca = "…"                      # PEM, as the two below
//! certificate = "…"
//! key = "…"
//! ```
//!
//! A file that is wrong, also in what the fleet gave, never keeps a box from starting: what was right the last time is used, and the console says what
//! is wrong and where.

use crate::{CheckFleet, console::say, listen::are_apart};
use firmware_bundle::minisign::PublicKey;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Longest name and longest PEM, as emberd has them.
const NAME_BYTES_MAX: usize = 253;
const PEM_BYTES_MAX: usize = 60 << 10;
const TIME_SERVERS_MAX: usize = 8;
const LOAD_SECONDS: RangeInclusive<u32> = 1..=3600;

/// What the box is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Machine {
    /// Its name.
    pub(crate) hostname: String,
    /// Where requests are answered.
    pub(crate) listen: SocketAddr,
    /// Where a load balancer is told what the box could take.
    pub(crate) agent_listen: Option<SocketAddr>,
    /// The admin key of a box that has none yet.
    pub(crate) admin_key: Option<String>,
    /// Whose updates are installed, where the image does not say.
    pub(crate) update_key: Option<String>,
    /// How long a model may take to load, seconds; as emberd has it without.
    pub(crate) load_timeout: Option<u32>,
    /// Who tells it the time.
    pub(crate) clock: Clock,
    /// Its address; DHCP without.
    pub(crate) network: Option<Static>,
    /// The fleet that it belongs to.
    pub(crate) telemetry: Option<Telemetry>,
}

/// Who tells a box the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Clock {
    /// Time servers, in the order in which they are asked.
    pub(crate) servers: Vec<IpAddr>,
}

/// What a box of a fleet is given.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Telemetry {
    /// Where telemetry is answered.
    #[serde(default = "telemetry_listen")]
    pub(crate) listen: SocketAddr,
    /// What the fleet calls it.
    pub(crate) name: String,
    /// The fleet's CA.
    pub(crate) ca: String,
    /// The box's certificate.
    pub(crate) certificate: String,
    /// The key of that certificate.
    pub(crate) key: String,
}

impl Telemetry {
    /// Puts what the fleet gave where emberd finds it, at each start: a renewed certificate comes with a new machine.toml.
    pub(crate) fn place(&self, data: &Path) -> io::Result<()> {
        let folder = data.join("telemetry/fleet");
        fs::create_dir_all(&folder)?;
        let Self { name, ca, certificate, key, .. } = self;
        for (file, text) in [("server.key", key), ("server.pem", certificate), ("ca.pem", ca), ("name", name)] {
            let (path, text) = (folder.join(file), format!("{}\n", text.trim()));
            // What is there already needs no room on a disk that may be full.
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                write_private(&path, &text)?;
            }
        }
        Ok(())
    }

    /// What emberd would refuse is refused here, where another file can take its place.
    fn check(&self, requests: SocketAddr, fleet: CheckFleet) -> Result<(), String> {
        let Self { listen, name, ca, certificate, key } = self;
        if !are_apart(*listen, requests) {
            return Err(format!("telemetry.listen is {listen}, where requests are answered: {requests}"));
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
            return Err(format!("telemetry.name is {name:?}; it may have small letters, digits, - and ."));
        }
        if [ca, certificate, key].iter().any(|pem| pem.len() > PEM_BYTES_MAX) {
            return Err(format!("[telemetry] has a text longer than {PEM_BYTES_MAX} bytes"));
        }
        fleet(ca, certificate, key).map_err(|reason| format!("ca, certificate or key of [telemetry]: {reason}"))
    }
}

/// Writes a file that only root reads: whole, or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // One that is left from before may have another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
    fs::rename(&fresh, path)
}

fn telemetry_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9443))
}

/// An address that is given, not asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Static {
    pub(crate) address: Prefixed,
    pub(crate) gateway: Option<IpAddr>,
}

/// `192.168.1.7/24`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefixed {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl Default for Machine {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443));
        Self {
            hostname: "ember".to_owned(),
            listen,
            agent_listen: None,
            admin_key: None,
            update_key: None,
            load_timeout: None,
            clock: Clock::default(),
            network: None,
            telemetry: None,
        }
    }
}

impl<'de> Deserialize<'de> for Prefixed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most)?;
            Some(Self { address, prefix })
        });
        parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is no address with its prefix, as in 192.168.1.7/24")))
    }
}

impl Machine {
    pub(crate) fn parse(text: &str, fleet: CheckFleet) -> Result<Self, String> {
        let machine: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let name = &machine.hostname;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) || name.starts_with('-') {
            return Err(format!("hostname is {name:?}; it may have letters, digits and -, 63 of them"));
        }
        if machine.admin_key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
            return Err("admin_key is a key as `ember key create` prints it".to_owned());
        }
        if let Some(Err(error)) = machine.update_key.as_deref().map(PublicKey::parse) {
            return Err(format!("update_key: {error}"));
        }
        if machine.load_timeout.is_some_and(|seconds| !LOAD_SECONDS.contains(&seconds)) {
            return Err("load_timeout is seconds, 1 to 3600".to_owned());
        }
        if machine.clock.servers.len() > TIME_SERVERS_MAX {
            return Err(format!("clock.servers names more than {TIME_SERVERS_MAX}"));
        }
        if let Some(telemetry) = &machine.telemetry {
            telemetry.check(machine.listen, fleet)?;
        }
        let others = [Some(machine.listen), machine.telemetry.as_ref().map(|telemetry| telemetry.listen)];
        match machine.agent_listen {
            Some(agent) if others.into_iter().flatten().any(|other| !are_apart(agent, other)) => {
                Err(format!("agent_listen is {agent}, where something else is answered"))
            }
            _ => Ok(machine),
        }
    }
}

/// Reads `current`; where it is wrong, `last_good`, or what that was before: a version on trial may have kept what only it
/// understands. What was right is kept as `last_good`.
pub(crate) fn read(current: &Path, last_good: &Path, fleet: CheckFleet) -> Machine {
    let Ok(text) = fs::read_to_string(current) else { return Machine::default() };
    match Machine::parse(&text, fleet) {
        Ok(machine) => {
            keep(&text, last_good);
            machine
        }
        Err(reason) => {
            say(format_args!("machine.toml is wrong, the last good one is used: {reason}"));
            let kept = [last_good.to_owned(), older(last_good)].into_iter();
            let mut right = kept.filter_map(|path| Machine::parse(&fs::read_to_string(path).ok()?, fleet).ok());
            right.next().unwrap_or_default()
        }
    }
}

fn older(last_good: &Path) -> PathBuf {
    last_good.with_extension("last-good-before")
}

/// It may hold keys: nobody but root reads it, also where an earlier version wrote it.
fn keep(text: &str, last_good: &Path) {
    let is_private = fs::metadata(last_good).is_ok_and(|file| file.mode() & 0o077 == 0);
    let is_same = fs::read_to_string(last_good).ok().as_deref() == Some(text);
    if is_private && is_same {
        return;
    }
    if !is_same {
        // Where there is none, none is kept.
        let _ = fs::rename(last_good, older(last_good));
    }
    if let Err(error) = write_private(last_good, text) {
        say(format_args!("machine.toml cannot be kept as the last good one: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// In place of certificates.
    fn fits(ca: &str, certificate: &str, key: &str) -> Result<(), String> {
        let broken = [ca, certificate, key].contains(&"broken");
        if broken { Err("no certificate".to_owned()) } else { Ok(()) }
    }

    fn parse(text: &str) -> Result<Machine, String> {
        Machine::parse(text, fits)
    }

    #[test]
    fn a_machine_reads() {
        let text = "hostname = \"box-1\"\n[network]\naddress = \"192.168.1.7/24\"\ngateway = \"192.168.1.1\"\n";
        let machine = parse(text).unwrap();
        let network = machine.network.unwrap();
        assert_eq!((network.address.prefix, network.gateway), (24, Some("192.168.1.1".parse().unwrap())));
        assert_eq!(parse("").unwrap(), Machine::default());
    }

    #[test]
    fn time_servers_and_the_key_of_updates_are_read() {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let machine = parse(&format!("update_key = \"{key}\"\n[clock]\nservers = [\"192.0.2.1\", \"::1\"]")).unwrap();
        assert_eq!((machine.update_key.as_deref(), machine.clock.servers.len()), (Some(key), 2));
        let many = format!("[clock]\nservers = [{}]", "\"192.0.2.1\",".repeat(9));
        for (text, expected) in [
            ("update_key = \"RWQ\"", "minisign public key"),
            ("[clock]\nservers = [\"pool.ntp.org\"]", "line 2"),
            (&many, "more than 8"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_fleet_is_read_whole_or_not_at_all() {
        let text = "[telemetry]\nname = \"shop-7\"\nca = \"a\"\ncertificate = \"b\"\n";
        assert!(parse(text).unwrap_err().contains("key"));
        let telemetry = parse(&format!("{text}key = \"c\"")).unwrap().telemetry.unwrap();
        assert_eq!((telemetry.listen.port(), telemetry.name.as_str(), telemetry.key.as_str()), (9443, "shop-7", "c"));
        let data = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            telemetry.place(data.path()).unwrap();
        }
        let placed = ["name", "ca.pem", "server.pem", "server.key"]
            .map(|file| fs::read_to_string(data.path().join("telemetry/fleet").join(file)).unwrap());
        assert_eq!(placed, ["shop-7\n", "a\n", "b\n", "c\n"]);
        assert_eq!(fs::read_dir(data.path().join("telemetry/fleet")).unwrap().count(), 4);
        // Nothing is written that is there already: there would be no room for it on a full disk.
        fs::create_dir(data.path().join("telemetry/fleet/server.new")).unwrap();
        telemetry.place(data.path()).unwrap();
        Telemetry { key: "d".into(), ..telemetry }.place(data.path()).unwrap_err();
    }

    #[test]
    fn what_emberd_would_refuse_of_a_fleet_is_refused_and_the_last_good_one_used() {
        let section = |name: &str, ca: &str, key: &str| {
            format!("[telemetry]\nname = \"{name}\"\nca = \"{ca}\"\ncertificate = \"b\"\nkey = \"{key}\"\n")
        };
        let good = section("shop-7.north", "a", "c");
        parse(&good).unwrap();
        for (wrong, expected) in [
            (section("Shop-7", "a", "c"), "telemetry.name"),
            (section("", "a", "c"), "telemetry.name"),
            (section("shop-7", "broken", "c"), "no certificate"),
            (section("shop-7", "a", "broken"), "no certificate"),
            (section("shop-7", &"a".repeat(PEM_BYTES_MAX + 1), "c"), "longer than"),
            (format!("{good}listen = \"0.0.0.0:8443\""), "telemetry.listen"),
            (format!("{good}listen = \"192.0.2.7:8443\""), "telemetry.listen"),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
            let folder = tempfile::tempdir().unwrap();
            let (current, last) = (folder.path().join("machine.toml"), folder.path().join("last.toml"));
            for text in [&good, &wrong] {
                fs::write(&current, text).unwrap();
                assert_eq!(read(&current, &last, fits).telemetry.unwrap().name, "shop-7.north");
            }
            assert_eq!(fs::read_to_string(&last).unwrap(), good);
        }
        parse(&format!("listen = \"192.0.2.8:8443\"\n{good}listen = \"192.0.2.7:8443\"")).unwrap();
    }

    #[test]
    fn the_agent_check_has_an_address_of_its_own() {
        assert_eq!(parse("").unwrap().agent_listen, None);
        let text = "agent_listen = \"0.0.0.0:9444\"";
        assert_eq!(parse(text).unwrap().agent_listen, Some("0.0.0.0:9444".parse().unwrap()));
        let telemetry = "[telemetry]\nname = \"a\"\nca = \"a\"\ncertificate = \"b\"\nkey = \"c\"";
        parse(&format!("{text}\n{telemetry}")).unwrap();
        for taken in
            [format!("agent_listen = \"192.0.2.7:9443\"\n{telemetry}"), "agent_listen = \"0.0.0.0:8443\"".into()]
        {
            let error = parse(&taken).unwrap_err();
            assert!(error.contains("agent_listen"), "{taken}: {error}");
        }
    }

    #[test]
    fn what_a_later_version_kept_gives_way_to_what_was_kept_before() {
        let folder = tempfile::tempdir().unwrap();
        let (current, last) = (folder.path().join("machine.toml"), folder.path().join("machine.toml.last-good"));
        fs::write(&current, "hostname = \"box-1\"").unwrap();
        read(&current, &last, fits);
        // A later one, which knows more, was tried and given up.
        let later = "hostname = \"box-1\"\nlater = 1";
        fs::rename(&last, older(&last)).unwrap();
        [&current, &last].iter().for_each(|path| fs::write(path, later).unwrap());
        assert_eq!(read(&current, &last, fits).hostname, "box-1");
    }

    #[test]
    fn what_is_kept_is_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (current, last) = (folder.path().join("machine.toml"), folder.path().join("last.toml"));
        fs::write(&current, "hostname = \"box-1\"").unwrap();
        let mode = || fs::metadata(&last).unwrap().mode() & 0o777;
        read(&current, &last, fits);
        assert_eq!(mode(), 0o600);
        // Of an earlier version, which kept it for all to read.
        fs::set_permissions(&last, fs::Permissions::from_mode(0o644)).unwrap();
        read(&current, &last, fits);
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, expected) in [
            ("hostname = \"a b\"", "hostname"),
            ("\nhost = \"a\"", "line 2"),
            ("load_timeout = 3601", "1 to 3600"),
            ("[network]\naddress = \"192.168.1.7\"", "192.168.1.7/24"),
            ("[network]\naddress = \"192.168.1.7/33\"", "192.168.1.7/24"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_file_gives_way_to_the_last_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let (current, last) = (folder.path().join("machine.toml"), folder.path().join("last.toml"));
        assert_eq!(read(&current, &last, fits), Machine::default());
        fs::write(&current, "hostname = \"box-1\"").unwrap();
        assert_eq!(read(&current, &last, fits).hostname, "box-1");
        fs::write(&current, "hostname = ").unwrap();
        assert_eq!(read(&current, &last, fits).hostname, "box-1");
    }
}
