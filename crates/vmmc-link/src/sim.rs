//! A network in virtual time: links, wires and queues that a seed decides, so that whatever happened happens again.
//!
//! [`check`] runs one seed: a random network and random commands, after which every promise of the link is checked. [`goodput`] measures how much
//! arrives over a wire that loses, [`beside_tcp`] and [`incast`] what becomes of it in company. Nothing here reads a clock or a random device.

mod check;
mod goodput;
mod memory;
mod network;
mod random;
mod stalls;
mod tcp;
mod world;

pub use check::{Failure, Passed, check};
pub use goodput::{Beside, Goodput, Transfer, beside_tcp, goodput, incast};
pub use network::{Burst, Network, Queue, Wire};
pub use random::Random;
pub use stalls::Stalls;
