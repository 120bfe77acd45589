//! The living processes of a fork family, and which slots each of them holds. Who is killed, or becomes another program, gives nothing back by itself:
//! when slots or places here are short, whoever needs one looks who is still there, and frees what nobody holds any more.
//!
//! A process is still there if it has the family's table in its memory, as `/proc/<pid>/maps` tells: another program would not.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::kernel;
use crate::layer;
use crate::lift::seconds;
use crate::slot::{SLOTS, Slot};

/// Processes of a family that live at a time. With more of them nothing is freed for others any more.
const MEMBERS: usize = 4096;
const WORDS: usize = SLOTS / 64;

/// Part of the table that the family shares.
#[derive(Debug)]
pub(crate) struct Members {
    /// No place from here on was ever taken.
    top: AtomicU32,
    /// Somebody lives who has no place.
    crowded: AtomicBool,
    /// The second of the last sweep.
    swept: AtomicU32,
    /// The namespace of process numbers in which the family began.
    namespace: AtomicU64,
    lives: [AtomicU64; MEMBERS],
    /// Whether there is any bit in the page: one that was never looked at takes no memory.
    holding: [AtomicBool; MEMBERS],
    /// A page each: one bit a slot.
    held: [[AtomicU64; WORDS]; MEMBERS],
}

/// What stands above the process number in a life; 0: the place is free.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// Taken by this process for a child that is not born yet.
    Unborn = 1,
    Living = 2,
    /// In a namespace where its number means nothing to others, or a child of one there.
    Afar = 3,
}

/// This process's place.
static PLACE: AtomicU32 = AtomicU32::new(NOWHERE);
/// That of the child which is about to be born; a fork at a time.
static CHILD: AtomicU32 = AtomicU32::new(NOWHERE);
const NOWHERE: u32 = u32::MAX;

thread_local! {
    /// The place of the child that this thread made last.
    static LAST_CHILD: Cell<u32> = const { Cell::new(NOWHERE) };
}

fn life(state: State, pid: u32) -> u64 {
    u64::from(state as u32) << 32 | u64::from(pid)
}

fn is(life: u64, state: State) -> bool {
    life >> 32 == u64::from(state as u32)
}

impl Members {
    /// The first of the family.
    pub(crate) fn found(&self) {
        self.namespace.store(kernel::process_namespace(), Ordering::Relaxed);
        self.lives[0].store(life(State::Living, kernel::process_id()), Ordering::Release);
        self.top.store(1, Ordering::Release);
        PLACE.store(0, Ordering::Relaxed);
    }

    /// This process is about to hold a slot; false: a thread of it does already, or is about to.
    pub(crate) fn note(&self, index: u32) -> bool {
        self.note_for(PLACE.load(Ordering::Relaxed), index)
    }

    /// The child that is about to be born will hold a slot that this process holds.
    pub(crate) fn note_for_child(&self, index: u32) {
        self.note_for(CHILD.load(Ordering::Relaxed), index);
    }

