//! The messages between the user-level library and the node service.
//!
//! Library and service meet only here and in shared memory; neither links the other. A message is one
//! `SOCK_SEQPACKET` packet: a [`postcard`] encoding of [`Request`] (library to service) or [`Answer`]
//! (service to library), with descriptors beside it as ancillary data. Decoding never trusts the peer:
//! every length is bounded before anything is allocated, and what does not decode disconnects that peer.
//!
//! The first packet is always [`Request::Hello`]; the service replies with [`Answer::Welcome`] or
//! [`Answer::Refused`]. See [`VERSION`].

mod answer;
mod codec;
mod id;
mod lane;
mod limit;
mod policy;
mod request;
mod status;

pub use answer::{Answer, BrokenReason, ExportEntry, Grant, ProcessEntry, Refusal, Welcome};
pub use codec::{
    DecodeError, EncodeError, decode_answer, decode_request, encode_answer, encode_request,
    encode_request_into,
};
pub use id::{ExportId, HeirId, NodeId, OfferId, PairId, ParseIdError, ProcessId};
pub use lane::Lane;
pub use limit::{
    MAX_DESCRIPTORS, MAX_ENTRIES, MAX_EXPORT_LEN, MAX_INLINE, MAX_MESSAGE, MAX_NAME, PAGE_SIZE,
};
pub use policy::{Allow, Rights};
pub use request::{BellPlace, ExportDeclaration, Hello, Request, Resume, Target};
pub use status::{NodeStatus, PathStatus};

/// Version of this protocol. A service refuses a library of another version ([`Refusal::Version`]).
pub const VERSION: u32 = 15;
