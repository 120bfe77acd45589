//! What the service says about itself.

use serde::{Deserialize, Serialize};

/// What the service knows now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Process number of the service, as whoever asks sees it; 0 if it does not.
    pub pid: u32,
    /// The node's id.
    pub node: u64,
    /// Seconds since the service started.
    pub uptime_seconds: u64,
    /// Processes that opened VMMC.
    pub processes: u64,
    /// Exports that are not revoked, pair memories included.
    pub exports: u64,
    /// Imports that are not given back, pair memories excluded.
    pub imports: u64,
    /// Ends of connections that wait for their other end.
    pub offers: u64,
    /// Pairs of which an end is held.
    pub pairs: u64,
    /// Network namespaces of these processes.
    pub networks: u64,
    /// Whether connections between them can be lifted.
    pub networks_meet: bool,
    /// Bytes that processes may have pinned now, all together.
    pub reserved_bytes: u64,
    /// The most there can be.
    pub pinned_limit: u64,
    /// Ways of the service's own links to other nodes; at most [`MAX_ENTRIES`](crate::MAX_ENTRIES) of them.
    pub paths: Vec<PathStatus>,
}

/// A way to another node, as the congestion control sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Name of the other node.
    pub node: String,
    /// Number of the path, from 0.
    pub path: u8,
    /// It answers.
    pub up: bool,
    /// Round trip in nanoseconds, smoothed.
    pub round_trip: u64,
    /// Bytes that may be in flight.
    pub window: u64,
    /// Bytes that are in flight.
    pub in_flight: u64,
    /// Bytes of the largest datagram that is known to get through.
    pub mtu: u16,
    /// Packets sent on all paths of this link.
    pub packets_sent: u64,
    /// Packets of them that were lost.
    pub packets_lost: u64,
}
