//! Rings that grew for bulk give their memory back when only little is sent, or nothing at all.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use vmmc_tests::{Running, Site, Watchdog, free_port, missing_programs};

use crate::in_every_way::{Failure, LIMIT};

const BULK: usize = 30_000_000;

/// Takes bulk on each connection, says so, and lets it go on when told.
const SERVER: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
def take(connection, count):
    while count:
        count -= len(connection.recv(min(count, 1 << 16)))
connection = listener.accept()[0]
message = b""
while message != b"bulk comes":
    message = connection.recv(10)
    connection.sendall(message)
for _ in range(2):
    take(connection, int(sys.argv[2]))
    print("taken", flush=True)
    sys.stdin.readline()
    connection.sendall(b"!")
"#;

/// Sends a little until it is told to go on, bulk, nothing for a while (asleep in the call that is named), a little again, and bulk.
const CLIENT: &str = r#"
import select, socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def ask(message):
    connection.sendall(message)
    assert connection.recv(10) == message
while not select.select([sys.stdin], [], [], 0.002)[0]:
    ask(b"0123456789")
ask(b"bulk comes")
def wait():
    if sys.argv[3] == "select":
        select.select([connection], [], [])
    elif sys.argv[3] == "epoll":
        with select.epoll() as epoll:
            epoll.register(connection, select.EPOLLIN)
            epoll.poll()
    assert connection.recv(1) == b"!"
for _ in range(2):
    connection.sendall(bytes(int(sys.argv[2])))
    wait()
"#;

#[test]
fn rings_that_grew_give_their_memory_back() -> Result<(), Failure> {
    let test = "rings_that_grew_give_their_memory_back";
    if !missing_programs(test, &["python3"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 4 * LIMIT);
    for call in ["recv", "select", "epoll"] {
        let site = Site::new()?;
        let (port, bulk) = (free_port(), BULK.to_string());
        let mut server = site.command(true, "python3");
        server.args(["-c", SERVER, &port.to_string(), &bulk]);
        let (mut server, mut go_on) = site.start_fed(&mut server)?;
        let said = |server: &Running, client: &str, lines: usize| {
            let deadline = Instant::now() + LIMIT;
            while server.output_so_far().lines().count() < lines {
                assert!(Instant::now() < deadline, "{call}: {client} {}", server.last_error_line());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        said(&server, "", 1);
        let mut client = site.command(true, "python3");
        client.args(["-c", CLIENT, &port.to_string(), &bulk, call]);
        let (mut client, mut begin) = site.start_fed(&mut client)?;
        // Bulk over TCP would be over before the rings are there.
        site.lifted_at_both_ends(port, 1)?;
        begin.write_all(b"\n")?;
        for round in 1..=2 {
            said(&server, &client.last_error_line(), round + 1);
            site.lifted_at_both_ends(port, (round * BULK / 2) as u64)?;
            // A page of each direction, the board, the status table: a larger ring has 2 MiB.
            let deadline = Instant::now() + LIMIT;
            let held = || Ok::<_, Failure>(ring_memory(client.pid())? + ring_memory(server.pid())?);
            while held()? > 256 << 10 {
                assert!(Instant::now() < deadline, "{call}: {} bytes are held", held()?);
                std::thread::sleep(Duration::from_millis(50));
            }
            go_on.write_all(b"\n")?;
        }
        client.succeed(LIMIT)?;
        server.succeed(LIMIT)?;
    }
    Ok(())
}

/// What a process has resident of memory that it shares with others, in bytes.
fn ring_memory(pid: u32) -> Result<usize, Failure> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut bytes = 0;
    let mut shared = false;
    for line in maps.lines() {
        if let Some(kibibytes) = line.strip_prefix("Rss:").filter(|_| shared) {
            bytes += kibibytes.trim().trim_end_matches(" kB").parse::<usize>()? << 10;
        } else if line.contains('-') && line.split(' ').count() > 5 {
            shared = line.contains("memfd:vmmc");
        }
    }
    Ok(bytes)
}
