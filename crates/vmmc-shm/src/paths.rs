//! The page on which a process tells of the paths of its own engine to other nodes. It writes, others of its user read; nobody asks.
//!
//! The words of an entry are stored one by one: whoever reads in between sees figures of two moments.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};

/// Paths that a page tells of.
pub const PATHS: usize = 64;

const USED: u64 = 1;
const UP: u64 = 2;

/// A path of a link to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Where the other process's engine is.
    pub peer: SocketAddr,
    /// Number of the path on its link.
    pub path: u8,
    /// Whether it answers.
    pub up: bool,
    /// Smoothed round trip, nanoseconds.
    pub round_trip: u64,
    /// Bytes that may be in flight.
    pub window: u64,
    /// Bytes that are.
    pub in_flight: u64,
    /// Bytes of the largest datagram that is known to get through.
    pub mtu: u16,
    /// Packets sent, on all paths of the link.
    pub packets_sent: u64,
    /// Of these, taken for lost.
    pub packets_lost: u64,
}

/// The page as it lies in memory; all zero tells of nothing.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PathBoard([Entry; PATHS]);

/// Flags, path, mtu and port; the address in two; the figures.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Entry([AtomicU64; 8]);

// It is shared as one page.
const _: () = assert!(PathBoard::LEN <= 4096);

impl PathBoard {
    /// Bytes.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a board.
    ///
    /// # Safety
    /// `start` is aligned to 64, points to at least [`Self::LEN`] mapped bytes that stay mapped for `'a`; writable, if anything is told.
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; all fields are atomics, for which any bytes are valid and which others may
        // change.
        unsafe { &*start.cast::<Self>() }
    }

    /// Tells of these paths, as many as there is room for, and of no others.
    pub fn tell(&self, paths: impl Iterator<Item = PathInfo>) {
        let mut entries = self.0.iter();
        for (path, entry) in paths.zip(entries.by_ref()) {
            entry.store(&path);
        }
        entries.for_each(|entry| entry.0[0].store(0, Ordering::Release));
    }

    /// What is told.
    pub fn read(&self) -> Vec<PathInfo> {
        self.0.iter().filter_map(Entry::load).collect()
    }
}

impl Entry {
    fn store(&self, info: &PathInfo) {
        let address = match info.peer.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let (high, low) = ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
        let head = USED
            | if info.up { UP } else { 0 }
            | u64::from(info.path) << 8
            | u64::from(info.mtu) << 16
            | u64::from(info.peer.port()) << 32;
        let figures =
            [info.round_trip, info.window, info.in_flight, info.packets_sent, info.packets_lost];
        for (word, value) in self.0[1..].iter().zip([high, low].into_iter().chain(figures)) {
            word.store(value, Ordering::Relaxed);
        }
        // Release: pairs with the load of whoever finds it used.
        self.0[0].store(head, Ordering::Release);
    }

    fn load(&self) -> Option<PathInfo> {
        let head = self.0[0].load(Ordering::Acquire);
        let word = |index: usize| self.0[index].load(Ordering::Relaxed);
        let address = u128::from(word(1)) << 64 | u128::from(word(2));
        let address = Ipv6Addr::from_bits(address).to_canonical();
        (head & USED != 0).then(|| PathInfo {
            peer: SocketAddr::new(address, (head >> 32) as u16),
            path: (head >> 8) as u8,
            up: head & UP != 0,
            round_trip: word(3),
            window: word(4),
            in_flight: word(5),
            mtu: (head >> 16) as u16,
            packets_sent: word(6),
            packets_lost: word(7),
        })
    }
}

impl Default for PathBoard {
    fn default() -> Self {
        Self(core::array::from_fn(|_| Entry::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_and_goes_again() {
        let board = PathBoard::default();
        assert_eq!(board.read(), []);
        let path = |peer: &str, path| PathInfo {
            peer: peer.parse().unwrap(),
            path,
            up: path > 0,
            round_trip: 1 << 40,
            window: 2,
            in_flight: 3,
            mtu: u16::MAX,
            packets_sent: 4,
            packets_lost: u64::MAX,
        };
        let told = [path("192.0.2.1:7411", 0), path("[2001:db8::7]:65535", 63)];
        board.tell(told.into_iter());
        assert_eq!(board.read(), told);
        board.tell(told[..1].iter().copied());
        assert_eq!(board.read(), told[..1]);
        board.tell((0..100).map(|number| path("192.0.2.1:1", number)));
        assert_eq!(board.read().len(), PATHS);
    }
}
