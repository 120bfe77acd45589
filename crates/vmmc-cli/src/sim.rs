//! `vmmc sim`: the link's protocol on a network in virtual time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vmmc_link::Recovery;
use vmmc_link::sim::{Failure, Passed, Transfer, check, goodput};

/// Failures that are printed; one is enough to begin with.
const SHOWN: usize = 20;
/// Loss rates of the plot, in percent.
const LOSSES: [f64; 9] = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0];

/// Runs the link's protocol on random networks in virtual time, and checks that every byte is placed exactly right, signals
/// come once and in order, and nothing hangs. With --loss or --plot it measures goodput instead.
#[derive(Debug, clap::Args)]
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
    /// Measure goodput at this loss per packet, such as 1%, beside go-back-N
    #[arg(long, value_parser = parse_loss, value_name = "PERCENT")]
    loss: Option<f64>,
    /// Draw goodput against loss, beside go-back-N, into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Rate of the wire, such as 10gbit or 500mbit
    #[arg(long, default_value = "10gbit", value_parser = parse_rate)]
    rate: f64,
    /// Delay of the wire, one way, such as 50us or 10ms
    #[arg(long, default_value = "50us", value_parser = parse_delay)]
    delay: Duration,
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

/// Goodput at one loss rate, in bits a second.
#[derive(Debug, Serialize)]
struct Point {
    loss: f64,
    selective: f64,
    go_back_n: f64,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let measured = match (&args.plot, args.loss) {
        (None, None) => return run_seeds(&args),
        (Some(_), None) => LOSSES.iter().map(|percent| measure(&args, percent / 100.0)).collect(),
        (_, Some(loss)) => vec![measure(&args, loss)],
    };
    let points: Vec<Point> = match measured.into_iter().collect() {
        Ok(points) => points,
        Err(error) => return fail(&error),
    };
    if args.json {
        println!("{}", serde_json::json!({ "rate": args.rate, "goodput": points }));
    } else {
        println!("{:>8}  {:>14}  {:>14}", "loss", "selective", "go-back-N");
        for Point { loss, selective, go_back_n } in &points {
            println!(
                "{:>7}%  {:>9.3} Gb/s  {:>9.3} Gb/s",
                loss * 100.0,
                selective / 1e9,
                go_back_n / 1e9
            );
        }
    }
    match args.plot.as_deref().map(|path| draw(path, args.rate, &points)) {
        Some(Err(error)) => fail(&format!("the plot cannot be written: {error}")),
        _ => ExitCode::SUCCESS,
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

fn measure(args: &Args, loss: f64) -> Result<Point, String> {
    let bits = |recovery| {
        // A queue of one delay-bandwidth product and some batches; a hundred round trips, or a tenth of a second.
        let transfer = Transfer {
            seed: args.first,
            rate: args.rate,
            delay: args.delay,
            loss,
            queue: (args.rate / 8.0 * args.delay.as_secs_f64() * 2.0) as u64 + 256 * 1024,
            stalls: None,
            recovery,
            time: (args.delay * 400).max(Duration::from_millis(100)),
        };
        goodput(&transfer).map(|goodput| goodput.bits_per_second).map_err(|error| error.to_string())
    };
    Ok(Point { loss, selective: bits(Recovery::Selective)?, go_back_n: bits(Recovery::GoBackN)? })
}

/// Goodput over loss; the loss axis is even by step, because the steps grow by threes.
fn draw(path: &Path, rate: f64, points: &[Point]) -> std::io::Result<()> {
    let (width, height, left, top) = (640.0, 360.0, 70.0, 30.0);
    let step = width / (points.len().max(2) - 1) as f64;
    let place =
        |index: usize, bits: f64| (left + step * index as f64, top + height * (1.0 - bits / rate));
    let line = |bits: fn(&Point) -> f64| {
        points.iter().enumerate().fold(String::new(), |mut line, (index, point)| {
            let (x, y) = place(index, bits(point));
            let _ = write!(line, "{x:.1},{y:.1} ");
            line
        })
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"460\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"760\" height=\"460\" fill=\"white\"/>\n\
         <text x=\"70\" y=\"18\">Goodput by loss per packet, {:.1} Gbit/s wire</text>\n",
        rate / 1e9
    );
    for quarter in 0..=4 {
        let (_, y) = place(0, rate * f64::from(quarter) / 4.0);
        let label = rate * f64::from(quarter) / 4e9;
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}h{width}\" stroke=\"#ccc\"/><text x=\"10\" y=\"{:.1}\">{label:.2} Gb/s</text>",
            y + 4.0
        );
    }
    for (index, point) in points.iter().enumerate() {
        let (x, y) = place(index, 0.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}%</text>",
            x - 12.0,
            y + 18.0,
            point.loss * 100.0
        );
    }
    for (color, name, y, bits) in [
        ("#0a6", "vmmc-link, selective", 420, (|point| point.selective) as fn(&Point) -> f64),
        ("#c33", "vmmc-link, go-back-N", 440, |point| point.go_back_n),
    ] {
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            line(bits)
        );
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{y}\" fill=\"{color}\">{name}</text>");
    }
    svg.push_str("</svg>\n");
    std::fs::write(path, svg)
}

fn parse_loss(text: &str) -> Result<f64, String> {
    let percent: f64 =
        text.trim_end_matches('%').parse().map_err(|_| "not a percentage".to_owned())?;
    match (0.0..100.0).contains(&percent) {
        true => Ok(percent / 100.0),
        false => Err("a percentage is at least 0 and less than 100".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or("a rate ends with gbit, mbit or kbit")?;
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * unit),
        _ => Err("not a rate".to_owned()),
    }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or("a delay ends with us or ms")?;
    match number.parse::<f64>() {
        Ok(number) if (0.0..=1e7).contains(&number) => Ok(Duration::from_secs_f64(number * unit)),
        _ => Err("not a delay".to_owned()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("vmmc sim: {message}");
    ExitCode::FAILURE
}
