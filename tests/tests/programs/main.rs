//! Real programs as black boxes: each pair runs with both ends plain, both lifted, and one end lifted, and the outcome
//! must be the one that kernel TCP gives.
//!
//! A program that is not installed skips its tests with a line on standard error; everything runs on the loopback
//! interface, on free ports, with a runtime directory for each run.

mod apache;
mod brokers;
mod caches;
mod containers;
mod cpython;
mod daemons;
mod databases;
mod deep_libraries;
mod disabled;
mod echo;
mod explain;
mod grpc;
mod handed;
mod hot_path;
mod in_every_way;
mod iperf3;
mod json;
mod library;
mod load;
mod loans;
mod many;
mod memcached;
mod mpi;
mod nginx;
mod openssh;
mod own_functions;
mod parking;
mod proxies;
mod python;
mod redis;
mod replication;
mod rings;
mod runtimes;
mod sanitizers;
mod service_lost;
mod sockperf;
mod static_program;
mod systemd;
mod uring;
mod users;
mod vmmc_run;
