//! Everything that differs between operating systems: memory, waiting, handle passing, credentials, processes.
//!
//! One module surface without traits; `linux/` is behind it now. Every call goes straight to the kernel
//! (`rustix` without libc), so that a library that interposes libc's socket calls never sees ours. Descriptors
//! are [`Descriptor`]s for the same reason: closing one does not pass through libc's `close`.
//!
//! Nothing here knows what a process, an export or a pair is.

#[cfg(chaos)]
pub mod chaos;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub use linux::*;
