//! Keys in the long run.

mod pair;

use pair::Pair;
use vmmc_link::{Binding, Buffer, Config};

/// Whoever only acknowledges would never hear that his key was understood.
#[test]
fn a_side_that_only_acknowledges_changes_its_key_too() {
    let mut pair = Pair::new(&Config { packets_per_key: 50, ..Config::default() }, u64::MAX);
    let import = pair.links[0].import(Binding { export: 0, capability: 0 }).unwrap();
    for _ in 0..2000 {
        let _ = pair.links[0].send(import, 0, Buffer(0), 0, 10_000);
        pair.step();
    }
    for link in &pair.links {
        let stats = link.stats();
        // Not with the 50th packet exactly: it takes a round trip to know that the peer has the key.
        assert!(stats.rotations >= stats.packets_sent / 200, "{stats:?}");
    }
}
