//! Ringing and silencing the event of a pair, or of an export, whose other side is another user's.
//!
//! An eventfd's flags belong to all who have it, so such a process can make `write` and `read` wait. These calls never wait;
//! they cost about 0.4 µs more. Among processes of one user plain calls do: such a process could as well stop or kill this one.

pub use vmmc_os::{ring_stranger, silence, strangers_can_be_rung};
