//! iperf3: select over mixed descriptors, blocking toggled at run time, bulk streams in both directions.

use std::process::Command;

use serde_json::Value;
use vmmc_tests::{Running, Site, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn iperf3_one_stream() {
    transfers("iperf3_one_stream", &[]);
}

#[test]
fn iperf3_one_stream_reversed() {
    transfers("iperf3_one_stream_reversed", &["-R"]);
}

#[test]
fn iperf3_four_streams() {
    transfers("iperf3_four_streams", &["-P", "4"]);
}

#[test]
fn iperf3_four_streams_reversed() {
    transfers("iperf3_four_streams_reversed", &["-P", "4", "-R"]);
}

fn transfers(test: &str, options: &[&str]) {
    same_in_every_way(test, &["iperf3"], |site, way| {
        let port = free_port();
        let mut server = iperf3(site, way.lifts_server(), port);
        let _server =
            site.serve_when_it_says(server.args(["-s", "--forceflush"]), "Server listening")?;
        let mut client = iperf3(site, way.lifts_client(), port);
        // Long enough to be looked at while it runs.
        let seconds = if way == Way::BothLifted { "4" } else { "1" };
        client.args(["-c", "127.0.0.1", "-J", "-t", seconds]).args(options);
        let mut client = Running::start(&mut client)?;
        if way == Way::BothLifted {
            site.lifted_at_both_ends(port, 1_000_000)?;
        }
        let report: Value = serde_json::from_str(&client.succeed(LIMIT)?.stdout)?;
        outcome(&report)
    });
}

/// The number of streams. Every one of them must have carried bytes, and no more may arrive than were sent.
fn outcome(report: &Value) -> Result<usize, Failure> {
    let streams = report["end"]["streams"].as_array().ok_or("the report has no streams")?;
    for stream in streams {
        let bytes = |side: &str| stream[side]["bytes"].as_u64().unwrap_or_default();
        let (sent, received) = (bytes("sender"), bytes("receiver"));
        if received == 0 || received > sent {
            return Err(format!("a stream sent {sent} bytes and received {received}").into());
        }
    }
    Ok(streams.len())
}

fn iperf3(site: &Site, lifted: bool, port: u16) -> Command {
    let mut command =
        site.command(lifted, find_program("iperf3").unwrap_or_else(|| "iperf3".into()));
    command.args(["-p", &port.to_string()]);
    command
}
