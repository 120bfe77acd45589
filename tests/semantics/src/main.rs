//! Plays scenarios and shows their transcripts: for looking at one while it is being worked on.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use vmmc_semantics::{Actor, Played, SCENARIOS, complaints, differences, play};
use vmmc_tests::{Site, Way};

/// Play scenarios of socket semantics over the kernel and lifted, and show where the transcripts differ
#[derive(Debug, Parser)]
struct Arguments {
    /// Play this way only (the kernel's is played first in any case)
    #[arg(long)]
    way: Option<Only>,
    /// Play each way this many times
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Show only what differs, not the transcripts
    #[arg(long)]
    brief: bool,
    /// The scenarios; all of them if none is named
    scenarios: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Only {
    Plain,
    Both,
    Server,
    Client,
}

impl Only {
    fn way(self) -> Way {
        match self {
            Only::Plain => Way::Plain,
            Only::Both => Way::BothLifted,
            Only::Server => Way::ServerLifted,
            Only::Client => Way::ClientLifted,
        }
    }
}

fn main() -> ExitCode {
    match show(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(count) => {
            println!("{count} scenarios with differences");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("vmmc-semantics: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns in how many scenarios something was wrong.
fn show(arguments: &Arguments) -> Result<usize, Box<dyn Error>> {
    let (site, actor) = (Site::new()?, Actor::build()?);
    let names: Vec<&str> = if arguments.scenarios.is_empty() {
        SCENARIOS.iter().map(|scenario| scenario.name).collect()
    } else {
        arguments.scenarios.iter().map(String::as_str).collect()
    };
    let ways = arguments.way.map_or(Way::ALL.to_vec(), |only| vec![only.way()]);
    let mut wrong = 0;
    for name in names {
        let oracle = play(&site, &actor, name, Way::Plain)?;
        let mut faults = complaints(&oracle);
        if !arguments.brief {
            show_transcripts(name, &oracle);
        }
        for _ in 0..arguments.repeat {
            for way in &ways {
                let played = play(&site, &actor, name, *way)?;
                if !arguments.brief && *way != Way::Plain {
                    show_transcripts(name, &played);
                }
                faults.extend(complaints(&played));
                faults.extend(differences(&oracle, &played).iter().map(ToString::to_string));
                if *way == Way::BothLifted && !played.seen_lifted {
                    println!("{name}: note: {way}, but never seen lifted");
                }
            }
        }
        println!("{name}: {}", if faults.is_empty() { "equal" } else { "DIFFERS" });
        for fault in &faults {
            println!("  {}", fault.replace('\n', "\n  "));
        }
        wrong += usize::from(!faults.is_empty());
    }
    Ok(wrong)
}

fn show_transcripts(name: &str, played: &Played) {
    for (side, transcript) in [("server", &played.server), ("client", &played.client)] {
        println!("--- {name}: {}, {side}", played.way);
        for line in &transcript.lines {
            println!("{line}");
        }
        if !transcript.errors.is_empty() {
            println!("standard error: {}", transcript.errors.trim_end());
        }
    }
}
