//! Python's `http.server` with `urllib`: an interpreter's sockets, files made of them, and a thread a request. And gunicorn, whose
//! threads give their connections back to an epoll object that another sleeps on.

use std::fs;
use std::path::PathBuf;

use vmmc_tests::{Running, Site, find_program, free_port};

use crate::in_every_way::{LIMIT, prove, same_in_every_way};
use crate::load::{program, until_it_says};

/// Reads half of a file, goes on slowly until the end of standard input, reads the rest, then small pages.
const CLIENT: &str = r#"
import hashlib, select, sys, urllib.error, urllib.request
url = sys.argv[1]
digest = hashlib.sha256()
with urllib.request.urlopen(url + "large", timeout=30) as answer:
    length = int(answer.headers["Content-Length"])
    digest.update(answer.read(length // 2))
    print("half", flush=True)
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        digest.update(answer.read(10_000))
    digest.update(answer.read())
print(length, digest.hexdigest())
for _ in range(20):
    print(urllib.request.urlopen(url + "small", timeout=30).read())
try:
    urllib.request.urlopen(url + "missing", timeout=30)
except urllib.error.HTTPError as error:
    print(error.code)
"#;

#[test]
fn python_http_server_and_urllib() {
    same_in_every_way("python_http_server_and_urllib", &["python3"], |site, way| {
        let large: Vec<u8> =
            (0..40_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let files = site.path().join("files");
        fs::create_dir(&files)?;
        fs::write(files.join("large"), large)?;
        fs::write(files.join("small"), "a small page\n")?;

        let port = free_port();
        let mut server = python(site, way.lifts_server());
        server
            .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
            .arg(&files)
            .arg(port.to_string());
        let _server = site.serve(&mut server, port)?;

        let mut client = python(site, way.lifts_client());
        client.args(["-c", CLIENT, &format!("http://127.0.0.1:{port}/")]);
        let (mut client, go_on) = site.start_fed(&mut client)?;
        until_it_says(&mut client, "half")?;
        prove(site, way, port)?;
        drop(go_on);
        let answers = client.succeed(LIMIT)?.stdout;
        assert!(answers.contains("40000000 ") && answers.ends_with("404\n"), "{answers}");
        Ok(answers)
    });
}

const APPLICATION: &str = r#"
def application(environment, start):
    start("200 OK", [("Content-Length", "3000")])
    return [b"x" * 3000]
"#;

#[test]
fn gunicorn_with_threads() {
    same_in_every_way("gunicorn_with_threads", &["gunicorn", "ab"], |site, way| {
        fs::write(site.path().join("page.py"), APPLICATION)?;
        let port = free_port();
        let mut server = site.command(way.lifts_server(), program("gunicorn"));
        server.args(["--worker-class", "gthread", "--workers", "2", "--threads", "4"]);
        server.args(["--bind", &format!("127.0.0.1:{port}"), "page:application"]);
        let _server = site.serve(&mut server, port)?;
        let mut client = site.command(way.lifts_client(), program("ab"));
        client.args(["-k", "-q", "-n", "2000", "-c", "8", &format!("http://127.0.0.1:{port}/")]);
        let said = Running::start(&mut client)?.succeed(LIMIT)?.stdout;
        let counts = |line: &&str| {
            ["Complete", "Failed", "Non-2xx", "HTML"].iter().any(|word| line.starts_with(word))
        };
        let said: Vec<&str> = said.lines().filter(counts).collect();
        assert!(said[0].ends_with(" 2000"), "{said:?}");
        Ok(said.join("\n"))
    });
}

fn python(site: &Site, lifted: bool) -> std::process::Command {
    let mut command =
        site.command(lifted, find_program("python3").unwrap_or_else(|| PathBuf::from("python3")));
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env("no_proxy", "*");
    command
}
