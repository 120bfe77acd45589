//! What may be done with an export, and who may do it.

use core::fmt;
use core::ops::BitOr;

use serde::{Deserialize, Serialize};

/// Rights on an export: read, write, or both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rights(u8);

impl Rights {
    /// The importer may fetch.
    pub const READ: Self = Self(1);
    /// The importer may send.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// Whether everything in `other` is in `self`.
    #[inline]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether this is one of the three meaningful values; a decoded message may hold anything.
    pub fn is_valid(self) -> bool {
        (1..=3).contains(&self.0)
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "read",
            2 => "write",
            3 => "read-write",
            _ => "invalid rights",
        })
    }
}

/// Who may import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allow {
    /// Processes of the exporter's user (and root). The default.
    SameUser,
    /// Processes of this user id.
    User(u32),
    /// Processes whose group is this group id.
    Group(u32),
    /// Whoever shows this key.
    Key([u8; 16]),
    /// Whoever can reach the service.
    Anyone,
}
