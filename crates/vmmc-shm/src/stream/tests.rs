use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use super::*;

/// A stream memory in ordinary memory, all zeros.
struct Memory(Vec<u8>);

impl Memory {
    const ALIGNED: usize = align_of::<Words>();

    fn new() -> Self {
        Self(vec![0; Tier::MEMORY + Self::ALIGNED])
    }

    fn start(&mut self) -> *mut u8 {
        let start = self.0.as_mut_ptr();
        start.wrapping_add(start.align_offset(Self::ALIGNED))
    }
}

/// Two stream memories in ordinary memory, the ends of one direction on them.
struct Pair {
    to_a: Memory,
    to_b: Memory,
    tx: Transmitter,
    rx: Receiver,
}

impl Pair {
    fn new() -> Self {
        let (to_a, to_b) = (Memory::new(), Memory::new());
        Self { to_a, to_b, tx: Transmitter::default(), rx: Receiver::default() }
    }

    /// A writes to B: A's own words, B's words.
    fn words(&mut self) -> (&'static Words, &'static Words) {
        // SAFETY: both memories are larger than `Words`, aligned enough for its fields, zero is valid for every field,
        // and they outlive the test's use of the references.
        unsafe { (&*self.to_a.start().cast(), &*self.to_b.start().cast()) }
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let (mine, theirs) = self.words();
        let len = bytes.len().min(self.tx.room(mine, bytes.len()));
        // SAFETY: the memory has room for every tier.
        let ring = unsafe { Ring::new(self.to_b.start(), self.tx.tier()) };
        // SAFETY: `len` is at most the room in the ring.
        unsafe { ring.copy_in(self.tx.position(), bytes.as_ptr(), len) };
        let next = ring.advance(self.tx.position(), len);
        if self.tx.publish(theirs, len, next) == Publish::Frozen { 0 } else { len }
    }

    /// As [`Self::send`], but holds the bytes back.
    fn send_corked(&mut self, bytes: &[u8]) -> Publish {
        let (_, theirs) = self.words();
        // SAFETY: the memory has room for every tier.
        let ring = unsafe { Ring::new(self.to_b.start(), self.tx.tier()) };
        // SAFETY: the tests send no more than there is room for.
        unsafe { ring.copy_in(self.tx.position(), bytes.as_ptr(), bytes.len()) };
        let next = ring.advance(self.tx.position(), bytes.len());
        self.tx.publish_corked(theirs, bytes.len(), next)
    }

    fn receive(&mut self, most: usize) -> Result<Vec<u8>, receiver::Corrupt> {
        let (a, b) = self.words();
        let len = self.rx.arrived(b)?.len.min(most);
        // SAFETY: the memory has room for every tier.
        let ring = unsafe { Ring::new(self.to_b.start(), self.rx.tier()) };
        let mut out = vec![0; len];
        // SAFETY: `arrived` never tells more than the capacity.
        unsafe { ring.copy_out(self.rx.position(), out.as_mut_ptr(), len) };
        self.rx.consume(a, len, ring.advance(self.rx.position(), len));
        Ok(out)
    }
}

#[test]
fn bytes_come_out_as_they_went_in_across_the_seam_and_over_all_tiers() {
    let mut pair = Pair::new();
    let mut sent = 0u64;
    for tier in [Tier::Page, Tier::Medium, Tier::Bulk] {
        assert_eq!(pair.tx.tier(), tier);
        for round in 0..if cfg!(miri) { 20 } else { 500usize } {
            let bytes: Vec<u8> = (0..=round * 7 % 3000).map(|i| (i + round) as u8).collect();
            let taken = pair.send(&bytes);
            assert_eq!(taken, bytes.len().min(tier.capacity()));
            assert_eq!(pair.receive(usize::MAX).unwrap(), bytes[..taken]);
            sent += taken as u64;
        }
        assert_eq!(pair.rx.head(), sent);
        let (_, theirs) = pair.words();
        assert_eq!(pair.tx.grow(theirs), tier != Tier::Bulk);
    }
}

