//! How much arrives on a network that the command line describes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vmmc_link::sim::{Beside, Burst, Goodput, Stalls, Transfer, Wire, beside_tcp, goodput, incast};
use vmmc_link::{Recovery, Time};

/// Loss rates of the plot, in percent.
const LOSSES: [f64; 9] = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0];

#[derive(Debug, clap::Args)]
pub(super) struct Measurement {
    /// Measure goodput at this loss per packet, such as 1%, beside go-back-N
    #[arg(long, value_parser = parse_share, value_name = "PERCENT")]
    loss: Option<f64>,
    /// Draw goodput against loss, beside go-back-N, into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Measure how a link and a TCP stream (CUBIC) divide a bottleneck
    #[arg(long)]
    beside_tcp: bool,
    /// Measure one host that fetches from so many at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=128))]
    incast: Option<u8>,
    /// Rate of each path, such as 10gbit or 500mbit
    #[arg(long, default_value = "10gbit", value_parser = parse_rate)]
    rate: f64,
    /// Delay of each path, one way, such as 50us or 10ms
    #[arg(long, default_value = "50us", value_parser = parse_time)]
    delay: Duration,
    /// Bytes in front of each path, such as 512K (default: what is on the way in a round trip, and 256K)
    #[arg(long, value_parser = parse_bytes, requires = "measurement")]
    queue: Option<u64>,
    /// Paths of the link
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64), requires = "measurement")]
    paths: u8,
    /// Packets are lost in bursts of so many on average, instead of one by one
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u32).range(2..=10_000), requires = "measurement")]
    burst: Option<u32>,
    /// Up to this much more delay, by chance: packets overtake each other
    #[arg(long, value_parser = parse_time, requires = "measurement")]
    jitter: Option<Duration>,
    /// Share of packets that come twice
    #[arg(long, value_parser = parse_share, value_name = "PERCENT", requires = "measurement")]
    duplicate: Option<f64>,
    /// Share of packets in which bits turn
    #[arg(long, value_parser = parse_share, value_name = "PERCENT", requires = "measurement")]
    corrupt: Option<f64>,
    /// Bytes of the largest datagram that gets through
    #[arg(long, value_name = "BYTES", requires = "measurement")]
    mtu: Option<u16>,
    /// Nothing gets through from one time to another, such as 10ms-20ms; may be given several times
    #[arg(long, value_name = "FROM-TO", value_parser = parse_cut, requires = "measurement")]
    cut: Vec<(Time, Time)>,
    /// Both hosts are busy elsewhere, how often and for how long on average, such as 10ms-2ms
    #[arg(long, value_name = "EVERY-LONG", value_parser = parse_stalls, requires = "measurement")]
    stall: Option<Stalls>,
    /// How long, in virtual time (default: 400 delays, at least 100 ms; beside TCP at least 10 s)
    #[arg(long, value_parser = parse_time, requires = "measurement")]
    time: Option<Duration>,
}

/// Goodput at one loss rate, in bits a second.
#[derive(Debug, Serialize)]
struct Point {
    loss: f64,
    selective: f64,
    go_back_n: f64,
}

impl Measurement {
    /// Whether anything is to be measured.
    pub(super) fn is_wanted(&self) -> bool {
        self.loss.is_some() || self.plot.is_some() || self.beside_tcp || self.incast.is_some()
    }

    fn transfer(&self, seed: u64, loss: f64, recovery: Recovery) -> Transfer {
        let mut wire = Wire::new(0, self.delay);
        wire.jitter = self.jitter.unwrap_or_default();
        wire.duplicate = self.duplicate.unwrap_or_default();
        wire.corrupt = self.corrupt.unwrap_or_default();
        wire.mtu = self.mtu.map_or(usize::MAX, usize::from);
        wire.cuts.clone_from(&self.cut);
        match self.burst.map(f64::from) {
            // In the bad state everything is lost: it has to begin so seldom that the share is right.
            Some(packets) if loss > 0.0 => {
                let begin = loss / ((1.0 - loss) * packets);
                wire.burst = Some(Burst { begin, end: 1.0 / packets, loss: 1.0 });
            }
            _ => wire.loss = loss,
        }
        let in_a_round_trip = (self.rate / 8.0 * self.delay.as_secs_f64() * 2.0) as u64;
        let least = Duration::from_millis(if self.beside_tcp { 10_000 } else { 100 });
        Transfer {
            seed,
            rate: self.rate,
            queue: self.queue.unwrap_or(in_a_round_trip + 256 * 1024),
            wire,
            paths: self.paths,
            stalls: self.stall,
            recovery,
            time: self.time.unwrap_or((self.delay * 400).max(least)),
        }
    }
}

