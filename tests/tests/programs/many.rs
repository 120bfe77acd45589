//! Many connections between two processes: as many are lifted as there are descriptors for, and the others go on over TCP.

use vmmc_tests::{Connection, Way, free_port};

use crate::in_every_way::{LIMIT, same_in_every_way};

const CONNECTIONS: usize = 90;
/// The layer leaves the first three quarters to the program, and needs one for each connection of this client, which has a second
/// thread, so that its connections share no bell.
const DESCRIPTORS: usize = 300;
const ROOM: usize = 50;

const SERVER: &str = r#"
import selectors, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
print("listening", flush=True)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        if data := key.fileobj.recv(100):
            key.fileobj.sendall(data)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"#;

/// Goes round all connections, again and again until the end of standard input.
const CLIENT: &str = r#"
import select, socket, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
rounds = 0
while rounds < 20 or not select.select([sys.stdin], [], [], 0)[0]:
    for number, connection in enumerate(connections):
        data = b"%d %d" % (rounds, number)
        connection.sendall(data)
        assert connection.recv(100) == data
    rounds += 1
    if rounds == 20:
        print("round", flush=True)
print("well")
"#;

#[test]
fn few_descriptors_go_to_as_many_connections_as_have_room() {
    let test = "few_descriptors_go_to_as_many_connections_as_have_room";
    same_in_every_way(test, &["python3"], |site, way| {
        let port = free_port();
        let python = |lifted: bool, code: &str, arguments: &str| {
            let mut command = site.command(lifted, "/bin/sh");
            let line =
                format!("ulimit -n {DESCRIPTORS}; exec python3 -c \"$0\" {port} {arguments}");
            command.arg("-c").arg(line).arg(code);
            command
        };
        let _server =
            site.serve_when_it_says(&mut python(way.lifts_server(), SERVER, ""), "listening")?;
        let count = CONNECTIONS.to_string();
        let (mut client, go_on) =
            site.start_fed(&mut python(way.lifts_client(), CLIENT, &count))?;
        if way == Way::BothLifted {
            let seen = site.connections_when(port, |seen| lifted(seen) >= 2 * ROOM)?;
            assert!(lifted(&seen) >= 2 * ROOM, "{} ends are lifted: {seen:?}", lifted(&seen));
            let settled = site.connections_when(port, all_told)?;
            assert!(all_told(&settled), "{settled:?}");
        }
        drop(go_on);
        Ok(client.succeed(LIMIT)?.stdout)
    });
}

fn lifted(seen: &[Connection]) -> usize {
    seen.iter().filter(|end| end.is_lifted()).count()
}

/// Whether each connection that is not lifted says that descriptors are short, at one of its ends at least.
fn all_told(seen: &[Connection]) -> bool {
    seen.iter().filter(|end| !end.is_lifted()).all(|end| {
        let both = seen.iter().filter(|other| {
            (&other.local, &other.peer) == (&end.local, &end.peer)
                || (&other.local, &other.peer) == (&end.peer, &end.local)
        });
        both.into_iter().any(|end| end.why.starts_with("too few descriptors"))
    })
}
