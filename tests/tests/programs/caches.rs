//! Varnish in front of lighttpd: a pool of threads that takes turns at a connection and gives it back to an epoll object, a child
//! that serves under a master, files sent from disk.

use std::fs;

use vmmc_tests::{Running, free_port};

use crate::in_every_way::{LIMIT, prove, same_in_every_way};
use crate::load::{Download, benchmark, plainly, program};

#[test]
fn varnish_keeps_what_lighttpd_serves() {
    const NEEDED: [&str; 6] = ["varnishd", "lighttpd", "ab", "curl", "wrk", "cc"];
    same_in_every_way("varnish_keeps_what_lighttpd_serves", &NEEDED, |site, way| {
        let (here, port, origin) = (site.path(), free_port(), free_port());
        fs::write(here.join("page"), "p".repeat(3000))?;
        fs::write(here.join("large"), vec![b'l'; 40_000_000])?;
        fs::write(
            here.join("lighttpd.conf"),
            format!(
                "server.document-root = \"{}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {origin}\n\
                 server.max-keep-alive-requests = 0\n",
                here.display()
            ),
        )?;
        let mut command = site.command(way.lifts_server(), program("lighttpd"));
        let _origin = site.serve(command.args(["-D", "-f", "lighttpd.conf"]), origin)?;
        // What is large goes through, every time anew.
        fs::write(
            here.join("rules.vcl"),
            format!(
                "vcl 4.0;\nbackend origin {{ .host = \"127.0.0.1\"; .port = \"{origin}\"; }}\n\
                 sub vcl_recv {{ if (req.url ~ \"large\") {{ return (pass); }} }}\n"
            ),
        )?;
        let mut command = site.command(way.lifts_server(), program("varnishd"));
        command.args(["-F", "-j", "none", "-s", "malloc,64m", "-f"]).arg(here.join("rules.vcl"));
        command.arg("-n").arg(here.join("varnish")).args(["-a", &format!("127.0.0.1:{port}")]);
        let _varnish = site.serve(&mut command, port)?;

        let url = |port: u16, name: &str| format!("http://127.0.0.1:{port}/{name}");
        let kept = benchmark(site, way, &["-k", "-n", "3000", "-c", "8"], &url(port, "page"))?;
        let short = benchmark(site, way, &["-n", "300", "-c", "4"], &url(port, "page"))?;
        let straight =
            benchmark(site, way, &["-k", "-n", "2000", "-c", "4"], &url(origin, "page"))?;
        let download = Download::start(site, way, &url(port, "large"))?.finish()?;
        let mut curl = site.command(way.lifts_client(), program("curl"));
        let missing = plainly(curl.args([
            "-sS",
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            &url(port, "missing"),
        ]))?;

        let mut load = site.command(way.lifts_client(), program("wrk"));
        load.args(["-d", "600", "-t", "1", "-c", "2", &url(port, "page")]);
        let mut load = Running::start(&mut load)?;
        prove(site, way, port)?;
        assert!(load.is_running(), "{way}: {}", load.wait(LIMIT)?.stderr);
        Ok((kept, short, straight, download, missing))
    });
}
