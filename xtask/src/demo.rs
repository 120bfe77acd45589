//! `cargo xtask demo`: unmodified programs over kernel TCP, then the same programs under `vmmc run`.
//!
//! First both ways have to give the same results and the lifted one has to be lifted; only then is anything measured,
//! alternating between the ways, and the medians are compared.

mod echo;
mod redis;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use vmmc_tests::{Running, RunningError, Site, SiteError, StatError, Way};

use self::table::{Figure, Table};
use crate::packages;
use crate::workspace::{cargo, release};

/// Bound on a single program of the demo.
const LIMIT: Duration = Duration::from_secs(60);
/// Measurements of each kind; the median counts.
const ROUNDS: usize = 3;

/// What `cargo xtask demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use the release programs that are there instead of building first
    #[arg(long)]
    no_build: bool,
}

/// Why the demo could not show anything.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub(crate) enum DemoError {
    /// {0}
    Program(#[from] RunningError),
    /// {0}
    Site(#[from] SiteError),
    /// {0}
    Stat(#[from] StatError),
    /// {what} gave other results under vmmc run: '{lifted}' instead of '{plain}'
    Differs {
        /// The pair of programs.
        what: &'static str,
        /// What came out over kernel TCP.
        plain: String,
        /// What came out lifted.
        lifted: String,
    },
    /// {program} printed no '{wanted}': {output}
    Form {
        /// The program.
        program: &'static str,
        /// What was looked for.
        wanted: String,
        /// The beginning of what it printed.
        output: String,
    },
}

/// A pair of programs that can be shown.
trait Pair {
    const NAME: &'static str;

    /// Runs the pair on fixed input and returns everything that may not depend on the way. In a lifted run it also makes
    /// sure, with its connection open, that `vmmc stat` shows it lifted.
    fn outcome(site: &Site, way: Way) -> Result<String, DemoError>;

    /// Runs the pair once and measures.
    fn measure(site: &Site, way: Way) -> Result<Vec<Figure>, DemoError>;
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match show(args) {
        Ok(closing) => {
            println!("{closing}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo failed: {}", error.to_string().replace('\n', " | "));
            ExitCode::FAILURE
        }
    }
}

fn show(args: &Args) -> Result<String, DemoError> {
    let missing = packages::install(packages::FOR_DEMO, &|line| println!("{line}"));
    if !args.no_build {
        println!("building (release)");
        let mut build = cargo(&["build", "--release", "--workspace", "--quiet"]);
        Running::start(&mut build)?.succeed(Duration::from_secs(1200))?;
    }
    let start = Instant::now();
    let site = Site::of_user(&release())?;
    let mut table = Table::default();
    compare::<echo::Echo>(&site, &mut table)?;
    if missing.is_empty() {
        compare::<redis::Redis>(&site, &mut table)?;
    }
    println!("\n{table}");
    println!(
        "Medians of {ROUNDS} runs each, alternating, in {:.0} s. CPU time is that of both programs, user and system.",
        start.elapsed().as_secs_f64()
    );
    Ok(format!("same results both ways; VMMC against kernel TCP: {}", table.headline()))
}

fn compare<P: Pair>(site: &Site, table: &mut Table) -> Result<(), DemoError> {
    let name = P::NAME;
    progress(name, "results over kernel TCP");
    let plain = P::outcome(site, Way::Plain)?;
    progress(name, "results over VMMC");
    let lifted = P::outcome(site, Way::BothLifted)?;
    if plain != lifted {
        let (plain, lifted) = first_difference(&plain, &lifted);
        return Err(DemoError::Differs { what: name, plain, lifted });
    }
    progress(name, "the same results, and vmmc stat shows the connection lifted");
    for round in 1..=ROUNDS {
        progress(name, &format!("measuring {round}/{ROUNDS}: kernel TCP"));
        table.add_kernel(P::measure(site, Way::Plain)?);
        progress(name, &format!("measuring {round}/{ROUNDS}: VMMC"));
        table.add_lifted(P::measure(site, Way::BothLifted)?);
    }
    Ok(())
}

fn progress(name: &str, text: &str) {
    println!("{name:>22}: {text}");
}

fn first_difference(plain: &str, lifted: &str) -> (String, String) {
    let mut pairs = plain.lines().zip(lifted.lines());
    let short = |line: &str| line.chars().take(60).collect::<String>();
    match pairs.find(|(plain, lifted)| plain != lifted) {
        Some((plain, lifted)) => (short(plain), short(lifted)),
        None => (
            format!("{} lines", plain.lines().count()),
            format!("{} lines", lifted.lines().count()),
        ),
    }
}

/// CPU time of both programs for one of `operations`, in microseconds.
fn cpu_each(server: Duration, client: Duration, operations: u64) -> f64 {
    (server + client).as_secs_f64() * 1e6 / operations as f64
}
