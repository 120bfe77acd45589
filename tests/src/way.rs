//! Which ends of a pair of programs are lifted.

use std::fmt;

/// A way to run a server and its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Neither end under `vmmc run`: kernel TCP, what the others are compared with.
    Plain,
    /// Both ends under `vmmc run`.
    BothLifted,
    /// Only the server under `vmmc run`.
    ServerLifted,
    /// Only the client under `vmmc run`.
    ClientLifted,
}

impl Way {
    /// Every way, plain first.
    pub const ALL: [Way; 4] = [Way::Plain, Way::BothLifted, Way::ServerLifted, Way::ClientLifted];

    /// Whether the server is started under `vmmc run`.
    pub fn lifts_server(self) -> bool {
        matches!(self, Way::BothLifted | Way::ServerLifted)
    }

    /// Whether the client is started under `vmmc run`.
    pub fn lifts_client(self) -> bool {
        matches!(self, Way::BothLifted | Way::ClientLifted)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Plain => "both plain",
            Way::BothLifted => "both lifted",
            Way::ServerLifted => "only the server lifted",
            Way::ClientLifted => "only the client lifted",
        })
    }
}
