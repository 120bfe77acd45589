//! What the service says about itself.

use serde::{Deserialize, Serialize};

/// Counts of what the service knows now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}
