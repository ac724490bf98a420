//! Brings the network up: by DHCP, or as `machine.toml` says.
//!
//! It takes its time (a cable's carrier, a lost first message), so it runs beside the service, which listens on all
//! addresses, those that come later included. It is tried until it succeeds.

use crate::{
    console::say,
    dhcp::{Client, Lease},
    error::InitError,
    machine::{Prefixed, Static},
};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkFlags, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr as KernelAddress, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a server has for an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Messages of one exchange; then it begins anew, or another interface is tried.
const MESSAGES_MAX: u32 = 4;
/// Pause before all interfaces are tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// An interface of the machine's hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    index: u32,
    hardware: [u8; 6],
}

/// Does not return before there is an address; then says it.
pub(crate) fn bring_up(given: Option<&Static>) -> Lease {
    if let Some(index) = index_of(Path::new("/sys/class/net/lo")) {
        drop(link_up(index));
    }
    let mut said = String::new();
    loop {
        match bring_up_once(given) {
            Ok((interface, lease)) => {
                let Prefixed { address, prefix } = lease.address;
                say(format_args!("network {}: {address}/{prefix}", interface.name));
                return lease;
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    say(&reason);
                    said = reason;
                }
            }
        }
        sleep(PAUSE);
    }
}

fn bring_up_once(given: Option<&Static>) -> Result<(Interface, Lease), InitError> {
    let interfaces = interfaces(Path::new("/sys/class/net"));
    let mut last = InitError::Missing("network interface".to_owned());
    for interface in interfaces {
        let lease = link_up(interface.index).and_then(|()| match given {
            Some(given) => Ok(Lease { address: given.address, gateway: given.gateway, time_servers: Vec::new() }),
            None => ask(&interface),
        });
        match lease.and_then(|lease| configure(interface.index, &lease).map(|()| lease)) {
            Ok(lease) => return Ok((interface, lease)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Ethernet interfaces that belong to a device, in the order of their names.
fn interfaces(class: &Path) -> Vec<Interface> {
    let mut found: Vec<_> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let hardware = fs::read_to_string(entry.path().join("address")).ok()?;
            Some(Interface {
                name: entry.file_name().into_string().ok()?,
                index: index_of(&entry.path())?,
                hardware: hardware_address(hardware.trim_end())?,
            })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn index_of(interface: &Path) -> Option<u32> {
    fs::read_to_string(interface.join("ifindex")).ok()?.trim_end().parse().ok()
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Asks for a lease.
fn ask(interface: &Interface) -> Result<Lease, InitError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68)).map_err(InitError::io("the DHCP port"))?;
    setsockopt(&socket, BindToDevice, &OsString::from(&interface.name)).map_err(InitError::kernel(&interface.name))?;
    socket.set_broadcast(true).map_err(InitError::io("the DHCP socket"))?;
    let [.., a, b, c, d] = interface.hardware;
    let mut client = Client::new(u32::from_be_bytes([a, b, c, d]), interface.hardware);
    let mut answer = [0; 1500];
    for _ in 0..MESSAGES_MAX {
        let sent = socket.send_to(&client.message()?, (Ipv4Addr::BROADCAST, 67));
        sent.map_err(InitError::io(format!("DHCP on {}", interface.name)))?;
        let until = Instant::now() + ANSWER;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left)).map_err(InitError::io("the DHCP socket"))?;
            let Ok((length, from)) = socket.recv_from(&mut answer) else { break };
            if from.port() != 67 {
                continue;
            }
            if let Some(lease) = client.answer(&answer[..length]) {
                return Ok(lease);
            }
            break;
        }
    }
    Err(InitError::Network(format!("no DHCP server answers on {}", interface.name)))
}

fn link_up(index: u32) -> Result<(), InitError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    tell("the link", RouteNetlinkMessage::SetLink(message), 0)
}

fn configure(index: u32, lease: &Lease) -> Result<(), InitError> {
    let Prefixed { address, prefix } = lease.address;
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    tell("the address", RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)?;
    let Some(gateway) = lease.gateway else { return Ok(()) };
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
    tell("the gateway", RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Tells the kernel something and waits for its word on it.
fn tell(what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), InitError> {
    let failed = InitError::io(what.to_owned());
    talk(message, flags).map_err(failed)?.map_err(InitError::io(what.to_owned()))
}

fn talk(message: RouteNetlinkMessage, flags: u16) -> std::io::Result<std::io::Result<()>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&KernelAddress::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(std::io::Error::other)?;
    Ok(match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_hardware_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for (name, index, hardware, device) in [
            ("eth1", "3", "52:54:00:12:34:57", true),
            ("eth0", "2", "52:54:00:12:34:56", true),
            ("lo", "1", "00:00:00:00:00:00", false),
            ("ib0", "4", "80:00:02:08:fe:80:00:00:00:00", true),
        ] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("ifindex"), format!("{index}\n")).unwrap();
            fs::write(path.join("address"), format!("{hardware}\n")).unwrap();
            if device {
                fs::create_dir(path.join("device")).unwrap();
            }
        }
        let found: Vec<_> = interfaces(folder.path()).into_iter().map(|i| (i.name, i.index)).collect();
        assert_eq!(found, [("eth0".to_owned(), 2), ("eth1".to_owned(), 3)]);
        assert_eq!(hardware_address("52:54:00:12:34:56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(hardware_address("52:54"), None);
    }
}
