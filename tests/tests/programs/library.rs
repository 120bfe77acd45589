//! The preloaded library itself: every program that starts pays for what is in it.

use std::process::Command;
use std::time::Duration;

use vmmc_tests::{Running, missing_programs, release_programs};

/// The engine brings 50 pages of tables that the linker writes at every start, and that every fork copies.
#[test]
fn the_library_leads_to_no_engine() {
    if !missing_programs("the_library_leads_to_no_engine", &["nm"]).is_empty() {
        return;
    }
    let library = release_programs().unwrap().join("libvmmc_preload.so");
    let mut nm = Running::start(Command::new("nm").arg(library)).unwrap();
    let symbols = nm.succeed(Duration::from_secs(60)).unwrap().stdout;
    let of = |part: &str| symbols.lines().filter(|line| line.contains(part)).count();
    assert!(of("vmmc_socket") > 0, "the library has no symbols");
    assert_eq!(of("vmmc_link"), 0, "symbols of the protocol between hosts");
    assert_eq!(of("crc_fast"), 0, "symbols of checksums");
}
