//! Measures VMMC beside its peers in one run.
//!
//! Each measurement is made by two *processes* held to two cores, in rounds in which VMMC, a bare
//! shared mapping, kernel TCP and AF_UNIX (asleep and spinning) and `memcpy` take turns, so that a drift of
//! the machine touches all alike. What the sender writes, the receiver reads, every byte.
//!
//! ```no_run
//! use vmmc_bench::{Bench, Options, run};
//!
//! let report = run(Bench::SendLatency, &Options { sizes: vec![8], ..Options::default() })?;
//! for row in &report.rows {
//!     println!("{:>14} {:6.3} {}", row.path, row.p50, row.unit.name());
//! }
//! # Ok::<(), vmmc_bench::BenchError>(())
//! ```
//!
//! # What is measured
//!
//! | measurement | operation | a sample of the median | a sample of the tails |
//! |---|---|---|---|
//! | `send-latency` | half a round trip of stamped payloads | mean of a batch of up to 64 round trips (memory), one round trip (kernel) | one round trip |
//! | `fetch-latency` | one fetch of what the owner has just written | mean of up to 64 fetches, each of an address that the one before brought | one fetch |
//! | `send-bandwidth`, `fetch-bandwidth` | a stream through the slots of a 4 MiB window, read by its receiver | one turn of the window | the same |
//! | `send-rate` | asynchronous sends from one sender, each to its end | mean of 1000; of UCX a run's mean | the same |
//! | `notify` | parts of a notification (the paper's figure 9) | one notification | the same |
//! | `redirection` | a stream with and without redirection, and what the hook costs who does not use it | one turn of 4 MiB; mean of 1000 sends | the same |
//! | `setup` | export, import, unimport, unexport | one operation | the same |
//! | `scale` | what goes through the node service, beside a crowd of processes and without | one operation | the same |
//! | `utlb` | lookups in the translation table: hit, pin, unpin, miss | mean of 1000 (hit), one operation | the same |
//! | `sockets` | round trips and streams of a `std::net` pair, plain and under `vmmc run` | one round trip, or one turn of 4 MiB | the same |
//! | `connections` | such connections made, used for one request and its answer, and closed | one connection | the same |
//! | `loans` | such messages produced and consumed whole, in place and through buffers | as `sockets` | the same |
//! | `congestion` | streams to another node beside kernel TCP, alone in turns and then at once | one round | |
//! | `idle` | memory for each of many idle connections of a `std::net` pair, and their processor time | one round | the worst round |
//!
//! `p50` is the median over the rounds of each round's median; `p99` and `p999` are over the samples of all
//! rounds. Times are taken with the processor's time stamp counter, less what reading it costs (about 10 ns). For a
//! bandwidth, p99 is the rate that 99 % of the samples reach. `cpu_us` counts both processes.
//! `line_us` is the round trip of one cache line between the two cores in the same minutes: on
//! virtual machines it drifts by a factor of five, and everything in memory with it.

mod bandwidth;
mod buffer;
mod clock;
mod congestion;
mod connections;
mod control;
mod error;
mod exchange;
mod fetching;
mod flow;
mod iceoryx2;
mod idle;
mod latency;
mod libfabric;
mod links;
mod loans;
mod machine;
mod memory;
mod nodes;
mod notify;
mod options;
mod others;
mod path;
mod peer;
mod progress;
mod redirection;
mod report;
mod rounds;
mod run;
mod scale;
mod send_rate;
mod setup;
mod shared_memory;
mod socket;
mod sockets;
mod spin;
mod statistics;
mod table;
mod ucx;
mod utlb;
mod vmmc_memory;
mod window;

pub use error::BenchError;
pub use machine::Machine;
pub use nodes::{Between, run_between, serve_nodes};
pub use options::{Bench, Options, PeerProgram, parse_size};
pub use path::Path;
pub use peer::serve_peer;
pub use report::{Report, Row, Unit};
pub use run::run;
pub use table::Table;
