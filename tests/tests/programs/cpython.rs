//! CPython's own tests of its network modules, every connection lifted before its first byte. These are the short ones;
//! `cargo xtask suites` plays all.

use std::io::Write;
use std::time::Duration;

use vmmc_tests::Watchdog;
use vmmc_tests::cpython::{self, Lifting, MODULES, Module};

/// One run of a module.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn cpython_socket_module() {
    same_verdicts("cpython_socket_module", |module| module.name == "test_socket");
}

#[test]
fn cpython_network_modules() {
    same_verdicts("cpython_network_modules", |module| module.short && module.name != "test_socket");
}

fn same_verdicts(test: &str, wanted: impl Fn(&Module) -> bool) {
    if cpython::tested_interpreter().is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: CPython's tests");
        return;
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    let mut passed = 0;
    for module in MODULES.iter().filter(|module| wanted(module)) {
        let found = cpython::compare(module, Lifting::AtOnce, LIMIT)
            .unwrap_or_else(|error| panic!("{test}: {error}"));
        assert!(found.differences.is_empty(), "{}: {:#?}", module.name, found.differences);
        passed += found.passed;
    }
    assert!(passed > 100, "{test}: only {passed} tests passed plain");
}
