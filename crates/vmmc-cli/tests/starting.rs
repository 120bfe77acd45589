//! Starting a service where another one comes or goes at the same moment.

use std::path::Path;
use std::time::{Duration, Instant};

use vmmc_os::{LockFile, ServicePlace};

/// Longer than anything takes on the slowest machine; only to end a test that hangs.
const FOREVER: Duration = Duration::from_secs(60);

/// Between taking the lock and listening, and between closing its socket and letting go of the lock, a service has the directory and nobody
/// can connect. A start whose own service was refused then has to go on.
#[test]
fn a_start_goes_on_while_who_has_the_directory_does_not_listen() {
    let around = tempfile::tempdir().unwrap();
    let place = ServicePlace::of_user(around.path().join("run"));
    place.check(true).unwrap();
    let lock = LockFile::try_take(&place.dir.join("node.lock")).unwrap().unwrap();
    // The first service tells that it was refused, before it ends.
    let refused = around.path().join("refused");
    let script = r#"test -e "$1" && exec "$0" node serve --detached
        "$0" node serve --detached; ended=$?; echo $ended > "$1"; exit $ended"#;
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_vmmc"), refused.to_str().unwrap()];
    let started = std::thread::scope(|scope| {
        let starting =
            scope.spawn(|| vmmc_node::start(&place, Path::new("sh"), &arguments, FOREVER));
        let deadline = Instant::now() + FOREVER;
        while !refused.exists() {
            assert!(Instant::now() < deadline, "still not refused");
            std::thread::sleep(Duration::from_millis(1));
        }
        lock.remove();
        starting.join().unwrap()
    });
    let (pid, new) = started.unwrap();
    assert!(new);
    assert_eq!(vmmc_node::status(&place, FOREVER).unwrap().map(|status| status.pid), Some(pid));
    assert_eq!(vmmc_node::stop(&place, FOREVER), Ok(true));
}
