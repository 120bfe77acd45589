//! Service to library.

use serde::{Deserialize, Serialize};

use crate::{BellPlace, ExportId, Lane, NodeStatus, OfferId, PairId, ProcessId, Rights};

/// The service accepted the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::VERSION`].
    pub version: u32,
    /// The process's id from now on.
    pub process: ProcessId,
    /// Process number of the service.
    pub service_pid: u32,
    /// The user that the process is to the service, as long as it is connected.
    pub uid: u32,
    /// It has what was kept for it as the child that it said it was.
    pub inherited: bool,
    /// The mail slot of this process in the status table.
    pub mail_slot: u32,
    /// Most exports of one process.
    pub max_exports: u32,
    /// Most waiting offers of one process.
    pub max_offers: u32,
}

/// An import was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Names the import in later requests.
    pub handle: u64,
    /// The export.
    pub export: ExportId,
    /// Bytes.
    pub len: u64,
    /// The word of the status table to look at.
    pub slot: u32,
    /// What the word holds while the export is live.
    pub live: u64,
    /// The memory descriptor comes along, or (asked `again`) the importer keeps its mapping; else sends go through the service.
    pub mapped: bool,
    /// An eventfd, and a mailbox if mapped, come along (or were there).
    pub notify: bool,
    /// Memory for redirection comes along (or was there): so many bytes of it lie before its table.
    pub pool: Option<u64>,
    /// The exporter is another user's: what is shared with it may block.
    pub stranger: bool,
}

/// A process of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Position for the next page.
    pub serial: u64,
    /// Its id.
    pub id: ProcessId,
    /// Its process number as the service sees it; 0 if it does not.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// How it calls itself.
    pub name: String,
}

/// An export of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportEntry {
    /// Position for the next page.
    pub serial: u64,
    /// Its id.
    pub id: ExportId,
    /// Its name; may be empty.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// What it grants at most.
    pub rights: Rights,
}

/// Why a pair is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BrokenReason {
    /// The last process that held the other end died.
    PeerDied,
    /// The last process that held the other end dropped it.
    PeerDropped,
    /// The service refused the memory or the socket that this process or its peer showed.
    Refused,
    /// Bytes could not be written into the other end's socket: nobody holds it, or its connection is gone.
    InjectFailed,
    /// This process had no descriptor, memory or address space left for the peer's memory. The library says so, never the
    /// service.
    NoRoom,
}

/// Why the service refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Another version of the protocol.
    Version,
    /// Too many processes, exports or imports.
    Limit,
    /// The service has no descriptors or memory left.
    Exhausted,
    /// No such process.
    UnknownProcess,
    /// The process is dead.
    DeadProcess,
    /// No such export.
    UnknownExport,
    /// The export does not admit this process.
    NotAllowed,
    /// The export does not grant these rights.
    Rights,
    /// Revoked, or its process is gone.
    Gone,
    /// Descriptors missing, of the wrong kind, size or seals; or a number used twice.
    Invalid,
    /// Outside the export, or not aligned.
    Range,
    /// The memory could not be written.
    Memory,
    /// No such node is configured here.
    UnknownNode,
    /// The node cannot be reached, or went away meanwhile.
    Unreachable,
    /// The node does not take this one: another cluster key, version or protection, or both have one name.
    Denied,
}

