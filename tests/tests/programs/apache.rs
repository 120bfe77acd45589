//! Apache with prefork: accept in many processes, keep-alive, and a graceful restart with a download under way.

use std::fs;

use vmmc_tests::{Running, Site, Way, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};
use crate::load::{Download, benchmark, program, signal};

#[test]
fn apache_restarts_gracefully_under_load() {
    const NEEDED: [&str; 3] = ["apache2", "ab", "curl"];
    same_in_every_way("apache_restarts_gracefully_under_load", &NEEDED, |site, way| {
        fs::write(site.path().join("page"), "x".repeat(5000))?;
        fs::write(site.path().join("large"), vec![b'l'; 40_000_000])?;
        let (server, port) = serve(site, way)?;
        let url = format!("http://127.0.0.1:{port}");
        let kept = benchmark(site, way, &["-k", "-n", "3000", "-c", "6"], &format!("{url}/page"))?;
        let short = benchmark(site, way, &["-n", "300", "-c", "6"], &format!("{url}/page"))?;
        let download = Download::start(site, way, &format!("{url}/large"))?;
        if way == Way::BothLifted {
            site.lifted_at_both_ends(port, 1)?;
        }
        signal(server.pid(), libc::SIGUSR1)?;
        let again = benchmark(site, way, &["-n", "300", "-c", "6"], &format!("{url}/page"))?;
        Ok((kept, short, again, download.finish()?))
    });
}

fn serve(site: &Site, way: Way) -> Result<(Running, u16), Failure> {
    let port = free_port();
    let here = site.path().display();
    let configuration = format!(
        "ServerRoot /usr/lib/apache2\nServerName localhost\nListen 127.0.0.1:{port}\n\
         LoadModule mpm_prefork_module modules/mod_mpm_prefork.so\n\
         LoadModule authz_core_module modules/mod_authz_core.so\n\
         DefaultRuntimeDir {here}\nPidFile {here}/pid\nErrorLog {here}/errors\nDocumentRoot {here}\n\
         User www-data\nGroup www-data\nStartServers 3\nMaxKeepAliveRequests 0\n\
         <Directory {here}>\nRequire all granted\n</Directory>\n"
    );
    let file = site.path().join("apache.conf");
    fs::write(&file, configuration)?;
    let mut command = site.command(way.lifts_server(), program("apache2"));
    command.arg("-f").arg(file).arg("-DFOREGROUND");
    let mut server = site.serve(&mut command, port)?;
    if !server.is_running() {
        return Err(server.wait(LIMIT)?.stderr.into());
    }
    Ok((server, port))
}
