//! A lane: one import over a link between the engines of two processes on two nodes. All lanes of two processes, both ways, share a link.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a process needs to host its end of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// The link's number here, in packets that come; chosen by the service, never used twice by a process.
    pub link: u32,
    /// The link's number at the other end, in packets that go.
    pub peer_link: u32,
    /// Where the other end's paths lead.
    pub peer_addresses: Vec<SocketAddr>,
    /// Protects what goes and what comes; not used without encryption.
    pub secrets: ([u8; 32], [u8; 32]),
    /// Whether packets are encrypted.
    pub encrypted: bool,
    /// Whether lost packets are sent again with everything behind them.
    pub go_back_n: bool,
    /// Bytes of a datagram at most.
    pub max_mtu: u16,
    /// Names the import in packets.
    pub export: u64,
    /// Proves it.
    pub capability: u128,
}
