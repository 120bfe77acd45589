//! Connections that are not lifted now: until when, and those that never will be.

use std::sync::atomic::Ordering;

use vmmc::PairError;

use crate::layer::Structure;
use crate::slot::{self, Phase, Slot, Why};
use crate::{bells, board, local, park};

/// Descriptors are short: the connection is tried again a second later, when others may have made room.
pub(super) fn await_room(index: u32, slot: &Slot) {
    park::want_room();
    slot.put_off_until.store(seconds() + 1, Ordering::Relaxed);
    wait_longer(index, slot, Why::Descriptors);
}

/// Lifting has failed on its way: for good, or until later.
pub(super) fn fail(index: u32, slot: &Slot, why: Why) {
    if why.passes() {
        slot.set_phase(Phase::Tcp);
        try_later(index, slot, why);
    } else {
        stay(index, slot, why);
    }
}

/// As `fail`, after memory was given away for it.
pub(super) fn take_back(structure: &mut Structure, index: u32, why: Why) {
    let (slot, local) = (slot::get(index), local::get(index));
    let numbers = local.bells();
    local.set_bell(-1, None);
    let pair = slot.pair.swap(0, Ordering::Relaxed);
    // SAFETY: the caller has the structure, whose lock guards the parts.
    bells::leave(structure, pair, unsafe { local.parts() }, numbers, false);
    fail(index, slot, why);
}

/// Leaves the connection on TCP for good.
pub(super) fn stay(index: u32, slot: &Slot, why: Why) {
    slot.stay(why);
    board::update(index, slot);
}

/// Leaves the connection on TCP for now, and each time longer: most such never find their other end. Those that have one are
/// shown by both at the same time, however often each was put off: it is a multiple of all shorter periods.
pub(super) fn try_later(index: u32, slot: &Slot, why: Why) {
    const MOST: u32 = 4;
    let times = slot.put_off.load(Ordering::Relaxed).min(MOST);
    slot.put_off.store(times + 1, Ordering::Relaxed);
    // 1, 4, 16, 64, 256 seconds.
    let period = 1 << (2 * times);
    slot.put_off_until.store((seconds() / period + 1) * period, Ordering::Relaxed);
    wait_longer(index, slot, why);
}

/// The real time, which is the same in all containers, in seconds.
pub(crate) fn seconds() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs() as u32)
}

/// Leaves the connection on TCP for now: after more traffic it is tried again.
pub(super) fn wait_longer(index: u32, slot: &Slot, why: Why) {
    slot.set_why(why);
    board::update(index, slot);
}

pub(super) fn hindrance(error: &PairError) -> Why {
    match error {
        // A number above the limit is invalid, not used up.
        PairError::Exhausted(cause)
            if [libc::EMFILE, libc::ENFILE, libc::EINVAL].contains(&cause.raw_os_error()) =>
        {
            Why::Descriptors
        }
        _ => Why::Refused,
    }
}