#[test]
fn a_full_ring_takes_nothing_and_a_frozen_one_refuses() {
    let mut pair = Pair::new();
    assert_eq!(pair.send(&[1; 10_000]), Tier::Page.capacity());
    assert_eq!(pair.send(&[1; 1]), 0);
    assert_eq!(pair.receive(100).unwrap().len(), 100);
    assert_eq!(pair.send(&[2; 1000]), 100);
    let (_, b) = pair.words();
    pair.rx.freeze(b);
    assert_eq!(
        pair.rx.arrived(b),
        Ok(Arrived { len: Tier::Page.capacity(), more: false, fin: false, frozen: true })
    );
    assert_eq!(pair.receive(50).unwrap().len(), 50);
    assert_eq!(pair.send(&[3; 10]), 0, "published into a frozen ring");
    assert!(pair.tx.closed(b));
}

#[test]
fn the_writer_keeps_its_distance_from_what_was_just_read() {
    let mut pair = Pair::new();
    let (_, theirs) = pair.words();
    while pair.tx.grow(theirs) {}
    let window = Tier::Bulk.window();
    assert!(window < Tier::Bulk.capacity());
    // Repeated, as Miri counts slowly to millions.
    let mut bytes = (0..=250).collect::<Vec<u8>>().repeat(window / 251 + 1);
    bytes.truncate(window + 1);
    for round in 0..if cfg!(miri) { 1 } else { 5 } {
        assert_eq!(pair.send(&bytes), window, "round {round}");
        assert_eq!(pair.send(&[1]), 0);
        assert_eq!(pair.receive(1000).unwrap(), bytes[..1000]);
        assert_eq!(pair.send(&bytes[window..]), 1);
        assert_eq!(pair.receive(window).unwrap(), bytes[1000..]);
    }
}

#[test]
fn a_bound_holds_for_all_that_is_unread_once_the_bulk_ring_is_in_use() {
    let mut pair = Pair::new();
    pair.tx.set_bound(NonZeroU32::new(100_000));
    assert_eq!(pair.tx.window(), Tier::Page.window());
    assert_eq!(pair.send(&[1; 1000]), 1000);
    let (_, theirs) = pair.words();
    while pair.tx.grow(theirs) {}
    assert_eq!(pair.send(&[1; 150_000]), 99_000);
    assert_eq!(pair.send(&[1]), 0);
    assert_eq!(pair.receive(1000).unwrap().len(), 1000);
    assert_eq!(pair.send(&[1; 1500]), 1000);
    // Less than what is unread already.
    pair.tx.set_bound(NonZeroU32::new(1000));
    assert_eq!(pair.receive(99_500).unwrap().len(), 99_500);
    assert_eq!(pair.send(&[1; 1000]), 500);
    pair.tx.set_bound(None);
    assert_eq!(pair.tx.window(), Tier::Bulk.window());
    assert_eq!(pair.send(&[1; 1000]), 1000);
}

#[test]
fn a_stream_grows_over_unread_bytes_and_knows_where_they_lie() {
    let mut pair = Pair::new();
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        let taken = pair.send(&bytes[sent..]);
        sent += taken;
        let (_, theirs) = pair.words();
        assert!(taken > 0 || pair.tx.grow(theirs));
    }
    assert_eq!(pair.receive(1000).unwrap(), bytes[..1000]);
    let (a, _) = pair.words();
    let mut pieces = Vec::new();
    for piece in pair.tx.unread_pieces(a) {
        // SAFETY: the memory has room for every tier; a piece lies inside its ring.
        let ring = unsafe { Ring::new(pair.to_b.start(), piece.tier) };
        let mut out = vec![0; piece.len];
        // SAFETY: as above.
        unsafe { ring.copy_out(piece.position, out.as_mut_ptr(), piece.len) };
        pieces.extend(out);
    }
    assert_eq!(pieces, bytes[1000..]);
    let mut rest = Vec::new();
    while rest.len() < 99_000 {
        rest.extend(pair.receive(usize::MAX).unwrap());
    }
    assert_eq!(rest, bytes[1000..]);
    assert_eq!(pair.tx.unread(a), 0);
}

