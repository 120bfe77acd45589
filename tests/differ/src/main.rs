//! Plays random programs of socket calls for as long as one likes.

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::{Parser, ValueEnum};
use vmmc_differ::{Player, Program, Trial, Verdict};
use vmmc_tests::{Site, Way, interrupted, note_interrupts};

/// Play random programs of socket calls over the kernel and lifted, and show where the answers differ
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// So many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Only these steps of the program, by their numbers
    #[arg(long, value_delimiter = ',')]
    keep: Option<Vec<usize>>,
    /// What is compared with the kernel
    #[arg(long, value_enum, default_value = "both")]
    way: Lifted,
    /// Play so many programs at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Show differences as they were met, without making them small
    #[arg(long)]
    as_met: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Lifted {
    Both,
    Server,
    Client,
}

impl Lifted {
    fn way(self) -> Way {
        match self {
            Lifted::Both => Way::BothLifted,
            Lifted::Server => Way::ServerLifted,
            Lifted::Client => Way::ClientLifted,
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    played: AtomicU64,
    different: AtomicU64,
    unsteady: AtomicU64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmmc-differ: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many programs differ.
fn run(arguments: &Arguments) -> Result<u64, Box<dyn Error>> {
    let (site, player) = (Site::new()?, Player::build()?);
    let (next, count) = (AtomicU64::new(arguments.from), Count::default());
    note_interrupts();
    thread::scope(|scope| {
        let work = || work(arguments, &site, &player, &next, &count).map_err(|e| e.to_string());
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let [played, different, unsteady] =
        [&count.played, &count.different, &count.unsteady].map(|n| n.load(Ordering::Relaxed));
    println!("{played} programs, {different} differ, {unsteady} unsteady on the kernel itself");
    Ok(different)
}

fn work(
    arguments: &Arguments,
    site: &Site,
    player: &Player,
    next: &AtomicU64,
    count: &Count,
) -> Result<(), Box<dyn Error>> {
    let mut trial = Trial::new(site, player, arguments.way.way());
    while !interrupted() {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= arguments.from + arguments.seeds {
            break;
        }
        let program = Program::of_seed(seed);
        let all: Vec<usize> = (0..program.len()).collect();
        let kept = arguments.keep.as_deref().unwrap_or(&all);
        count.played.fetch_add(1, Ordering::Relaxed);
        match trial.judge(&program, kept)? {
            Verdict::Equal => {}
            Verdict::NotLifted(why) => {
                count.different.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed}: a connection was not lifted: {why}");
            }
            Verdict::Unsteady(report) => {
                count.unsteady.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed}: unsteady on the kernel itself\n{report}");
            }
            Verdict::Differs(met) => {
                count.different.fetch_add(1, Ordering::Relaxed);
                let report = match arguments.as_met {
                    true => met,
                    false => trial.shrink(&program, met)?,
                };
                println!("seed {seed} differs: {}\n{report}", report.command(seed));
            }
        }
    }
    Ok(())
}
