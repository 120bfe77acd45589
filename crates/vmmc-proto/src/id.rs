//! Names of nodes, processes, exports, offers and pairs.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node: a host, or in tests a network namespace, with one node service.
///
/// Stays the same when the service is started again in the same runtime directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// An address space that opened VMMC.
///
/// Written `node:index.incarnation`, the node in hexadecimal: `9f3c01:4711.2882400018`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The node that the process runs on.
    pub node: NodeId,
    /// Which process of that node; its process number as the service sees it, when it sees it.
    pub index: u32,
    /// Tells apart the processes that had the same index one after the other.
    pub incarnation: u32,
}

/// An export of a process, written `node:index.incarnation/number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExportId {
    /// The exporting process.
    pub process: ProcessId,
    /// Which of its exports; never used twice by one process.
    pub number: u64,
}

/// A child that a process is about to fork; chosen by that process, at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeirId(pub u64);

/// An end of a TCP connection that was shown to the service; chosen by the process that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OfferId(pub u64);

/// One *end* of a pair: random, chosen by the service, and the same for every process that holds this end.
///
/// The two ends of a pair differ in the lowest bit only. So the id alone says which end is meant, also when
/// both ends are in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairId(pub u64);

impl PairId {
    /// The id of the other end.
    pub fn peer(self) -> Self {
        Self(self.0 ^ 1)
    }

    /// Which end this is, 0 or 1.
    pub fn end(self) -> usize {
        (self.0 & 1) as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.node, self.index, self.incarnation)
    }
}

impl fmt::Display for ExportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.process, self.number)
    }
}

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ParseIdError {
    /// not a process id: write node:index.incarnation, the node in hexadecimal, as `vmmc node status` shows it
    Process,
    /// not an export id: write node:index.incarnation/number, as the exporter shows it
    Export,
}

impl FromStr for ProcessId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (node, rest) = text.split_once(':')?;
            let (index, incarnation) = rest.split_once('.')?;
            Some(Self {
                node: NodeId(u64::from_str_radix(node, 16).ok()?),
                index: index.parse().ok()?,
                incarnation: incarnation.parse().ok()?,
            })
        };
        parse().ok_or(ParseIdError::Process)
    }
}

impl FromStr for ExportId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (process, number) = text.split_once('/').ok_or(ParseIdError::Export)?;
        Ok(Self {
            process: process.parse().map_err(|_| ParseIdError::Export)?,
            number: number.parse().map_err(|_| ParseIdError::Export)?,
        })
    }
}
