//! A DHCP client's four messages (RFC 2131), as pure as can be: what to send, what an answer means.
//!
//! ```text
//!  DISCOVER ─▶ OFFER ─▶ REQUEST ─▶ ACK ─▶ lease
//! ```
//!
//! Left out: the renewal of a lease; it is asked for anew at each boot.

use crate::{error::InitError, machine::Prefixed};
use dhcproto::{
    Decodable, Decoder, Encodable, Encoder,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode},
};
use std::net::{IpAddr, Ipv4Addr};

/// What a server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Prefixed,
    pub(crate) gateway: Option<IpAddr>,
    /// Who tells the time.
    pub(crate) time_servers: Vec<IpAddr>,
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Client {
    transaction: u32,
    hardware: [u8; 6],
    offer: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Client {
    /// Begins an exchange for the interface with this hardware address.
    pub(crate) fn new(transaction: u32, hardware: [u8; 6]) -> Self {
        Self { transaction, hardware, offer: None }
    }

    /// What to send now.
    pub(crate) fn message(&self) -> Result<Vec<u8>, InitError> {
        let mut message = Message::default();
        message.set_xid(self.transaction).set_flags(Flags::default().set_broadcast()).set_chaddr(&self.hardware);
        let options = message.opts_mut();
        let wants = vec![OptionCode::SubnetMask, OptionCode::Router, OptionCode::NtpServers];
        options.insert(DhcpOption::ParameterRequestList(wants));
        match self.offer {
            None => drop(options.insert(DhcpOption::MessageType(MessageType::Discover))),
            Some((address, server)) => {
                options.insert(DhcpOption::MessageType(MessageType::Request));
                options.insert(DhcpOption::RequestedIpAddress(address));
                options.insert(DhcpOption::ServerIdentifier(server));
            }
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).map_err(|error| InitError::Network(error.to_string()))?;
        Ok(bytes)
    }

    /// Takes an answer; a lease when it was the last. What is not for us, or makes no sense, changes nothing.
    pub(crate) fn answer(&mut self, bytes: &[u8]) -> Option<Lease> {
        let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
        if message.xid() != self.transaction || message.chaddr() != self.hardware {
            return None;
        }
        let option = |code| message.opts().get(code);
        let Some(DhcpOption::MessageType(kind)) = option(OptionCode::MessageType) else { return None };
        let Some(DhcpOption::ServerIdentifier(server)) = option(OptionCode::ServerIdentifier) else { return None };
        match (kind, self.offer) {
            (MessageType::Offer, None) => {
                self.offer = Some((message.yiaddr(), *server));
                None
            }
            (MessageType::Nak, Some(_)) => {
                self.offer = None;
                None
            }
            (MessageType::Ack, Some((_, chosen))) if chosen == *server => {
                let mask = match option(OptionCode::SubnetMask) {
                    Some(DhcpOption::SubnetMask(mask)) => *mask,
                    _ => Ipv4Addr::new(255, 255, 255, 0),
                };
                let prefix = u32::from(mask).leading_ones() as u8;
                let gateway = match option(OptionCode::Router) {
                    Some(DhcpOption::Router(routers)) => routers.first().copied().map(IpAddr::V4),
                    _ => None,
                };
                let time_servers = match option(OptionCode::NtpServers) {
                    Some(DhcpOption::NtpServers(servers)) => servers.iter().copied().map(IpAddr::V4).collect(),
                    _ => Vec::new(),
                };
                let address = Prefixed { address: message.yiaddr().into(), prefix };
                Some(Lease { address, gateway, time_servers })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn answer(kind: MessageType, transaction: u32) -> Vec<u8> {
        let mut message = Message::default();
        message.set_xid(transaction).set_chaddr(&HARDWARE).set_yiaddr(ADDRESS);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(SERVER));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        options.insert(DhcpOption::Router(vec![SERVER]));
        options.insert(DhcpOption::NtpServers(vec![SERVER]));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn kind(bytes: &[u8]) -> MessageType {
        let message = Message::decode(&mut Decoder::new(bytes)).unwrap();
        message.opts().msg_type().unwrap()
    }

    #[test]
    fn four_messages_make_a_lease() {
        let mut client = Client::new(7, HARDWARE);
        assert_eq!(kind(&client.message().unwrap()), MessageType::Discover);
        assert_eq!(client.answer(&answer(MessageType::Offer, 7)), None);
        assert_eq!(kind(&client.message().unwrap()), MessageType::Request);
        let address = Prefixed { address: ADDRESS.into(), prefix: 24 };
        let lease = Lease { address, gateway: Some(SERVER.into()), time_servers: vec![SERVER.into()] };
        assert_eq!(client.answer(&answer(MessageType::Ack, 7)), Some(lease));
    }

    #[test]
    fn what_is_not_ours_changes_nothing() {
        let mut client = Client::new(7, HARDWARE);
        for bytes in [answer(MessageType::Offer, 8), answer(MessageType::Ack, 7), Vec::new(), vec![9; 300]] {
            assert_eq!(client.answer(&bytes), None);
        }
        assert_eq!(kind(&client.message().unwrap()), MessageType::Discover);
    }

    #[test]
    fn a_refusal_begins_anew() {
        let mut client = Client::new(7, HARDWARE);
        client.answer(&answer(MessageType::Offer, 7));
        client.answer(&answer(MessageType::Nak, 7));
        assert_eq!(kind(&client.message().unwrap()), MessageType::Discover);
    }
}
