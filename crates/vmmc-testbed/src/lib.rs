//! Several hosts on one machine: each a network namespace, all joined by one switch for every rail.
//!
//! ```text
//!   vmmc-NAME-1          vmmc-NAME-switch            vmmc-NAME-2
//!   rail1 ────────────── node1r1 ─ rail1 ─ node2r1 ────────────── rail1     10.77.1.N   fd76:6d63:0:1::N
//!   rail2 ────────────── node1r2 ─ rail2 ─ node2r2 ────────────── rail2     10.77.2.N   fd76:6d63:0:2::N
//!          veth pairs              bridges
//! ```
//!
//! With a delay the two ends of a cable are TAP devices, between which a process keeps packets waiting.
//!
//! Everything lies in namespaces of the testbed's own, so nothing of the host's network is touched, and deleting the namespaces deletes all
//! of it. As root the namespaces have names that `ip netns` shows. Anybody else gets a user namespace, which one sleeping process
//! keeps; with its processes gone the kernel takes back the rest. A testbed that lost a part, because something was killed or the
//! machine went down, is cleared away by the next [`up`] or [`down`].
//!
//! Where to start reading: `testbed.rs` (what is done, in order), then `wiring.rs` (what the network is made of).

mod cluster;
mod delay;
mod namespace;
mod occupants;
mod options;
mod place;
mod record;
mod testbed;
mod tool;
mod wiring;

pub use delay::{DelayError, Relay, relay};
pub use namespace::NamespaceError;
pub use options::{Loss, MAX_NODES, MAX_RAILS, Options, ParseError, Rate, parse_duration};
pub use place::PlaceError;
pub use testbed::{Node, Rail, Status, TestbedError, cut, down, enter, heal, status, up};
pub use tool::ToolError;
