//! Some thousand random programs, the same in every run, on the kernel and lifted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmmc_differ::{Player, Program, Trial, Verdict};
use vmmc_tests::{Site, Watchdog, Way};

/// Seeds that are played. Any of them can be played alone: `cargo run -p vmmc-differ -- --from SEED --seeds 1`.
const SEEDS: u64 = 2500;

/// On a slow machine fewer are played, but no fewer than [`LEAST`].
const LONG_ENOUGH: Duration = Duration::from_secs(80);
const LEAST: u64 = 500;

/// Programs that the kernel itself does not always answer in the same way are put aside; if there are more than one in
/// so many, the rules by which programs are made are no good.
const UNSTEADY: u64 = 100;

#[test]
fn random_programs_see_no_difference() {
    let _watchdog = Watchdog::new("random programs", Duration::from_secs(600));
    let site = Site::new().expect("there is a vmmc to try");
    let player = Player::build().expect("the player compiles");
    let (next, unsteady, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let play = || {
        let mut trial = Trial::new(&site, &player, Way::BothLifted);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS || seed >= LEAST && start.elapsed() > LONG_ENOUGH {
                return;
            }
            let program = Program::of_seed(seed);
            let all: Vec<usize> = (0..program.len()).collect();
            match trial.judge(&program, &all).expect("the players start") {
                Verdict::Equal => {}
                Verdict::Unsteady(_) => {
                    unsteady.fetch_add(1, Ordering::Relaxed);
                }
                Verdict::NotLifted(why) => {
                    panic!("seed {seed}: a connection was not lifted: {why}")
                }
                Verdict::Differs(met) => {
                    // No other worker begins a program while this one makes its own small.
                    next.store(SEEDS, Ordering::Relaxed);
                    let report = trial.shrink(&program, met).expect("the players start");
                    panic!("seed {seed} differs: {}\n{report}", report.command(seed));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(play);
        }
    });
    let played = next.load(Ordering::Relaxed).min(SEEDS);
    let unsteady = unsteady.load(Ordering::Relaxed);
    eprintln!("{played} programs in {:.0} s, {unsteady} put aside", start.elapsed().as_secs_f64());
    assert!(unsteady * UNSTEADY <= played, "{unsteady} of {played} programs are unsteady");
}

#[test]
fn a_seed_gives_the_same_program_always() {
    assert_eq!(Program::of_seed(7), Program::of_seed(7));
    assert_ne!(Program::of_seed(7), Program::of_seed(8));
    let program = Program::of_seed(7);
    let all: Vec<usize> = (0..program.len()).collect();
    assert_eq!(program.keep(&all).len(), program.len());
    assert!(program.keep(&all[..2]).len() <= 2);
}
