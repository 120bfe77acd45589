//! PostgreSQL and MariaDB: a process and a thread for each connection, bulk copies both ways, notices out of order, a backup, and
//! tables that are compared to the last row.

use std::fs;

use vmmc_tests::{Running, Site, free_port};

use crate::in_every_way::{Failure, LIMIT, prove, same_at, same_in_every_way};
use crate::load::{plainly, program, signal, wait_until};

/// PostgreSQL refuses to be root, and wants to know the name of who it is.
const NOBODY: u32 = 65_534;

/// What is left of pgbench's transactions, whatever their order was.
const BALANCES: &str = "
    select count(*), sum(abalance), md5(string_agg(aid || ':' || abalance, ',' order by aid)) from pgbench_accounts;
    select md5(string_agg(tid || ':' || tbalance, ',' order by tid)) from pgbench_tellers;
    select count(*), md5(string_agg(tid || ':' || aid || ':' || delta, ',' order by tid, aid, delta)) from pgbench_history;
";

#[test]
fn postgresql_gives_the_same_tables() {
    const NEEDED: [&str; 7] =
        ["postgres", "initdb", "pgbench", "psql", "pg_basebackup", "pg_verifybackup", "pg_isready"];
    let site = || match rustix::process::geteuid().is_root() {
        true => Site::of_uid(NOBODY),
        false => Site::new(),
    };
    same_at(site, "postgresql_gives_the_same_tables", &NEEDED, |site, way| {
        let (here, port) = (site.path(), free_port());
        let mut initdb = site.command(false, program("initdb"));
        plainly(initdb.args([
            "-D",
            "data",
            "-U",
            "tester",
            "-A",
            "trust",
            "--no-sync",
            "--wal-segsize=1",
            "-E",
            "UTF8",
            "--locale=C",
        ]))?;
        let mut server = site.command(way.lifts_server(), program("postgres"));
        server.args(["-D", "data", "-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        let _server =
            site.serve(server.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]), port)?;

        let client = |name: &str| {
            let mut command = site.command(way.lifts_client(), program(name));
            command.args(["-h", "127.0.0.1", "-U", "tester", "-p", &port.to_string()]);
            command
        };
        let sql = |text: &str| -> Result<String, Failure> {
            let mut psql = client("psql");
            psql.args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                "postgres",
                "-c",
                text,
            ]);
            plainly(&mut psql)
        };
        wait_until("PostgreSQL", || Ok(plainly(&mut client("pg_isready")).is_ok()))?;
        plainly(client("pgbench").args(["-i", "-q", "postgres"]))?;
        let run = [
            "-n",
            "-c",
            "6",
            "-j",
            "2",
            "-t",
            "150",
            "--random-seed=4",
            "-M",
            "extended",
            "postgres",
        ];
        plainly(client("pgbench").args(run))?;
        let mut said = vec![sql(BALANCES)?];

        // Bulk out of the server and into it.
        sql("\\copy pgbench_accounts to 'accounts'")?;
        sql("create table again (like pgbench_accounts)")?;
        sql("\\copy again from 'accounts'")?;
        said.push(sql(
            "select count(*), md5(string_agg(aid || ':' || abalance, ',' order by aid)) from again",
        )?);
        plainly(client("pg_basebackup").args([
            "-D",
            "backup",
            "-c",
            "fast",
            "--no-sync",
            "-X",
            "stream",
        ]))?;
        let mut verify = site.command(false, program("pg_verifybackup"));
        said.push(plainly(verify.args(["backup"]))?);

        let mut load = client("pgbench");
        let mut load = Running::start(load.args(["-n", "-S", "-c", "2", "-T", "600", "postgres"]))?;
        prove(site, way, port)?;

        // What is cancelled is cancelled by a connection of its own, from within a signal's handler.
        let mut sleeper = client("psql");
        let mut sleeper =
            Running::start(sleeper.args(["-X", "-d", "postgres", "-c", "select pg_sleep(600)"]))?;
        wait_until("the sleeping query", || {
            Ok(sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")? == "1\n")
        })?;
        signal(sleeper.pid(), libc::SIGINT)?;
        said.push(sleeper.wait(LIMIT)?.stderr);
        assert!(load.is_running(), "{way}: {}", load.wait(LIMIT)?.stderr);
        Ok((said, fs::read(here.join("accounts"))?.len()))
    });
}

/// The server's files are not looked at with io_uring, under which nothing is lifted.
#[test]
fn mariadb_gives_the_same_tables() {
    const NEEDED: [&str; 4] = ["mariadbd", "mariadb", "mariadb-slap", "mariadb-dump"];
    same_in_every_way("mariadb_gives_the_same_tables", &NEEDED, |site, way| {
        let (here, port) = (site.path(), free_port());
        fs::create_dir(here.join("data"))?;
        let mut server = site.command(way.lifts_server(), program("mariadbd"));
        server.args(["--no-defaults", "--user=root", "--skip-grant-tables", "--skip-networking=0"]);
        server.args([
            "--bind-address=127.0.0.1",
            &format!("--port={port}"),
            "--innodb-use-native-aio=0",
        ]);
        server.args(["--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0"]);
        server.arg(format!("--datadir={0}/data", here.display()));
        server.arg(format!("--socket={0}/socket", here.display()));
        let _server = site.serve(&mut server, port)?;

        let client = |name: &str| {
            let mut command = site.command(way.lifts_client(), program(name));
            command.args(["--no-defaults", "-h", "127.0.0.1", "-P", &port.to_string()]);
            command
        };
        let sql = |text: &str| {
            plainly(client("mariadb").args(["-N", "-B", "--local-infile", "-e", text]))
        };
        sql("create database t; use t; create table many (i int primary key, n int, s text) engine=innodb;
             insert into many select seq, 0, repeat(md5(seq), 10) from seq_1_to_10000")?;
        let mut updates = client("mariadb-slap");
        updates.args([
            "--create-schema=t",
            "--concurrency=4",
            "--number-of-queries=2000",
            "--iterations=1",
        ]);
        plainly(updates.arg("--query=update many set n = n + 1 where i between 501 and 520"))?;

        let dump = plainly(client("mariadb-dump").args(["--skip-comments", "t"]))?;
        fs::write(here.join("dump"), &dump)?;
        sql("create database again; use again; source dump;")?;
        fs::write(here.join("rows"), sql("select * from t.many")?)?;
        sql(
            "create table t.loaded like t.many; load data local infile 'rows' into table t.loaded",
        )?;
        let said = sql("select sum(n) from t.many; checksum table t.many, again.many, t.loaded")?;

        let mut load = client("mariadb-slap");
        load.args(["--concurrency=2", "--number-of-queries=100000000", "--create-schema=t"]);
        let mut load = Running::start(load.arg("--query=select count(*) from many where i < 10"))?;
        prove(site, way, port)?;
        assert!(load.is_running(), "{way}: {}", load.wait(LIMIT)?.stderr);
        Ok((said, dump.len()))
    });
}
