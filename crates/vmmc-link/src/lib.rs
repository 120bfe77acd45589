//! The reliable link between two engines: the protocol alone, without I/O, clock or thread.
//!
//! A [`Link`] is one side. Datagrams and the time go in; datagrams, deadlines and events come out; bytes are read and written through
//! the embedding's [`Memory`]. Each packet says where its bytes go, so they are placed as they come; only signal words,
//! notifications and fetches wait for what was in front of them. Packets are encrypted and authenticated unless both sides chose
//! [`Keys::Plaintext`].
//!
//! The wire format is in `docs/wire.md` and the module [`wire`].

mod ahead;
mod checksum;
mod config;
mod congestion;
mod event;
mod incoming;
mod link;
mod memory;
mod mtu;
mod outgoing;
mod path;
mod protect;
mod ranges;
mod receive;
mod replies;
mod rtt;
mod seen;
mod sent;
pub mod sim;
mod time;
mod transmit;
pub mod wire;

pub use config::{Config, Recovery};
pub use event::{CommandError, Dropped, Event, ImportId, LinkError, PathState, Stats, Ticket};
pub use link::{Link, MAX_IMPORTS};
pub use memory::{Buffer, Memory, Refusal};
pub use protect::{KeyError, Keys, Secret};
pub use time::Time;
pub use transmit::Transmit;
pub use wire::Binding;