pub(super) fn run(args: &Measurement, seed: u64, json: bool) -> Result<(), String> {
    let transfer = args.transfer(seed, args.loss.unwrap_or(0.0), Recovery::Selective);
    let failed = |error: vmmc_link::KeyError| error.to_string();
    if args.beside_tcp {
        let Beside { link, tcp } = beside_tcp(&transfer).map_err(failed)?;
        let share = link / (link + tcp);
        match json {
            true => println!("{}", serde_json::json!({ "link": link, "tcp": tcp, "share": share })),
            false => println!(
                "link {:.3} Gb/s, TCP {:.3} Gb/s: the link has {:.0} %",
                link / 1e9,
                tcp / 1e9,
                share * 100.0
            ),
        }
    }
    if let Some(senders) = args.incast {
        // What the ports of a node divide among their links.
        let Goodput { bits_per_second, repeated } =
            incast(&transfer, senders, Some(512 << 10)).map_err(failed)?;
        match json {
            true => println!(
                "{}",
                serde_json::json!({ "senders": senders, "goodput": bits_per_second, "repeated": repeated })
            ),
            false => println!(
                "{:.3} Gb/s from {senders} at a time, {:.1} % more sent than placed",
                bits_per_second / 1e9,
                repeated * 100.0
            ),
        }
    }
    if args.loss.is_none() && args.plot.is_none() || args.beside_tcp || args.incast.is_some() {
        return Ok(());
    }
    let losses = match args.loss {
        Some(loss) => vec![loss],
        None => LOSSES.map(|percent| percent / 100.0).to_vec(),
    };
    let points: Vec<Point> = losses
        .into_iter()
        .map(|loss| {
            let bits = |recovery| {
                let goodput = goodput(&args.transfer(seed, loss, recovery)).map_err(failed);
                goodput.map(|goodput| goodput.bits_per_second)
            };
            let (selective, go_back_n) = (bits(Recovery::Selective)?, bits(Recovery::GoBackN)?);
            Ok(Point { loss, selective, go_back_n })
        })
        .collect::<Result<_, String>>()?;
    if json {
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
    args.plot.as_deref().map_or(Ok(()), |path| {
        draw(path, args.rate * f64::from(args.paths), &points)
            .map_err(|error| format!("the plot cannot be written: {error}"))
    })
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

fn parse_share(text: &str) -> Result<f64, String> {
    let percent: f64 =
        text.trim_end_matches('%').parse().map_err(|_| "not a percentage".to_owned())?;
    match (0.0..100.0).contains(&percent) {
        true => Ok(percent / 100.0),
        false => Err("a percentage is at least 0 and less than 100".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: vmmc_testbed::Rate =
        text.parse().map_err(|error: vmmc_testbed::ParseError| error.to_string())?;
    Ok(rate.0 as f64)
}

fn parse_time(text: &str) -> Result<Duration, String> {
    vmmc_testbed::parse_duration(text).map_err(|error| error.to_string())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or_else(|| "not a size: write it like 512K".to_owned())
}

/// Two times with a dash between them.
fn parse_two(text: &str) -> Result<(Duration, Duration), String> {
    let (first, second) = text.split_once('-').ok_or("two times with a dash between them")?;
    Ok((parse_time(first)?, parse_time(second)?))
}

fn parse_cut(text: &str) -> Result<(Time, Time), String> {
    let (from, to) = parse_two(text)?;
    Ok((Time::ZERO + from, Time::ZERO + to))
}

fn parse_stalls(text: &str) -> Result<Stalls, String> {
    let (every, long) = parse_two(text)?;
    match every.is_zero() {
        true => Err("how often has to be more than nothing".to_owned()),
        false => Ok(Stalls { every, long }),
    }
}
