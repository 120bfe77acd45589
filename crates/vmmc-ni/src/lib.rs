//! The network interface in software.
//!
//! [`port`] drives the links to other nodes over a [`fabric`]. [`engine`] executes the commands of a process's queue. [`utlb`] is the user-managed translation table: which local pages an engine may read and write now.

// These sleep in the kernel, or speak with it, which no model has.
#[cfg(not(loom))]
pub mod engine;
#[cfg(not(loom))]
pub mod fabric;
#[cfg(not(loom))]
pub mod port;
pub mod utlb;
