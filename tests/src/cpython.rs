//! CPython's own tests of what it has for sockets and processes: thousands of small programs that somebody else wrote.
//!
//! [`MODULES`] names them; Debian has them in `libpython3-testsuite`. One run of a module gives a [`Verdict`] for each of
//! its tests; [`compare`] runs it plain and lifted, and plays what came out differently once more, test by test, because some
//! of them depend on the time. In most of these tests one process has both ends of a connection, which lives for a few calls;
//! [`Lifting::AtOnce`] lifts those too.

mod modules;
mod verdict;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub use modules::{MODULES, Module};
pub use verdict::Verdict;

use crate::program::find_program;
use crate::running::{Running, RunningError};
use crate::site::{Site, SiteError};

/// Times that a test is played again before it counts as different.
const AGAIN: usize = 3;

/// Whether and when the interpreter's connections are lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifting {
    /// Not under `vmmc run`.
    Never,
    /// As for everybody: after some calls.
    Later,
    /// Before the first byte.
    AtOnce,
}

/// How a module came out when it was lifted, beside how it does when it is not.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// How many of the plain run's tests passed.
    pub passed: usize,
    /// How many were left out by themselves, for want of hardware, say.
    pub skipped: usize,
    /// How many failed in the plain run.
    pub failed: usize,
    /// What came out differently every time.
    pub differences: Vec<String>,
    /// What came out differently only sometimes.
    pub unsteady: Vec<String>,
}

/// Why a module could not be compared.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum SuiteError {
    /// {0}
    Site(#[from] SiteError),
    /// {0}
    Program(#[from] RunningError),
    /// {module} gave no verdicts ({lifting:?}): {tail}
    NoVerdicts {
        /// The module.
        module: &'static str,
        /// How it was run.
        lifting: Lifting,
        /// The end of its output.
        tail: String,
    },
}

/// The system's interpreter, if its tests are installed.
pub fn tested_interpreter() -> Option<PathBuf> {
    let python = find_program("python3")?;
    let look = "import importlib.util as u, sys; sys.exit(u.find_spec('test.test_socket') is None)";
    let mut command = Command::new(&python);
    command.args(["-c", look]);
    let found = Running::start(&mut command).ok()?.succeed(Duration::from_secs(30)).is_ok();
    found.then_some(python)
}

/// Plays `module` plain and as `lifting` says. A module that takes longer than `limit` is killed, which is an error.
pub fn compare(
    module: &Module,
    lifting: Lifting,
    limit: Duration,
) -> Result<Comparison, SuiteError> {
    let plain = module.play(Lifting::Never, &[], limit)?;
    let lifted = module.play(lifting, &[], limit)?;
    let count = |verdict| plain.values().filter(|other| **other == verdict).count();
    let mut comparison = Comparison {
        passed: count(Verdict::Passed),
        skipped: count(Verdict::Skipped),
        failed: count(Verdict::Failed),
        ..Comparison::default()
    };
    let mut names: Vec<&String> = plain.keys().chain(lifted.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (was, is) = (plain.get(name), lifted.get(name));
        if was == is {
            continue;
        }
        let shown = |verdict: Option<&Verdict>| verdict.map_or("missing", |verdict| verdict.word());
        let line = format!("{name}: {}, lifted {}", shown(was), shown(is));
        if is_steady(module, lifting, name, limit)? {
            comparison.differences.push(line);
        } else {
            comparison.unsteady.push(line);
        }
    }
    Ok(comparison)
}

/// Whether the test `name` comes out differently whenever it is played alone.
fn is_steady(
    module: &Module,
    lifting: Lifting,
    name: &str,
    limit: Duration,
) -> Result<bool, SuiteError> {
    for _ in 0..AGAIN {
        let plain = module.play(Lifting::Never, &[name], limit)?;
        let lifted = module.play(lifting, &[name], limit)?;
        if plain.get(name) == lifted.get(name) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Module {
    /// Runs the module's tests, or `only` some, at a site of their own.
    pub fn play(
        &self,
        lifting: Lifting,
        only: &[&str],
        limit: Duration,
    ) -> Result<BTreeMap<String, Verdict>, SuiteError> {
        let site = Site::new()?;
        let report = site.path().join("verdicts.xml");
        let python = find_program("python3").unwrap_or_else(|| "python3".into());
        let mut command = site.command(lifting != Lifting::Never, python);
        command.args(["-m", "test", "--junit-xml"]).arg(&report).args(self.arguments);
        only.iter().for_each(|name| {
            command.args(["-m", name]);
        });
        command.arg(self.name);
        if lifting == Lifting::AtOnce {
            command.env("VMMC_LIFT_AFTER", "0");
        } else {
            command.env_remove("VMMC_LIFT_AFTER");
        }
        let finished = Running::start(&mut command)?.wait(limit)?;
        // An interpreter that crashed has written none.
        let verdicts = verdict::of_report(&fs::read_to_string(&report).unwrap_or_default());
        if verdicts.is_empty() && only.is_empty() {
            let output = finished.stdout + &finished.stderr;
            let tail = output.chars().rev().take(1000).collect::<Vec<_>>();
            return Err(SuiteError::NoVerdicts {
                module: self.name,
                lifting,
                tail: tail.into_iter().rev().collect(),
            });
        }
        Ok(verdicts)
    }
}
