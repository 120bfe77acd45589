//! Sends and receives in place on TCP connections.
//!
//! Under `vmmc run` the bytes of a lifted connection lie in rings in memory that both ends have. This crate lends a program
//! *space* of the outgoing ring, which it fills, and *bytes* of the incoming ring, which it looks at where they lie: nothing is
//! copied on either side. It asks by `ioctl` on the ordinary descriptor. A connection that is not lifted answers `ENOTTY`, and
//! the same program then moves the same bytes by ordinary calls, through a buffer. It links nothing of VMMC.
//!
//! # Example
//! ```
//! use std::net::{TcpListener, TcpStream};
//! use vmmc_loan::{Incoming, Outgoing};
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let here = TcpStream::connect(listener.local_addr()?)?;
//! let (there, _) = listener.accept()?;
//!
//! let mut outgoing = Outgoing::new(&here);
//! let mut space = outgoing.reserve(5, 5)?;
//! space.copy_in(0, b"hello");
//! space.commit(5)?;
//!
//! let mut incoming = Incoming::new(&there);
//! let bytes = incoming.borrow(5, 5)?;
//! let mut word = [0; 5];
//! bytes.copy_out(0, &mut word);
//! bytes.release(5)?;
//! assert_eq!(&word, b"hello");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Who else writes there
//! The process at the other end can write into both rings at any time. If it is hostile, bytes on loan may change while they
//! are looked at. So slices of them are `unsafe` to make ([`Borrowed::slices`], [`Reserved::slices`]); copying in and out is not.
//!
//! # The rules
//! One loan at a time in each direction. While it stands, ordinary calls that would move the same direction on fail with
//! `EBUSY`; looking (`MSG_PEEK`, `FIONREAD`, `poll`) is as ever. Everything else is in `docs/loans.md`. C programs have the same
//! in `include/vmmc/loan.h`.

mod incoming;
pub mod ioctl;
mod outgoing;
mod segments;

pub use incoming::{Borrowed, Incoming};
pub use outgoing::{Outgoing, Reserved};
