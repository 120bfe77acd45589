#![allow(clippy::single_range_in_vec_init, reason = "they are lists of ranges")]

use proptest::prelude::*;

use super::*;

const POOL: u64 = 1 << 20;

/// One arrival that nobody disturbs: what it was told, piece by piece.
fn arrive(table: &Table, offset: u64, len: u64) -> Vec<(u64, u64, Option<u64>)> {
    let (mut at, mut pieces) = (offset, Vec::new());
    while at < offset + len {
        let (piece, destination) = match table.place(at, offset + len - at, POOL) {
            Place::Default(piece) => (piece, None),
            Place::Posted(claim) => {
                let (piece, destination) = (claim.len(), claim.destination());
                (piece, claim.commit().then_some(destination))
            }
        };
        pieces.push((at, piece, destination));
        at += piece;
    }
    pieces
}

fn never() -> bool {
    false
}

#[test]
fn an_arrival_is_split_at_the_edges_of_a_posting() {
    let table = Table::new();
    assert_eq!(arrive(&table, 0, 100), [(0, 100, None)]);
    table.post(2, 1, 100, 50, 4096);
    let pieces = [(90, 10, None), (100, 50, Some(4096)), (150, 10, None)];
    assert_eq!(arrive(&table, 90, 70), pieces);
    assert_eq!(arrive(&table, 120, 10), [(120, 10, Some(4116))]);
    let withdrawn = table.withdraw(2, 1, 50, never);
    assert_eq!(withdrawn, Withdrawn { redirected: vec![0..50], stalled: false });
    assert_eq!(arrive(&table, 90, 70), [(90, 70, None)]);
    assert!(table.is_idle());
}

#[test]
fn a_stream_of_pieces_takes_one_record() {
    let table = Table::new();
    table.post(0, 1, 0, POOL, 0);
    for piece in 0..1000 {
        assert_eq!(arrive(&table, piece * 1000, 1000), [(piece * 1000, 1000, Some(piece * 1000))]);
    }
    let used = table.postings[0].records.iter().filter(|r| r.load(Ordering::Relaxed) != 0);
    assert_eq!(used.count(), 1);
    assert_eq!(table.redirected(0, POOL), [0..1_000_000]);
}

#[test]
fn without_a_record_bytes_go_to_both_places() {
    let table = Table::new();
    table.post(0, 1, 0, POOL, 0);
    let mut claims = Vec::new();
    for index in 0..RECORDS as u64 {
        let Place::Posted(claim) = table.place(index * 10, 5, POOL) else { panic!("default") };
        claims.push(claim);
    }
    let Place::Posted(crowded) = table.place(5000, 5, POOL) else { panic!("default") };
    assert!(!crowded.commit());
    let Place::Posted(crowded) = table.place(5000, 5, POOL) else { panic!("default") };
    assert!(claims.pop().unwrap().commit());
    drop(claims);
    let mut patience = 3;
    let withdrawn = table.withdraw(0, 1, POOL, || {
        patience -= 1;
        patience > 0
    });
    assert_eq!(withdrawn, Withdrawn { redirected: vec![580..585], stalled: true });
    drop(crowded);
    table.post(0, 2, 0, POOL, 0);
    assert!(!table.withdraw(0, 2, POOL, never).stalled);
}

#[test]
fn a_sender_that_stopped_comes_back_too_late() {
    let table = Table::new();
    table.post(0, 1, 0, 100, 0);
    assert!(arrive(&table, 0, 10)[0].2.is_some());
    let Place::Posted(stopped) = table.place(10, 20, POOL) else { panic!("default") };
    let withdrawn = table.withdraw(0, 1, 100, never);
    assert_eq!(withdrawn, Withdrawn { redirected: vec![0..10], stalled: true });
    table.post(0, 2, 0, 100, 0);
    assert!(arrive(&table, 0, 10)[0].2.is_some());
    assert!(!stopped.commit(), "accepted for another posting");
    assert_eq!(
        table.withdraw(0, 2, 100, never),
        Withdrawn { redirected: vec![0..10], stalled: false }
    );
    assert!(table.postings[0].records.iter().all(|r| r.load(Ordering::Relaxed) == EMPTY));
}

#[derive(Debug, Clone)]
enum Step {
    Post { index: usize, start: u64, len: u64 },
    Withdraw(usize),
    Arrive { offset: u64, len: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..400u64, 1..200u64);
    prop_oneof![
        (0..POSTINGS, place()).prop_map(|(index, (start, len))| Step::Post { index, start, len }),
        (0..POSTINGS).prop_map(Step::Withdraw),
        place().prop_map(|(offset, len)| Step::Arrive { offset, len }),
        place().prop_map(|(offset, len)| Step::Arrive { offset, len }),
    ]
}

#[test]
fn a_crowd_of_nonsense_is_not_joined() {
    let table = Table::new();
    table.post(0, 1, 0, 100, 0);
    table.postings[0].records.iter().for_each(|record| record.store(BUSY, Ordering::Relaxed));
    for crowd in [u64::MAX, u64::MAX - 1, 0, 1 << 16 | CROWD] {
        table.postings[0].crowd.store(crowd, Ordering::Relaxed);
        assert_eq!(arrive(&table, 0, 100), [(0, 100, None)]);
    }
}

