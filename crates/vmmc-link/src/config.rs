//! What the embedding decides about a link.

use std::time::Duration;

/// The choices of one side of a link. The two sides need not agree, except that every path has the same number on both.
#[derive(Debug, Clone)]
pub struct Config {
    /// The number that the *peer* gave this link: it stands in every packet sent.
    pub remote_link: u32,
    /// The number that this side gave the link: packets of others are dropped.
    pub local_link: u32,
    /// Which life of this side it is. Grows with each restart.
    pub incarnation: u32,
    /// Which life of the peer it is.
    pub peer_incarnation: u32,
    /// How many paths there are, 1 to 64. Path `n` of one side is path `n` of the other.
    pub paths: u8,
    /// A datagram size in bytes that every path is sure to carry: 1200 for the internet, 576 to 65,000.
    pub min_mtu: u16,
    /// The largest datagram worth trying, in bytes: 1472 for Ethernet and IPv4, 8972 for jumbo frames.
    pub max_mtu: u16,
    /// How long an acknowledgement may wait for company.
    pub max_ack_delay: Duration,
    /// Queueing delay that the congestion control aims at, on top of the path's own delay.
    pub target_delay: Duration,
    /// Most bytes in flight on one path.
    pub max_window: u64,
    /// Most bytes of fetch replies that may be under way to this side; see [`Link::set_fetch_credit`](crate::Link::set_fetch_credit).
    pub fetch_credit: u64,
    /// With no path left for this long, the link fails with [`LinkError::Unreachable`](crate::LinkError::Unreachable).
    pub unreachable_after: Duration,
    /// How often an idle path is asked whether it is still there. `None`: never; a dead peer is found out at the next command.
    pub keep_alive: Option<Duration>,
    /// Packets protected by one key before the next one. AES-GCM allows 2^23.
    pub packets_per_key: u64,
    /// How lost packets are sent again.
    pub recovery: Recovery,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            remote_link: 0,
            local_link: 0,
            incarnation: 0,
            peer_incarnation: 0,
            paths: 1,
            min_mtu: 1200,
            max_mtu: 1472,
            max_ack_delay: Duration::from_micros(50),
            target_delay: Duration::from_micros(100),
            max_window: 64 << 20,
            fetch_credit: 1 << 20,
            unreachable_after: Duration::from_secs(10),
            keep_alive: None,
            packets_per_key: 1 << 22,
            recovery: Recovery::Selective,
        }
    }
}

/// How lost packets are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// What was lost, and nothing else.
    #[default]
    Selective,
    /// What was lost and everything behind it, as VMMC-2 and the hardware of RoCE did it: a baseline to compare with. The sender takes
    /// acknowledgements only up to the first gap; one beyond a gap is to it what a negative acknowledgement is there.
    GoBackN,
}
