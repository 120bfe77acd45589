//! With `--json` a command prints one JSON object and nothing else, for programs that take both streams together.

use vmmc_tests::{Running, Site, Watchdog};

use crate::in_every_way::{Failure, LIMIT};

#[test]
fn json_is_all_that_is_printed() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("json_is_all_that_is_printed", 4 * LIMIT);
    let site = Site::new()?;
    for words in [
        "bench send-latency --sizes 8 --seconds 0.3 --json",
        "bench setup --seconds 0.2 --json",
        "doctor --json",
        "node status --json",
        "stat --json",
    ] {
        let mut command = site.vmmc();
        // No program beside it can be found: what is left out has to be told inside the object.
        command.args(words.split(' ')).env("PATH", "/nowhere");
        let finished = Running::start(&mut command)?.wait(LIMIT)?;
        assert_eq!(finished.stderr, "", "vmmc {words}");
        let object: serde_json::Value = serde_json::from_str(&finished.stdout)?;
        assert!(object.is_object(), "vmmc {words}: {}", finished.stdout);
    }
    Ok(())
}
