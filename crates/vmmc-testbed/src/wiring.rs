//! What the network is made of, and the lines that have `ip` and `tc` make it.

use std::fmt::Write as _;

use crate::delay::{self, Relay};
use crate::options::{Loss, Options, Rate};
use crate::testbed::TestbedError;
use crate::tool::{ToolError, batch, run, run_with};

/// The namespace of a node; nodes count from 1.
pub(crate) fn node_namespace(name: &str, node: u8) -> String {
    format!("{}{node}", prefix(name))
}

/// The namespace that holds the bridges.
pub(crate) fn switch_namespace(name: &str) -> String {
    format!("{}switch", prefix(name))
}

/// How the namespaces of a testbed begin; behind it comes a number or `switch`.
fn prefix(name: &str) -> String {
    format!("vmmc-{name}-")
}

/// IPv4 and IPv6 address of a node on a rail; both count from 1.
pub(crate) fn addresses(node: u8, rail: u8) -> [String; 2] {
    [format!("10.77.{rail}.{node}"), format!("fd76:6d63:0:{rail:x}::{node:x}")]
}

/// The switch's end of a cable.
pub(crate) fn port(node: u8, rail: u8) -> String {
    format!("node{node}r{rail}")
}

/// Makes namespaces, bridges and cables. What was made is left there on an error.
pub(crate) fn build(name: &str, options: &Options) -> Result<(), TestbedError> {
    let switch = switch_namespace(name);
    run("ip", &format!("netns add {switch}"))?;
    let mut lines = String::new();
    for rail in 1..=options.rails {
        let _ = writeln!(
            lines,
            "link add rail{rail} type bridge stp_state 0 mcast_snooping 0\n\
             link set rail{rail} addrgenmode none mtu {} up",
            options.mtu
        );
    }
    batch(&switch, &lines)?;
    without_firewall(&switch);
    for node in 1..=options.nodes {
        run("ip", &format!("netns add {}", node_namespace(name, node)))?;
    }
    if let Some(delay) = options.delay {
        let Options { nodes, rails, .. } = *options;
        delay::start(name, Relay { nodes, rails, delay })?;
    }
    for node in 1..=options.nodes {
        plug(name, node, options)?;
    }
    Ok(())
}

/// A switch is no firewall: kernels that show bridged packets to iptables spend a microsecond on each. Where that cannot be turned off it costs time and nothing else.
fn without_firewall(switch: &str) {
    let all = "for call in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 > \"$call\"; done";
    let _ = run_with("ip", &format!("netns exec {switch} sh -c"), all);
}

/// The cables of one node. Those that take time are there already.
fn plug(name: &str, node: u8, options: &Options) -> Result<(), ToolError> {
    let (switch, namespace) = (switch_namespace(name), node_namespace(name, node));
    let (mut at_switch, mut at_node) = (String::new(), "link set lo up\n".to_owned());
    for rail in 1..=options.rails {
        let (port, mtu) = (port(node, rail), options.mtu);
        if options.delay.is_none() {
            let _ = writeln!(
                at_switch,
                "link add {port} type veth peer name rail{rail} netns {namespace}"
            );
        }
        let _ =
            writeln!(at_switch, "link set {port} mtu {mtu} master rail{rail} addrgenmode none up");
        let [v4, v6] = addresses(node, rail);
        // Segments leave one by one, so that each can be lost by itself.
        let single = if options.loss.is_some() { "gso_max_segs 1" } else { "" };
        let _ = writeln!(
            at_node,
            "address add {v4}/24 dev rail{rail}\n\
             address add {v6}/64 dev rail{rail} nodad\n\
             link set rail{rail} mtu {mtu} {single} up"
        );
    }
    batch(&switch, &at_switch)?;
    batch(&namespace, &at_node)?;
    for rail in 1..=options.rails {
        if let Some(rate) = options.rate {
            slow_down(&namespace, &format!("rail{rail}"), rate)?;
            slow_down(&switch, &port(node, rail), rate)?;
        }
        if let Some(loss) = options.loss {
            lose(&switch, &port(node, rail), loss)?;
        }
    }
    Ok(())
}

/// Slows down what goes out through a device.
fn slow_down(namespace: &str, device: &str, Rate(bits): Rate) -> Result<(), ToolError> {
    // Fine enough to look like a wire, and never less than a few packets.
    let burst = (bits / 8 / 1000).clamp(16 << 10, 128 << 10);
    let tbf = format!("tbf rate {bits}bit burst {burst} latency 5ms");
    run("tc", &format!("-n {namespace} qdisc add dev {device} root {tbf}")).map(drop)
}

/// Loses a share of what goes out through a device. A packet filter does it, as not every kernel has netem: a random word is loaded, and if it lies
/// below the share of all words, the packet is dropped.
fn lose(namespace: &str, device: &str, Loss(share): Loss) -> Result<(), ToolError> {
    const RANDOM: u32 = 0xffff_f000 + 56; // SKF_AD_OFF + SKF_AD_RANDOM
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1")]
    let below = (share * f64::from(u32::MAX)) as u32;
    // ld [random]; jge below, +1; ret TC_ACT_SHOT; ret TC_ACT_OK
    let filter = format!("4,32 0 0 {RANDOM},53 1 0 {below},6 0 0 2,6 0 0 0");
    run("tc", &format!("-n {namespace} qdisc add dev {device} clsact"))?;
    // The program is one word for tc.
    let words = format!("-n {namespace} filter add dev {device} egress bpf direct-action bytecode");
    run_with("tc", &words, &filter)
}

/// Pulls a cable out, or plugs it in again: both ends lose their carrier.
pub(crate) fn connect(
    name: &str,
    options: &Options,
    node: u8,
    rail: u8,
    plugged: bool,
) -> Result<(), ToolError> {
    let state = if plugged { "up" } else { "down" };
    batch(&switch_namespace(name), &format!("link set {} {state}\n", port(node, rail)))?;
    if options.delay.is_some() {
        // The far end of a TAP device knows nothing of it.
        let carrier = if plugged { "on" } else { "off" };
        let line = format!("link set rail{rail} carrier {carrier}\n");
        batch(&node_namespace(name, node), &line)?;
    }
    Ok(())
}

/// Whether all cables are there, plugged in or not.
pub(crate) fn has_cables(name: &str, options: &Options) -> Result<bool, ToolError> {
    let listed = run("ip", &format!("-n {} -o link show", switch_namespace(name)))?;
    let there = |node, rail| {
        let port = port(node, rail);
        listed
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .any(|device| device.split('@').next() == Some(&port))
    };
    Ok((1..=options.nodes).all(|node| (1..=options.rails).all(|rail| there(node, rail))))
}

/// The ports that are plugged in.
pub(crate) fn plugged(name: &str) -> Result<Vec<String>, ToolError> {
    let listed = run("ip", &format!("-n {} -o link show up", switch_namespace(name)))?;
    let ports = listed.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    Ok(ports.map(str::to_owned).collect())
}

/// The namespaces of a testbed that are there, also of one of which only parts are left.
pub(crate) fn namespaces(name: &str) -> Result<Vec<String>, ToolError> {
    let prefix = prefix(name);
    let ours = |namespace: &&str| {
        let rest = namespace.strip_prefix(&prefix);
        rest.is_some_and(|rest| rest == "switch" || rest.parse::<u8>().is_ok())
    };
    let listed = run("ip", "netns list")?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(ours).map(str::to_owned).collect())
}

/// Deletes one namespace with everything in it.
pub(crate) fn delete(namespace: &str) -> Result<(), ToolError> {
    run("ip", &format!("netns delete {namespace}")).map(drop)
}
