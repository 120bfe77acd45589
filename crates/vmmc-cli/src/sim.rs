//! `vmmc sim`: the link's protocol on a network in virtual time.

mod goodput;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vmmc_link::sim::{Failure, Passed, check};

/// Failures that are printed; one is enough to begin with.
const SHOWN: usize = 20;

/// Runs the link's protocol on random networks in virtual time, and checks that every byte is placed exactly right, signals
/// come once and in order, and nothing hangs. With --loss, --plot, --beside-tcp or --incast it measures goodput on a network of your choice instead.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("measurement").args(["loss", "plot", "beside_tcp", "incast"]).multiple(true),
    after_help = "\
Examples:
  vmmc sim --seeds 100000 --jobs 4
  vmmc sim --plot goodput.svg
  vmmc sim --loss 1% --burst 20 --delay 5ms --rate 1gbit
  vmmc sim --beside-tcp --rate 1gbit --queue 512K --time 10s
  vmmc sim --incast 32 --rate 10gbit"
)]
pub(crate) struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Threads that run them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    #[command(flatten)]
    goodput: goodput::Measurement,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Seeds {
    seeds: u64,
    failed: Vec<Failed>,
    commands: u64,
    packets: u64,
    lost: u64,
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    failure: String,
    repeat: String,
}

pub(crate) fn run(args: Args) -> ExitCode {
    if !args.goodput.is_wanted() {
        return run_seeds(&args);
    }
    match goodput::run(&args.goodput, args.first, args.json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run_seeds(args: &Args) -> ExitCode {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left {msg}");
    let bar = ProgressBar::new(args.seeds)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total =
        Mutex::new(Seeds { seeds: 0, failed: Vec::new(), commands: 0, packets: 0, lost: 0 });
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.seeds {
                        return;
                    }
                    let seed = args.first.wrapping_add(index);
                    let outcome = check(seed);
                    let Ok(mut total) = total.lock() else { return };
                    total.add(seed, outcome);
                    stop.fetch_or(total.failed.len() >= SHOWN, Ordering::Relaxed);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let Ok(total) = total.into_inner() else { return fail("a seed panicked") };
    if args.json {
        println!("{}", serde_json::json!(total));
    } else {
        for Failed { seed, failure, repeat } in &total.failed {
            println!("seed {seed}: {failure}\n  repeat with: {repeat}");
        }
        println!(
            "{} seeds, {} failed; {} commands, {} packets, {} of them lost",
            total.seeds,
            total.failed.len(),
            total.commands,
            total.packets,
            total.lost
        );
    }
    if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Seeds {
    fn add(&mut self, seed: u64, outcome: Result<Passed, Failure>) {
        self.seeds += 1;
        match outcome {
            Ok(passed) => {
                self.commands += passed.completed;
                self.packets += passed.packets;
                self.lost += passed.lost;
            }
            Err(failure) => self.failed.push(Failed {
                seed,
                failure: failure.to_string(),
                repeat: format!("vmmc sim --first {seed} --seeds 1"),
            }),
        }
    }
}

fn fail(message: &str) -> ExitCode {
    complain!("vmmc sim: {message}");
    ExitCode::FAILURE
}
