//! A ping-pong over iceoryx2, as its own benchmark of publish-subscribe plays it, between two processes: each looks for a sample without
//! pause, and answers with one. `vmmc bench` runs it beside its own measurements.
//!
//! `vmmc-bench-iceoryx2 SIZE ROUNDS CORE CORE` prints the median time of one way in nanoseconds, over batches of 100 round trips.

use std::error::Error;
use std::process::{Child, Command, ExitCode};
use std::time::Instant;

use iceoryx2::prelude::*;
use rustix::thread::{CpuSet, sched_setaffinity};

const BATCH: usize = 100;
const WARM_UP: usize = 10_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("vmmc-bench-iceoryx2: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Box<dyn Error>> {
    set_log_level(LogLevel::Fatal);
    match words {
        [size, rounds, first, second] => {
            let (size, rounds) = (size.parse::<usize>()?, rounds.parse::<usize>()?.max(BATCH));
            let name = format!("vmmc-bench-{}", std::process::id());
            hold_to(first.parse()?)?;
            let other = Command::new(std::env::current_exe()?)
                .args(["--pong", &name, &size.to_string(), &rounds.to_string(), second])
                .spawn()?;
            println!("{:.1}", ping(&name, size, rounds, Ended(other))?);
            Ok(())
        }
        ["--pong", name, size, rounds, core] => {
            hold_to(core.parse()?)?;
            pong(name, size.parse()?, rounds.parse()?)
        }
        _ => Err("usage: vmmc-bench-iceoryx2 SIZE ROUNDS CORE CORE".into()),
    }
}

fn hold_to(core: usize) -> Result<(), Box<dyn Error>> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// One way of the ping-pong, in both directions.
macro_rules! ways {
    ($node:ident, $size:expr, $send:expr, $receive:expr, $publisher:ident, $subscriber:ident) => {
        let there = $node
            .service_builder(&$send.as_str().try_into()?)
            .publish_subscribe::<[u8]>()
            .open_or_create()?;
        let back = $node
            .service_builder(&$receive.as_str().try_into()?)
            .publish_subscribe::<[u8]>()
            .open_or_create()?;
        let $publisher = there.publisher_builder().initial_max_slice_len($size).create()?;
        let $subscriber = back.subscriber_builder().create()?;
        // Both have to be there, or the first sample reaches nobody.
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        while there.dynamic_config().number_of_subscribers() == 0
            || back.dynamic_config().number_of_publishers() == 0
        {
            if Instant::now() > deadline {
                return Err("the other process did not come".into());
            }
            std::thread::yield_now();
        }
    };
}

macro_rules! send {
    ($publisher:ident, $payload:expr) => {
        $publisher.loan_slice_uninit($payload.len())?.write_from_slice($payload).send()?
    };
}

macro_rules! receive {
    ($subscriber:ident) => {
        loop {
            if let Some(sample) = $subscriber.receive()? {
                break sample;
            }
            std::hint::spin_loop();
        }
    };
}

fn ping(name: &str, size: usize, rounds: usize, mut other: Ended) -> Result<f64, Box<dyn Error>> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    ways!(node, size, format!("{name}-there"), format!("{name}-back"), publisher, subscriber);
    let payload = vec![1u8; size];
    let mut batches = Vec::with_capacity(rounds / BATCH);
    let mut began = Instant::now();
    for round in 1..=WARM_UP + rounds / BATCH * BATCH {
        send!(publisher, &payload);
        let answer = receive!(subscriber);
        assert_eq!(answer.payload().len(), size);
        if round % BATCH == 0 {
            let now = Instant::now();
            if round > WARM_UP {
                batches.push(now.duration_since(began).as_nanos() as f64);
            }
            began = now;
        }
    }
    other.0.wait()?;
    batches.sort_by(f64::total_cmp);
    Ok(batches[batches.len() / 2] / (2 * BATCH) as f64)
}

fn pong(name: &str, size: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    ways!(node, size, format!("{name}-back"), format!("{name}-there"), publisher, subscriber);
    let payload = vec![2u8; size];
    for _ in 0..WARM_UP + rounds / BATCH * BATCH {
        receive!(subscriber);
        send!(publisher, &payload);
    }
    // The last answer has to be read before our end of the service goes.
    std::thread::sleep(std::time::Duration::from_millis(50));
    Ok(())
}

/// Killed when dropped; it has ended by then if all went well.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
