//! `vmmc run --explain`: what became of a program's connections, told when it ends.

use std::fs;

use vmmc_tests::{Running, Site, Watchdog, free_port, missing_programs};

use crate::in_every_way::{Failure, LIMIT};

/// Echoes.
const SERVER: &str = r#"
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"#;

/// Two connections, one of which has too little traffic; in the child of a fork one of its own.
const PROGRAM: &str = r#"
import os, socket, sys, time
def use(seconds):
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(b"0123456789")
        got = 0
        while got < 10:
            got += len(connection.recv(10))
    return connection
busy = use(1)
quiet = use(0)
busy.close()
if os.fork() == 0:
    busy = use(1)
    sys.exit(0)
os.wait()
print("output")
sys.exit(3)
"#;

#[test]
fn each_process_tells_what_became_of_its_connections() -> Result<(), Failure> {
    let test = "each_process_tells_what_became_of_its_connections";
    if !missing_programs(test, &["python3"]).is_empty() {
        return Ok(());
    }
    let _watchdog = Watchdog::new(test, 2 * LIMIT);
    let site = Site::new()?;
    let port = free_port();
    let mut server = site.command(true, "python3");
    let _server = site.serve(server.args(["-c", SERVER, &port.to_string()]), port)?;
    let file = site.path().join("explanation");
    for to_file in [false, true] {
        let mut command = site.vmmc();
        command.arg("run");
        if to_file {
            command.arg(format!("--explain={}", file.display()));
        } else {
            command.arg("--explain");
        }
        command.args(["--", "python3", "-c", PROGRAM, &port.to_string()]);
        let ended = Running::start(&mut command)?.wait(LIMIT)?;
        assert_eq!(ended.stdout, "output\n", "{}", ended.stderr);
        assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
        let told = if to_file { fs::read_to_string(&file)? } else { ended.stderr.clone() };
        assert!(!to_file || ended.stderr.is_empty(), "{}", ended.stderr);
        let lines: Vec<_> = told.lines().collect();
        let heads = lines.iter().filter(|line| line.starts_with("vmmc: python3 (")).count();
        assert_eq!(heads, 2, "parent and child: {told}");
        let lifted = lines.iter().filter(|line| line.contains(": lifted, sent ")).count();
        assert_eq!(lifted, 2, "one in each: {told}");
        assert!(lines.iter().any(|line| line.ends_with(": tcp: too little traffic yet")), "{told}");
        let peer = format!(" - 127.0.0.1:{port}: ");
        assert!(
            lines
                .iter()
                .filter(|line| !line.contains("connections, "))
                .all(|line| line.contains(&peer)),
            "{told}"
        );
    }
    Ok(())
}
