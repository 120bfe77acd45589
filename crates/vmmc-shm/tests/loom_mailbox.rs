//! Every interleaving of two senders and the exporter, with fewer slots than notifications.
#![cfg(loom)]

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;
use vmmc_shm::mailbox::{Mailbox, Note, Taken};

fn note(sender: u64, number: u64) -> Note {
    Note { offset: sender, len: number, last_word: sender * 10 + number }
}

#[test]
fn nothing_is_torn_or_silently_lost() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let mailbox = Arc::new(Mailbox::new());
        let senders: Vec<_> = (1..=2)
            .map(|sender| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    let _ = mailbox.push(note(sender, 1));
                    let _ = mailbox.push(note(sender, 2));
                })
            })
            .collect();
        let mut taken: Vec<Taken> = mailbox.take().into_iter().collect();
        for sender in senders {
            sender.join().unwrap();
        }
        taken.extend(core::iter::from_fn(|| mailbox.take()));
        let mut last = [0; 3];
        let mut notes = 0;
        for taken in &taken {
            let Taken::Note(found) = taken else { continue };
            notes += 1;
            assert_eq!(*found, note(found.offset, found.len), "torn");
            let sender = usize::try_from(found.offset).unwrap();
            assert!(found.len > last[sender], "out of order");
            last[sender] = found.len;
        }
        let lost: u64 =
            taken.iter().map(|taken| if let Taken::Lost(n) = taken { *n } else { 0 }).sum();
        assert_eq!(notes + lost, 4, "{taken:?}");
        assert!(mailbox.is_empty());
    });
}

/// An event as the operating system has them: readable between a signal and the next drain.
struct Event {
    count: AtomicU64,
    sleeper: Notify,
}

impl Event {
    fn signal(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.sleeper.notify();
    }

    fn drain(&self) {
        self.count.swap(0, Ordering::AcqRel);
    }

    fn wait_readable(&self) {
        while self.count.load(Ordering::Acquire) == 0 {
            self.sleeper.wait();
        }
    }
}

/// The exporter sleeps whenever it finds nothing; loom tells if it sleeps for ever.
#[test]
fn nobody_sleeps_over_a_notification() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let mailbox = Arc::new(Mailbox::new());
        let event = Arc::new(Event { count: AtomicU64::new(0), sleeper: Notify::new() });
        let senders: Vec<_> = (1..=2)
            .map(|sender| {
                let (mailbox, event) = (Arc::clone(&mailbox), Arc::clone(&event));
                thread::spawn(move || {
                    if let Some(sleep) = mailbox.push(note(sender, 1)) {
                        event.signal();
                        mailbox.rung(sleep);
                    }
                })
            })
            .collect();
        let mut generation = 0;
        for _ in 0..2 {
            while mailbox.take().is_none() {
                event.drain();
                generation += 1;
                mailbox.announce_sleep(generation);
                if mailbox.take().is_some() {
                    event.signal();
                    break;
                }
                event.wait_readable();
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert!(mailbox.is_empty());
    });
}
