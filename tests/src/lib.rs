//! Runs real programs over kernel TCP and under `vmmc run`, and ends them whatever happens.
//!
//! The tests of this package and `cargo xtask` use the same parts:
//!
//! - [`Running`] is one program: its output is kept, waiting for it is bounded, it dies with its owner.
//! - [`Way`] says which ends of a pair are lifted.
//! - [`Site`] is the surroundings of one pair: a runtime directory of its own, and the `vmmc` that is tried.
//! - [`Container`] is a namespace of every kind, joined to others by cables.
//! - [`cpython`] runs the interpreter's own tests.
//! - [`Connection`] is a line of `vmmc stat`: the proof that a connection was lifted, or the reason why it was not.
//!
//! # Example
//!
//! ```
//! use std::{process::Command, time::Duration};
//! use vmmc_tests::Running;
//!
//! let mut echo = Running::start(Command::new("echo").arg("hello"))?;
//! let finished = echo.wait(Duration::from_secs(10))?;
//! assert!(finished.status.success());
//! assert_eq!(finished.stdout, "hello\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod container;
pub mod cpython;
mod interrupt;
mod program;
mod running;
mod site;
mod stat;
mod watchdog;
mod way;

pub use build::{BuildError, release_programs};
pub use container::{Container, ContainerError};
pub use interrupt::{interrupted, note_interrupts};
pub use program::{find_program, missing_programs};
pub use running::{Finished, Running, RunningError};
pub use site::{Site, SiteError, connects, free_port, wait_until_listening};
pub use stat::{Connection, StatError};
pub use watchdog::Watchdog;
pub use way::Way;