/// Service to library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Descriptor: the status table, read-only.
    Welcome(Welcome),
    /// The request was done.
    Done {
        /// Of the request.
        seq: u32,
    },
    /// The request was refused.
    Refused {
        /// Of the request; 0 for Hello.
        seq: u32,
        /// Why.
        why: Refusal,
    },
    /// See [`crate::Request::Import`].
    Granted {
        /// Of the request.
        seq: u32,
        /// What.
        grant: Grant,
    },
    /// A page of processes; empty at the end.
    Processes {
        /// Of the request.
        seq: u32,
        /// At most [`crate::MAX_ENTRIES`].
        entries: Vec<ProcessEntry>,
    },
    /// A page of exports; empty at the end.
    Exports {
        /// Of the request.
        seq: u32,
        /// At most [`crate::MAX_ENTRIES`].
        entries: Vec<ExportEntry>,
    },
    /// See [`crate::Request::Reserve`].
    Reserved {
        /// Of the request.
        seq: u32,
        /// Bytes that the process may have pinned in all: as many as asked for, or fewer when the node has no more.
        bytes: u64,
    },
    /// Counts.
    Status {
        /// Of the request.
        seq: u32,
        /// What.
        status: NodeStatus,
    },
    /// Descriptors: UDP sockets for the process's engine, one for each path, at most [`crate::MAX_DESCRIPTORS`]. Once, before the first lane.
    LaneSockets,
    /// Descriptors: short ways in for small datagrams to those sockets, one for each; right behind them, where the service can have them.
    LaneInlets,
    /// A lane of an import of the receiver's; over a link that is there already, if its number says so.
    LaneOpened {
        /// The import.
        handle: u64,
        /// Its end.
        lane: Box<Lane>,
    },
    /// A lane to an export of the receiver's, over a link that is there already, if its number says so. Descriptor, with the link's first: the
    /// page that tells the service how far it got.
    LaneOffered {
        /// The export.
        number: u64,
        /// What the importer may do.
        rights: Rights,
        /// The exporter's end.
        lane: Box<Lane>,
    },
    /// A lane to an export of the receiver's was given back.
    LaneWithdrawn {
        /// The link's number here.
        link: u32,
        /// Names the import in packets.
        export: u64,
    },
    /// See [`crate::Request::FenceLane`].
    LaneFenced {
        /// Of the request.
        seq: u32,
        /// Everything up to this sequence number of the lane was executed, and nothing ordered behind it.
        reached: u64,
    },
    /// Mail: both ends of a connection were shown.
    PairMatched {
        /// The offer of the receiver that this answers.
        offer: OfferId,
        /// The receiver's end.
        pair: PairId,
        /// The process that showed the other end.
        peer: ProcessId,
        /// Its process number, 0 if the service cannot see it.
        peer_pid: u32,
        /// Its user.
        peer_uid: u32,
    },
    /// Mail: both ends of a connection were shown, but their users may not be paired.
    PairDenied {
        /// The offer of the receiver that this answers.
        offer: OfferId,
    },
    /// Mail: the other end of a connection that may lead to another network namespace was not shown in time. Offer it again later.
    PairUnseen {
        /// The offer of the receiver that is no longer waiting.
        offer: OfferId,
    },
    /// Mail: whether the receiver is the only process that has the connection.
    PairHolders {
        /// The inquiry of the receiver that this answers.
        inquiry: OfferId,
        /// Nobody else has it, and it bears no lock (`flock`).
        alone: bool,
    },
    /// Mail. Descriptors: the peer's memory and eventfd, and the marks beside it if the bell is shared.
    PairReady {
        /// The receiver's end.
        pair: PairId,
        /// The peer's memory.
        export: ExportId,
        /// Bytes.
        len: u64,
        /// Bytes to map at first.
        mapped: u64,
        /// The word of the status table to look at.
        slot: u32,
        /// What the word holds while the memory is live.
        live: u64,
        /// The peer is another user's.
        stranger: bool,
        /// The eventfd is that of other pairs too, and its marks come along.
        bell: Option<BellPlace>,
    },
    /// Mail: bytes of a `PairInject` of the peer were written into the receiver's socket.
    PairHanded {
        /// The receiver's end.
        pair: PairId,
    },
    /// Mail.
    PairBroken {
        /// The receiver's end.
        pair: PairId,
        /// Why.
        why: BrokenReason,
    },
    /// The service leaves on purpose: do not start another.
    Goodbye,
}

impl Answer {
    /// Whether the status table's mail word counts this message.
    pub fn is_mail(&self) -> bool {
        matches!(
            self,
            Self::PairMatched { .. }
                | Self::PairUnseen { .. }
                | Self::PairDenied { .. }
                | Self::PairHolders { .. }
                | Self::PairReady { .. }
                | Self::PairHanded { .. }
                | Self::PairBroken { .. }
        )
    }

    /// Whether it is about lanes, and nobody waits for it.
    pub fn is_of_lanes(&self) -> bool {
        matches!(
            self,
            Self::LaneSockets
                | Self::LaneInlets
                | Self::LaneOpened { .. }
                | Self::LaneOffered { .. }
                | Self::LaneWithdrawn { .. }
        )
    }

    /// The request that this answers.
    pub fn seq(&self) -> Option<u32> {
        match self {
            Self::Done { seq }
            | Self::Refused { seq, .. }
            | Self::Granted { seq, .. }
            | Self::Processes { seq, .. }
            | Self::Exports { seq, .. }
            | Self::Reserved { seq, .. }
            | Self::LaneFenced { seq, .. }
            | Self::Status { seq, .. } => Some(*seq),
            _ => None,
        }
    }
}
