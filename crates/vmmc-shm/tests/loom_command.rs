//! Every interleaving of two posters and an engine, with fewer slots than commands.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use vmmc_shm::command::{Command, CommandQueue, Direction, Outcome, SLOTS, Taker};

fn command(poster: u64, number: u64) -> Command {
    Command {
        direction: Direction::Send,
        handle: poster,
        offset: number,
        len: poster * 10 + number,
        local: 0,
        signal: Some((poster, number)),
        notify: None,
    }
}

/// Posts, reaping what is done when there is no room; gives up after a few looks, as loom does not like waiting.
fn post(queue: &CommandQueue, command: &Command, reaped: &AtomicUsize) -> Option<bool> {
    for _ in 0..2 {
        if let Some(claim) = queue.claim() {
            return Some(queue.post(claim, command));
        }
        for slot in 0..SLOTS {
            queue.reap(slot, |_| reaped.fetch_add(1, Ordering::Relaxed));
        }
    }
    None
}

#[test]
fn commands_are_whole_in_order_and_completed_once() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let queue = Arc::new(CommandQueue::new());
        let reaped = Arc::new(AtomicUsize::new(0));
        let posters: Vec<_> = (1..=2)
            .map(|poster| {
                let (queue, reaped) = (Arc::clone(&queue), Arc::clone(&reaped));
                thread::spawn(move || {
                    (1..=2)
                        .filter(|number| post(&queue, &command(poster, *number), &reaped).is_some())
                        .count()
                })
            })
            .collect();
        let mut taker = Taker::default();
        let mut last = [0; 3];
        let mut taken = 0;
        let mut take = |taker: &mut Taker| {
            let Some((_, found)) = queue.take(taker) else { return false };
            let found = found.expect("a command that was posted");
            assert_eq!(found, command(found.handle, found.offset), "torn");
            let poster = usize::try_from(found.handle).unwrap();
            assert!(found.offset > last[poster], "out of order");
            last[poster] = found.offset;
            queue.complete(taker, Outcome::Done);
            taken += 1;
            true
        };
        take(&mut taker);
        take(&mut taker);
        let posted: usize = posters.into_iter().map(|poster| poster.join().unwrap()).sum();
        while take(&mut taker) {}
        for slot in 0..SLOTS {
            queue.reap(slot, |outcome| {
                assert_eq!(outcome, Outcome::Done);
                reaped.fetch_add(1, Ordering::Relaxed)
            });
        }
        assert_eq!((taken, reaped.load(Ordering::Relaxed)), (posted, posted));
    });
}

/// An engine that goes to sleep has seen the command, or the poster rings.
#[test]
fn no_wake_up_of_the_engine_is_lost() {
    loom::model(|| {
        let queue = Arc::new(CommandQueue::new());
        let poster = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let claim = queue.claim().expect("room");
                queue.post(claim, &command(1, 1))
            })
        };
        let taker = Taker::default();
        let sleeps = queue.announce_sleep(&taker);
        let rung = poster.join().unwrap();
        assert!(!sleeps || rung, "asleep over a command");
    });
}

/// A poster that goes to sleep has seen the completion, or the engine wakes it.
#[test]
fn no_wake_up_of_a_poster_is_lost() {
    loom::model(|| {
        let queue = Arc::new(CommandQueue::new());
        let claim = queue.claim().expect("room");
        let _ = queue.post(claim, &command(1, 1));
        let engine = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut taker = Taker::default();
                queue.take(&taker).expect("the command");
                queue.complete(&mut taker, Outcome::Done);
                queue.announce_completions()
            })
        };
        let seen = queue.announce_wait();
        let reaped = queue.reap(0, |_| ()).is_some();
        let woken = engine.join().unwrap();
        let changed = queue.completed().load(Ordering::SeqCst) != seen;
        assert!(reaped || (changed || woken), "asleep over a completion");
        assert!(reaped || changed, "the word has not moved");
    });
}
