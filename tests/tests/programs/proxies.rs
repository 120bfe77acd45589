//! nginx as a reverse proxy and haproxy: both ends of a connection in one process, reloads and a new binary under load with
//! nothing lost, TLS and HTTP/2.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use vmmc_tests::{Running, Site, Way, connects, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};
use crate::load::{Download, benchmark, pid_in, plainly, program, signal, wait_until};

#[test]
fn nginx_is_reloaded_and_replaced_under_load() {
    const NEEDED: [&str; 3] = ["nginx", "ab", "curl"];
    same_in_every_way("nginx_is_reloaded_and_replaced_under_load", &NEEDED, |site, way| {
        let origin = Origin::start(site, way)?;
        let port = free_port();
        let proxy = format!("server {{ listen 127.0.0.1:{port}; {} }}", origin.pass());
        let _proxy = nginx(site, way, "proxy", port, &proxy)?;
        let (page, large) =
            (format!("http://127.0.0.1:{port}/page"), format!("http://127.0.0.1:{port}/large"));
        let files = (site.path().join("proxy.pid"), site.path().join("proxy.pid.oldbin"));
        let mut seen = Vec::new();

        let download = Download::start(site, way, &large)?;
        if way == Way::BothLifted {
            site.lifted_at_both_ends(port, 1)?;
        }
        signal(pid_in(&files.0)?, libc::SIGHUP)?;
        seen.push(benchmark(site, way, &["-n", "400", "-c", "4"], &page)?);
        seen.push(vec![format!("{:?}", download.finish()?)]);

        let download = Download::start(site, way, &large)?;
        let old = pid_in(&files.0)?;
        signal(old, libc::SIGUSR2)?;
        wait_until("the new nginx", || {
            Ok(files.1.exists() && pid_in(&files.0).is_ok_and(|new| new != old))
        })?;
        seen.push(benchmark(site, way, &["-n", "400", "-c", "4"], &page)?);
        signal(old, libc::SIGWINCH)?;
        seen.push(benchmark(site, way, &["-n", "400", "-c", "4"], &page)?);
        signal(old, libc::SIGQUIT)?;
        seen.push(vec![format!("{:?}", download.finish()?)]);
        wait_until("the old nginx's end", || Ok(!files.1.exists()))?;
        seen.push(benchmark(site, way, &["-k", "-n", "2000", "-c", "4"], &page)?);
        Ok(seen)
    });
}

#[test]
fn nginx_speaks_tls_and_http2() {
    const NEEDED: [&str; 4] = ["nginx", "curl", "h2load", "openssl"];
    same_in_every_way("nginx_speaks_tls_and_http2", &NEEDED, |site, way| {
        let (here, port) = (site.path(), free_port());
        let (certificate, key) = (here.join("certificate"), here.join("key"));
        let mut openssl = Command::new(program("openssl"));
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]);
        openssl.args([
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]);
        plainly(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
        let origin = Origin::start(site, way)?;
        let proxy = format!(
            "server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {}; ssl_certificate_key {}; {} }}",
            certificate.display(),
            key.display(),
            origin.pass()
        );
        let _proxy = nginx(site, way, "proxy", port, &proxy)?;
        let url = format!("https://127.0.0.1:{port}");

        let copy = here.join("copy");
        let mut curl = site.command(way.lifts_client(), program("curl"));
        curl.args([
            "-sS",
            "--max-time",
            "50",
            "--http2",
            "-w",
            "%{http_version} %{http_code}",
            "--cacert",
        ]);
        curl.arg(&certificate).arg(format!("{url}/large")).arg("-o").arg(&copy);
        let said = Running::start(&mut curl)?.succeed(LIMIT)?.stdout;
        let same = fs::read(&copy)? == fs::read(here.join("large"))?;
        assert!(same && said.starts_with("2 200"), "{way}: {said}");

        let mut load = site.command(way.lifts_client(), program("h2load"));
        load.args(["-n", "1500", "-c", "6", "-m", "4", &format!("{url}/page")]);
        let report = Running::start(&mut load)?.succeed(LIMIT)?.stdout;
        let requests = report.lines().find(|line| line.starts_with("requests:")).map(str::to_owned);
        Ok((said, requests))
    });
}