/// The reader's and the writer's lists of what is unread, read where they say it lies.
fn unread(pair: &mut Pair) -> [Vec<u8>; 2] {
    let (a, b) = pair.words();
    let memory = pair.to_b.start();
    let read = |piece: Piece| {
        // SAFETY: the memory has room for every tier; a piece lies inside its ring.
        let ring = unsafe { Ring::new(memory, piece.tier) };
        let mut out = vec![0; piece.len];
        // SAFETY: as above.
        unsafe { ring.copy_out(piece.position, out.as_mut_ptr(), piece.len) };
        out
    };
    [
        pair.rx.unread_pieces(b).flat_map(read).collect(),
        pair.tx.unread_pieces(a).flat_map(read).collect(),
    ]
}

#[test]
fn a_stream_comes_back_to_the_first_ring_when_all_is_read_and_grows_again() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    assert!(!pair.tx.shrink(a, b), "it is there");
    for round in 0..5u8 {
        assert_eq!(pair.send(&[round; 3000]), 3000);
        for tier in [Tier::Medium, Tier::Bulk] {
            assert!(pair.tx.grow(b));
            assert_eq!(pair.tx.tier(), tier);
            assert_eq!(pair.send(&[round; 5000]), 5000);
        }
        assert!(!pair.tx.shrink(a, b), "bytes are unread");
        while pair.tx.unread(a) > 0 {
            assert!(pair.receive(999).unwrap().iter().all(|&byte| byte == round));
        }
        assert_eq!(pair.rx.tier(), Tier::Bulk);
        assert!(pair.tx.shrink(a, b));
        assert_eq!(pair.tx.room(a, usize::MAX), Tier::Page.capacity());
        assert_eq!(pair.receive(1).unwrap(), [], "nothing came, and nothing changes");
        if round % 2 == 0 {
            assert_eq!(pair.send(&[round; 100]), 100);
            assert_eq!(unread(&mut pair), [vec![round; 100], vec![round; 100]]);
            assert_eq!(pair.receive(1).unwrap(), [round]);
            assert_eq!(pair.rx.tier(), Tier::Page);
            assert_eq!(pair.receive(1000).unwrap(), [round; 99]);
        }
    }
}

#[test]
fn what_was_unread_at_the_freeze_is_told_to_be_repeated() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    assert_eq!(pair.send(&[1; 1000]), 1000);
    assert_eq!(pair.receive(300).unwrap().len(), 300);
    assert_eq!(pair.rx.repeat(b), None);
    assert_eq!(pair.tx.begin_repeat(a, b), Some(300));
    assert_eq!(pair.rx.repeat(b), None, "before the freeze it means nothing");
    assert!(pair.tx.freeze(b));
    let begun = pair.rx.repeat(b).unwrap();
    assert_eq!(begun, Repeat { from: 300, until: None, tail: 1000 });
    assert_eq!(pair.tx.pieces_from(300).map(|piece| piece.len).sum::<usize>(), 700);
    // The reader reads on in the meantime: so much of the repetition is old to it.
    assert_eq!(pair.receive(200).unwrap().len(), 200);
    assert_eq!(begun.before(pair.rx.head()), 200);
    pair.tx.end_repeat(b, 450);
    let part = pair.rx.repeat(b).unwrap();
    assert_eq!((part.complete(), part.before(500)), (false, 150));
    pair.tx.end_repeat(b, 1000);
    assert!(pair.rx.repeat(b).unwrap().complete());
}

#[test]
fn of_two_that_freeze_one_is_first_and_nothing_is_repeated_of_what_was_read() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    assert_eq!(pair.send(&[1; 10]), 10);
    assert_eq!(pair.receive(10).unwrap().len(), 10);
    assert_eq!(pair.tx.begin_repeat(a, b), None);
    assert!(pair.rx.freeze(b));
    assert!(!pair.tx.freeze(b));
    assert!(!pair.rx.freeze(b));
}

