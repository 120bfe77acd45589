//! Programs in containers: other mount, process, IPC and network namespaces, of which only the service's directory is shared.

use std::io::{PipeWriter, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use vmmc_tests::{
    Connection, Container, Running, Site, Watchdog, Way, find_program, missing_programs,
};

use crate::in_every_way::{Failure, same_in_every_way, seen};

const PORT: u16 = 7000;
/// Bound on everything; a namespace takes its time on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits for one client, on the address and port given, and answers each line that begins with a number by that number and its own name.
const SERVER: &str = r#"
import socket, sys
name, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
listener = socket.create_server((address, port))
print("listening", flush=True)
connection, _ = listener.accept()
with connection, connection.makefile("rw", newline="\n") as stream:
    for line in stream:
        stream.write(line.split()[0] + " " + name + "\n")
        stream.flush()
"#;

/// Sends lines with numbers, and demands that each is answered by the server with this name, until its standard input ends.
const CLIENT: &str = r#"
import os, select, socket, sys, time
server, address, port, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
connection = socket.create_connection((address, port), timeout=60, source_address=("", source))
number = 0
with connection, connection.makefile("rw", newline="\n") as stream:
    while not select.select([0], [], [], 0.001)[0]:
        number += 1
        stream.write(f"{number} is what I say\n")
        stream.flush()
        answer = stream.readline()
        assert answer == f"{number} {server}\n", answer
        if number == 1000:
            print("and so on", flush=True)
print("right")
"#;

/// A server and a client that talk until they are told to stop.
struct Pair {
    server: Running,
    client: Running,
    go_on: PipeWriter,
}

impl Pair {
    /// `ends` says where server and client run, and whether lifted; the client meets the server at `address` and `port`, its own port is 5000.
    fn start(
        site: &Site,
        name: &str,
        ends: [(&Container, bool); 2],
        (address, port): (&str, u16),
    ) -> Result<Self, Failure> {
        let python = find_program("python3").ok_or("python3 is not installed")?;
        let [(there, lift_server), (here, lift_client)] = ends;
        let mut server = there.command(lift_server, &python);
        server.args(["-c", SERVER, name, "0.0.0.0", &PORT.to_string()]);
        let server = site.serve_when_it_says(&mut server, "listening")?;
        let mut client = here.command(lift_client, &python);
        client.args(["-c", CLIENT, name, address, &port.to_string(), "5000"]);
        let (client, go_on) = site.start_fed(&mut client)?;
        Ok(Self { server, client, go_on })
    }

    /// Waits until a thousand messages went to and fro: enough to be shown more than once.
    fn talks(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + LIMIT;
        while !self.client.output_so_far().contains("and so on") {
            if Instant::now() > end || !self.client.is_running() {
                return Err(format!("{:?}", self.client.kill()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn stop(mut self) -> Result<(), Failure> {
        drop(self.go_on);
        let said = self.client.succeed(LIMIT)?.stdout;
        self.server.succeed(LIMIT)?;
        if said.ends_with("right\n") { Ok(()) } else { Err(said.into()) }
    }
}

/// Whether bytes of both directions moved through VMMC, for which both ends have to be lifted.
fn works(end: &Connection) -> bool {
    end.is_lifted() && end.sent > 0 && end.received > 0
}

/// A site whose service runs on the host, if there can be containers.
fn site_with_service(test: &str, needed: &[&str]) -> Option<(Site, Watchdog)> {
    if !Container::possible(test) || !missing_programs(test, needed).is_empty() {
        return None;
    }
    let watchdog = Watchdog::new(test, 4 * LIMIT);
    let site = Site::new().unwrap();
    start_service(site.vmmc()).unwrap();
    Some((site, watchdog))
}

/// Starts the service, unless it runs; says so in JSON. A machine that is too busy is given more time.
fn start_service(mut vmmc: Command) -> Result<String, Failure> {
    // However long the containers take to start: it waits for them.
    vmmc.args(["node", "start", "--json"]).env("VMMC_NODE_IDLE_SECONDS", "600");
    let end = Instant::now() + LIMIT;
    loop {
        match Running::start(&mut vmmc)?.succeed(LIMIT) {
            Ok(started) => return Ok(started.stdout),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => {}
        }
    }
}

fn two_joined(site: &Site) -> Result<[Container; 2], Failure> {
    let [server, client] = [Container::new(site)?, Container::new(site)?];
    server.join("cable", "10.0.0.1/24", &client, "10.0.0.2/24")?;
    Ok([server, client])
}

#[test]
fn redis_between_containers_gives_the_same_answers() {
    let test = "redis_between_containers_gives_the_same_answers";
    if !Container::possible(test) {
        return;
    }
    same_in_every_way(test, &["redis-server", "redis-cli"], |site, way| {
        start_service(site.vmmc())?;
        let [there, here] = two_joined(site)?;
        let program = |name| find_program(name).unwrap_or_default();
        let port = PORT.to_string();
        let mut server = there.command(way.lifts_server(), program("redis-server"));
        server.args([
            "--bind",
            "10.0.0.1",
            "--port",
            &port,
            "--save",
            "",
            "--protected-mode",
            "no",
        ]);
        let _server = site.serve_when_it_says(&mut server, "Ready to accept connections")?;
        let mut cli = here.command(way.lifts_client(), program("redis-cli"));
        let (mut cli, mut input) = site.start_fed(cli.args(["-h", "10.0.0.1", "-p", &port]))?;
        let mut number = 0;
        let mut push = |input: &mut PipeWriter| {
            number += 1;
            writeln!(input, "SET key value-{number}").and_then(|()| input.flush())
        };
        // What becomes of the connection shows while traffic goes on.
        let end = Instant::now() + LIMIT;
        loop {
            for _ in 0..30 {
                push(&mut input)?;
            }
            let ends = site.connections(PORT).unwrap_or_default();
            let lifted = ends.iter().any(works);
            let known = ends.iter().any(|end| !end.is_lifted() && end.why.contains("does not run"));
            match way {
                Way::Plain => break,
                Way::BothLifted if lifted => break,
                Way::ServerLifted | Way::ClientLifted if known && !lifted => break,
                _ if Instant::now() < end => {}
                _ => return Err(format!("vmmc stat shows {ends:?}").into()),
            }
        }
        input.write_all(b"DEL key\nRPUSH list a b c\nLRANGE list 0 -1\nSETRANGE big 300000 x\nGETRANGE big 299990 -1\n")?;
        drop(input);
        let answers = cli.succeed(LIMIT)?.stdout;
        Ok(answers.lines().filter(|line| *line != "OK").collect::<Vec<_>>().join("\n"))
    });
}

#[test]
fn iperf3_between_containers() {
    let test = "iperf3_between_containers";
    let Some((site, _watchdog)) = site_with_service(test, &["iperf3"]) else { return };
    let iperf3 = find_program("iperf3").unwrap_or_default();
    let transfer = || -> Result<(), Failure> {
        let [there, here] = two_joined(&site)?;
        let port = PORT.to_string();
        let mut server = there.command(true, &iperf3);
        let _server = site.serve_when_it_says(
            server.args(["-s", "--forceflush", "-p", &port]),
            "Server listening",
        )?;
        for reversed in [&[][..], &["-R"]] {
            // It is ended as soon as enough was seen.
            let mut client = here.command(true, &iperf3);
            client.args(["-c", "10.0.0.1", "-p", &port, "-P", "2", "-t", "60"]).args(reversed);
            let mut client = Running::start(&mut client)?;
            let bulk = |end: &&Connection| end.is_lifted() && end.sent + end.received > 1_000_000;
            seen(&site, LIMIT, PORT, |seen| seen.iter().filter(bulk).count() >= 2)?;
            client.stop();
        }
        Ok(())
    };
    transfer().unwrap_or_else(|error| panic!("{test}: {error}"));
}

#[test]
fn pairs_with_the_same_addresses_are_not_mixed_up() {
    let test = "pairs_with_the_same_addresses_are_not_mixed_up";
    let Some((site, _watchdog)) = site_with_service(test, &["python3"]) else { return };
    let talk = || -> Result<(), Failure> {
        let places = [two_joined(&site)?, two_joined(&site)?];
        let mut pairs = Vec::new();
        for (name, [there, here]) in ["Ada", "Grace"].iter().zip(&places) {
            let ends = [(there, true), (here, true)];
            pairs.push(Pair::start(&site, name, ends, ("10.0.0.1", PORT))?);
        }
        // Three, as a process that met a very busy service is not shown.
        seen(&site, LIMIT, PORT, |seen| seen.iter().filter(|end| works(end)).count() >= 3)?;
        pairs.into_iter().try_for_each(|mut pair| {
            pair.talks()?;
            pair.stop()
        })
    };
    talk().unwrap_or_else(|error| panic!("{test}: {error}"));
}

#[test]
fn who_has_only_the_addresses_of_an_end_is_not_taken_for_it() {
    let test = "who_has_only_the_addresses_of_an_end_is_not_taken_for_it";
    let Some((site, _watchdog)) = site_with_service(test, &["python3"]) else { return };
    let talk = || -> Result<(), Failure> {
        let [places, others] = [two_joined(&site)?, two_joined(&site)?];
        // Of one pair the server is lifted, of the other the client: the addresses of the two fit.
        let mut victim = {
            let ends = [(&places[0], true), (&places[1], false)];
            Pair::start(&site, "victim", ends, ("10.0.0.1", PORT))?
        };
        let mut alike = {
            let ends = [(&others[0], false), (&others[1], true)];
            Pair::start(&site, "alike", ends, ("10.0.0.1", PORT))?
        };
        // In this time both were shown more than once.
        victim.talks()?;
        alike.talks()?;
        let alone = |end: &&Connection| end.why.contains("does not run under vmmc");
        let ends = seen(&site, LIMIT, PORT, |seen| {
            seen.iter().any(Connection::is_lifted) || seen.iter().filter(alone).count() == 2
        })?;
        assert!(!ends.iter().any(Connection::is_lifted), "{ends:?}");
        victim.stop()?;
        alike.stop()
    };
    talk().unwrap_or_else(|error| panic!("{test}: {error}"));
}

#[test]
fn a_published_port_is_lifted_through_address_translation() {
    let test = "a_published_port_is_lifted_through_address_translation";
    let Some((site, _watchdog)) = site_with_service(test, &["python3", "nft"]) else { return };
    let talk = || -> Result<(), Failure> {
        let [server, client, host] =
            [Container::new(&site)?, Container::new(&site)?, Container::new(&site)?];
        host.join("inner", "10.1.0.1/24", &server, "10.1.0.2/24")?;
        host.join("outer", "10.2.0.1/24", &client, "10.2.0.2/24")?;
        host.succeed(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        let rules = "table ip nat {
            chain in { type nat hook prerouting priority -100; tcp dport 8080 dnat to 10.1.0.2:7000; }
            chain out { type nat hook postrouting priority 100; oifname inner masquerade; }
        }";
        let mut nft = host.command(false, "nft");
        let (mut nft, mut input) = site.start_fed(nft.args(["-f", "-"]))?;
        input.write_all(rules.as_bytes())?;
        drop(input);
        nft.succeed(LIMIT)?;
        let ends = [(&server, true), (&client, true)];
        let pair = Pair::start(&site, "Ada", ends, ("10.2.0.1", 8080))?;
        let ends = seen(&site, LIMIT, 8080, |seen| seen.iter().any(works))?;
        assert_eq!(ends[0].local, "10.2.0.2:5000");
        let ends = seen(&site, LIMIT, PORT, |seen| seen.iter().any(works))?;
        assert!(ends[0].peer.starts_with("10.1.0.1:"), "{ends:?}");
        pair.stop()
    };
    talk().unwrap_or_else(|error| panic!("{test}: {error}"));
}

#[test]
fn a_service_that_a_container_started_serves_the_others() {
    let test = "a_service_that_a_container_started_serves_the_others";
    if !Container::possible(test) || !missing_programs(test, &["python3"]).is_empty() {
        return;
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    let site = Site::new().unwrap();
    let talk = || -> Result<(), Failure> {
        let [there, here] = two_joined(&site)?;
        // The first `vmmc run` starts the service, in its container; the second finds it, though it cannot see that process.
        let ends = [(&there, true), (&here, true)];
        let pair = Pair::start(&site, "Ada", ends, ("10.0.0.1", PORT))?;
        seen(&site, LIMIT, PORT, |seen| seen.iter().any(works))?;
        assert!(start_service(here.vmmc())?.contains("\"started\":false"));
        assert!(start_service(site.vmmc())?.contains("\"started\":false"));
        // With its container the service goes; what is lifted stays, and who is left starts another.
        let mut server = pair.server;
        server.kill();
        there.end();
        assert!(start_service(here.vmmc())?.contains("\"running\":true"));
        Ok(())
    };
    talk().unwrap_or_else(|error| panic!("{test}: {error}"));
}

#[test]
fn a_service_without_rights_says_why_nothing_is_lifted() {
    let test = "a_service_without_rights_says_why_nothing_is_lifted";
    if !Container::possible(test) || !missing_programs(test, &["python3", "setpriv"]).is_empty() {
        return;
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    let site = Site::new().unwrap();
    let talk = || -> Result<(), Failure> {
        let mut vmmc = Command::new("setpriv");
        vmmc.args(["--bounding-set", "-sys_admin,-bpf,-perfmon"]).arg(site.built("vmmc"));
        vmmc.env("VMMC_RUNTIME_DIR", site.path().join("runtime"));
        start_service(vmmc)?;
        let [there, here] = two_joined(&site)?;
        let ends = [(&there, true), (&here, true)];
        let mut pair = Pair::start(&site, "Ada", ends, ("10.0.0.1", PORT))?;
        let told = |end: &&Connection| end.why.contains("another network namespace");
        seen(&site, LIMIT, PORT, |seen| seen.iter().filter(told).count() == 2)?;
        let status = |vmmc: &mut Command| -> Result<String, Failure> {
            Ok(Running::start(vmmc.args(["node", "status"]))?.succeed(LIMIT)?.stdout)
        };
        let told = status(&mut site.vmmc())?;
        assert!(told.contains("2, between which nothing is lifted"), "{told}");
        // From in there the service's process cannot be seen.
        let told = status(&mut there.vmmc())?;
        assert!(told.contains("in another process namespace"), "{told}");
        pair.talks()?;
        pair.stop()
    };
    talk().unwrap_or_else(|error| panic!("{test}: {error}"));
}

/// Sends itself bulk over a connection that is lifted in the midst of it.
const BULK: &str = r#"
import hashlib, random, socket, threading, time
SIZE = 8 << 20
for turn in range(3):
    listener = socket.create_server(("127.0.0.1", 0))
    out = socket.create_connection(listener.getsockname())
    back, _ = listener.accept()
    back.settimeout(30)
    for _ in range(2):
        back.sendall(b"x")
        out.recv(1)
    bulk, got = random.Random(turn).randbytes(SIZE), hashlib.sha256()
    def send():
        sent = 0
        while sent < SIZE:
            sent += out.send(bulk[sent:sent + random.randint(4096, 65536)])
            if sent < 400000 and random.random() < 0.5:
                time.sleep(0.0003)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    left = SIZE
    while left:
        some = back.recv(65536)
        got.update(some)
        left -= len(some)
    assert got.digest() == hashlib.sha256(bulk).digest()
    sender.join()
print("right")
"#;

/// A queue that shapes the traffic drops packets, as container platforms limit bandwidth. The kernel counts those as sent.
#[test]
fn lifting_where_packets_are_dropped() -> Result<(), Failure> {
    let test = "lifting_where_packets_are_dropped";
    if !Container::possible(test) || !missing_programs(test, &["tc", "python3"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, LIMIT);
    let site = Site::new()?;
    let container = Container::new(&site)?;
    let shape = "qdisc replace dev lo root tbf rate 400mbit burst 100k limit 100k";
    let words: Vec<&str> = std::iter::once("tc").chain(shape.split(' ')).collect();
    container.succeed(&words)?;
    for lifted in [false, true] {
        let mut command = container.command(lifted, "python3");
        // So late that it meets the queue full.
        command.args(["-c", BULK]).env("VMMC_LIFT_AFTER", "40");
        assert_eq!(Running::start(&mut command)?.succeed(LIMIT)?.stdout, "right\n");
    }
    Ok(())
}
