//! nginx with curl and wrk: edge-triggered epoll, accept4, writev, sendfile, a worker that gives up root.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use vmmc_tests::{Running, Site, Way, find_program, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};

#[test]
fn curl_gets_a_page_from_nginx() {
    same_in_every_way("curl_gets_a_page_from_nginx", &["nginx", "curl"], |site, way| {
        let page = "0123456789abcdef".repeat(64);
        fs::write(site.path().join("index.html"), &page)?;
        let (_server, url) = serve(site, way)?;
        let got = curl(site, way, &[&url, &url, &url])?;
        assert_eq!(got, page.repeat(3));
        let part = curl(site, way, &["-r", "10-29", &url])?;
        assert_eq!(part, page[10..30]);
        let missing =
            curl(site, way, &["-o", "/dev/null", "-w", "%{http_code}", &format!("{url}missing")])?;
        Ok((got, part, missing))
    });
}

#[test]
fn curl_gets_a_large_file_by_sendfile() {
    same_in_every_way(
        "curl_gets_a_large_file_by_sendfile",
        &["nginx", "curl", "sha256sum"],
        |site, way| {
            let original = site.path().join("large");
            write_large(&original, 100_000_000)?;
            let (_server, url) = serve(site, way)?;
            let copy = site.path().join("copy");
            curl(site, way, &["-o", &copy.display().to_string(), &format!("{url}large")])?;
            let digest = sha256(&copy)?;
            assert_eq!(digest, sha256(&original)?, "{way}");
            Ok(digest)
        },
    );
}

#[test]
fn wrk_sees_no_error_from_nginx() {
    same_in_every_way("wrk_sees_no_error_from_nginx", &["nginx", "wrk"], |site, way| {
        fs::write(site.path().join("index.html"), "x".repeat(1024))?;
        let (_server, url) = serve(site, way)?;
        let mut command = site.command(way.lifts_client(), program("wrk"));
        let mut client = Running::start(command.args([
            "-t1",
            "-c64",
            if way == Way::BothLifted { "-d4s" } else { "-d1s" },
            &url,
        ]))?;
        if way == Way::BothLifted {
            let port = url.rsplit(':').next().unwrap_or_default().trim_end_matches('/');
            site.lifted_at_both_ends(port.parse()?, 1024)?;
        }
        let report = client.succeed(LIMIT)?.stdout;
        let requests =
            report.lines().find(|line| line.contains(" requests in ")).unwrap_or_default();
        let requests: u64 = requests.split_whitespace().next().unwrap_or_default().parse()?;
        let errors: Vec<_> = report
            .lines()
            .filter(|line| line.contains("Non-2xx") || line.contains("Socket errors"))
            .map(str::to_owned)
            .collect();
        assert!(errors.is_empty(), "{way}: {errors:?}");
        Ok(requests >= 64)
    });
}

/// An nginx that serves the files at `site`, and its URL.
fn serve(site: &Site, way: Way) -> Result<(Running, String), Failure> {
    let port = free_port();
    let here = site.path().display();
    let configuration = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/errors;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; sendfile on; keepalive_requests 1000000;
             client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
             uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
             server {{ listen 127.0.0.1:{port}; root {here}; }}
         }}"
    );
    let file = site.path().join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = site.command(way.lifts_server(), program("nginx"));
    command
        .arg("-e")
        .arg(site.path().join("errors"))
        .arg("-c")
        .arg(file)
        .arg("-p")
        .arg(site.path());
    let server = site.serve(&mut command, port)?;
    Ok((server, format!("http://127.0.0.1:{port}/")))
}

fn curl(site: &Site, way: Way, words: &[&str]) -> Result<String, Failure> {
    let mut command = site.command(way.lifts_client(), program("curl"));
    Ok(Running::start(command.args(["-sS", "--max-time", "50"]).args(words))?
        .succeed(LIMIT)?
        .stdout)
}

fn sha256(file: &Path) -> Result<String, Failure> {
    let sum = Running::start(Command::new("sha256sum").arg(file))?.succeed(LIMIT)?.stdout;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

fn write_large(file: &Path, size: usize) -> Result<(), Failure> {
    let mut file = BufWriter::new(File::create(file)?);
    let mut state = 1_u64;
    for _ in 0..size / 8 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.write_all(&state.to_be_bytes())?;
    }
    Ok(file.flush()?)
}

fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| name.into())
}
