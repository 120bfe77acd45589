//! How much arrives, in virtual time.

use std::time::Duration;

use vmmc_link::Recovery;
use vmmc_link::sim::{Stalls, Transfer, Wire, beside_tcp, goodput, incast};

fn transfer(loss: f64, recovery: Recovery) -> Transfer {
    let mut wire = Wire::new(0, Duration::from_micros(50));
    wire.loss = loss;
    Transfer {
        seed: 1,
        rate: 1e9,
        queue: 256 << 10,
        wire,
        paths: 1,
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

#[test]
fn two_paths_carry_twice_as_much() {
    let two = Transfer { paths: 2, ..transfer(0.01, Recovery::Selective) };
    let goodput = goodput(&two).unwrap();
    assert!(goodput.bits_per_second > 1.7e9, "{goodput:?}");
}

/// Replies come as fast as the host can take them, and what is asked for at a time fits into the queue in front of it.
#[test]
fn many_who_are_fetched_from_at_a_time_do_not_overflow_the_queue() {
    for senders in [2, 8, 32] {
        let many = transfer(0.0, Recovery::Selective);
        let goodput = incast(&many, senders, Some(256 << 10)).unwrap();
        assert!(goodput.bits_per_second > 0.85e9, "{goodput:?} from {senders}");
        assert!(goodput.repeated < 0.1, "{goodput:?} from {senders}");
    }
}
