//! Very many connections between two programs: all of them idle, all of them used again, and those lifted that are busy, whatever
//! the limit of descriptors.

use std::io::{PipeWriter, Write};
use std::time::{Duration, Instant};

use vmmc_tests::{Connection, Running, Site, Watchdog, free_port, missing_programs};

use crate::in_every_way::{Failure, LIMIT};

const CONNECTIONS: u64 = 10_000;
/// A quarter is left to the layer: far less than two for each connection.
const DESCRIPTORS: u64 = 14_000;
/// For everything but the connections themselves.
const OTHERS: u64 = 200;
/// So many are busy in the end.
const BUSY: usize = 20;

const SERVER: &str = r#"
import select, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1000)
print("listening", flush=True)
epoll = select.epoll()
epoll.register(listener, select.EPOLLIN)
held = {}
while True:
    for fd, events in epoll.poll():
        if fd == listener.fileno():
            connection = listener.accept()[0]
            held[connection.fileno()] = connection
            epoll.register(connection, select.EPOLLIN)
        else:
            piece = held[fd].recv(64)
            if not piece:
                sys.exit(0)
            held[fd].sendall(piece)
"#;

/// Uses each connection a little, then none, each once, and some of them until its input ends.
const CLIENT: &str = r#"
import select, socket, sys
port, count, busy = (int(word) for word in sys.argv[1:4])
def exchange(connection, text):
    connection.sendall(text)
    assert connection.recv(64) == text, text
held = []
for number in range(count):
    connection = socket.create_connection(("127.0.0.1", port))
    for turn in range(8):
        exchange(connection, b"%d of %d" % (turn, number))
    held.append(connection)
print("open", flush=True)
def told():
    # Asleep in a call on sockets, as programs are that have nothing to do.
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    poll.register(held[0], select.POLLRDHUP)
    poll.poll()
    return sys.stdin.readline()
told()
for number, connection in enumerate(held):
    connection.sendall(b"again %d" % number)
for number, connection in enumerate(held):
    assert connection.recv(64) == b"again %d" % number, number
print("used", flush=True)
stop = select.poll()
stop.register(sys.stdin, select.POLLIN)
turn = 0
while not stop.poll(0):
    for connection in held[-busy:]:
        exchange(connection, b"%d" % turn)
    turn += 1
"#;

#[test]
fn ten_thousand_idle_connections_are_parked_and_used_again() -> Result<(), Failure> {
    let test = "ten_thousand_idle_connections_are_parked_and_used_again";
    let (count, most) = possible(test);
    let Some(pair) = Pair::start(test, CLIENT, count, most, "1", BUSY)? else { return Ok(()) };
    pair.until("open", |ends| {
        let carried = ends.iter().any(|end| end.sent + end.received > 0);
        carried && !ends.iter().any(Connection::is_lifted)
    })?;
    pair.go_on_until_used(|ends| ends.iter().filter(|end| end.is_lifted()).count() >= 2 * BUSY)
}

#[test]
fn thousands_of_connections_are_lifted_at_once_with_few_descriptors_more() -> Result<(), Failure> {
    let test = "thousands_of_connections_are_lifted_at_once_with_few_descriptors_more";
    let (count, most) = possible(test);
    // The service has the sockets of both ends, and for a moment more.
    let count = count.min(allowed() / 5 * 2);
    let mut start = Pair::start(test, CLIENT, count, most, "3600", count as usize)?;
    let Some(pair) = &mut start else { return Ok(()) };
    pair.until("open", |_| true)?;
    // All of them are used in turns until all are lifted.
    pair.input.write_all(b"\n")?;
    pair.until("used", |ends| {
        ends.iter().filter(|end| end.is_lifted()).count() as u64 == 2 * count
    })?;
    let [server, client] = pair.descriptors()?;
    let enough = count as usize + 100;
    assert!(server < enough && client < enough, "{server} and {client} descriptors");
    start.map_or(Ok(()), Pair::end)
}

