//! Structures that live in memory shared with a process that may be hostile.

pub mod clock;
pub mod command;
mod copy;
#[cfg(not(loom))]
pub mod lane;
pub mod mailbox;
#[cfg(not(loom))]
pub mod marks;
#[cfg(not(loom))]
pub mod paths;
pub mod redirection;
pub mod stream;
#[cfg(not(loom))]
pub mod table;

pub use copy::copy;
