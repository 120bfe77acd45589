//! A way to reach other nodes: datagrams that may be lost, repeated, reordered or damaged.

mod datagrams;
mod udp;

use std::net::SocketAddr;

pub use udp::{BindError, UdpFabric};

/// What a [`Port`](crate::port::Port) sends and receives through. One of them is one path to every peer.
///
/// Nothing here may wait, and in the steady state nothing may allocate. A fabric is used by one thread at a time.
pub trait Fabric {
    /// How many datagrams of `segment` bytes it takes at once; at least 1.
    fn batch(&self, segment: usize) -> usize;

    /// Sends `bytes` as datagrams of `segment` bytes each, of which the last may be shorter.
    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent;

    /// Says how many bytes this host's own queues shall hold for it at most. Whether that is more than before: then there may be room again.
    fn allow(&mut self, _bytes: u64) -> bool {
        false
    }

    /// Says that there is one peer only, whose datagrams all come from this address; or that there are others again. What others send meanwhile may be lost.
    fn only(&mut self, _peer: Option<SocketAddr>) {}

    /// Says whether somebody will look again and again from now on, so that nobody has to be woken for what comes. Whether something has come already.
    fn attend(&mut self, _attended: bool) -> bool {
        false
    }

    /// Whether it is sure, at the cost of a load, that nothing has come that may not wait for some more looks.
    fn is_quiet(&self) -> bool {
        false
    }

    /// Hands over datagrams that have come, at most some dozens, each to `take`, which may write in it; how many there were. 0: nothing has come.
    fn receive(&mut self, take: impl FnMut(&mut [u8])) -> usize;
}

/// What became of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// They are on their way, as far as can be known, or are lost: to a link that is the same.
    Gone,
    /// There is no room at the moment. Nothing was sent.
    Full,
}
