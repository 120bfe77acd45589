//! sockperf: takes its socket calls by `dlsym` and names an address on a connected socket.

use vmmc_tests::{Running, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn sockperf_ping_pong_loses_nothing() {
    same_in_every_way("sockperf_ping_pong_loses_nothing", &["sockperf"], |site, way| {
        let port = free_port();
        let sockperf = |lifted: bool, what: &str| {
            let mut command = site.command(lifted, find_program("sockperf").unwrap_or_default());
            command.args([what, "--tcp", "-i", "127.0.0.1", "-p", &port.to_string()]);
            command
        };
        let _server = site.serve(&mut sockperf(way.lifts_server(), "server"), port)?;
        let mut client = sockperf(way.lifts_client(), "ping-pong");
        // Without the limit sockperf gives up when messages come back faster than it thought possible.
        let mut client = Running::start(client.args([
            "-t",
            if way == Way::BothLifted { "4" } else { "1" },
            "--mps=5000000",
        ]))?;
        if way == Way::BothLifted {
            site.lifted_at_both_ends(port, 1)?;
        }
        outcome(&client.succeed(LIMIT)?.stdout)
    });
}

/// The line that counts what went wrong; there must have been messages at all.
fn outcome(report: &str) -> Result<String, Failure> {
    let line = |what: &str| {
        report.lines().find(|line| line.contains(what)).ok_or(format!("no '{what}' in: {report}"))
    };
    let sent = line("SentMessages=")?.split("SentMessages=").nth(1).unwrap_or_default();
    let sent: String = sent.chars().take_while(char::is_ascii_digit).collect();
    if sent.parse::<u64>().unwrap_or_default() < 100 {
        return Err(format!("sockperf sent only {sent} messages").into());
    }
    Ok(line("# dropped messages")?.split("# dropped").nth(1).unwrap_or_default().to_owned())
}
