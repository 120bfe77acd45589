//! `VMMC_DISABLE=1` makes `vmmc run` a plain run.

use vmmc_tests::{Running, Site, Watchdog, Way};

use crate::echo::{ask, serve, stable_lines};
use crate::in_every_way::{Failure, LIMIT};

#[test]
fn vmmc_disable_means_plain() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("vmmc_disable_means_plain", 2 * LIMIT);
    let site = Site::new()?;
    let (_server, port) = serve(&site, Way::BothLifted)?;
    let expected = ask(&site, Way::Plain, "ping", port, &["--count", "4000"])?;

    let mut command = site.command(true, site.built("echo-pair"));
    command.env("VMMC_DISABLE", "1");
    command.args(["ping", &format!("127.0.0.1:{port}"), "--count", "4000", "--pause-at", "2000"]);
    let (mut client, go_on) = site.start_fed(&mut command)?;
    let pid = client.pid();
    // The server's end is known and says why it stays on TCP; the disabled client is not known at all.
    let seen = site.connections_when(port, |seen| seen.iter().any(|end| !end.why.is_empty()))?;
    assert!(seen.iter().any(|end| !end.is_lifted() && !end.why.is_empty()), "{seen:?}");
    assert!(seen.iter().all(|end| end.pid != pid), "{seen:?}");
    drop(go_on);
    assert_eq!(stable_lines(&client.succeed(LIMIT)?.stdout), expected);
    Ok(())
}

#[test]
fn a_disabled_run_does_not_preload() -> Result<(), Failure> {
    let _watchdog = Watchdog::new("a_disabled_run_does_not_preload", LIMIT);
    let site = Site::new()?;
    let loads_vmmc = |disabled: bool| -> Result<bool, Failure> {
        let mut command = site.command(true, "/bin/cat");
        if disabled {
            command.env("VMMC_DISABLE", "1");
        }
        let maps = Running::start(command.arg("/proc/self/maps"))?.succeed(LIMIT)?.stdout;
        Ok(maps.contains("libvmmc_preload"))
    };
    assert!(loads_vmmc(false)?);
    assert!(!loads_vmmc(true)?);
    Ok(())
}
