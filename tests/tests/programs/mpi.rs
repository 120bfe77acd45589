//! Open MPI over TCP: two ranks that poll, each with a listener of its own, and messages both ways at once.

use std::fs;
use std::path::Path;
use std::process::Command;

use vmmc_tests::{Running, free_port};

use crate::in_every_way::{LIMIT, prove, same_in_every_way};
use crate::load::{plainly, program};

#[test]
fn open_mpi_ranks_exchange_messages() {
    same_in_every_way("open_mpi_ranks_exchange_messages", &["mpirun", "mpicc"], |site, way| {
        let (here, port) = (site.path(), free_port());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/mpi_exchange.c");
        let mut compiler = Command::new(program("mpicc"));
        plainly(compiler.args(["-O2", "-o"]).arg(here.join("exchange")).arg(source))?;

        let mut ranks = site.command(false, program("mpirun"));
        ranks.env("TMPDIR", here).args(["--allow-run-as-root", "--oversubscribe"]);
        for (name, value) in
            [("btl", "tcp,self"), ("btl_tcp_if_include", "lo"), ("btl_tcp_port_range_v4", "1")]
        {
            ranks.args(["--mca", name, value]);
        }
        // The first connects to the second, the server.
        for (lifted, port) in [(way.lifts_client(), free_port()), (way.lifts_server(), port)] {
            let command = site.command(lifted, here.join("exchange"));
            ranks.args(["-np", "1", "env", &format!("OMPI_MCA_btl_tcp_port_min_v4={port}")]);
            ranks.arg(command.get_program()).args(command.get_args()).arg(":");
        }
        let mut ranks = Running::start(&mut ranks)?;
        prove(site, way, port)?;
        fs::write(here.join("enough"), "")?;
        let said = ranks.succeed(LIMIT)?.stdout;
        assert_eq!(said.len(), 9, "{said}");
        Ok(said)
    });
}
