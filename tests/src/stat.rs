//! What `vmmc stat --json` tells of connections.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{Running, RunningError};
use crate::site::Site;

/// One end of a connection of a program that runs under `vmmc run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The process that holds this end.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// Its address, `ip:port`.
    pub local: String,
    /// The address of the other end.
    pub peer: String,
    /// `lifted`, or what it is instead.
    pub state: String,
    /// For one that is not lifted, why.
    pub why: String,
    /// Bytes of the stream that went out through VMMC.
    pub sent: u64,
    /// Bytes of the stream that came in through VMMC.
    pub received: u64,
}

/// Why `vmmc stat` said nothing useful.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum StatError {
    /// {0}
    Run(#[from] RunningError),
    /// vmmc stat --json printed something else than its form: {0}
    Form(String),
    /// vmmc stat shows no connection of port {port} lifted at both ends with {bytes} bytes carried; it shows {seen:?}
    NotLifted {
        /// The server's port.
        port: u16,
        /// The bytes that each end should have moved through VMMC.
        bytes: u64,
        /// All ends of connections to that port.
        seen: Vec<Connection>,
    },
}

impl Connection {
    /// Whether the bytes of this end move through VMMC.
    pub fn is_lifted(&self) -> bool {
        self.state == "lifted"
    }

    fn uses(&self, port: u16) -> bool {
        let end = format!(":{port}");
        self.local.ends_with(&end) || self.peer.ends_with(&end)
    }
}

impl Site {
    /// All connections with `port` at one of their ends, as `vmmc stat` sees them now.
    pub fn connections(&self, port: u16) -> Result<Vec<Connection>, StatError> {
        let stat = Running::start(self.vmmc().args(["stat", "--json"]))?
            .succeed(Duration::from_secs(20))?;
        let form = || StatError::Form(stat.stdout.chars().take(300).collect());
        let parsed: Value = serde_json::from_str(&stat.stdout).map_err(|_| form())?;
        let processes = parsed["processes"].as_array().ok_or_else(form)?;
        let mut found = Vec::new();
        for process in processes {
            for connection in process["connections"].as_array().ok_or_else(form)? {
                let text = |key: &str| connection[key].as_str().unwrap_or_default().to_owned();
                found.push(Connection {
                    pid: process["pid"]
                        .as_u64()
                        .and_then(|pid| u32::try_from(pid).ok())
                        .ok_or_else(form)?,
                    program: process["name"].as_str().unwrap_or_default().to_owned(),
                    local: text("local"),
                    peer: text("peer"),
                    state: text("state"),
                    why: text("why"),
                    sent: connection["sent"].as_u64().unwrap_or_default(),
                    received: connection["received"].as_u64().unwrap_or_default(),
                });
            }
        }
        found.retain(|connection| connection.uses(port));
        Ok(found)
    }

    /// Asks again and again, for at most thirty seconds, until `wanted` holds of the connections of `port`.
    /// Returns what was seen last either way. A service that does not answer yet is asked again.
    pub fn connections_when(
        &self,
        port: u16,
        wanted: impl Fn(&[Connection]) -> bool,
    ) -> Result<Vec<Connection>, StatError> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let seen = self.connections(port);
            if Instant::now() > end || seen.as_ref().is_ok_and(|seen| wanted(seen)) {
                return seen;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits, for at most thirty seconds, until a connection to the server's `port` is lifted at both ends and at least
    /// `bytes` went through VMMC at each.
    pub fn lifted_at_both_ends(&self, port: u16, bytes: u64) -> Result<(), StatError> {
        let server = format!(":{port}");
        let lifted = |end: &Connection| end.is_lifted() && end.sent + end.received >= bytes;
        let proven = |seen: &[Connection]| {
            seen.iter().any(|end| lifted(end) && end.local.ends_with(&server))
                && seen.iter().any(|end| lifted(end) && end.peer.ends_with(&server))
        };
        // What was seen while there was anything tells more than the nothing that is left when the programs have ended.
        let last = RefCell::new(Vec::new());
        let seen = self.connections_when(port, |seen| {
            if !seen.is_empty() {
                last.replace(seen.to_vec());
            }
            proven(seen)
        })?;
        let seen = if proven(&seen) { return Ok(()) } else { last.into_inner() };
        Err(StatError::NotLifted { port, bytes, seen })
    }
}
