//! How much arrives, in virtual time.

use std::time::Duration;

use vmmc_link::Recovery;
use vmmc_link::sim::{Stalls, Transfer, beside_tcp, goodput};

fn transfer(loss: f64, recovery: Recovery) -> Transfer {
    Transfer {
        seed: 1,
        rate: 1e9,
        delay: Duration::from_micros(50),
        loss,
        queue: 256 << 10,
        stalls: None,
        recovery,
        time: Duration::from_millis(300),
    }
}

#[test]
fn loss_by_chance_costs_little_more_than_what_is_lost() {
    for (loss, share) in [(0.0, 0.9), (0.01, 0.9), (0.05, 0.8)] {
        let goodput = goodput(&transfer(loss, Recovery::Selective)).unwrap();
        assert!(goodput.bits_per_second > share * 1e9, "{goodput:?} at {loss}");
    }
}

/// A delay that a busy host makes is none of the network's.
#[test]
fn hosts_that_lose_their_processor_cost_little_more_than_that_time() {
    for (every, long, share) in [(10, 2, 0.5), (3, 1, 0.3), (8, 5, 0.1)] {
        let stalls =
            Stalls { every: Duration::from_millis(every), long: Duration::from_millis(long) };
        for loss in [0.0, 0.01] {
            let stalled = Transfer { stalls: Some(stalls), ..transfer(loss, Recovery::Selective) };
            let goodput = goodput(&Transfer { time: Duration::from_secs(2), ..stalled }).unwrap();
            assert!(goodput.bits_per_second > share * 1e9, "{goodput:?}, {stalls:?}, {loss}");
        }
    }
}

#[test]
fn selective_recovery_outruns_going_back() {
    let fast = |recovery| Transfer { rate: 25e9, ..transfer(0.01, recovery) };
    let selective = goodput(&fast(Recovery::Selective)).unwrap().bits_per_second;
    let going_back = goodput(&fast(Recovery::GoBackN)).unwrap().bits_per_second;
    assert!(selective > 5.0 * going_back, "{selective} beside {going_back}");
}

#[test]
fn a_tcp_stream_and_a_link_share_a_bottleneck() {
    let stalls = Stalls { every: Duration::from_millis(3), long: Duration::from_micros(500) };
    for (queue, stalls) in [(128, None), (256, None), (512, None), (512, Some(stalls))] {
        let beside = beside_tcp(&Transfer {
            queue: queue << 10,
            stalls,
            time: Duration::from_secs(10),
            ..transfer(0.0, Recovery::Selective)
        })
        .unwrap();
        let share = beside.link / (beside.link + beside.tcp);
        assert!((0.35..=0.65).contains(&share), "{share} of it with a queue of {queue} KiB");
    }
}
