//! `vmmc testbed`: several hosts on one machine.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Subcommand;
use vmmc_testbed::{Loss, Options, Rate, Relay, Status, TestbedError};

use crate::becoming::become_program;

/// Several hosts on one machine: network namespaces, joined by switches. As root, or in a user namespace.
///
/// Nothing of this host's own network is touched, and `down` leaves nothing behind. Nodes and rails count from 1; node N has the addresses
/// 10.77.RAIL.N and fd76:6d63:0:RAIL::N, and a node service of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmmc testbed up -n 2 --loss 1%
  vmmc testbed run --node 1 -- ip address
  vmmc testbed cut --node 2 --rail 1
  vmmc testbed down")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
    /// Which testbed, if there are several
    #[arg(long, global = true, default_value = "testbed")]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make it
    Up {
        /// How many hosts
        #[arg(short = 'n', long = "nodes", default_value_t = 2)]
        nodes: u8,
        /// How many networks each of them is on
        #[arg(long, default_value_t = 1)]
        rails: u8,
        /// Packets lost between two nodes, such as 1%
        #[arg(long)]
        loss: Option<Loss>,
        /// What a cable carries in each direction, such as 10gbit
        #[arg(long)]
        rate: Option<Rate>,
        /// Time from node to node, one way, such as 1ms; a process passes the packets on, which takes some 50us more
        #[arg(long, value_parser = vmmc_testbed::parse_duration)]
        delay: Option<Duration>,
        /// Bytes of a packet
        #[arg(long, default_value_t = 1500)]
        mtu: u16,
        /// Do not encrypt what VMMC's nodes send each other
        #[arg(long)]
        plaintext: bool,
    },
    /// Run a program on a node
    Run {
        /// Which node
        #[arg(long)]
        node: u8,
        /// The program and its arguments
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "PROGRAM"
        )]
        command: Vec<OsString>,
    },
    /// Pull a node's cables out
    Cut(Cable),
    /// Plug them in again
    Heal(Cable),
    /// Show nodes, addresses and cables
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// End what runs on the nodes, and remove them
    Down,
    /// Be the process that delays packets
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        nodes: u8,
        #[arg(long)]
        rails: u8,
        #[arg(long, value_parser = vmmc_testbed::parse_duration)]
        delay: Duration,
    },
}

#[derive(Debug, clap::Args)]
struct Cable {
    /// Which node
    #[arg(long)]
    node: u8,
    /// On which rail (default: all)
    #[arg(long)]
    rail: Option<u8>,
}

const OWN_ERROR: u8 = 125;

pub(crate) fn run(args: Args) -> ExitCode {
    let name = &args.name;
    let result = match args.action {
        Action::Up { nodes, rails, loss, rate, delay, mtu, plaintext } => {
            vmmc_testbed::up(name, &Options { nodes, rails, loss, rate, delay, mtu, plaintext })
                .map(|()| println!("{nodes} nodes are up"))
        }
        Action::Run { node, command } => return run_on(name, node, &command),
        Action::Cut(Cable { node, rail }) => vmmc_testbed::cut(name, node, rail),
        Action::Heal(Cable { node, rail }) => vmmc_testbed::heal(name, node, rail),
        Action::Status { json } => vmmc_testbed::status(name).map(|status| show(status, json)),
        Action::Relay { nodes, rails, delay } => {
            vmmc_testbed::relay(name, Relay { nodes, rails, delay }).map_err(TestbedError::Delay)
        }
        Action::Down => vmmc_testbed::down(name)
            .map(|was_up| println!("{}", if was_up { "down" } else { "no testbed was up" })),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Becomes the program.
fn run_on(name: &str, node: u8, command: &[OsString]) -> ExitCode {
    let [program, arguments @ ..] = command else { return ExitCode::from(OWN_ERROR) };
    let environment = match vmmc_testbed::enter(name, node) {
        Ok(environment) => environment,
        Err(error) => {
            fail(&error);
            return ExitCode::from(OWN_ERROR);
        }
    };
    let error = become_program(Command::new(program).args(arguments).envs(environment));
    let program = program.to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        complain!("vmmc: {program}: no such program: check its name and PATH");
        return ExitCode::from(127);
    }
    complain!("vmmc: {program}: cannot be executed: {error}");
    ExitCode::from(126)
}

fn show(status: Option<Status>, json: bool) {
    let Some(status) = status else {
        match json {
            true => println!("{}", serde_json::json!({ "up": false })),
            false => println!("no testbed is up"),
        }
        return;
    };
    if json {
        println!(
            "{}",
            serde_json::json!({ "up": true, "options": status.options, "nodes": status.nodes })
        );
        return;
    }
    for node in &status.nodes {
        for rail in &node.rails {
            let [v4, v6] = &rail.addresses;
            let state = if rail.plugged { "" } else { "   cut" };
            println!("node {}   rail {}   {v4:<12} {v6}{state}", node.node, rail.rail);
        }
    }
}

fn fail(error: &TestbedError) -> ExitCode {
    complain!("vmmc: {error}");
    ExitCode::FAILURE
}