    fn note_for(&self, place: u32, index: u32) -> bool {
        let Some(held) = self.held.get(place as usize) else { return true };
        let holding = &self.holding[place as usize];
        if !holding.load(Ordering::Acquire) {
            holding.store(true, Ordering::Release);
        }
        let bit = 1 << (index % 64);
        held[index as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// This process holds a slot no more.
    pub(crate) fn forget(&self, index: u32) {
        if let Some(held) = self.held.get(PLACE.load(Ordering::Relaxed) as usize) {
            held[index as usize / 64].fetch_and(!(1 << (index % 64)), Ordering::AcqRel);
        }
    }

    /// Before a fork: takes a place for the child.
    pub(crate) fn expect(&self, slots: &[Slot; SLOTS]) {
        let mine = match self.is_known() {
            true => life(State::Unborn, kernel::process_id()),
            false => life(State::Afar, 0),
        };
        let take = || {
            let free = |life: &AtomicU64| {
                life.load(Ordering::Relaxed) == 0
                    && life.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            self.lives.iter().position(free).map(|place| place as u32)
        };
        let place = take().or_else(|| {
            self.sweep(slots);
            take()
        });
        match place {
            Some(place) => drop(self.top.fetch_max(place + 1, Ordering::AcqRel)),
            None => self.crowded.store(true, Ordering::Release),
        }
        CHILD.store(place.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// After a fork, in the parent.
    pub(crate) fn parted(&self) {
        LAST_CHILD.set(CHILD.swap(NOWHERE, Ordering::Relaxed));
    }

    /// There is no child after all: what it was to hold.
    pub(crate) fn no_child(&self, mut leave: impl FnMut(u32)) {
        let place = LAST_CHILD.replace(NOWHERE) as usize;
        let Some(held) = self.held.get(place) else { return };
        for (n, word) in
            held.iter().enumerate().filter(|_| self.holding[place].load(Ordering::Acquire))
        {
            let bits = word.swap(0, Ordering::AcqRel);
            (0..64).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| leave(n as u32 * 64 + bit));
        }
        self.clear(place);
    }

    /// Gives back a place that this process has taken.
    fn clear(&self, place: usize) {
        if self.holding[place].swap(false, Ordering::AcqRel) {
            self.held[place].iter().for_each(|word| word.store(0, Ordering::Release));
        }
        self.lives[place].store(0, Ordering::Release);
    }

    /// This process is the child.
    pub(crate) fn born(&self) {
        let place = CHILD.swap(NOWHERE, Ordering::Relaxed);
        PLACE.store(place, Ordering::Relaxed);
        let Some(own) = self.lives.get(place as usize) else { return };
        let state =
            if self.is_at_home(own.load(Ordering::Relaxed)) { State::Living } else { State::Afar };
        own.store(life(state, kernel::process_id()), Ordering::Release);
    }

    /// Whether this child, just born to a place taken so, is where the family's process numbers are.
    fn is_at_home(&self, taken: u64) -> bool {
        // Not by calls that the program would not make, where they could end it.
        if layer::confined() {
            return false;
        }
        // Of a parent in another namespace there is no number here. To look at `/proc` takes longer.
        let parent = kernel::parent_id();
        if is(taken, State::Unborn) && parent != 0 && parent == taken as u32 {
            return true;
        }
        let here = kernel::process_namespace();
        here != 0 && here == self.namespace.load(Ordering::Relaxed)
    }

    /// Whether this process has a place, and a number that means the same to the others.
    fn is_known(&self) -> bool {
        let own = self.lives.get(PLACE.load(Ordering::Relaxed) as usize);
        own.is_some_and(|own| is(own.load(Ordering::Acquire), State::Living))
    }

    /// Frees the places of those that are gone, and the slots that nobody holds. Whether that may have freed any slot.
    #[cold]
    pub(crate) fn sweep(&self, slots: &[Slot; SLOTS]) -> bool {
        if layer::confined() {
            return false;
        }
        let now = seconds();
        if self.swept.swap(now, Ordering::Relaxed) == now {
            return false;
        }
        if !self.is_known() || !kernel::shows_processes() {
            return false;
        }
        let Some(table) = Mapping::of(std::ptr::from_ref(self).addr()) else { return false };
        for place in 0..self.top.load(Ordering::Acquire) as usize {
            let seen = self.lives[place].load(Ordering::Acquire);
            let known = is(seen, State::Living) || is(seen, State::Unborn);
            if !known || table.is_in(seen as u32) {
                continue;
            }
            // Until it is cleared the place is this process's.
            let mine = life(State::Unborn, kernel::process_id());
            let taken =
                self.lives[place].compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                self.clear(place);
            }
        }
        if self.crowded.load(Ordering::Acquire) {
            return false;
        }
        for (n, slots) in slots.chunks_exact(64).enumerate() {
            // In this order: who holds a slot now, and is not seen below, has joined since.
            let seen: [_; 64] = std::array::from_fn(|slot| slots[slot].tenure.see());
            let held = self.held_by_anybody(n);
            for (bit, (slot, seen)) in slots.iter().zip(seen).enumerate() {
                if held >> bit & 1 == 0 && seen.holders() > 0 {
                    slot.tenure.end(seen);
                }
            }
        }
        true
    }

    /// One bit for each of 64 slots.
    fn held_by_anybody(&self, word: usize) -> u64 {
        let top = self.top.load(Ordering::Acquire) as usize;
        let places = (0..top).filter(|place| self.holding[*place].load(Ordering::Acquire));
        places.fold(0, |all, place| all | self.held[place][word].load(Ordering::Acquire))
    }
}

/// The family's table as `/proc` shows it in the memory of each of its processes: the line that tells of it.
struct Mapping {
    line: [u8; Self::MOST],
    len: usize,
}

impl Mapping {
    const MOST: usize = 128;

    /// The mapping that contains an address of this process's.
    fn of(address: usize) -> Option<Self> {
        let mut found = None;
        lines(kernel::process_id(), |line| {
            let range = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            let mut ends = range.split(|byte| *byte == b'-').map(hexadecimal);
            let (from, to) = (ends.next().flatten(), ends.next().flatten());
            if from.is_some_and(|from| from <= address) && to.is_some_and(|to| address < to) {
                let mut kept = Self { line: [0; Self::MOST], len: line.len() };
                kept.line[..line.len()].copy_from_slice(line);
                found = Some(kept);
            }
            found.is_none()
        })?;
        found
    }

    /// Whether a process has it; also if that cannot be known.
    fn is_in(&self, pid: u32) -> bool {
        if !kernel::exists(pid) {
            return false;
        }
        let mut found = false;
        let known = lines(pid, |line| {
            found = line == &self.line[..self.len];
            !found
        });
        found || known.is_none()
    }
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Tells `take` the lines of `/proc/<pid>/maps`, as far as they are of interest, until it says no. `None`: they cannot be read. Needs no memory: it may be the
/// program's `fork` that asks.
fn lines(pid: u32, mut take: impl FnMut(&[u8]) -> bool) -> Option<()> {
    let file = kernel::open_text(format_args!("/proc/{pid}/maps"))?;
    let (mut buffer, mut len, mut told) = ([0u8; 4096], 0, None);
    loop {
        let read = kernel::call!(SYS_read, file, buffer[len..].as_mut_ptr(), buffer.len() - len);
        let Ok(count) = read else { break };
        if count == 0 {
            // What has no memory any more is ending, or was never a program's.
            told = Some(());
            break;
        }
        len += count;
        let mut from = 0;
        let mut go_on = true;
        while let Some(end) = buffer[from..len].iter().position(|byte| *byte == b'\n') {
            let line = &buffer[from..from + end.min(Mapping::MOST)];
            from += end + 1;
            go_on = take(line);
            if !go_on {
                break;
            }
        }
        if !go_on {
            told = Some(());
            break;
        }
        buffer.copy_within(from..len, 0);
        len -= from;
        // A path longer than the buffer: the rest of its line is of no interest.
        if len == buffer.len() {
            len = 0;
        }
    }
    let _ = kernel::call!(SYS_close, file);
    told
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read, Write};
    use std::time::{Duration, Instant};

    use crate::slot::{self, SLOTS};

    /// A child of fork that holds `own` of its parent's slots and `more` besides. When it is told to, it becomes another program, or ends without a word.
    fn child(own: &[u32], more: usize, becomes_another: bool) -> (i32, PipeWriter) {
        let (mut ready, mut tells) = std::io::pipe().unwrap();
        let (mut told, go) = std::io::pipe().unwrap();
        slot::before_fork(own.iter().copied());
        // SAFETY: the child uses atomics and pipes only, and then is a child no more.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            slot::after_fork_in_child();
            drop(go);
            let all = (0..more).all(|_| slot::allocate().is_some());
            let _ = tells.write_all(&[u8::from(all)]);
            let _ = told.read(&mut [0]);
            if becomes_another {
                let words = [c"sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null()];
                // SAFETY: a program and its words, which end with null.
                unsafe { libc::execvp(words[0], words.as_ptr()) };
            }
            // SAFETY: nothing of this process is needed any more.
            unsafe { libc::_exit(1) };
        }
        slot::after_fork_in_parent();
        let mut said = [0];
        ready.read_exact(&mut said).unwrap();
        assert_eq!(said, [1]);
        (pid, go)
    }

    #[test]
    #[cfg_attr(miri, ignore = "forks")]
    fn what_processes_held_that_are_gone_is_free_again() {
        const OWN: usize = 100;
        const THEIRS: usize = 20_000;
        let _alone = slot::tests::fresh_table();
        let mut own: Vec<_> = std::iter::from_fn(slot::allocate).take(OWN).collect();
        for becomes_another in [false, true] {
            let (pid, go) = child(&own[..OWN], THEIRS, becomes_another);
            own.extend(std::iter::from_fn(slot::allocate));
            assert_eq!(own.len(), SLOTS - THEIRS, "nothing of a living process is free");
            drop(go);
            let limit = Instant::now() + Duration::from_secs(30);
            while own.len() < SLOTS {
                assert!(Instant::now() < limit, "{} slots are not free", SLOTS - own.len());
                own.extend(slot::allocate());
            }
            assert_eq!(slot::allocate(), None);
            let mut distinct = own.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), SLOTS, "none was given twice");
            own.drain(OWN..).for_each(slot::release);
            // SAFETY: a child of this process's that was not waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
        own.into_iter().for_each(slot::release);
    }
}
