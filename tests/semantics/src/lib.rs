//! Socket semantics under lifting, as an ordinary program sees them.
//!
//! An [`Actor`] is a C program (`actor/`) that knows nothing of VMMC. Two processes of it, a server and a client, play a
//! scenario over 127.0.0.1 and write down every return value, errno, byte and readiness bit. [`play`] runs one scenario
//! in one [`Way`](vmmc_tests::Way); what both ends plain wrote is the oracle, and [`differences`] finds where another
//! way departs from it. Nothing here says what is right: the kernel does.
//!
//! A scenario is a function `scenario_NAME` in `actor/` and a line in [`for_every_scenario`], which makes the test. To look at one:
//!
//! ```text
//! cargo run -p vmmc-semantics -- msg_peek               transcripts of both sides in every way, differences marked
//! cargo run -p vmmc-semantics -- --way plain --repeat 20    the oracle itself, many times: it must not vary
//! ```

mod actor;
mod compare;
mod play;
mod scenarios;

pub use actor::{Actor, ActorError};
pub use compare::{Difference, complaints, differences};
pub use play::{PlayError, Played, Side, play};
pub use scenarios::{Expectation, SCENARIOS, Scenario, WarmUp};
