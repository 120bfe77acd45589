//! `vmmc bench`: measures VMMC beside its peers in one run.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use clap::ValueEnum;
use vmmc_bench::{Bench, Between, Options, Table, parse_size};

/// Measures VMMC beside shared memory by hand, kernel TCP, AF_UNIX and memcpy, all in the same run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(required_unless_present_any = ["peer", "serve"])]
    name: Option<Name>,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Payload sizes, such as 8,4K,1M (4 B to 1 MB; default: those of the paper's figures)
    #[arg(long, value_delimiter = ',', value_parser = parse_size, value_name = "BYTES")]
    sizes: Vec<usize>,
    /// Time to measure in, in seconds (default: 10 to 30, by measurement)
    #[arg(long)]
    seconds: Option<f64>,
    /// How often the paths take turns (default: 5 or 15, by measurement)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How many connections lie idle (idle only)
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// How many processes are at the service (scale only)
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    processes: u32,
    /// How many imports these processes have together (scale only)
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    imports: u32,
    /// Measure to another node of node.toml, where `vmmc bench --serve` runs: send-latency, fetch-latency, send-bandwidth, fetch-bandwidth, congestion
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Serve measurements of other nodes
    #[arg(long, conflicts_with_all = ["name", "node"])]
    serve: bool,
    /// Be another process of a measurement
    #[arg(long, hide = true, value_name = "ROLE")]
    peer: Option<String>,
}

/// The measurements.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// One way of a send, half a round trip
    SendLatency,
    /// A stream of sends of one size
    SendBandwidth,
    /// One fetch of what the owner has just written
    FetchLatency,
    /// A stream of fetches of one size
    FetchBandwidth,
    /// Asynchronous sends a second from one sender
    SendRate,
    /// The parts of a notification
    Notify,
    /// Streams with and without redirection
    Redirection,
    /// Export, import, unimport, unexport
    Setup,
    /// The node service under many processes and imports
    Scale,
    /// Lookups in the translation table
    Utlb,
    /// A program that knows only std::net, plain and under vmmc run
    Sockets,
    /// Short connections of such a program (made, used for one request of 64 bytes and its answer, closed), plain and under vmmc run
    Connections,
    /// Messages produced and consumed in place, without a copy, and through buffers, plain and under vmmc run
    Loans,
    /// Memory and processor time of idle connections, plain and under vmmc run
    Idle,
    /// Streams to another node and kernel TCP over the same wire, alone in turns and then at the same time
    Congestion,
}

impl From<Name> for Bench {
    fn from(name: Name) -> Bench {
        match name {
            Name::SendLatency => Bench::SendLatency,
            Name::SendBandwidth => Bench::SendBandwidth,
            Name::FetchLatency => Bench::FetchLatency,
            Name::FetchBandwidth => Bench::FetchBandwidth,
            Name::SendRate => Bench::SendRate,
            Name::Notify => Bench::Notify,
            Name::Redirection => Bench::Redirection,
            Name::Scale => Bench::Scale,
            Name::Setup => Bench::Setup,
            Name::Utlb => Bench::Utlb,
            Name::Sockets => Bench::Sockets,
            Name::Connections => Bench::Connections,
            Name::Loans => Bench::Loans,
            Name::Idle => Bench::Idle,
            Name::Congestion => Bench::Congestion,
        }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    if let Some(role) = &args.peer {
        return vmmc_bench::serve_peer(role);
    }
    match measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            complain!("vmmc bench: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Where measurements of other nodes are served.
const PORT: u16 = 7412;

/// Whom to measure to, and where to find it.
fn between(node: &str) -> Result<Between, String> {
    let config = crate::node::cluster(&vmmc_os::ServicePlace::of_environment().dir)?
        .ok_or("this node knows no others: write a node.toml")?;
    let known = config.nodes.iter().find(|known| known.name == node);
    let known = known.ok_or_else(|| format!("node.toml knows no node {node}"))?;
    let address = known.addresses.first().ok_or_else(|| format!("node {node} has no address"))?;
    let address = SocketAddr::new(address.ip(), PORT);
    Ok(Between { own: config.name, other: node.to_owned(), address })
}

fn measure(args: Args) -> Result<(), String> {
    if args.serve {
        return vmmc_bench::serve_nodes(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT))
            .map_err(|cause| cause.to_string());
    }
    let Some(name) = args.name else { return Ok(()) };
    let options = Options {
        sizes: args.sizes,
        seconds: args.seconds,
        rounds: args.rounds.map(|rounds| rounds as usize),
        connections: args.connections as usize,
        processes: args.processes as usize,
        imports: args.imports as usize,
        ..Options::default()
    };
    let report = match &args.node {
        Some(node) => vmmc_bench::run_between(name.into(), &between(node)?, &options),
        None => vmmc_bench::run(name.into(), &options),
    };
    let report = report.map_err(|cause| cause.to_string())?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{}", Table(&report));
    }
    Ok(())
}
