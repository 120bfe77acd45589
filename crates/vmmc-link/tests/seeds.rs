//! Random networks and commands, by seed. `vmmc sim` runs any number of them.

use vmmc_link::sim::check;

/// Seeds in continuous integration.
const SEEDS: u64 = 400;
/// Seeds that once failed.
const REMEMBERED: [u64; 7] = [10_690, 25_436, 27_319, 27_346, 41_057, 44_885, 1_009_780];

#[test]
fn every_byte_is_placed_and_every_signal_comes_once_in_order() {
    let failed: Vec<String> = (0..SEEDS)
        .chain(REMEMBERED)
        .filter_map(|seed| {
            check(seed).err().map(|failure| {
                format!("seed {seed} (vmmc sim --first {seed} --seeds 1): {failure}")
            })
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
