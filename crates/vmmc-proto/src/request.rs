//! Library to service.

use serde::{Deserialize, Serialize};

use crate::{Allow, ExportId, HeirId, OfferId, PairId, ProcessId, Rights};

/// First packet of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`].
    pub version: u32,
    /// How the process calls itself; may be empty.
    pub name: String,
    /// The identity that an earlier service gave to this process.
    pub resume: Option<Resume>,
    /// A tool that asks for status or stop; not counted as a process.
    pub control: bool,
    /// The process will only export and pair; imports by name or id, and lists, shall be refused. For a connection that a
    /// process keeps while it gives up rights that it had when it connected.
    pub pairing_only: bool,
    /// The process can host an engine of its own: lanes may be opened to its exports.
    pub hosts_lanes: bool,
    /// The process is the child that was announced so: what its parent held then is its own from now on.
    pub heir: Option<HeirId>,
}

/// The identity of a process that was connected to an earlier service in this runtime directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The id it had.
    pub process: ProcessId,
}

/// A new export, or one announced again to a new service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportDeclaration {
    /// Chosen by the exporter, never twice.
    pub number: u64,
    /// Bytes.
    pub len: u64,
    /// Empty: not found by name.
    pub name: String,
    /// The most that an importer can get.
    pub rights: Rights,
    /// Who may import.
    pub allow: Allow,
    /// Whether an eventfd and a mailbox come along.
    pub notify: bool,
    /// Whether memory for redirection comes along, and how many bytes of it (whole pages) lie before its table.
    pub pool: Option<u64>,
}

/// A place at a bell that several pairs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BellPlace {
    /// Which bell of the exporter's; drawn at random, so none has the number of another.
    pub bell: u64,
    /// Which of its marks is the pair's.
    pub place: u32,
}

/// Which export an import means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// By id.
    Id(ExportId),
    /// By name in a process.
    Named {
        /// The exporting process.
        process: ProcessId,
        /// The export's name.
        name: String,
    },
    /// By name in any process of the node; the oldest such export.
    Name(String),
}

/// Library to service. `seq` is returned in the reply, requests without it have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Must be first.
    Hello(Hello),
    /// Descriptors: memory, then, with `notify`, eventfd and mailbox, then, with `pool`, that memory. Reply: `Done` or `Refused`.
    Export {
        /// Reply number.
        seq: u32,
        /// What.
        declaration: ExportDeclaration,
    },
    /// Reply: `Done` or `Refused`.
    Unexport {
        /// Reply number.
        seq: u32,
        /// Which export of the caller.
        number: u64,
    },
    /// Reply: `Granted` (with descriptors: memory if mapped, eventfd and mailbox, memory for redirection if the export has them) or `Refused`.
    Import {
        /// Reply number.
        seq: u32,
        /// On which node; `None`: here.
        node: Option<String>,
        /// Which export.
        target: Target,
        /// What the importer wants to do.
        rights: Rights,
        /// Shown when the export asks for one.
        key: Option<[u8; 16]>,
        /// The importer has the memory already (new service): pass no descriptors.
        again: bool,
    },
    /// No reply. Gives back one import.
    Unimport {
        /// What `Granted` said.
        handle: u64,
    },
    /// Descriptor: the memory of a command queue, sealed, of which the service executes the commands until the process ends; one for each
    /// connection. Reply: `Done` or `Refused`.
    Queue {
        /// Reply number.
        seq: u32,
    },
    /// No reply. The importer would like a lane to an export on another node; [`crate::Answer::LaneOpened`] follows if there can be one.
    Lane {
        /// What `Granted` said.
        handle: u64,
    },
    /// Ends the lane of an import: the exporter's engine executes nothing more that comes over it. Reply: `LaneFenced`, or `Refused` when the
    /// exporter's process was stopped while it placed a packet, or its node cannot be reached.
    FenceLane {
        /// Reply number.
        seq: u32,
        /// What `Granted` said.
        handle: u64,
        /// The number here of the link that carries the lane.
        link: u32,
        /// The import's channel on it.
        channel: u16,
        /// How often the channel had been used before.
        generation: u32,
    },
    /// No reply. A command was posted while the service slept. (Any other request of the process does as well.)
    Ring,
    /// Reply: `Processes`, those after `after`.
    Processes {
        /// Reply number.
        seq: u32,
        /// Page position: the last `serial` seen, 0 at first.
        after: u64,
    },
    /// Reply: `Exports`, those after `after`.
    Exports {
        /// Reply number.
        seq: u32,
        /// Page position: the last `serial` seen, 0 at first.
        after: u64,
    },
    /// No reply. Descriptor: the TCP socket, verified and closed at once.
    PairOffer {
        /// Chosen by the process.
        offer: OfferId,
    },
    /// `PairHolders` follows. Descriptor: the TCP socket, looked at and closed at once.
    PairHolders {
        /// Chosen by the process, as for an offer.
        inquiry: OfferId,
    },
    /// No reply. Descriptors: memory, eventfd, the marks beside it if the bell is shared, socket.
    PairExport {
        /// The caller's end.
        pair: PairId,
        /// Bytes of the memory.
        len: u64,
        /// Bytes that the importer should map at first.
        mapped: u64,
        /// Both memories begin with the words of a stream. Where the last holder of the end dies with bytes unread, the service
        /// resets the connection, as its kernel would.
        stream: bool,
        /// The eventfd is that of other pairs too.
        bell: Option<BellPlace>,
    },
    /// No reply. Descriptor: the socket.
    PairHold {
        /// The caller's end.
        pair: PairId,
    },
    /// No reply.
    PairDrop {
        /// The caller's end.
        pair: PairId,
        /// The peer has not read everything: the socket is kept until it has, or has let go too.
        linger: bool,
    },
    /// No reply. The caller has read everything that its peer left behind, or wants the kernel's word on the peer.
    PairSettle {
        /// The caller's end.
        pair: PairId,
    },
    /// No reply. The caller has ended its stream, and its peer lowers what it has not read of it: when that is written into the caller's socket, the
    /// sending direction there is shut down.
    PairFinish {
        /// The caller's end.
        pair: PairId,
    },
    /// No reply. The caller is about to fork. Descriptor: one of two connected sockets of packets, whose other one the child will have. As long as
    /// anybody has that, every end that the caller holds now is held for the child too, which says so in its [`Hello`]. Over the socket itself it may
    /// only let go, by `PairDrop` and `PairSettle`.
    PairHeir {
        /// Names the child.
        heir: HeirId,
    },
    /// No reply. Bytes to write into the peer's socket; with a descriptor the bytes are the first `len` of that memory.
    PairInject {
        /// The caller's end.
        pair: PairId,
        /// Inline payload, empty when in memory.
        bytes: Vec<u8>,
        /// Bytes in the memory passed beside, 0 when inline.
        len: u64,
        /// The peer's stream ends after them: its socket's sending direction is shut down.
        finish: bool,
    },
    /// Reply: `Reserved`. The caller wants to have so many bytes pinned in all from now on, more or fewer than before.
    Reserve {
        /// Reply number.
        seq: u32,
        /// Bytes.
        bytes: u64,
    },
    /// Reply: `Status`.
    Status {
        /// Reply number.
        seq: u32,
    },
    /// Reply: `Done`, then the service leaves.
    Stop {
        /// Reply number.
        seq: u32,
    },
}