#[test]
fn haproxy_is_reloaded_under_load() {
    const NEEDED: [&str; 4] = ["haproxy", "nginx", "ab", "curl"];
    same_in_every_way("haproxy_is_reloaded_under_load", &NEEDED, |site, way| {
        let origin = Origin::start(site, way)?;
        let port = free_port();
        let configuration = format!(
            "global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  server s 127.0.0.1:{}\n",
            origin.port
        );
        let file = site.path().join("haproxy.conf");
        fs::write(&file, configuration)?;
        let mut command = site.command(way.lifts_server(), program("haproxy"));
        let haproxy = site.serve(command.args(["-W", "-db", "-f"]).arg(file), port)?;
        let (page, large) =
            (format!("http://127.0.0.1:{port}/page"), format!("http://127.0.0.1:{port}/large"));
        let kept = benchmark(site, way, &["-k", "-n", "2000", "-c", "6"], &page)?;
        let download = Download::start(site, way, &large)?;
        if way == Way::BothLifted {
            site.lifted_at_both_ends(port, 1)?;
        }
        signal(haproxy.pid(), libc::SIGUSR2)?;
        let short = benchmark(site, way, &["-n", "400", "-c", "4"], &page)?;
        Ok((kept, short, download.finish()?))
    });
}

/// An nginx with two files, behind the proxies.
struct Origin {
    _server: Nginx,
    port: u16,
}

impl Origin {
    fn start(site: &Site, way: Way) -> Result<Self, Failure> {
        fs::write(site.path().join("page"), "p".repeat(4000))?;
        fs::write(site.path().join("large"), vec![b'l'; 40_000_000])?;
        let port = free_port();
        let files =
            format!("server {{ listen 127.0.0.1:{port}; root {}; }}", site.path().display());
        Ok(Origin { _server: nginx(site, way, "origin", port, &files)?, port })
    }

    /// What an nginx needs to say to be its proxy.
    fn pass(&self) -> String {
        format!(
            "location / {{ proxy_pass http://127.0.0.1:{}; proxy_http_version 1.1; proxy_set_header Connection ''; \
             proxy_max_temp_file_size 0; }}",
            self.port
        )
    }
}

/// A running nginx. It is a daemon, because only a daemon can be replaced by a new one; so it is found by its file.
struct Nginx {
    pid_file: PathBuf,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let Ok(pid) = pid_in(&self.pid_file) else { return };
        let _ = signal(pid, libc::SIGTERM);
        if wait_until("the end of nginx", || Ok(signal(pid, 0).is_err())).is_err() {
            let _ = signal(pid, libc::SIGKILL);
        }
    }
}

/// An nginx of two workers with the given servers; its files at `site` begin with `name`.
fn nginx(site: &Site, way: Way, name: &str, port: u16, servers: &str) -> Result<Nginx, Failure> {
    let here = site.path().display();
    let configuration = format!(
        "daemon on; worker_processes 2; user root; pid {here}/{name}.pid; error_log {here}/{name}.errors;
         events {{ worker_connections 512; }}
         http {{
             access_log off; sendfile on; keepalive_requests 1000000;
             client_body_temp_path {here}/{name}-body; proxy_temp_path {here}/{name}-proxy;
             fastcgi_temp_path {here}/{name}-fastcgi; uwsgi_temp_path {here}/{name}-uwsgi; scgi_temp_path {here}/{name}-scgi;
             {servers}
         }}"
    );
    let file = site.path().join(format!("{name}.conf"));
    fs::write(&file, configuration)?;
    let mut command = site.command(way.lifts_server(), program("nginx"));
    command.arg("-e").arg(site.path().join(format!("{name}.errors"))).arg("-c").arg(file);
    let server = Nginx { pid_file: site.path().join(format!("{name}.pid")) };
    // Not as `Running`, with which its process group ends before the daemon has left it.
    command.arg("-p").arg(site.path()).stdin(Stdio::null()).stdout(Stdio::null());
    if !command.stderr(Stdio::null()).status()?.success() {
        let errors = site.path().join(format!("{name}.errors"));
        return Err(fs::read_to_string(errors)?.into());
    }
    wait_until("nginx listens", || Ok(connects(port) && pid_in(&server.pid_file).is_ok()))?;
    Ok(server)
}
