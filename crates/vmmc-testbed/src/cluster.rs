//! What each node's service has to know of the others: `node.toml` and the cluster key.

use std::fmt::Write as _;

use crate::options::Options;
use crate::wiring::addresses;

/// Where the services listen.
const PORT: u16 = 7411;

/// A cluster key as `node.toml` wants it, in hexadecimal.
pub(crate) fn random_key() -> String {
    let digits: String = (0..4).map(|_| format!("{:016x}", vmmc_os::random_u64())).collect();
    digits + "\n"
}

/// The `node.toml` of a node. Nodes are called `node1`, `node2`, …
pub(crate) fn config(node: u8, options: &Options) -> String {
    let listed = |node| {
        let all =
            (1..=options.rails).map(|rail| format!("\"{}:{PORT}\"", addresses(node, rail)[0]));
        all.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "name = \"node{node}\"\naddresses = [{}]\nkey_file = \"cluster.key\"\nmtu = {}\nplaintext = {}\n",
        listed(node),
        options.mtu,
        options.plaintext
    );
    for other in (1..=options.nodes).filter(|other| *other != node) {
        let _ =
            write!(text, "\n[[node]]\nname = \"node{other}\"\naddresses = [{}]\n", listed(other));
    }
    text
}
