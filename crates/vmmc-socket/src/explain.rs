//! What became of a program's connections, told when it ends (`vmmc run --explain`).

use std::ffi::CString;
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::board::{self, Connection};
use crate::kernel;
use crate::thread::{self, MICROSECOND};

/// Connections that are told one by one.
const MOST: usize = 1000;

/// The file to append to, empty for standard error; none if nobody asked. Read before the program can change it.
static WHERE: OnceLock<Option<CString>> = OnceLock::new();

/// Waits for many descriptors at once, in ticks.
static ASLEEP: AtomicU64 = AtomicU64::new(0);
static SPUN: AtomicU64 = AtomicU64::new(0);

/// Reads `VMMC_EXPLAIN` from the environment.
pub(crate) fn remember() {
    let wanted =
        std::env::var_os("VMMC_EXPLAIN").and_then(|path| CString::new(path.as_bytes()).ok());
    let _ = WHERE.set(wanted);
}

fn place() -> Option<&'static CString> {
    WHERE.get().and_then(Option::as_ref)
}

/// Whether the program shall tell.
pub(crate) fn asked() -> bool {
    place().is_some()
}

/// The time now, if waits are measured.
#[inline]
pub(crate) fn clock() -> Option<u64> {
    place().map(|_| thread::ticks())
}

/// A wait for many descriptors has slept since then.
pub(crate) fn slept_since(start: Option<u64>) {
    add(&ASLEEP, start);
}

/// A wait for many descriptors has looked since then.
pub(crate) fn spun_since(start: Option<u64>) {
    add(&SPUN, start);
}

fn add(time: &AtomicU64, start: Option<u64>) {
    if let Some(start) = start {
        time.fetch_add(thread::ticks().wrapping_sub(start), Ordering::Relaxed);
    }
}

/// A fork's child explains itself only.
pub(crate) fn forked() {
    ASLEEP.store(0, Ordering::Relaxed);
    SPUN.store(0, Ordering::Relaxed);
}

/// The program ends: tells what it was asked for; nothing if it had no connections, as the many programs of a shell script.
pub(crate) fn tell() {
    let Some(path) = place() else { return };
    let connections = board::all();
    if connections.is_empty() {
        return;
    }
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let head = format!("vmmc: {} ({})", name.trim_end(), kernel::process_id());
    let many = [&ASLEEP, &SPUN].map(|time| time.load(Ordering::Relaxed));
    let text = explanation(&head, &connections, many);
    if path.is_empty() {
        write(libc::STDERR_FILENO, text.as_bytes());
        return;
    }
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC;
    if let Ok(file) = kernel::call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o644) {
        write(file as i32, text.as_bytes());
        let _ = kernel::call!(SYS_close, file);
    }
}

/// Of several processes that tell into one file, each writes all it has at once.
fn write(fd: i32, mut text: &[u8]) {
    while let Ok(written @ 1..) = kernel::call!(SYS_write, fd, text.as_ptr(), text.len()) {
        text = &text[written..];
    }
}

fn explanation(head: &str, connections: &[Connection], [asleep, spun]: [u64; 2]) -> String {
    let carried = |connection: &&Connection| connection.sent + connection.received > 0;
    let mut text = format!(
        "{head}: {} connections, {} of them lifted; waited for many at once {} asleep, {} awake\n",
        connections.len(),
        connections.iter().filter(carried).count(),
        time(asleep),
        time(spun),
    );
    for connection in connections.iter().take(MOST) {
        line(&mut text, connection);
    }
    if let Some(more @ 1..) = connections.len().checked_sub(MOST) {
        let _ = writeln!(text, "vmmc:   and {more} more");
    }
    text
}

fn line(text: &mut String, connection: &Connection) {
    let address = |address: Option<SocketAddr>| address.map_or("?".into(), |a| a.to_string());
    let (local, peer) = (address(connection.local), address(connection.peer));
    let (sent, received) = (connection.sent, connection.received);
    let _ = write!(text, "vmmc:   {local} - {peer}: ");
    if sent + received > 0 {
        let _ = write!(
            text,
            "lifted, sent {sent} and received {received} bytes, slept {} times ({}), awake {}, woke the peer {} times",
            connection.slept,
            time(connection.asleep),
            time(connection.spun),
            connection.rang,
        );
    } else {
        let _ =
            write!(text, "{}", if connection.state == "tcp" { "tcp" } else { "lifted, unused" });
    }
    let _ = match connection.why {
        Some(why) if sent + received > 0 => writeln!(text, "; then tcp: {why}"),
        Some(why) => writeln!(text, ": {why}"),
        None => writeln!(text),
    };
}

fn time(ticks: u64) -> String {
    let microseconds = ticks / MICROSECOND;
    format!("{}.{:03} s", microseconds / 1_000_000, microseconds / 1000 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection {
            fd: 7,
            local: "127.0.0.1:80".parse().ok(),
            peer: None,
            state: "tcp",
            why: Some("no node service"),
            sent: 0,
            received: 0,
            slept: 2,
            rang: 3,
            asleep: 1_500_000 * MICROSECOND,
            spun: 2000 * MICROSECOND,
        }
    }

    #[test]
    fn each_connection_says_where_its_bytes_went_and_why() {
        let plain = connection();
        let lifted =
            Connection { state: "lifted", why: None, sent: 10, received: 20, ..connection() };
        let lowered = Connection { sent: 1, ..connection() };
        let text = explanation("vmmc: x (1)", &[plain, lifted, lowered], [0, 1000 * MICROSECOND]);
        let lines: Vec<_> = text.lines().collect();
        let awake = "slept 2 times (1.500 s), awake 0.002 s, woke the peer 3 times";
        assert_eq!(
            lines,
            [
                "vmmc: x (1): 3 connections, 2 of them lifted; waited for many at once 0.000 s asleep, 0.001 s awake",
                "vmmc:   127.0.0.1:80 - ?: tcp: no node service",
                &format!(
                    "vmmc:   127.0.0.1:80 - ?: lifted, sent 10 and received 20 bytes, {awake}"
                ),
                &format!(
                    "vmmc:   127.0.0.1:80 - ?: lifted, sent 1 and received 0 bytes, {awake}; then tcp: no node service"
                ),
            ]
        );
    }

    #[test]
    fn of_very_many_connections_the_rest_is_counted() {
        let text = explanation("", &vec![connection(); MOST + 5], [0, 0]);
        assert!(text.ends_with("and 5 more\n"));
        assert_eq!(text.lines().count(), MOST + 2);
    }
}