#[test]
fn what_was_skipped_can_be_read_after_all() {
    let mut pair = Pair::new();
    let (_, b) = pair.words();
    let first = pair.send(&[1; 3000]);
    assert!(pair.tx.grow(b));
    assert_eq!((first, pair.send(&[2; 5000])), (3000, 5000));
    assert_eq!(pair.receive(100).unwrap().len(), 100);
    let place = pair.rx.place();
    while let Ok(Arrived { len: len @ 1.., .. }) = pair.rx.arrived(b) {
        pair.rx.skip(len, pair.rx.position() + len);
    }
    assert_eq!(pair.rx.unread(b), 0);
    pair.rx.go_back(place);
    assert_eq!(pair.receive(5000).unwrap(), vec![1; 2900]);
    assert_eq!(pair.receive(5000).unwrap(), vec![2; 5000]);
}

#[test]
fn an_idle_ring_is_frozen_only_while_nothing_in_it_is_unread() {
    let mut pair = Pair::new();
    let (_, b) = pair.words();
    assert_eq!(pair.send(&[1; 10]), 10);
    assert!(!pair.rx.freeze_if_read(b), "bytes are unread");
    assert_eq!(pair.receive(10).unwrap().len(), 10);
    assert!(pair.rx.freeze_if_read(b));
    assert_eq!(pair.send(&[2; 10]), 0, "nothing slips in");
    assert!(!pair.rx.freeze_if_read(b), "it is frozen");

    let mut pair = Pair::new();
    let (_, b) = pair.words();
    pair.tx.finish(b);
    assert!(!pair.rx.freeze_if_read(b), "an end must be read in the ring");
}

#[test]
fn a_lying_peer_is_found_out() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    b.tail.store(Tier::Page.capacity() as u64 + 1, Ordering::Relaxed);
    assert!(pair.rx.arrived(b).is_err(), "more than the ring holds");
    b.tail.store(OFFSET, Ordering::Relaxed);
    assert!(pair.rx.arrived(b).is_err(), "an offset from the far end");
    b.tail.store(10, Ordering::Relaxed);
    pair.rx.consume(a, 5, 5);
    b.grown[0].store(3, Ordering::Relaxed);
    assert!(pair.rx.arrived(b).is_err(), "a larger ring before what was read");
    a.credit.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(
        pair.tx.room(a, usize::MAX),
        Tier::Page.capacity(),
        "credit for what was never sent"
    );
}

/// Of a random history, at the most.
const STEPS: usize = if cfg!(miri) { 20 } else { 60 };

