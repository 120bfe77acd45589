//! The network interface in software.
//!
//! [`engine`] executes the commands of a process's queue. [`utlb`] is the user-managed translation table: which local pages an engine may read and write now.

// Its queue sleeps in the kernel, which no model has.
#[cfg(not(loom))]
pub mod engine;
pub mod utlb;
