//! The node service: knows processes and exports, checks who may import, passes memory, notices death, revokes.
//!
//! One service for each user and runtime directory, or one for all users of the host ([docs/users.md]), one thread, no state on disk. The library meets it only in the
//! messages of `vmmc-proto` and in shared memory. Where to start reading: [`serve`] claims the directory
//! (`directory.rs`) and runs the loop (`service.rs`); `requests.rs` answers each request out of the registers: `exports.rs`
//! (who exported what, who imported it), `offers.rs` and `pairs.rs` (connections), `clients.rs` (processes).
//!
//! The service never waits for a client: what does not fit into a client's socket is kept for it, and a client
//! that sends nonsense is disconnected alone.

mod accounts;
mod apart;
mod clients;
mod cluster;
mod control;
mod customs;
mod directory;
mod exports;
mod injection;
mod inquiries;
mod offers;
mod pairs;
mod pinning;
mod policy;
mod queues;
mod requests;
mod service;
mod slots;
mod start;
mod stream_words;

pub use cluster::{ClusterConfig, ClusterError, ClusterKey, ConfigError, KnownNode};
pub use control::{ControlError, status, stop};
pub use directory::ClaimError;
pub use policy::{Between, Limits, Policy, PolicyError, Ports, RingSize, User};
pub use service::{ServeError, ServeOptions, serve};
pub use start::{NodeStartError, TAKEN, start};
pub use vmmc_proto::{NodeStatus, PathStatus};