proptest::proptest! {
    /// Whatever stands in the words, a reader sees at most a ring full and a writer at most a ring free.
    #[test]
    fn hostile_words_never_reach_outside(
        tail: u64,
        grown: [u64; 2],
        returned in proptest::prop_oneof![0u64..5000, proptest::num::u64::ANY],
        credit: u64,
        repeats: [u64; 2],
        uncorked: u64,
        sent in 0usize..4000,
        tier in 0usize..3,
    ) {
        let mut pair = Pair::new();
        let (_, b) = pair.words();
        // The reader has come as far as this honestly.
        for _ in 0..tier {
            pair.tx.grow(b);
        }
        pair.send(&[0; 1000]);
        pair.receive(1000).unwrap();
        let (a, b) = pair.words();
        proptest::prop_assert_eq!(pair.tx.shrink(a, b), tier > 0);
        proptest::prop_assert_eq!(pair.tx.unread(a), 0);
        let sent = pair.send(&vec![0; sent]);
        let (a, b) = pair.words();
        b.tail.store(tail, Ordering::Relaxed);
        b.grown[0].store(grown[0], Ordering::Relaxed);
        b.grown[1].store(grown[1], Ordering::Relaxed);
        b.returned.store(returned, Ordering::Relaxed);
        a.credit.store(credit, Ordering::Relaxed);
        b.repeats_from.store(repeats[0], Ordering::Relaxed);
        b.repeats_until.store(repeats[1], Ordering::Relaxed);
        b.cork(uncorked);
        if let Some(repeat) = pair.rx.repeat(b) {
            let until = repeat.until.unwrap_or(repeat.tail);
            proptest::prop_assert!(repeat.from <= until && until <= repeat.tail && repeat.tail <= OFFSET);
            proptest::prop_assert!(repeat.before(pair.rx.head()) <= pair.rx.head());
        }
        if let Ok(arrived) = pair.rx.arrived(b) {
            proptest::prop_assert!(arrived.len <= pair.rx.tier().capacity());
            proptest::prop_assert!(pair.rx.position() < pair.rx.tier().capacity());
        }
        for piece in pair.rx.unread_pieces(b) {
            proptest::prop_assert!(piece.len <= piece.tier.capacity());
            proptest::prop_assert!(piece.position < piece.tier.capacity());
        }
        let room = pair.tx.room(a, usize::MAX);
        proptest::prop_assert!(room <= Tier::Page.capacity() && room >= Tier::Page.capacity() - sent);
    }

    /// However writing, holding back, reading, growing and returning are mixed, the bytes come out as they went in, and both ends' lists of
    /// what is unread agree with it.
    #[test]
    fn bytes_survive_every_change_of_ring(steps in proptest::collection::vec((0u8..9, 1usize..9000), 1..STEPS)) {
        let mut pair = Pair::new();
        let (mut next_in, mut next_out, mut seen) = (0usize, 0usize, 0usize);
        let byte = |at: usize| (at % 251) as u8;
        for (kind, len) in steps {
            let (a, b) = pair.words();
            match kind {
                0 | 1 => {
                    let bytes: Vec<u8> = (next_in..next_in + len).map(byte).collect();
                    next_in += pair.send(&bytes);
                    seen = next_in;
                }
                6 | 7 => {
                    let len = pair.tx.room(a, len).min(len);
                    let bytes: Vec<u8> = (next_in..next_in + len).map(byte).collect();
                    proptest::prop_assert!(pair.send_corked(&bytes) != Publish::Frozen);
                    next_in += len;
                    seen = next_in - (next_in - seen) % 65_483;
                }
                8 => {
                    let_time_pass(b);
                    seen = next_in;
                }
                2 | 3 => {
                    for got in pair.receive(len).unwrap() {
                        proptest::prop_assert_eq!(got, byte(next_out));
                        next_out += 1;
                    }
                }
                4 => drop(pair.tx.grow(b)),
                _ => {
                    let all_read = next_in == next_out && pair.tx.tier() != Tier::Page;
                    proptest::prop_assert_eq!(pair.tx.shrink(a, b), all_read);
                }
            }
            let wanted: Vec<u8> = (next_out..next_in).map(byte).collect();
            let [reader, writer] = unread(&mut pair);
            proptest::prop_assert!(reader == wanted[..seen - next_out] && writer == wanted);
        }
    }
}

/// What was held back for longer than anything is.
fn let_time_pass(words: &Words) {
    words.corked_at.store(crate::clock::ticks().wrapping_sub(1 << 40), Ordering::Relaxed);
}

#[test]
fn what_is_held_back_comes_with_what_follows() {
    let mut pair = Pair::new();
    let (_, b) = pair.words();
    assert_eq!(pair.send(b"seen "), 5);
    assert_eq!(pair.send_corked(b"held "), Publish::Done, "the reader has to know");
    assert_eq!(pair.send_corked(b"back "), Publish::Corked);
    assert_eq!(pair.rx.unread(b), 5);
    assert!(b.corked_for().is_some());
    assert_eq!(pair.receive(usize::MAX).unwrap(), b"seen ");
    assert!(!pair.rx.stirred(b) && !pair.rx.stirred_beyond(b, 0));
    assert_eq!(pair.receive(usize::MAX).unwrap(), b"");
    assert!(!pair.rx.freeze_if_read(b), "it is no idle stream");
    assert_eq!(pair.send(b"until now"), 9);
    assert!(pair.rx.stirred(b) && b.corked_for().is_none());
    assert_eq!(pair.receive(usize::MAX).unwrap(), b"held back until now");
}

#[test]
fn either_side_lets_go_of_what_is_held_back_and_the_producer_goes_on() {
    let mut pair = Pair::new();
    let (_, b) = pair.words();
    for round in 0..3 {
        assert_eq!(pair.send_corked(b"a"), Publish::Done, "round {round}");
        assert!(!pair.rx.stirred(b));
        assert!(b.uncork() && !b.uncork());
        assert_eq!(pair.receive(usize::MAX).unwrap(), b"a");
        assert_eq!(pair.send_corked(b"b"), Publish::Done, "another that the reader has to know of");
        let_time_pass(b);
        assert!(pair.rx.stirred(b) && b.corked_for().is_none());
        assert_eq!(pair.receive(usize::MAX).unwrap(), b"b");
        assert_eq!(pair.send_corked(b"c"), Publish::Done);
        assert_eq!(pair.receive(usize::MAX).unwrap(), b"", "not older than it is");
        assert_eq!(pair.send(b"d"), 1);
        assert_eq!(pair.receive(usize::MAX).unwrap(), b"cd");
    }
}

