//! Running one pair in every way, and the proof that it was lifted when it should be.

use std::error::Error;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use vmmc_tests::{Connection, Site, SiteError, Watchdog, Way, missing_programs};

/// What a pair returns when it could not be run to its end.
pub(crate) type Failure = Box<dyn Error>;

/// Bound on a single program in these tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs `pair` in every way, each at a site of its own, and demands of each the outcome of the plain run.
///
/// Without one of the `needed` programs nothing is run, and a line says so.
pub(crate) fn same_in_every_way<T: PartialEq + Debug>(
    test: &str,
    needed: &[&str],
    pair: impl Fn(&Site, Way) -> Result<T, Failure>,
) {
    same_at(Site::new, test, needed, pair);
}

/// The same at sites of a kind.
pub(crate) fn same_at<T: PartialEq + Debug>(
    site: impl Fn() -> Result<Site, SiteError>,
    test: &str,
    needed: &[&str],
    pair: impl Fn(&Site, Way) -> Result<T, Failure>,
) {
    if !missing_programs(test, needed).is_empty() {
        return;
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    let mut plain = None;
    for way in Way::ALL {
        let outcome = site()
            .map_err(Failure::from)
            .and_then(|site| pair(&site, way))
            .unwrap_or_else(|error| panic!("{test}, {way}: {error}"));
        match &plain {
            None => plain = Some(outcome),
            Some(plain) => {
                assert_eq!(&outcome, plain, "{test}: {way} (left) differs from plain (right)")
            }
        }
    }
}

/// Demands, while a connection to `port` is open and in use, that `vmmc stat` shows it as `way` promises: lifted at both
/// ends and with bytes carried, or not lifted and with the reason.
pub(crate) fn prove(site: &Site, way: Way, port: u16) -> Result<(), Failure> {
    match way {
        Way::Plain => Ok(()),
        Way::BothLifted => Ok(site.lifted_at_both_ends(port, 1)?),
        Way::ServerLifted | Way::ClientLifted => prove_not_lifted(site, port),
    }
}

/// Demands that the open connection of `port` is known, is not lifted, and that the reason is told.
pub(crate) fn prove_not_lifted(site: &Site, port: u16) -> Result<(), Failure> {
    let told = |seen: &[Connection]| seen.iter().any(|end| !end.is_lifted() && !end.why.is_empty());
    let seen = site.connections_when(port, told)?;
    if told(&seen) && !seen.iter().any(Connection::is_lifted) {
        return Ok(());
    }
    Err(format!(
        "vmmc stat should show the connection of port {port} as not lifted, with a reason: {seen:?}"
    )
    .into())
}

/// Waits, at most `limit`, until `wanted` holds of the site's connections of `port`, while the programs go on.
/// A service that does not answer yet is asked again.
pub(crate) fn seen(
    site: &Site,
    limit: Duration,
    port: u16,
    wanted: impl Fn(&[Connection]) -> bool,
) -> Result<Vec<Connection>, Failure> {
    let end = Instant::now() + limit;
    loop {
        match site.connections(port) {
            Ok(seen) if wanted(&seen) => return Ok(seen),
            Ok(seen) if Instant::now() > end => {
                return Err(format!("vmmc stat shows {seen:?}").into());
            }
            Err(error) if Instant::now() > end => return Err(error.into()),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