fn word_of_a_stranger() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..8_u64,
        Just(u64::MAX),
        (0..1_u64 << 20).prop_map(|n| n << 2 | 1),
        any::<u64>()
    ]
}

proptest! {
    /// Whatever strangers wrote, arrivals go inside the pool or to the default buffer, and all comes to an end.
    #[test]
    fn any_memory_is_looked_at_without_harm(
        words in prop::collection::vec(word_of_a_stranger(), size_of::<Table>() / 8),
        arrivals in prop::collection::vec((any::<u64>(), 1..u64::MAX / 2), 1..20),
    ) {
        let table = Table::new();
        for posting in &table.postings {
            // What tells open postings from closed ones is more interesting when they are open.
            posting.len.store(words[0] % MAX_POSTED, Ordering::Relaxed);
        }
        let all = [&table.open].into_iter().chain(table.postings.iter().flat_map(|posting| {
            [&posting.state, &posting.start, &posting.destination, &posting.crowd]
                .into_iter()
                .chain(&posting.records)
        }));
        all.zip(&words).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
        for (offset, len) in arrivals {
            match table.place(offset, len, POOL) {
                Place::Default(piece) => prop_assert!(piece > 0 && piece <= len),
                Place::Posted(claim) => {
                    prop_assert!(claim.len() <= len);
                    prop_assert!(claim.destination().saturating_add(claim.len()) <= POOL);
                    let _ = claim.commit();
                }
            }
        }
        for index in 0..POSTINGS {
            let redirected = table.withdraw(index, 1, 5000, never).redirected;
            prop_assert!(redirected.iter().all(|range| range.end <= 5000));
        }
    }

    /// Whatever is posted, withdrawn and sent: the newest byte of each place is where the receiver is told.
    #[test]
    fn the_newest_bytes_are_where_the_receiver_is_told(steps in prop::collection::vec(step(), 1..80)) {
        let table = Table::new();
        let mut newest = vec![0usize; 600];
        let mut default = vec![0usize; 600];
        let mut posted = vec![0usize; POSTINGS * 200];
        let mut open: [Option<(u64, Range<u64>)>; POSTINGS] = Default::default();
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Post { index, start, len } => {
                    let range = start..start + len;
                    let apart = open.iter().flatten().all(|(_, other)| other.end <= range.start || range.end <= other.start);
                    if open[index].is_none() && apart {
                        table.post(index, number as u64, start, len, index as u64 * 200);
                        open[index] = Some((number as u64, range));
                    }
                }
                Step::Withdraw(index) => {
                    let Some((generation, range)) = open[index].take() else { continue };
                    let withdrawn = table.withdraw(index, generation, range.end - range.start, never);
                    prop_assert!(!withdrawn.stalled);
                    for at in withdrawn.redirected.into_iter().flatten() {
                        let from = posted[index * 200 + at as usize];
                        default[(range.start + at) as usize] = from;
                    }
                    let range = range.start as usize..range.end as usize;
                    prop_assert_eq!(&default[range.clone()], &newest[range]);
                }
                Step::Arrive { offset, len } => {
                    newest[offset as usize..(offset + len) as usize].fill(number);
                    for (at, len, destination) in arrive(&table, offset, len) {
                        match destination {
                            None => default[at as usize..(at + len) as usize].fill(number),
                            Some(to) => posted[to as usize..(to + len) as usize].fill(number),
                        }
                    }
                }
            }
        }
    }

    /// Whatever lies in the table: what a sender is told is inside, and both sides come to an end.
    #[test]
    fn nonsense_is_not_believed(words in prop::collection::vec(any::<u64>(), Table::LEN / 8), offset in 0..POOL, len in 1..POOL) {
        let mut memory = vec![[0u64; 8]; Table::LEN / 64 + 1];
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: there is a line more than a table is long; atomics are valid whatever they hold.
        let table = unsafe { Table::at(start.add(start.align_offset(64))) };
        table.open.store(u64::MAX, Ordering::Relaxed);
        for (posting, words) in table.postings.iter().zip(words.chunks(Table::LEN / 8 / POSTINGS)) {
            // Some are plausible, or nothing would ever be redirected.
            posting.state.store(words[0] | OPEN, Ordering::Relaxed);
            posting.start.store(words[1] % POOL, Ordering::Relaxed);
            posting.len.store(words[2] >> (words[2] % 64), Ordering::Relaxed);
            posting.destination.store(words[3] >> (words[3] % 64), Ordering::Relaxed);
            for (record, word) in posting.records.iter().zip(&words[4..]) {
                record.store(*word, Ordering::Relaxed);
            }
        }
        for (_, len, destination) in arrive(table, offset, len) {
            prop_assert!(len > 0 && destination.is_none_or(|at| at <= POOL && len <= POOL - at));
        }
        for index in 0..POSTINGS {
            let mut patience = 100;
            let withdrawn = table.withdraw(index, 1, 1000, || { patience -= 1; patience > 0 });
            prop_assert!(withdrawn.redirected.iter().all(|range| range.end <= 1000));
        }
    }
}
