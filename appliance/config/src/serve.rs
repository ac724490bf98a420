//! emberd's own configuration file, `emberd serve --config FILE`. Every key is optional; a flag on the command line
//! goes before it.
//!
//! ```toml
//! data = "./ember-data"
//! listen = "127.0.0.1:8443"
//! telemetry_listen = "127.0.0.1:9443"
//! agent_listen = "127.0.0.1:9444"
//! telemetry_ca = "/etc/ember/fleet-ca.pem"
//! telemetry_name = "shop-7"
//! drain = "10s"
//! restart_delay = "5s"
//! load_timeout = "120s"
//! inference_cores = 2
//! memory = "12GiB"
//! memory_pressure = "/sys/fs/cgroup/ember.slice/memory.pressure"   # in place of the host's, on a machine that is shared
//! [limits]
//! connections = 4096
//! connections_per_address = 256
//! request_bytes = "16MiB"
//! headers = 64
//! header_bytes = "32KiB"
//! streams = 128
//! handshake_timeout = "10s"
//! header_timeout = "10s"
//! body_timeout = "60s"
//! idle_timeout = "75s"
//! [update]                              # on a machine that Ember booted; PID 1 writes it
//! slots = "/esp/EFI/Linux"
//! key = "/etc/ember/update.pub"         # without it no update is installed
//! running = "a"
//! restart = true                        # emberd ends after an update and a roll-back: PID 1 then starts the machine again
//! ```

use crate::{
    ConfigError, REQUEST_BYTES_MAX,
    section::{Schema, Section, duration, number, parsed, size, text, truth},
};
use firmware_slots::Slot;
use std::{net::SocketAddr, ops::RangeInclusive};
use toml::de::{DeTable, DeValue};

/// How emberd serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Folder that holds everything.
    pub data: String,
    /// Where requests are answered.
    pub listen: SocketAddr,
    /// Where telemetry is answered, if anywhere.
    pub telemetry_listen: Option<SocketAddr>,
    /// Where a load balancer is told how much the box could take, if anywhere.
    pub agent_listen: Option<SocketAddr>,
    /// File with the CA of the clients that are told telemetry; the box's own telemetry CA when absent.
    pub telemetry_ca: Option<String>,
    /// What the box is called in telemetry; its host name when absent.
    pub telemetry_name: Option<String>,
    /// Time that running requests get when it stops, ms.
    pub drain_ms: u64,
    /// Longest pause before a child that died again and again is started, ms.
    pub restart_delay_ms: u64,
    /// Longest wait for a model to load, ms.
    pub load_timeout_ms: u64,
    /// Cores for inference; all when absent.
    pub inference_cores: Option<u32>,
    /// Memory for functions, bytes; what the host can spare when absent.
    pub memory_bytes: Option<u64>,
    /// The kernel's file that says how short memory is; the host's when absent.
    pub memory_pressure: Option<String>,
    /// What one client may use.
    pub limits: EdgeLimits,
    /// The appliance's slots, on a machine that Ember booted.
    pub update: Option<UpdateConfig>,
}

/// Where an appliance is updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateConfig {
    /// The folder of slots on the boot partition.
    pub slots: String,
    /// The file of the public key that bundles are signed for.
    pub key: Option<String>,
    /// The slot that runs, where that is known.
    pub running: Option<Slot>,
    /// Whether emberd ends once a slot was changed, for the machine to start again.
    pub restart: bool,
}

/// What clients may use before they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// Connections at once.
    pub connections: u32,
    /// Connections at once from one address.
    pub connections_per_address: u32,
    /// Bytes of a request body; a function's own limit may be lower.
    pub request_bytes: u64,
    /// Header lines of a request.
    pub headers: u32,
    /// Bytes of a request's headers.
    pub header_bytes: u64,
    /// HTTP/2 streams at once on a connection.
    pub streams: u32,
    /// Time for the TLS handshake, ms.
    pub handshake_timeout_ms: u64,
    /// Time for a request's headers, ms.
    pub header_timeout_ms: u64,
    /// Time for a request's body, ms.
    pub body_timeout_ms: u64,
    /// Time a connection may stay without a request, ms.
    pub idle_timeout_ms: u64,
}

