//! memcached: a pool of threads with an epoll object each, in a server that lowers its limit of descriptors and gives up root
//! before the first connection.

use std::fs;

use vmmc_tests::{Running, free_port};

use crate::in_every_way::{LIMIT, prove, same_in_every_way};
use crate::load::{program, wait_until};

const CLIENT: &str = r#"
import select, socket, sys, threading
def one(number, seen):
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    stream = connection.makefile("rb")
    for turn in range(300):
        value = b"%d-%d " % (number, turn) * (turn * 5)
        connection.sendall(b"set key%d 0 0 %d\r\n%s\r\nget key%d\r\n" % (number, len(value), value, number))
        assert stream.readline() == b"STORED\r\n"
        length = int(stream.readline().split()[3])
        assert stream.read(length + 2) == value + b"\r\n" and stream.readline() == b"END\r\n"
    seen.append(number)
    if number == 0:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            connection.sendall(b"get nothing\r\n")
            assert stream.readline() == b"END\r\n"
    connection.sendall(b"quit\r\n")
    assert stream.read() == b""
seen = []
threads = [threading.Thread(target=one, args=(number, seen)) for number in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(seen))
"#;

#[test]
fn memcached_serves_many_threads() {
    same_in_every_way("memcached_serves_many_threads", &["memcached", "python3"], |site, way| {
        let port = free_port();
        fs::write(site.path().join("client.py"), CLIENT)?;
        let mut server = site.command(way.lifts_server(), program("memcached"));
        server.args(["-u", "nobody", "-l", "127.0.0.1", "-t", "3", "-p", &port.to_string()]);
        let _server = site.serve(&mut server, port)?;
        let mut client = site.command(way.lifts_client(), program("python3"));
        client.args(["client.py", &port.to_string()]);
        let (mut client, go_on): (Running, _) = site.start_fed(&mut client)?;
        wait_until("the first thread", || {
            Ok(client.output_so_far().contains("ready") || !client.is_running())
        })?;
        prove(site, way, port)?;
        drop(go_on);
        Ok(client.succeed(LIMIT)?.stdout)
    });
}