#[test]
fn whoever_has_the_words_finds_what_was_left_unread() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    let standing = |unread, ended, peer_ended| Standing { unread, ended, peer_ended };
    assert_eq!(b.standing(a), standing(false, false, false));
    pair.send(b"unread");
    assert_eq!(b.standing(a), standing(true, false, false));
    pair.receive(5).unwrap();
    assert_eq!(b.standing(a), standing(true, false, false));
    pair.receive(1).unwrap();
    pair.send_corked(b"not sent yet");
    assert_eq!(b.standing(a), standing(false, false, false));
    pair.tx.finish(b);
    assert_eq!(b.standing(a), standing(true, false, true), "an end lets go of it");
    assert_eq!(a.standing(b), standing(false, true, false), "the other end has nothing to read");
    pair.rx.freeze(b);
    assert!(!b.standing(a).unread, "somebody else sees to what a freeze left");
}

#[test]
fn no_more_than_a_segment_is_held_back() {
    let mut pair = Pair::new();
    let (_, b) = pair.words();
    while pair.tx.grow(b) {}
    let bytes = vec![7; 100_000];
    assert_eq!(pair.send_corked(&bytes), Publish::Done);
    let segment = pair.rx.unread(b);
    assert_eq!(segment, 65_483);
    assert_eq!(pair.send_corked(&bytes[..1000]), Publish::Corked);
    assert_eq!(pair.rx.unread(b), segment);
    assert_eq!(pair.send_corked(&bytes), Publish::Done, "another segment is full");
    assert_eq!(pair.rx.unread(b), 3 * segment);
    assert_eq!(pair.send_corked(&bytes[..4 * segment - 201_000]), Publish::Done);
    assert!(b.corked_for().is_none(), "nothing is left to hold back");
    assert_eq!(pair.rx.unread(b), 4 * segment);
}

#[test]
fn an_end_or_a_freeze_lets_go_of_what_is_held_back() {
    for act in 0..3 {
        let mut pair = Pair::new();
        let (_, b) = pair.words();
        pair.send_corked(b"last words");
        match act {
            0 => pair.tx.finish(b),
            1 => drop(pair.tx.freeze(b)),
            _ => drop(pair.rx.freeze(b)),
        }
        assert!(b.corked_for().is_none());
        assert_eq!(pair.receive(usize::MAX).unwrap(), b"last words");
        assert_eq!(b.visible() & OFFSET, pair.rx.head());
        assert!(act == 0 || b.visible() == FROZEN | pair.rx.head());
        assert_eq!(pair.send_corked(b"more"), Publish::Frozen);
    }
}

/// As who shares the indices (of a [`Transmitter`] or a [`Receiver`]) finds them when another was killed before it had brought them up
/// to date.
fn copy<Indices>(indices: &Indices) -> Indices {
    // SAFETY: nothing but atomic words, which need not be dropped.
    unsafe { std::ptr::read(indices) }
}