const SCHEMA: Schema = &[
    (
        "",
        &[
            "data",
            "listen",
            "telemetry_listen",
            "agent_listen",
            "telemetry_ca",
            "telemetry_name",
            "drain",
            "restart_delay",
            "load_timeout",
            "inference_cores",
            "memory",
            "memory_pressure",
            "limits",
            "update",
        ],
    ),
    ("update", &["slots", "key", "running", "restart"]),
    (
        "limits",
        &[
            "connections",
            "connections_per_address",
            "request_bytes",
            "headers",
            "header_bytes",
            "streams",
            "handshake_timeout",
            "header_timeout",
            "body_timeout",
            "idle_timeout",
        ],
    ),
];

const HOUR_MS: u64 = 3_600_000;
const DRAIN_MS: RangeInclusive<u64> = 0..=HOUR_MS;
const RESTART_MS: RangeInclusive<u64> = 100..=HOUR_MS;
const LOAD_MS: RangeInclusive<u64> = 1_000..=HOUR_MS;
const TIMEOUT_MS: RangeInclusive<u64> = 100..=HOUR_MS;
const CONNECTIONS: RangeInclusive<u32> = 1..=1 << 20;
const HEADERS: RangeInclusive<u32> = 8..=1024;
const STREAMS: RangeInclusive<u32> = 1..=1024;
const HEADER_BYTES: RangeInclusive<u64> = 8 << 10..=1 << 20;
const MEMORY_BYTES: RangeInclusive<u64> = 64 << 20..=1 << 50;
const REQUEST_BYTES: RangeInclusive<u64> = 1 << 10..=REQUEST_BYTES_MAX;

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            data: "./ember-data".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8443)),
            telemetry_listen: None,
            agent_listen: None,
            telemetry_ca: None,
            telemetry_name: None,
            drain_ms: 10_000,
            restart_delay_ms: 5_000,
            load_timeout_ms: 120_000,
            inference_cores: None,
            memory_bytes: None,
            memory_pressure: None,
            limits: EdgeLimits::default(),
            update: None,
        }
    }
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 256,
            request_bytes: REQUEST_BYTES_MAX,
            headers: 64,
            header_bytes: 32 << 10,
            streams: 128,
            handshake_timeout_ms: 10_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 60_000,
            idle_timeout_ms: 75_000,
        }
    }
}

impl ServeConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// The first thing wrong with it, and where.
    pub fn parse(document: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(document).map_err(|error| ConfigError::syntax(document, &error))?;
        let top = Section::top(document, table.get_ref(), SCHEMA)?;
        let default = Self::default();
        Ok(Self {
            data: top.get("data", &text)?.unwrap_or(default.data),
            listen: top.get("listen", &parsed)?.unwrap_or(default.listen),
            telemetry_listen: top.get("telemetry_listen", &parsed)?,
            agent_listen: top.get("agent_listen", &parsed)?,
            telemetry_ca: top.get("telemetry_ca", &text)?,
            telemetry_name: top.get("telemetry_name", &host)?,
            drain_ms: top.get("drain", &duration(DRAIN_MS))?.unwrap_or(default.drain_ms),
            restart_delay_ms: top.get("restart_delay", &duration(RESTART_MS))?.unwrap_or(default.restart_delay_ms),
            load_timeout_ms: top.get("load_timeout", &duration(LOAD_MS))?.unwrap_or(default.load_timeout_ms),
            inference_cores: top.get("inference_cores", &number(1..=1024))?,
            memory_bytes: top.get("memory", &size(MEMORY_BYTES))?,
            memory_pressure: top.get("memory_pressure", &text)?,
            limits: limits(&top.section("limits")?)?,
            update: update(&top.section("update")?)?,
        })
    }
}

/// A name that a certificate can hold.
fn host(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?;
    let label = |label: &str| {
        let letters = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (1..=63).contains(&label.len()) && letters && !label.starts_with('-') && !label.ends_with('-')
    };
    match name.len() <= 253 && name.split('.').all(label) {
        true => Ok(name),
        false => Err(format!("`{name}` is no host name: small letters, digits, `-` and `.`")),
    }
}

