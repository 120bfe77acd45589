//! Lifts the byte streams of established TCP connections onto VMMC, and lowers them back.
//!
//! The program's descriptor is always the real kernel socket. Addresses, options, listening, epoll membership, fork,
//! descriptor passing and process death stay the kernel's; only the *bytes* of an established connection whose two ends
//! both run with this library move into rings in exported memory, and back whenever a call needs the kernel to have
//! them. The library uses nothing of VMMC but its public API; its one special need, two processes that prove to hold the
//! two ends of one kernel connection, is VMMC's pairing.
//!
//! | module | what it owns |
//! |---|---|
//! | [`layer`](start) | on or off, the node service, which descriptor belongs to which connection |
//! | `slot`, `local` | a connection's state: shared by a fork family; private to a process |
//! | `lift`, `lower` | from TCP onto VMMC and back |
//! | `anew` | what was lowered, lifted again |
//! | `bells` | what peers ring, and which connections share it |
//! | `half_close`, `ending` | `shutdown`; closing, and what is left to do for the peer |
//! | `busy` | closing while another thread is in a call |
//! | [`receive`](fn@receive), [`transmit`](send) | moving bytes |
//! | `cork` | bytes that the program holds back |
//! | `loan` | space and bytes of the rings, lent to the program |
//! | `shrink`, `park` | large rings that become small again; idle connections that go back to TCP |
//! | `rest` | what is looked after before a sleep |
//! | `policy` | what may be lifted |
//! | `wait`, `spin` | sleeping and not sleeping |
//! | [`signals`] | handlers, which wait while the layer is at work |
//! | [`epoll`], [`readiness`], `armed_poll` | waiting for many; what is asked of the kernel without a call |
//! | [`family`] | fork, exec, exit |
//! | `visit` | children of vfork, which have this memory and other descriptors |
//! | [`handing`](Handing) | connections that go to other programs, and come from them |
//! | [`heap`](Heap) | memory that is not the program's |
//! | [`board`], `explain` | what `vmmc stat` reads; what a program tells when it ends |
//!
//! Every function here takes descriptors as the program gives them and says through [`Route`] whether the layer did the
//! call or the kernel shall; none sets `errno`, panics on bad descriptors, or allocates on the way of bytes.

mod anew;
mod armed_poll;
mod bells;
mod busy;
mod closing;
mod cork;
mod descriptor;
mod ending;
mod explain;
mod guarded;
mod half_close;
mod handing;
mod heap;
mod layer;
mod lift;
mod loan;
mod local;
mod lock;
mod lower;
mod members;
mod message;
mod options;
mod own_numbers;
mod park;
mod policy;
mod receive;
mod repeat;
mod rest;
mod route;
mod service;
mod shrink;
mod slot;
mod spin;
mod tcp;
mod tenure;
mod thread;
mod transmit;
mod visit;
mod wait;

pub mod board;
pub mod epoll;
pub mod family;
pub mod kernel;
pub mod readiness;
pub mod signals;
pub mod uring;

pub use closing::{close_beside_own, close_high, closing, closing_between, is_own, replacing};
pub use descriptor::Changing;
pub use half_close::{deafen, finish, is_over, is_over_in_rings};
pub use handing::{Handing, received};
pub use heap::Heap;
pub use layer::{
    accepted, confined, connecting, duplicated, is_connection, is_known, is_tracked, leave, opened,
    renewed, set_nonblocking, start, tracked_below,
};
pub use loan::{Lending, Lent, Return, Terms, borrow, commit, lends, release, reserve};
pub use lower::{
    lower_descriptor, lower_everything, lower_for_spawning, lower_for_unsharing, lower_for_uring,
    lower_for_writing, lower_passed,
};
pub use message::Room;
pub use options::{
    asks_for_bytes, forbids_waiting, has_not_carried, is_handed_down, is_not_carried, option_is_set,
};
pub use own_numbers::{is_table_enlarged, is_within_limit, size_of_table, while_limits_stand};
pub use receive::{Receiving, TCP_INQ, at_mark, left, only_error_left, receive, unread};
pub use route::{InFlight, Route, Sleep, Step, Transfer};
pub use transmit::{Sending, complete_info, send, send_file, unsent};
pub use visit::before_visit;
