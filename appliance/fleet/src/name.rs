//! What boxes are called, and where they are.

use appliance_edge::authority::ServerNames;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

const NAME_BYTES_MAX: usize = 63;
const HOST_BYTES_MAX: usize = 253;

/// A box's name, which its certificate holds and its pages are signed with: a host name in small letters, and no number or
/// address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BoxName(String);

impl BoxName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BoxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BoxName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let label = |label: &str| {
            let letters = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            !label.is_empty() && letters && !label.starts_with('-') && !label.ends_with('-')
        };
        let is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        match text.len() <= NAME_BYTES_MAX && text.split('.').all(label) && !is_number {
            true => Ok(Self(text.to_owned())),
            false => {
                Err(format!("`{text}` is no box's name: small letters, digits, `-` and `.`, {NAME_BYTES_MAX} at most"))
            }
        }
    }
}

impl TryFrom<String> for BoxName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BoxName> for String {
    fn from(name: BoxName) -> String {
        name.0
    }
}

/// Where a box tells: `https://HOST:PORT`, or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As `HOST:PORT`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address: https://HOST:PORT");
        let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match inner {
            Some(six) => six.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None => host.to_ascii_lowercase(),
        };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
        let is_host = !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(letter);
        let is_six = inner.is_some() || !host.contains(':');
        if is_host && is_six { Ok(Self { host, port }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

/// Takes an IP address or host name that a certificate can hold, for clap.
///
/// # Errors
/// What is wrong with it.
pub fn host(text: &str) -> Result<String, String> {
    let is_held = ServerNames::none().and(text) != ServerNames::none();
    let is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    match is_held && (!is_number || text.parse::<IpAddr>().is_ok()) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is neither an IP address nor a host name, both without scheme and port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_a_certificate_can_hold() {
        for good in ["192.0.2.7", "2001:db8::7", "Shop-7.lan", "a"] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        for bad in ["", "192.0.2.7:9443", "https://a", "192.0.2.300", "[2001:db8::7]", "0.0.0.0", "a_b", "a/b", "a b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_host_names() {
        for good in ["a", "shop-7", "shop-7.north", "7up"] {
            assert_eq!(good.parse::<BoxName>().unwrap().as_str(), good);
        }
        for bad in ["", "7", "192.0.2.7", "Shop", "-a", "a-", "a..b", "a b", "a/b", "../a", &"a".repeat(64)] {
            assert!(bad.parse::<BoxName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_read_with_and_without_their_scheme() {
        let read = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(read("192.0.2.7:9443"), Ok("https://192.0.2.7:9443".to_owned()));
        assert_eq!(read("https://Shop-7.lan:9443/"), Ok("https://shop-7.lan:9443".to_owned()));
        assert_eq!(read("[2001:db8::7]:9443"), Ok("https://[2001:db8::7]:9443".to_owned()));
        for bad in ["", "a", "a:0", "a:x", "a:65536", ":1", "2001:db8::7:9443", "http://a:1", "a/b:1", "[a]:1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
