//! rsync and git over their daemons: a process for each connection, both directions at once, sockets that several processes
//! share and that nobody may report as readable too early.

use std::fs;
use std::path::Path;
use std::process::Command;

use vmmc_tests::{Running, free_port};

use crate::in_every_way::{Failure, LIMIT, same_in_every_way};
use crate::load::{plainly, program};

#[test]
fn rsync_copies_both_ways() {
    same_in_every_way("rsync_copies_both_ways", &["rsync", "diff"], |site, way| {
        let (here, port) = (site.path(), free_port());
        make_files(&here.join("source"))?;
        for directory in ["module", "back"] {
            fs::create_dir(here.join(directory))?;
        }
        let configuration = format!(
            "port = {port}\naddress = 127.0.0.1\nuse chroot = no\nlog file = {0}/log\nuid = root\ngid = root\n[m]\npath = {0}/module\nread only = false\n",
            here.display()
        );
        fs::write(here.join("rsync.conf"), configuration)?;
        let mut command = site.command(way.lifts_server(), program("rsync"));
        let _server =
            site.serve(command.args(["--daemon", "--no-detach", "--config=rsync.conf"]), port)?;
        let module = format!("rsync://127.0.0.1:{port}/m/");
        let rsync = |from: &str, to: &str| -> Result<(), Failure> {
            let mut command = site.command(way.lifts_client(), program("rsync"));
            command.args(["-a", "--checksum", "--no-whole-file", "--timeout=30", from, to]);
            Running::start(&mut command)?.succeed(LIMIT)?;
            Ok(())
        };
        rsync("source/", &module)?;
        fs::write(here.join("source/large"), [vec![b'n'; 5000], large()].concat())?;
        rsync("source/", &module)?;
        rsync(&module, "back/")?;
        let mut diff = Command::new(program("diff"));
        diff.current_dir(here).args(["-r", "source", "back"]);
        plainly(&mut diff)
    });
}

#[test]
fn git_clones_and_pushes() {
    same_in_every_way("git_clones_and_pushes", &["git"], |site, way| {
        let (here, port) = (site.path(), free_port());
        make_files(&here.join("work"))?;
        let git = |lifted: bool, words: &[&str]| -> Result<String, Failure> {
            let mut command = site.command(lifted, program("git"));
            command.env("HOME", here).env("GIT_CONFIG_NOSYSTEM", "1");
            for (name, value) in
                [("NAME", "nobody"), ("EMAIL", "nobody@localhost"), ("DATE", "@0 +0000")]
            {
                command
                    .env(format!("GIT_AUTHOR_{name}"), value)
                    .env(format!("GIT_COMMITTER_{name}"), value);
            }
            Ok(Running::start(command.args(words))?.succeed(LIMIT)?.stdout)
        };
        git(false, &["init", "-q", "-b", "main", "work"])?;
        git(false, &["-C", "work", "add", "."])?;
        git(false, &["-C", "work", "commit", "-q", "-m", "one"])?;
        git(false, &["clone", "-q", "--bare", "work", "bare"])?;

        let mut command = site.command(way.lifts_server(), program("git"));
        command.env("HOME", here).args([
            "daemon",
            "--export-all",
            "--enable=receive-pack",
            "--reuseaddr",
        ]);
        command.args(["--listen=127.0.0.1", &format!("--port={port}")]);
        command.arg(format!("--base-path={}", here.display()));
        let _server = site.serve(&mut command, port)?;
        let lifted = way.lifts_client();
        git(lifted, &["clone", "-q", &format!("git://127.0.0.1:{port}/bare"), "clone"])?;
        fs::write(here.join("clone/new"), large())?;
        git(false, &["-C", "clone", "add", "."])?;
        git(false, &["-C", "clone", "commit", "-q", "-m", "two"])?;
        git(lifted, &["-C", "clone", "push", "-q", "origin", "HEAD"])?;
        git(false, &["-C", "bare", "fsck", "--strict"])?;
        git(false, &["-C", "bare", "log", "--format=%H"])
    });
}

fn make_files(directory: &Path) -> std::io::Result<()> {
    fs::create_dir(directory)?;
    for number in 0..100 {
        fs::write(directory.join(number.to_string()), format!("{number}\n").repeat(number * 20))?;
    }
    fs::write(directory.join("large"), large())
}

/// Something that does not get small when it is compressed.
fn large() -> Vec<u8> {
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Some((*state >> 33) as u32)
    };
    let mut state = 1_u64;
    std::iter::from_fn(|| next(&mut state)).take(1_000_000).flat_map(u32::to_be_bytes).collect()
}
