//! `cargo xtask suites`: CPython's own tests of sockets and processes, plain and lifted: the same verdicts.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vmmc_tests::cpython::{self, Comparison, Lifting, MODULES, Module, SuiteError};

use crate::packages;

/// What `cargo xtask suites` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which modules, as test_socket (default: all)
    modules: Vec<String>,
    /// Lift after some calls only, as a user's programs are, or before the first byte only (default: both, one after the
    /// other)
    #[arg(long)]
    lifting: Option<When>,
    /// Modules at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Time for one run of a module, in seconds
    #[arg(long, default_value_t = 900)]
    limit: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum When {
    Later,
    AtOnce,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    packages::install(packages::FOR_SUITES, &|line| println!("{line}"));
    if cpython::tested_interpreter().is_none() {
        println!(
            "SKIPPED: the interpreter's tests are not installed (Debian: libpython3-testsuite)"
        );
        return ExitCode::SUCCESS;
    }
    let lifting = match args.lifting {
        None => vec![Lifting::Later, Lifting::AtOnce],
        Some(When::Later) => vec![Lifting::Later],
        Some(When::AtOnce) => vec![Lifting::AtOnce],
    };
    let wanted = |module: &&Module| {
        args.modules.is_empty() || args.modules.iter().any(|name| name == module.name)
    };
    let work = MODULES
        .iter()
        .filter(wanted)
        .flat_map(|module| lifting.iter().map(move |when| (module, *when)));
    play_all(work.collect(), args)
}

fn play_all(mut work: Vec<(&'static Module, Lifting)>, args: &Args) -> ExitCode {
    work.reverse();
    let (work, total) = (Mutex::new(work), Mutex::new(Comparison::default()));
    println!(
        "{:32} {:8} {:>7} {:>7} {:>7} {:>9} {:>8} {:>8}",
        "module", "lifted", "passed", "skipped", "failed", "different", "unsteady", "seconds"
    );
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let Some((module, lifting)) = lock(&work).pop() else { return };
                    let start = Instant::now();
                    let result = cpython::compare(module, lifting, Duration::from_secs(args.limit));
                    tell(module, lifting, result, start.elapsed(), &mut lock(&total));
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} tests plain, {} come out differently when lifted",
        total.passed + total.skipped + total.failed,
        total.differences.len()
    );
    if total.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(
    module: &Module,
    lifting: Lifting,
    result: Result<Comparison, SuiteError>,
    time: Duration,
    total: &mut Comparison,
) {
    let when = if lifting == Lifting::AtOnce { "at once" } else { "later" };
    match result {
        Ok(one) => {
            println!(
                "{:32} {when:8} {:>7} {:>7} {:>7} {:>9} {:>8} {:>8.1}",
                module.name,
                one.passed,
                one.skipped,
                one.failed,
                one.differences.len(),
                one.unsteady.len(),
                time.as_secs_f64()
            );
            for (kind, lines) in [("different", &one.differences), ("unsteady", &one.unsteady)] {
                lines.iter().for_each(|line| println!("    {kind}: {line}"));
            }
            total.passed += one.passed;
            total.skipped += one.skipped;
            total.failed += one.failed;
            total.differences.extend(one.differences);
        }
        Err(cause) => {
            println!("{:32} {when:8} {cause}", module.name);
            total.differences.push(module.name.to_owned());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
