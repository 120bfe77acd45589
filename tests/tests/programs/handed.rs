//! Servers whose connections go from program to program: started as those of inetd, started anew in place, workers of a master
//! that accepts. They are lifted where they end up; what two programs have stays on TCP as long as both have it.

use std::fs;
use std::time::Duration;

use vmmc_tests::{Connection, Running, Site, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_in_every_way, seen};
use crate::load::{program, wait_until};

/// A server in as many programs as its first argument says, and a client that goes on until there is a file `enough`. Both
/// write what the test compares.
const TALK: &str = r#"
import os, socket, sys, time

def become(role, *sockets):
    for one in sockets:
        os.set_inheritable(one.fileno(), True)
    os.execv(sys.executable, [sys.executable, __file__, role, *(str(one.fileno()) for one in sockets)])

def spawn(role, *sockets):
    if os.fork() == 0:
        become(role, *sockets)

def echo(connection):
    while data := connection.recv(4096):
        connection.sendall(data)

def client(port):
    connection = socket.create_connection(('127.0.0.1', port))
    count = 0
    while not os.path.exists('enough'):
        message = b'message %d' % count
        connection.sendall(message)
        assert connection.recv(1) + connection.recv(100) == message, count
        count += 1
        time.sleep(.001)
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b''
    print('all came back')

role, *arguments = sys.argv[1:]
if role == 'client':
    client(int(arguments[0]))
elif role == 'echo':
    echo(socket.socket(fileno=int(arguments[0])))
elif role == 'worker':
    queue = socket.socket(fileno=int(arguments[0]))
    _, [fd], _, _ = socket.recv_fds(queue, 1, 1)
    echo(socket.socket(fileno=fd))
elif role == 'hold':
    while not os.path.exists('let go'):
        time.sleep(.01)
else:
    listener = socket.create_server(('127.0.0.1', int(arguments[0])))
    if role in ('pass', 'pass and keep'):
        queue, end = socket.socketpair()
        spawn('worker', end)
        end.close()
    connection, _ = listener.accept()
    for _ in range(int(arguments[1])):
        connection.sendall(connection.recv(4096))
    if role == 'run and keep':
        has_run = False
        while data := connection.recv(4096):
            if not has_run and os.path.exists('run'):
                spawn('hold', connection)
                has_run = True
            connection.sendall(data)
    elif role == 'begin and fork':
        begun = b''.join(connection.recv(1) for _ in range(6))
        if os.fork() == 0:
            connection.sendall(begun + connection.recv(4096))
            echo(connection)
            sys.exit()
        connection.close()
    elif role == 'in place':
        become('echo', connection)
    elif role == 'as inetd':
        spawn('echo', connection)
        connection.close()
    else:
        socket.send_fds(queue, [b'!'], [connection.fileno()])
        while role == 'pass and keep' and not os.path.exists('let go'):
            time.sleep(.01)
        connection.close()
    os.wait()
"#;

struct Talk {
    _server: Running,
    client: Running,
    port: u16,
}

impl Talk {
    /// A server that answers so many messages itself before it hands the connection on.
    fn begin(site: &Site, way: Way, role: &str, before: u32) -> Result<Self, Failure> {
        let port = free_port();
        fs::write(site.path().join("talk.py"), TALK)?;
        let start = |lifted, arguments: &[&str]| {
            let mut command = site.command(lifted, program("python3"));
            Running::start(command.arg("talk.py").args(arguments))
        };
        let (port_text, before) = (port.to_string(), before.to_string());
        let server = start(way.lifts_server(), &[role, &port_text, &before])?;
        wait_until("the server", || Ok(listens(port)))?;
        let client = start(way.lifts_client(), &["client", &port_text])?;
        Ok(Talk { _server: server, client, port })
    }

    fn end(mut self, site: &Site) -> Result<String, Failure> {
        fs::write(site.path().join("enough"), "")?;
        Ok(self.client.succeed(LIMIT)?.stdout)
    }
}

/// Whether somebody listens on a port; nothing connects, as the server takes one connection only.
pub(crate) fn listens(port: u16) -> bool {
    let end = format!(":{port:04X} 00000000:0000 0A");
    fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&end))
}

fn shared(seen: &[Connection]) -> bool {
    seen.iter().any(|end| end.why == "several processes hold it")
}

fn is_lifted_where_it_ends_up(role: &str, before: u32) {
    let test = format!("a connection handed on {role}, {before} messages before");
    same_in_every_way(&test, &["python3"], |site, way| {
        let talk = Talk::begin(site, way, role, before)?;
        prove(site, way, talk.port)?;
        talk.end(site)
    });
}

#[test]
fn a_server_that_starts_itself_anew_is_lifted() {
    is_lifted_where_it_ends_up("in place", 0);
    is_lifted_where_it_ends_up("in place", 100);
}

#[test]
fn a_server_started_as_inetd_does_is_lifted() {
    is_lifted_where_it_ends_up("as inetd", 0);
    is_lifted_where_it_ends_up("as inetd", 100);
}

/// Of the parent the service knows that it has the connection, and the client's is paired with it.
#[test]
fn a_child_that_got_the_connection_while_it_was_being_lifted_has_it_lifted() {
    is_lifted_where_it_ends_up("begin and fork", 0);
}

#[test]
fn a_lifted_connection_that_a_program_inherited_is_lifted_again_once_that_has_ended() {
    same_in_every_way("a connection that another program inherits", &["python3"], |site, way| {
        let talk = Talk::begin(site, way, "run and keep", 0)?;
        prove(site, way, talk.port)?;
        fs::write(site.path().join("run"), "")?;
        if way == Way::BothLifted {
            seen(site, LIMIT, talk.port, shared)?;
        }
        fs::write(site.path().join("let go"), "")?;
        prove(site, way, talk.port)?;
        talk.end(site)
    });
}

#[test]
fn a_worker_that_got_the_connection_by_message_is_lifted() {
    is_lifted_where_it_ends_up("pass", 0);
    is_lifted_where_it_ends_up("pass", 100);
}

#[test]
fn a_connection_that_two_programs_have_is_lifted_once_one_lets_go() {
    same_in_every_way("a connection that two programs have", &["python3"], |site, way| {
        let talk = Talk::begin(site, way, "pass and keep", 0)?;
        if way == Way::BothLifted {
            seen(site, LIMIT, talk.port, shared)?;
            // As long as both have it, it is not lifted, however often that is tried.
            for _ in 0..20 {
                let now = seen(site, LIMIT, talk.port, |_| true)?;
                assert!(!now.iter().any(Connection::is_lifted), "{now:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        fs::write(site.path().join("let go"), "")?;
        prove(site, way, talk.port)?;
        talk.end(site)
    });
}
