//! How much arrives, in virtual time.

use std::time::Duration;

use vmmc_link::Recovery;
use vmmc_link::sim::{Transfer, beside_tcp, goodput};

fn transfer(loss: f64, recovery: Recovery) -> Transfer {
    Transfer {
        seed: 1,
        rate: 1e9,
        delay: Duration::from_micros(50),
        loss,
        queue: 256 << 10,
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

#[test]
fn selective_recovery_outruns_going_back() {
    let fast = |recovery| Transfer { rate: 10e9, ..transfer(0.01, recovery) };
    let selective = goodput(&fast(Recovery::Selective)).unwrap().bits_per_second;
    let going_back = goodput(&fast(Recovery::GoBackN)).unwrap().bits_per_second;
    assert!(selective > 5.0 * going_back, "{selective} beside {going_back}");
}

#[test]
fn a_tcp_stream_and_a_link_share_a_bottleneck() {
    for queue in [128 << 10, 256 << 10, 512 << 10] {
        let beside = beside_tcp(&Transfer {
            queue,
            time: Duration::from_secs(10),
            ..transfer(0.0, Recovery::Selective)
        })
        .unwrap();
        let share = beside.link / (beside.link + beside.tcp);
        assert!((0.35..=0.65).contains(&share), "{share} of it with a queue of {queue}");
    }
}
