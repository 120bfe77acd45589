//! Starting a service in the background.

use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use vmmc_os::{ServiceOf, ServicePlace, StartError, start_detached};

use crate::control::{ControlError, status};

/// Why no service could be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum NodeStartError {
    /// {0}
    Control(ControlError),
    /// {0}
    Start(StartError),
    /// {0}
    Refused(String),
    /// the service ended at once ({0}): run `vmmc node serve` to see why
    Ended(String),
    /// the service does not answer in time: the machine is overloaded
    Slow,
}

/// What a program that [`start`] runs has to end with when another service has the place ([`crate::ClaimError::Taken`]): its exit status.
pub const TAKEN: u8 = 75;

/// Makes sure that a service runs at `place`: starts `program` with `arguments`, which must call [`crate::serve`] at that
/// place and end with [`TAKEN`] if that says so, unless one answers already. Returns the service's process number once it answers;
/// `true` if it is new.
///
/// # Errors
/// When the program cannot be started, or does not answer within `limit`.
pub fn start(
    place: &ServicePlace,
    program: &Path,
    arguments: &[&str],
    limit: Duration,
) -> Result<(u32, bool), NodeStartError> {
    let deadline = Instant::now() + limit;
    if let Some(status) = status(place, limit).map_err(NodeStartError::Control)? {
        return Ok((status.pid, false));
    }
    let variable = if place.of == ServiceOf::Host { "VMMC_SYSTEM_DIR" } else { "VMMC_RUNTIME_DIR" };
    let environment = [(variable, place.dir.as_path())];
    let launch = || start_detached(program, arguments, &environment).map_err(NodeStartError::Start);
    let mut child = launch()?;
    loop {
        // Another start may have won: any service that answers will do.
        match status(place, limit) {
            Ok(Some(status)) => return Ok((status.pid, status.pid == child.id())),
            Ok(None) | Err(ControlError::Unresponsive) => {}
            Err(error) => return Err(NodeStartError::Control(error)),
        }
        if let Ok(Some(ended)) = child.try_wait() {
            let taken = ended.code() == Some(TAKEN.into());
            match status(place, limit) {
                Ok(Some(status)) => return Ok((status.pid, false)),
                // Who has the place does not listen yet, or no longer: it answers soon, or the next of ours gets the place.
                _ if taken && Instant::now() < deadline => child = launch()?,
                _ => {
                    return Err(last_words(&mut child).map_or_else(
                        || NodeStartError::Ended(ended.to_string()),
                        NodeStartError::Refused,
                    ));
                }
            }
        } else if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(NodeStartError::Slow);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Why the service ended, in its own words: the last line on its standard error.
fn last_words(ended: &mut Child) -> Option<String> {
    let mut said = String::new();
    ended.stderr.take()?.take(64 << 10).read_to_string(&mut said).ok()?;
    let line = said.lines().last()?;
    Some(line.strip_prefix("vmmc: ").unwrap_or(line).to_owned())
}
