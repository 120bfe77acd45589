//! Real programs as black boxes: each pair runs with both ends plain, both lifted, and one end lifted, and the outcome
//! must be the one that kernel TCP gives.
//!
//! A program that is not installed skips its tests with a line on standard error; everything runs on the loopback
//! interface, on free ports, with a runtime directory for each run.

mod cpython;
mod disabled;
mod echo;
mod in_every_way;
mod iperf3;
mod json;
mod nginx;
mod python;
mod redis;
mod rings;
mod service_lost;
mod sockperf;
mod static_program;
mod uring;
mod vmmc_run;