#[test]
fn what_another_left_half_done_is_finished() {
    let mut pair = Pair::new();
    let (mine, theirs) = pair.words();
    assert_eq!(pair.send(b"before "), 7);
    let indices = copy(&pair.tx);
    assert_eq!(pair.send(b"published "), 10);
    pair.tx = indices;
    pair.tx.recover(theirs);
    assert_eq!(pair.send(b"after"), 5);
    assert_eq!(pair.receive(100).unwrap(), b"before published after");

    // Killed while it went on to a larger ring, or came back.
    let indices = copy(&pair.tx);
    assert!(pair.tx.grow(theirs));
    pair.tx = indices;
    pair.tx.recover(theirs);
    assert_eq!(pair.tx.tier(), Tier::Medium);
    assert_eq!(pair.send(b"grown"), 5);
    assert_eq!(pair.receive(100).unwrap(), b"grown");
    let indices = copy(&pair.tx);
    assert!(pair.tx.shrink(mine, theirs));
    pair.tx = indices;
    pair.tx.recover(theirs);
    assert_eq!(pair.tx.tier(), Tier::Page);
    assert_eq!(pair.send(b"shrunk"), 6);
    assert_eq!(pair.receive(100).unwrap(), b"shrunk");

    // Nothing was half done; and a word that no honest reader has.
    let before = (pair.tx.tail(), pair.tx.position(), pair.tx.tier());
    pair.tx.recover(theirs);
    theirs.tail.store(before.0 + (1 << 40), Ordering::SeqCst);
    pair.tx.recover(theirs);
    assert_eq!((pair.tx.tail(), pair.tx.position(), pair.tx.tier()), before);
}

#[test]
fn what_another_left_half_read_is_finished() {
    let mut pair = Pair::new();
    let (a, b) = pair.words();
    let bytes: Vec<u8> = (0..Tier::Page.capacity()).map(|n| n as u8).collect();
    assert_eq!(pair.send(&bytes), bytes.len());
    assert_eq!(pair.receive(1000).unwrap(), bytes[..1000]);
    // Killed between the position and the head: nothing was read.
    pair.rx.position.store(3000, Ordering::Relaxed);
    pair.rx.recover(b, a);
    assert_eq!(pair.receive(1000).unwrap(), bytes[1000..2000]);
    // Killed between the head and the word to the writer.
    let credit = a.credit.load(Ordering::SeqCst);
    assert_eq!(pair.receive(500).unwrap(), bytes[2000..2500]);
    a.credit.store(credit, Ordering::SeqCst);
    pair.rx.recover(b, a);
    assert_eq!(pair.tx.spare(a), 2500);
    // Over the seam.
    assert_eq!(pair.send(&bytes[..2000]), 2000);
    assert_eq!(pair.receive(bytes.len()).unwrap().len(), bytes.len() - 2500 + 2000);
    pair.rx.position.store(0, Ordering::Relaxed);
    pair.rx.recover(b, a);
    assert_eq!(pair.rx.position(), 2000);

    // Killed while it went on to a larger ring, or came back.
    assert!(pair.tx.grow(b));
    assert_eq!(pair.send(b"grown"), 5);
    pair.rx.tier.store(Tier::Medium as u32, Ordering::Relaxed);
    pair.rx.recover(b, a);
    assert_eq!(pair.receive(2).unwrap(), b"gr");
    pair.rx.position.store(5, Ordering::Relaxed);
    pair.rx.recover(b, a);
    assert_eq!(pair.receive(10).unwrap(), b"own");
    assert!(pair.tx.shrink(a, b));
    pair.rx.recover(b, a);
    assert_eq!(pair.send(b"shrunk"), 6);
    pair.rx.tier.store(Tier::Page as u32, Ordering::Relaxed);
    pair.rx.position.store(60_000, Ordering::Relaxed);
    pair.rx.recover(b, a);
    assert_eq!(pair.receive(100).unwrap(), b"shrunk");
    pair.rx.recover(b, a);
    assert_eq!(pair.send(b"on"), 2);
    assert_eq!(pair.receive(100).unwrap(), b"on");

    // What was passed over behind a freeze is not given back.
    let credit = a.credit.load(Ordering::SeqCst);
    assert_eq!(pair.send(b"frozen"), 6);
    pair.rx.freeze(b);
    pair.rx.skip(6, pair.rx.position() + 6);
    pair.rx.recover(b, a);
    assert_eq!(a.credit.load(Ordering::SeqCst), credit);

    // Words that no honest peer has lead nowhere else.
    for word in [&b.returned, &b.grown[0], &b.grown[1]] {
        for lie in [0, 1, u64::MAX / 2, u64::MAX] {
            word.store(lie, Ordering::SeqCst);
            for tier in 0..3 {
                pair.rx.tier.store(tier, Ordering::Relaxed);
                pair.rx.recover(b, a);
                assert!(pair.rx.position() < pair.rx.tier().capacity());
            }
        }
    }
}
