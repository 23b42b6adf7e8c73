//! Who is at the other end: [`Peer`].

use std::net::{IpAddr, SocketAddr};

/// An endpoint that messages are exchanged with: its address, and the socket of ours by which it is reached.
///
/// The same address on two sockets is two peers: message ids, tokens and observations are never shared between them
/// (RFC 7252 §4.4, §5.3.2), and a resource may allow on one what it refuses on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Which of the caller's sockets; the caller gives the number its meaning.
    pub socket: u16,
    /// The remote address.
    pub address: SocketAddr,
}

impl Peer {
    /// Whether an answer can be sent there: not port 0, not a group, not the unspecified or broadcast address.
    /// Such sources are forged, and answering one would hit a third party or only cause an error.
    pub fn is_answerable(&self) -> bool {
        let is_host = match self.address.ip() {
            IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_unspecified() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified(),
        };
        is_host && self.address.port() != 0
    }
}