#[test]
fn idle_connections_make_room_for_busy_ones() -> Result<(), Failure> {
    let test = "idle_connections_make_room_for_busy_ones";
    // Room for the bells of fewer than 100, as with more threads each has one of its own, and nothing is parked for being idle.
    let threads =
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()";
    let client = format!("{threads}\n{CLIENT}");
    let Some(pair) = Pair::start(test, &client, 200, 400, "3600", BUSY)? else { return Ok(()) };
    pair.until("open", |ends| ends.iter().any(|end| end.sent + end.received > 0))?;
    let busy = |end: &&Connection| end.is_lifted() && end.sent + end.received > 3000;
    pair.go_on_until_used(|ends| ends.iter().filter(busy).count() >= 2 * BUSY)
}

/// How many descriptors a process may have here.
fn allowed() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.maximum.unwrap_or(u64::MAX)
}

/// How many connections, with how many descriptors, this system allows.
fn possible(test: &str) -> (u64, u64) {
    let most = allowed().min(DESCRIPTORS);
    // The layer's own are in the last quarter.
    let count = CONNECTIONS.min((most / 4 * 3).saturating_sub(OTHERS));
    if count < CONNECTIONS {
        eprintln!(
            "{test}: only {count} connections, as no more than {most} descriptors are allowed"
        );
    }
    (count, most)
}

/// Both programs.
struct Pair {
    site: Site,
    port: u16,
    server: Running,
    client: Running,
    input: PipeWriter,
    _watchdog: Watchdog,
}

impl Pair {
    /// With so many connections and descriptors; `None` if a program is missing.
    fn start(
        test: &str,
        client: &str,
        count: u64,
        descriptors: u64,
        park_after: &str,
        busy: usize,
    ) -> Result<Option<Self>, Failure> {
        if !missing_programs(test, &["python3", "sh"]).is_empty() {
            return Ok(None);
        }
        let _watchdog = Watchdog::new(test, 4 * LIMIT);
        let site = Site::new()?;
        let port = free_port();
        let python = |program: &str, words: &[String]| {
            let mut command = site.command(true, "sh");
            command.env("VMMC_PARK_AFTER", park_after);
            let line = format!("ulimit -n {descriptors}; exec python3 -c \"$@\"");
            command.args(["-c", &line, "sh", program]).args(words);
            command
        };
        let mut server = python(SERVER, &[port.to_string()]);
        let server = site.serve_when_it_says(&mut server, "listening")?;
        let words = [port.to_string(), count.to_string(), busy.to_string()];
        let (client, input) = site.start_fed(&mut python(client, &words))?;
        Ok(Some(Self { site, port, server, client, input, _watchdog }))
    }

    /// How many descriptors server and client have open.
    fn descriptors(&self) -> Result<[usize; 2], Failure> {
        let count = |program: &Running| -> Result<usize, Failure> {
            Ok(std::fs::read_dir(format!("/proc/{}/fd", program.pid()))?.count())
        };
        Ok([count(&self.server)?, count(&self.client)?])
    }

    /// Waits until the client has said `text`, and then until the connections are as `wanted`.
    fn until(&self, text: &str, wanted: impl Fn(&[Connection]) -> bool) -> Result<(), Failure> {
        let errors = || [self.client.last_error_line(), self.server.last_error_line()];
        let deadline = Instant::now() + 2 * LIMIT;
        while !self.client.output_so_far().contains(text) {
            assert!(Instant::now() < deadline, "not {text}: {:?}", errors());
            std::thread::sleep(Duration::from_millis(50));
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            let ends = self.site.connections(self.port)?;
            if wanted(&ends) {
                return Ok(());
            }
            let lifted = ends.iter().filter(|end| end.is_lifted()).count();
            assert!(
                Instant::now() < deadline,
                "{text}: {lifted} of {} ends lifted, {:?}; {:?}",
                ends.len(),
                ends.last(),
                errors()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Has all connections used once, and then some of them until they are as `wanted`.
    fn go_on_until_used(mut self, wanted: impl Fn(&[Connection]) -> bool) -> Result<(), Failure> {
        self.input.write_all(b"\n")?;
        self.until("used", wanted)?;
        self.end()
    }

    fn end(mut self) -> Result<(), Failure> {
        drop(self.input);
        self.client.succeed(LIMIT)?;
        Ok(())
    }
}
