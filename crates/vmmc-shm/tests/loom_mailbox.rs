//! Every interleaving of two senders and the exporter, with fewer slots than notifications.
#![cfg(loom)]

use loom::sync::Arc;
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
                    mailbox.push(note(sender, 1));
                    mailbox.push(note(sender, 2));
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
        let many = taken.contains(&Taken::Many);
        assert!(notes == 4 || (many && notes < 4), "{taken:?}");
        assert!(mailbox.is_empty());
    });
}
