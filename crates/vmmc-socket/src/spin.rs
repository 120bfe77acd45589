//! Waiting without sleeping: short, and never at the expense of the one who is waited for.
//!
//! Waking a sleeper on another processor costs 30 to 50 µs, so that is how long it pays to look; a budget that could
//! shrink below the cost of a wake would stick in sleeping. On the same processor the peer can only run when this thread
//! gives way. But who gives way loses his turn to any third party on that processor too, for milliseconds, while a sleeper
//! who is woken goes before it: where a stranger was met, a thread sleeps at once for a while.
//!
//! A look that is for nothing costs processor time that others may want: other programs, or the host of a virtual machine, which
//! serves its disk with the same processors. So a thread whose looks seldom find anything looks only now and then, until
//! they do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernel;
use crate::thread::{self, MICROSECOND};

static BUDGET: AtomicU64 = AtomicU64::new(50 * MICROSECOND);
/// Times to give way to a peer on the same processor before sleeping.
const YIELDS: u32 = 20;
/// Who was away for longer, giving way, has met somebody who uses up his turns; interrupts and the host take less.
const STRANGER: u64 = 500 * MICROSECOND;
/// For how many times as long as a stranger took, waits sleep at once; when he is met again soon, for twice as long.
const SHY: u64 = 8;
const LONGEST_SHY: u64 = 1_000_000 * MICROSECOND;
/// So many of the last eight looks have to find something: a look for nothing costs as much as two to five wakes.
const WORTH_IT: u32 = 2;
/// Else one of so many waits looks.
const NOW_AND_THEN: u8 = 8;

/// Whether giving way is worth it where a thread runs.
#[derive(Clone, Copy, Debug, Default)]
struct Company {
    /// From when on, and for how long, waits sleep at once.
    met: u64,
    shy: u64,
}

thread_local! {
    static COMPANY: Cell<Company> = const { Cell::new(Company { met: 0, shy: 0 }) };
    static LUCK: Cell<Luck> = const { Cell::new(Luck::NEW) };
}

impl Company {
    /// Gives way while the peer may be about to answer: until `ready`, a stranger, or too many times.
    fn give_way(
        &mut self,
        clock: impl Fn() -> u64,
        mut turn: impl FnMut(),
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        let mut before = clock();
        if before.wrapping_sub(self.met) < self.shy {
            return false;
        }
        for _ in 0..YIELDS {
            turn();
            let now = clock();
            let away = now.wrapping_sub(before);
            if away > STRANGER {
                let again = now.wrapping_sub(self.met) < self.shy * 3;
                let shy = if again { self.shy * 2 } else { away * SHY };
                *self = Self { met: now, shy: shy.min(LONGEST_SHY) };
            }
            if ready() {
                return true;
            }
            if away > STRANGER {
                return false;
            }
            before = now;
        }
        false
    }
}

/// Whether it was worth looking lately.
#[derive(Clone, Copy, Debug)]
struct Luck {
    /// The last looks, a bit each: it found something.
    found: u8,
    /// Waits since the last look.
    passed: u8,
}

impl Luck {
    const NEW: Self = Self { found: u8::MAX, passed: 0 };

    /// Whether a wait should look.
    fn tries(&mut self) -> bool {
        self.passed += 1;
        let tries = self.found.count_ones() >= WORTH_IT || self.passed >= NOW_AND_THEN;
        if tries {
            self.passed = 0;
        }
        tries
    }

    fn looked(&mut self, found: bool) {
        self.found = self.found << 1 | u8::from(found);
    }
}

/// Sets how long to spin at the most, in microseconds; 0 never spins.
pub(crate) fn set_budget(microseconds: u64) {
    BUDGET.store(microseconds * MICROSECOND, Ordering::Relaxed);
}

/// Looks with `ready` for a bounded time. `peer` is one more than the peer's processor, 0 if unknown.
#[inline]
pub(crate) fn until(peer: impl Fn() -> u32, mut ready: impl FnMut() -> bool) -> bool {
    if ready() {
        return true;
    }
    let budget = BUDGET.load(Ordering::Relaxed);
    if budget == 0 {
        return false;
    }
    let mut luck = LUCK.get();
    let found = luck.tries() && {
        let found = look(budget, peer, ready);
        luck.looked(found);
        found
    };
    LUCK.set(luck);
    found
}

fn look(budget: u64, peer: impl Fn() -> u32, mut ready: impl FnMut() -> bool) -> bool {
    let start = thread::ticks();
    loop {
        if peer() == thread::processor().wrapping_add(1) {
            let mut company = COMPANY.get();
            let found = company.give_way(thread::ticks, kernel::give_way, &mut ready);
            COMPANY.set(company);
            return found;
        }
        for _ in 0..24 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if thread::ticks().wrapping_sub(start) > budget {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that moves by what each turn takes.
    struct Turns(Cell<u64>, Cell<u32>);

    impl Turns {
        fn new() -> Self {
            Self(Cell::new(1 << 40), Cell::new(0))
        }

        fn give_way(&self, company: &mut Company, each: u64, ready: bool) -> bool {
            let turn = || {
                self.pass(each);
                self.1.set(self.1.get() + 1);
            };
            company.give_way(|| self.0.get(), turn, || ready)
        }

        fn pass(&self, time: u64) {
            self.0.set(self.0.get() + time);
        }

        fn taken(&self) -> u32 {
            self.1.take()
        }
    }

    #[test]
    fn a_peer_is_given_way_to_for_a_while() {
        let (turns, mut company) = (Turns::new(), Company::default());
        assert!(turns.give_way(&mut company, STRANGER, true));
        assert_eq!(turns.taken(), 1);
        assert!(!turns.give_way(&mut company, STRANGER, false));
        assert_eq!(turns.taken(), YIELDS);
    }

    #[test]
    fn after_a_stranger_waits_sleep_at_once_and_longer_if_he_is_met_again() {
        let (turns, mut company) = (Turns::new(), Company::default());
        let mut shy = SHY * 3000 * MICROSECOND;
        for _ in 0..10 {
            assert!(!turns.give_way(&mut company, 3000 * MICROSECOND, false));
            assert_eq!(turns.taken(), 1);
            turns.pass(shy - 1);
            assert!(!turns.give_way(&mut company, 0, true));
            assert_eq!(turns.taken(), 0, "sleeps at once");
            turns.pass(1);
            shy = (shy * 2).min(LONGEST_SHY);
        }
        assert!(turns.give_way(&mut company, 0, true), "tries again");
        turns.pass(LONGEST_SHY * 3);
        assert!(!turns.give_way(&mut company, 3000 * MICROSECOND, false));
        turns.pass(SHY * 3000 * MICROSECOND);
        assert!(turns.give_way(&mut company, 0, true), "what is long ago counts no more");
    }

    #[test]
    fn who_seldom_finds_anything_looks_now_and_then() {
        let play = |luck: &mut Luck, waits, finds: bool| {
            let looks = (0..waits).filter(|_| {
                let tries = luck.tries();
                if tries {
                    luck.looked(finds);
                }
                tries
            });
            looks.count()
        };
        let mut luck = Luck::NEW;
        assert_eq!(play(&mut luck, 100, true), 100);
        assert_eq!(play(&mut luck, 7 + 80, false), 7 + 10);
        assert_eq!(play(&mut luck, 16, true), 2, "not yet");
        assert_eq!(play(&mut luck, 100, true), 100);
    }
}
