//! Language runtimes with event loops and thread pools of their own: node (libuv, a cluster that passes connections to its
//! workers) and Java (NIO).

use std::fs;

use vmmc_tests::{Running, free_port};

use crate::in_every_way::{LIMIT, same_in_every_way};
use crate::load::program;

const NODE_SERVER: &str = r#"
const cluster = require('cluster'), http = require('http');
if (cluster.isPrimary) { for (let i = 0; i < 2; i++) cluster.fork(); }
else http.createServer((request, response) => {
  if (request.url == '/large') return response.end(Buffer.alloc(20000000, 'z'));
  let count = 0;
  request.on('data', data => count += data.length);
  request.on('end', () => response.end(`${request.url} ${count}`));
}).listen(+process.argv[2], '127.0.0.1');
"#;

const NODE_CLIENT: &str = r#"
const http = require('http'), agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const get = (path, body) => new Promise((done, failed) => {
  const options = { port: +process.argv[2], host: '127.0.0.1', path, method: body ? 'POST' : 'GET', agent };
  const request = http.request(options, response => {
    let count = 0, text = '';
    response.on('data', data => { count += data.length; if (count < 100) text += data; });
    response.on('end', () => done(`${count}:${text}`));
  });
  request.on('error', failed);
  request.end(body);
});
(async () => {
  const seen = new Set();
  for (let round = 0; round < 100; round++)
    for (const answer of await Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map(i => get('/' + i)))) seen.add(answer);
  console.log([...seen].sort().join());
  console.log(await get('/large'));
  console.log(await get('/post', Buffer.alloc(5000000, 'q')));
  process.exit(0);
})();
"#;

const JAVA_SERVER: &str = r#"
import com.sun.net.httpserver.*; import java.net.*; import java.util.concurrent.*;
public class Server { public static void main(String[] arguments) throws Exception {
  HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 100);
  server.createContext("/", exchange -> {
    int count = exchange.getRequestBody().readAllBytes().length;
    byte[] answer = exchange.getRequestURI().getPath().equals("/large") ? new byte[20000000]
      : (exchange.getRequestURI() + " " + count).getBytes();
    exchange.sendResponseHeaders(200, answer.length);
    exchange.getResponseBody().write(answer);
    exchange.close();
  });
  server.setExecutor(Executors.newFixedThreadPool(4));
  server.start();
} }
"#;

const JAVA_CLIENT: &str = r#"
import java.net.*; import java.net.http.*; import java.util.*; import java.util.concurrent.*;
public class Client { public static void main(String[] arguments) throws Exception {
  String url = "http://127.0.0.1:" + arguments[0];
  HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  TreeSet<String> seen = new TreeSet<>();
  for (int round = 0; round < 15; round++) {
    List<CompletableFuture<HttpResponse<String>>> answers = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      var body = HttpRequest.BodyPublishers.ofByteArray(new byte[i * 1000]);
      answers.add(client.sendAsync(HttpRequest.newBuilder(URI.create(url + "/" + i)).POST(body).build(),
        HttpResponse.BodyHandlers.ofString()));
    }
    for (var answer : answers) seen.add(answer.get().statusCode() + answer.get().body());
  }
  System.out.println(seen);
  System.out.println(client.send(HttpRequest.newBuilder(URI.create(url + "/large")).build(),
    HttpResponse.BodyHandlers.ofByteArray()).body().length);
  int count = 0;
  for (int i = 0; i < 30; i++) count += new URL(url + "/old").openStream().readAllBytes().length;
  System.out.println(count);
  System.exit(0);
} }
"#;

#[test]
fn node_cluster_and_agent() {
    same_in_every_way("node_cluster_and_agent", &["node"], |site, way| {
        let port = free_port();
        fs::write(site.path().join("server.js"), NODE_SERVER)?;
        fs::write(site.path().join("client.js"), NODE_CLIENT)?;
        let mut server = site.command(way.lifts_server(), program("node"));
        let _server = site.serve(server.args(["server.js", &port.to_string()]), port)?;
        let mut client = site.command(way.lifts_client(), program("node"));
        let said =
            Running::start(client.args(["client.js", &port.to_string()]))?.succeed(LIMIT)?.stdout;
        assert!(said.contains("4:/3 0") && said.contains("20000000:"), "{said}");
        Ok(said)
    });
}

#[test]
fn java_http_server_and_client() {
    same_in_every_way("java_http_server_and_client", &["java"], |site, way| {
        let port = free_port();
        fs::write(site.path().join("Server.java"), JAVA_SERVER)?;
        fs::write(site.path().join("Client.java"), JAVA_CLIENT)?;
        let mut server = site.command(way.lifts_server(), program("java"));
        let _server = site.serve(server.args(["Server.java", &port.to_string()]), port)?;
        let mut client = site.command(way.lifts_client(), program("java"));
        let said =
            Running::start(client.args(["Client.java", &port.to_string()]))?.succeed(LIMIT)?.stdout;
        assert!(said.contains("200/7 7000") && said.contains("20000000"), "{said}");
        Ok(said)
    });
}
