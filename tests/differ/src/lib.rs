//! Random programs of socket calls, on the kernel and lifted.
//!
//! A seed gives a [`Program`]: steps of two to four processes that hold the ends of TCP connections. A [`Stage`] is two
//! processes of a C program (`player/`) that knows nothing of VMMC; it takes the steps, one at a time, as lines on a
//! control channel, and answers each with every return value, errno, byte and readiness that its calls gave. A [`Trial`]
//! plays a program both ways and compares the answers. Nothing here says what is right: the kernel does.
//!
//! | module | what it owns |
//! |---|---|
//! | `generate` | which steps are proposed |
//! | `world` | which of them have an answer that does not depend on time |
//! | `stage` | processes, the order of their steps, waiting for what is on its way |
//! | `trial` | comparing; making a difference small |
//!
//! A program's answers depend on its steps alone: processes take turns, a step that looks at an end is taken only when
//! what the other end did has arrived, and a call that sleeps is woken when `/proc` says that it sleeps. Should the
//! kernel's own answers vary all the same, the program is put aside.

mod generate;
mod player;
mod random;
mod stage;
mod step;
mod trial;
mod world;

pub use generate::Program;
pub use player::{Player, PlayerError};
pub use stage::{Fault, Line, Played, Stage, StageError};
pub use step::Step;
pub use trial::{Report, Trial, Verdict};
