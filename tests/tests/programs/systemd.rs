//! The unit by which systemd starts the host's service: systemd itself has nothing to say against it.

use std::fs;
use std::path::Path;

use vmmc_tests::{Running, Site, Watchdog, missing_programs};

use crate::in_every_way::{Failure, LIMIT};
use crate::load::program;

#[test]
fn systemd_understands_every_line_of_the_unit() -> Result<(), Failure> {
    let test = "systemd_understands_every_line_of_the_unit";
    if !missing_programs(test, &["systemd-analyze"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 2 * LIMIT);
    let site = Site::new()?;
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/vmmc-node.service");
    let unit = fs::read_to_string(unit)?;
    // Where it is not installed systemd would miss the program.
    let installed = "/usr/local/bin/vmmc ";
    assert!(unit.contains(installed), "{unit}");
    let unit = unit.replace(installed, &format!("{} ", site.built("vmmc").display()));
    assert_eq!(complaints(&site, &unit)?, "");
    let wrong = complaints(&site, &unit.replace("LimitMEMLOCK=", "LimitMemory="))?;
    assert!(wrong.contains("LimitMemory"), "systemd does not look at the unit: {wrong}");
    Ok(())
}

/// What systemd says of this unit, not of others that it needs.
fn complaints(site: &Site, unit: &str) -> Result<String, Failure> {
    let file = site.path().join("vmmc-node.service");
    fs::write(&file, unit)?;
    let mut verify = site.command(false, program("systemd-analyze"));
    let said = Running::start(verify.args(["verify", "--man=no"]).arg(file))?.wait(LIMIT)?.stderr;
    Ok(said.lines().filter(|line| line.contains("vmmc-node.service")).collect())
}
