//! What node services say to each other over a [channel](super::channel).
//!
//! Whoever connects asks, the other one answers: a node that wants to import connects, and its imports live as long as the
//! connection. Each begins with a [`Greeting`]; the one who was called may deny it.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmmc_proto::{ExportId, Refusal, Rights, Target};

/// Version of this protocol.
pub(super) const VERSION: u32 = 2;

/// First in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// [`VERSION`].
    pub(super) version: u32,
    /// How the sender is called.
    pub(super) node: String,
    /// The link's number at the sender.
    pub(super) link: u32,
    /// Protects what the sender sends over the link.
    pub(super) secret: [u8; 32],
    /// Whether the sender encrypts.
    pub(super) encrypted: bool,
    /// Where the sender's paths lead.
    pub(super) addresses: Vec<SocketAddr>,
}

/// The answer to a greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Welcome {
    /// Go on.
    Greeting(Greeting),
    /// Not with you.
    Denied(Denial),
}

/// Why a node is not talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Denial {
    /// Another version of this protocol.
    Version,
    /// It is called as the one that it called.
    SameName,
    /// One encrypts, the other does not.
    Protection,
    /// Too many nodes.
    Limit,
}

/// From the one who connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Call {
    /// Answered by `Granted` or `Refused`.
    Import {
        /// Of the answer.
        seq: u32,
        /// Which export.
        target: Target,
        /// What the importer wants to do.
        rights: Rights,
        /// Shown when the export asks for one.
        key: Option<[u8; 16]>,
        /// The importer's user. Users are the same on all nodes of a cluster.
        uid: u32,
        /// The importer's group.
        gid: u32,
    },
    /// No answer. Gives back one import.
    Unimport {
        /// What `Granted` said.
        export: u64,
    },
    /// Answered by `Lane` or `Refused`: a link between the two processes of an import.
    Lane {
        /// Of the answer.
        seq: u32,
        /// What `Granted` said.
        export: u64,
        /// The importer's end.
        end: LaneEnd,
    },
    /// Answered by `Fenced` or `Refused`: an import's lane is over.
    Fence {
        /// Of the answer.
        seq: u32,
        /// What `Granted` said.
        export: u64,
        /// The import's channel on the lane's link, and its generation.
        channel: (u16, u32),
    },
}

/// One end of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneEnd {
    /// The link's number there.
    pub(super) link: u32,
    /// Protects what this end sends.
    pub(super) secret: [u8; 32],
    /// Where the paths lead to it.
    pub(super) addresses: Vec<SocketAddr>,
}

/// From the one who was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// An import was granted.
    Granted {
        /// Of the call.
        seq: u32,
        /// What.
        grant: RemoteGrant,
    },
    /// An import was refused.
    Refused {
        /// Of the call.
        seq: u32,
        /// Why.
        why: Refusal,
    },
    /// A lane was given.
    Lane {
        /// Of the call.
        seq: u32,
        /// The exporter's end.
        end: LaneEnd,
        /// Proves the import in packets of the lane.
        capability: u128,
        /// The importer's number of the link, if its process and the exporter's have one already.
        shared: Option<u32>,
    },
    /// A lane is over.
    Fenced {
        /// Of the call.
        seq: u32,
        /// Up to which sequence number of the lane everything was executed.
        reached: u64,
    },
    /// An export of which there are imports is gone.
    Ended {
        /// What `Granted` said.
        export: u64,
        /// Its process is dead; else it was revoked.
        dead: bool,
    },
}

/// The use of an export over the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteGrant {
    /// Names the import in packets.
    pub(super) export: u64,
    /// Proves it.
    pub(super) capability: u128,
    /// The export.
    pub(super) id: ExportId,
    /// Bytes.
    pub(super) len: u64,
    /// It takes notifications.
    pub(super) notify: bool,
}

/// Reads one message, all of it.
pub(super) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Option<M> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        Call::Import {
            seq: 7,
            target: Target::Name("board".to_owned()),
            rights: Rights::READ_WRITE,
            key: Some([9; 16]),
            uid: 1000,
            gid: 100,
        }
    }

    #[test]
    fn what_was_said_is_understood_and_nothing_else() {
        let bytes = postcard::to_allocvec(&call()).unwrap();
        assert_eq!(decode(&bytes), Some(call()));
        for len in 0..bytes.len() {
            assert_eq!(decode::<Call>(&bytes[..len]), None, "cut after {len}");
        }
        assert_eq!(decode::<Call>(&[&bytes[..], &[0]].concat()), None, "something behind it");
    }

    #[test]
    fn noise_never_panics() {
        let mut random = 1_u64;
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        };
        for len in 0..2000 {
            let noise: Vec<u8> = (0..len % 200).map(|_| byte()).collect();
            let _ = (decode::<Greeting>(&noise), decode::<Welcome>(&noise));
            let _ = (decode::<Call>(&noise), decode::<Reply>(&noise));
            // Close to something that is understood.
            let mut bytes = postcard::to_allocvec(&call()).unwrap();
            let at = usize::from(byte()) % bytes.len();
            bytes[at] = byte();
            let _ = decode::<Call>(&bytes);
        }
    }
}
