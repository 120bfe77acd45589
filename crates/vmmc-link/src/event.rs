//! What a link tells its embedding, and what it answers to commands and packets.

use std::time::Duration;

use crate::memory::Refusal;
use crate::wire::Malformed;

/// An import over a link, on the importing side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImportId {
    pub(crate) channel: u16,
    pub(crate) generation: u32,
}

impl ImportId {
    /// Its channel on the link.
    pub fn channel(self) -> u16 {
        self.channel
    }

    /// How often the channel had been used before.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

/// A command of an import: they count from 1 on each import and complete in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something the embedding should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All commands of an import up to this one are complete: bytes sent are placed and signal words stored at the receiver, bytes
    /// fetched are here, and the buffers are free.
    Completed {
        /// The import.
        import: ImportId,
        /// Its last complete command.
        through: Ticket,
    },
    /// The commands of an import that had not completed have failed, and so will all later ones. Its buffers are free.
    Refused {
        /// The import.
        import: ImportId,
        /// Why.
        reason: Refusal,
    },
    /// An import that was closed is complete and gone.
    Closed {
        /// The import.
        import: ImportId,
    },
    /// A path answers (again), or no longer does; what was on its way there goes another way.
    Path {
        /// The path.
        path: u8,
        /// Whether it answers.
        up: bool,
    },
    /// The link has ended. Every command that had not completed has failed, and all buffers are free.
    Ended(LinkError),
}

/// Why a link has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum LinkError {
    /// no path to the peer has answered for too long; check the network and whether the peer's node runs
    Unreachable,
    /// the peer was started anew; import again from its new life
    PeerRestarted,
    /// the peer closed the link with reason {0}
    ClosedByPeer(u8),
    /// this side closed the link
    Closed,
    /// packets can no longer be protected; the cryptographic library failed
    Protection,
}

/// Why a command was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum CommandError {
    /// the import does not exist on this link or was closed; import again
    UnknownImport,
    /// the import was refused: {0}
    Refused(Refusal),
    /// too many commands wait on this import; take completions before sending more
    Full,
    /// too many imports are open on this link; close some
    TooManyImports,
    /// the range reaches beyond the address space, or a fetch is longer than 2^40 bytes; split it
    Range,
    /// the link has ended: {0}
    Ended(LinkError),
}

/// Why a datagram was dropped. None of these is an error of this side; they are counted in [`Stats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Dropped {
    /// the packet cannot be understood: {0}
    Malformed(Malformed),
    /// the packet belongs to another link
    OtherLink,
    /// the packet is damaged or was not made by the peer
    Forged,
    /// one side encrypts and the other does not; configure both alike
    WrongMode,
    /// the packet arrived before, or is too old to tell
    Repeated,
    /// the packet is from an earlier life of the peer
    Stale,
    /// there is no room to remember what came ahead of a gap; the peer sends it again
    NoRoom,
    /// the packet is of an import that is refused; the peer is told so
    Refused,
    /// the link has ended
    Ended,
}

/// Counters of a link since its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets sent.
    pub packets_sent: u64,
    /// Bytes of them, headers and tags included.
    pub bytes_sent: u64,
    /// Packets accepted.
    pub packets_received: u64,
    /// Packets believed lost because of a later one's acknowledgement; those given up at a timeout are not counted.
    pub packets_lost: u64,
    /// Packets dropped because they were damaged, forged, or protected otherwise than agreed.
    pub forged: u64,
    /// Packets dropped because they could not be understood.
    pub malformed: u64,
    /// Packets dropped as repeats.
    pub repeated: u64,
    /// Packets dropped because there was no room to remember them.
    pub no_room: u64,
    /// Imports of the peer that were refused.
    pub refused: u64,
    /// Changes of the key that protects what is sent.
    pub rotations: u64,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathState {
    /// It answers.
    pub up: bool,
    /// Round trip, smoothed.
    pub round_trip: Duration,
    /// The smallest round trip of late: the path's own, without queueing.
    pub least_round_trip: Option<Duration>,
    /// The most that got through of late over some milliseconds, in bytes a second; 0: not known yet.
    pub capacity: u64,
    /// Bytes that may be in flight.
    pub window: u64,
    /// Bytes that are.
    pub in_flight: u64,
    /// Bytes of the largest datagram that is known to get through.
    pub mtu: u16,
    /// Somebody else keeps the queue full, and the window holds against it.
    pub competing: bool,
}
