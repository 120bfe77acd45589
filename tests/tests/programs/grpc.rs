//! gRPC, whose receiving calls want to be told how much is left to read (`TCP_INQ`): single calls and a stream of messages of all sizes.

use std::io::Write;
use std::path::Path;

use vmmc_tests::free_port;

use crate::in_every_way::{LIMIT, prove, same_in_every_way};
use crate::load::until_it_says;

/// Debian's own, which has Debian's module.
const PYTHON: &str = "/usr/bin/python3";
const MODULE: &str = "/usr/lib/python3/dist-packages/grpc/__init__.py";

const SERVER: &str = r#"
import concurrent.futures, grpc, sys
class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/echo/one":
            return grpc.unary_unary_rpc_method_handler(lambda message, context: message)
        return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
"#;

/// Goes on with small calls until the end of standard input.
const CLIENT: &str = r#"
import grpc, hashlib, select, sys
channel = grpc.insecure_channel("127.0.0.1:" + sys.argv[1])
one, many = channel.unary_unary("/echo/one"), channel.stream_stream("/echo/many")
digest = hashlib.sha256()
def ask(message):
    digest.update(one(message, wait_for_ready=True, timeout=60))
for n in range(500):
    ask(b"%d" % n * (n % 40))
print("half", flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    one(b"on", timeout=60)
for size in (1000, 16384, 70000, 3000000):
    ask(bytes(n % 251 for n in range(size)))
for answer in many(iter([b"%d" % n * 1000 for n in range(300)]), timeout=60):
    digest.update(answer)
print(digest.hexdigest())
"#;

#[test]
fn grpc_calls_and_streams() {
    let test = "grpc_calls_and_streams";
    if !Path::new(MODULE).exists() {
        // Past the capture of the test harness.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: not installed: python3-grpcio");
        return;
    }
    same_in_every_way(test, &[PYTHON], |site, way| {
        let port = free_port();
        let mut server = site.command(way.lifts_server(), PYTHON);
        let _server = site.serve(server.args(["-c", SERVER, &port.to_string()]), port)?;
        let mut client = site.command(way.lifts_client(), PYTHON);
        client.args(["-c", CLIENT, &port.to_string()]).env("no_proxy", "*");
        let (mut client, go_on) = site.start_fed(&mut client)?;
        until_it_says(&mut client, "half")?;
        prove(site, way, port)?;
        drop(go_on);
        Ok(client.succeed(LIMIT)?.stdout)
    });
}