fn update(section: &Section<'_>) -> Result<Option<UpdateConfig>, ConfigError> {
    let Some(slots) = section.get("slots", &text)? else { return Ok(None) };
    let (key, running) = (section.get("key", &text)?, section.get("running", &parsed)?);
    let restart = section.get("restart", &truth)?.unwrap_or(false);
    Ok(Some(UpdateConfig { slots, key, running, restart }))
}

fn limits(section: &Section<'_>) -> Result<EdgeLimits, ConfigError> {
    let default = EdgeLimits::default();
    let count = |key, range, default| Ok(section.get(key, &number(range))?.unwrap_or(default));
    let bytes = |key, range, default| Ok(section.get(key, &size(range))?.unwrap_or(default));
    let time = |key, default| Ok(section.get(key, &duration(TIMEOUT_MS))?.unwrap_or(default));
    Ok(EdgeLimits {
        connections: count("connections", CONNECTIONS, default.connections)?,
        connections_per_address: count("connections_per_address", CONNECTIONS, default.connections_per_address)?,
        request_bytes: bytes("request_bytes", REQUEST_BYTES, default.request_bytes)?,
        headers: count("headers", HEADERS, default.headers)?,
        header_bytes: bytes("header_bytes", HEADER_BYTES, default.header_bytes)?,
        streams: count("streams", STREAMS, default.streams)?,
        handshake_timeout_ms: time("handshake_timeout", default.handshake_timeout_ms)?,
        header_timeout_ms: time("header_timeout", default.header_timeout_ms)?,
        body_timeout_ms: time("body_timeout", default.body_timeout_ms)?,
        idle_timeout_ms: time("idle_timeout", default.idle_timeout_ms)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_key_is_read() {
        assert_eq!(ServeConfig::parse(""), Ok(ServeConfig::default()));
        let documented: String = include_str!("serve.rs")
            .lines()
            .skip_while(|line| !line.contains("```toml"))
            .skip(1)
            .take_while(|line| !line.contains("```"))
            .map(|line| format!("{}\n", line.trim_start_matches("//! ")))
            .collect();
        let read = ServeConfig::parse(&documented).unwrap();
        let telemetry_listen = Some(SocketAddr::from(([127, 0, 0, 1], 9443)));
        let agent_listen = Some(SocketAddr::from(([127, 0, 0, 1], 9444)));
        let (inference_cores, memory_bytes) = (Some(2), Some(12 << 30));
        let memory_pressure = Some("/sys/fs/cgroup/ember.slice/memory.pressure".to_owned());
        let (telemetry_ca, telemetry_name) = (Some("/etc/ember/fleet-ca.pem".into()), Some("shop-7".into()));
        let (slots, key, running) = ("/esp/EFI/Linux".into(), Some("/etc/ember/update.pub".into()), Some(Slot::A));
        let update = Some(UpdateConfig { slots, key, running, restart: true });
        let listed = ServeConfig { telemetry_listen, telemetry_ca, telemetry_name, update, ..ServeConfig::default() };
        assert_eq!(read, ServeConfig { agent_listen, inference_cores, memory_bytes, memory_pressure, ..listed });
    }

    #[test]
    fn errors_point_at_their_cause() {
        let check = |text: &str, expected: &str| {
            assert_eq!(ServeConfig::parse(text).unwrap_err().to_string(), expected, "{text}");
        };
        check("listen = 8443", "line 1, column 10: `listen`: expected a string, got a whole number");
        check("listen = \"localhost\"", "line 1, column 10: `listen`: invalid socket address syntax");
        check(
            "drain = \"10\"",
            "line 1, column 9: `drain`: `10` is not a duration: write a whole number and ms, s, m or h",
        );
        check("drian = \"10s\"", "line 1, column 1: unknown key `drian`; did you mean `drain`?");
        check("connections = 1", "line 1, column 1: unknown key `connections`; it belongs in `[limits]`");
        check("\n[limits]\nconnections = 0", "line 3, column 15: `connections`: 0 is outside 1 to 1048576");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z_=\\[\\]\"0-9\\n é.]{0,80}") {
            let _ = ServeConfig::parse(&text);
        }
    }
}
