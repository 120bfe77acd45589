//! How a blocking call on one lifted connection waits: spin a little, announce, look again, sleep in the kernel on
//! both the bell and the TCP connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vmmc::stream::{CLOSED, HAND_YOURSELF, HANDED, announce};

use crate::busy::Stay;
use crate::kernel::{self, Errno, Outcome};
use crate::local::{self, Bed, Ends, Local, Pin};
use crate::lock::Lock;
use crate::route::Sleep;
use crate::slot::{self, Slot, Way};
use crate::{
    board, busy, descriptor, epoll, explain, lift, lower, policy, rest, route, signals, spin,
    thread, transmit,
};

/// A direction of a connection, seen from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

impl Direction {
    pub(crate) fn lock(self, slot: &Slot) -> &Lock {
        match self {
            Self::In => &slot.inward.lock,
            Self::Out => &slot.outward.lock,
        }
    }

    pub(crate) fn in_flight(self, slot: &Slot) -> &AtomicU32 {
        match self {
            Self::In => &slot.receiving,
            Self::Out => &slot.sending,
        }
    }

    /// This thread goes to sleep on several connections, or has slept. One that sleeps on this alone goes before it.
    pub(crate) fn doze_off(self, slot: &Slot) {
        let asleep = self.asleep(slot);
        let _ = asleep.compare_exchange(0, thread::id(), Ordering::SeqCst, Ordering::Relaxed);
    }

    /// See [`Direction::doze_off`].
    pub(crate) fn wake_up(self, slot: &Slot) {
        let asleep = self.asleep(slot);
        if asleep.load(Ordering::Relaxed) == thread::id() {
            asleep.store(0, Ordering::Relaxed);
        }
    }

    /// By which the peer knows that a thread sleeps.
    fn announcement(self, ends: Ends) -> &'static AtomicU32 {
        match self {
            Self::In => &ends.theirs.reader_waiting,
            Self::Out => &ends.theirs.writer_waiting,
        }
    }

    fn asleep(self, slot: &Slot) -> &AtomicU32 {
        match self {
            Self::In => &slot.receiver_asleep,
            Self::Out => &slot.sender_asleep,
        }
    }

    /// Whether a call in this direction would find something to do in the ring.
    fn ready(self, slot: &Slot, ends: Ends) -> bool {
        match self {
            Self::In => {
                slot.inward.way() != Way::Lowered && slot.inward.stream.stirred(ends.mine)
                    || slot.deaf.load(Ordering::SeqCst)
            }
            Self::Out => slot.outward.way() == Way::Ring && can_send(slot, ends),
        }
    }
}

/// One call's waiting; its time limit is the socket's own, read when the call first has to sleep.
#[derive(Debug)]
pub(crate) struct Wait {
    fd: i32,
    index: u32,
    direction: Direction,
    limit: Limit,
    /// The last sleep was ended by the bell, which says so until it is silenced. It may have been rung for something
    /// older than the announcement that stands.
    rung: bool,
    /// Bytes that have arrived and are not enough.
    too_few: usize,
    /// When the sleep began, if that is measured.
    since: Option<u64>,
    /// Counted among the calls that are under way ([`Slot::receiving`]).
    counted: bool,
    begun: bool,
    /// Noted as a guest of the connection's ([`crate::busy`]).
    stays: bool,
    /// The program has closed the number that it gave, and may use it again.
    moved: bool,
    /// It did so before the first look.
    misled: bool,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    NotAsked,
    None,
    Until(Instant),
}

impl Wait {
    pub(crate) fn new(fd: i32, index: u32, direction: Direction) -> Self {
        Self {
            fd,
            index,
            direction,
            limit: Limit::NotAsked,
            rung: false,
            too_few: 0,
            since: None,
            counted: false,
            begun: false,
            stays: false,
            moved: false,
            misled: false,
        }
    }

    /// The call looks at the connection, whose lock it has taken: whether for the first time. An error: another thread has closed it.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, Errno> {
        if (self.begun || !thread::alone()) && self.has_lost_number() {
            self.renumber(busy::number_of_guest(self.fd, self.index, self.direction))?;
        }
        Ok(!std::mem::replace(&mut self.begun, true))
    }

    /// Whether the number is the connection's no more.
    #[inline]
    fn has_lost_number(&self) -> bool {
        descriptor::connection(self.fd) != Some(self.index)
    }

    #[cold]
    fn renumber(&mut self, number: Option<i32>) -> Result<(), Errno> {
        self.misled = number.is_none() && !self.begun;
        let number = number.ok_or(Errno(libc::EBADF))?;
        self.moved |= number != self.fd;
        self.fd = number;
        Ok(())
    }

    /// Whether the number meant something else when the call first looked: it is one on that, and fails here only where it cannot be made again.
    pub(crate) fn is_misled(&self) -> bool {
        self.misled
    }

    /// The call will look again, and lets go of the lock until then.
    #[inline]
    pub(crate) fn stay(&mut self) {
        self.stays = true;
        busy::enter(self.fd, self.index, Stay::Moving(self.direction));
    }

    /// Counts the call among those under way, or no longer.
    fn count(&mut self, slot: &Slot, on: bool) {
        if std::mem::replace(&mut self.counted, on) != on {
            route::count(slot, self.direction, if on { 1 } else { u32::MAX });
        }
    }

    /// So many bytes have arrived; only more are news.
    pub(crate) fn for_more_than(&mut self, len: usize) {
        self.too_few = len;
    }

    fn ready(&self, slot: &Slot, ends: Ends) -> bool {
        self.direction.ready(slot, ends)
            && (self.too_few == 0
                || slot.deaf.load(Ordering::SeqCst)
                || slot.inward.stream.stirred_beyond(ends.mine, self.too_few))
    }

    /// Waits without sleeping; `None` when it is worth to look again, else the sleep that is due, or the error that the
    /// call has to give.
    #[cold]
    pub(crate) fn sleep(&mut self) -> Result<Option<Sleep>, Errno> {
        let slot = slot::get(self.index);
        let local = local::get(self.index);
        if !slot.ready.load(Ordering::Relaxed) {
            lift::retry_ready(self.index, slot);
        }
        if self.spin(slot, local) {
            return Ok(None);
        }
        // One of many threads that each ring of its bell wakes: it gets a bell of its own.
        if local.is_crowded() && lower::park(self.fd, self.index) {
            return Ok(None);
        }
        let most = rest::before_sleep();
        // Before the look whether there is a ring: this side tells nobody of a later one under a sleep that knows of none.
        self.count(slot, true);
        let sleep = self.choose(slot, local, most);
        if !matches!(sleep, Ok(Some(_))) {
            self.count(slot, false);
        }
        sleep
    }

    /// Looks for a bounded time; true if something may be there.
    fn spin(&self, slot: &Slot, local: &Local) -> bool {
        let Some(pin) = local.pin() else { return false };
        let ends = pin.ends();
        let start = explain::clock();
        let spun = match self.direction {
            Direction::In if slot.inward.way() == Way::Ring => spin::until(
                || ends.mine.cpu.load(Ordering::Relaxed),
                || slot.inward.stream.stirred_beyond(ends.mine, self.too_few),
            ),
            Direction::Out if slot.outward.way() == Way::Ring => {
                spin::until(|| ends.mine.cpu.load(Ordering::Relaxed), || can_send(slot, ends))
            }
            _ => false,
        };
        if let Some(start) = start {
            board::spun(self.index, thread::ticks().wrapping_sub(start));
        }
        spun
    }

    /// The sleep that is due, for `most` at the longest; none if something has come.
    fn choose(
        &mut self,
        slot: &Slot,
        local: &Local,
        most: Option<Duration>,
    ) -> Result<Option<Sleep>, Errno> {
        let Some(pin) = local.pin() else {
            let events = if self.direction == Direction::In {
                libc::POLLIN | libc::POLLRDHUP
            } else {
                libc::POLLOUT
            };
            return self.on(-1, events, most).map(Some);
        };
        transmit::say_where(pin.ends());
        self.doze(slot, local, &pin, most)
    }

    fn doze(
        &mut self,
        slot: &Slot,
        local: &Local,
        pin: &Pin<'_>,
        most: Option<Duration>,
    ) -> Result<Option<Sleep>, Errno> {
        let ends = pin.ends();
        let flag = self.direction.announcement(ends);
        let way = match self.direction {
            Direction::In => slot.inward.way(),
            Direction::Out => slot.outward.way(),
        };
        let bell = local.bed(pin);
        match bell {
            Bed::Own(_) if std::mem::take(&mut self.rung) || flag.load(Ordering::Relaxed) == 0 => {
                silence(self.index, ends, &[self.direction], || self.ready(slot, ends));
            }
            Bed::Own(_) => {}
            Bed::Ear(ear) => kernel::hush(ear),
        }
        self.direction.asleep(slot).store(thread::id(), Ordering::SeqCst);
        announce(flag);
        // Who takes the number away from now on rings the bell.
        let has_moved = || busy::number(self.fd, self.index) != Some(self.fd);
        if self.ready(slot, ends) || bell.is_gone() || self.has_lost_number() && has_moved() {
            self.direction.asleep(slot).store(0, Ordering::SeqCst);
            return Ok(None);
        }
        let handover = way == Way::Handover && self.direction == Direction::Out;
        // To the kernel a socket that does not listen has always ended: of the peer's end the service tells.
        let deaf = way == Way::Ring
            && self.direction == Direction::Out
            && slot.deaf.load(Ordering::Relaxed);
        if handover || deaf {
            lift::progress();
        }
        let tcp = match (self.direction, way) {
            (Direction::In, _) => libc::POLLIN | libc::POLLRDHUP,
            (Direction::Out, Way::Ring) if deaf => 0,
            (Direction::Out, Way::Ring) => libc::POLLRDHUP,
            (Direction::Out, Way::Handover) => {
                let ended = ends.mine.tail.load(Ordering::Acquire) & vmmc::stream::FIN != 0;
                if ended { 0 } else { libc::POLLRDHUP }
            }
            (Direction::Out, _) => libc::POLLOUT,
        };
        board::slept(self.index);
        self.since = explain::clock();
        let soon = match () {
            () if handover => Some(Duration::from_millis(2)),
            () if deaf => Some(bell.patience().unwrap_or(DEAF)),
            () => bell.patience(),
        };
        // Nobody rings when what the peer holds back can be read after all.
        let corked = ends.mine.corked_for().filter(|_| self.direction == Direction::In);
        let most = [soon.or(most), corked].into_iter().flatten().min();
        self.on(bell.number(), tcp, most).map(Some)
    }

    fn on(&mut self, bell: i32, tcp: i16, most: Option<Duration>) -> Result<Sleep, Errno> {
        let fds = [(bell, libc::POLLIN), (self.fd, tcp)].map(|(fd, events)| libc::pollfd {
            fd,
            events,
            revents: 0,
        });
        Ok(Sleep { fds, timeout: [self.limit()?, most].into_iter().flatten().min() })
    }

    /// The sleep has ended: look again, or give up with an error. `moved` bytes were moved before.
    pub(crate) fn woken(
        &mut self,
        sleep: &Sleep,
        outcome: Outcome,
        moved: usize,
    ) -> Result<(), Errno> {
        if let Some(since) = self.since.take() {
            board::asleep(self.index, thread::ticks().wrapping_sub(since));
        }
        let slot = slot::get(self.index);
        // As long as the call counts the place is no other connection's.
        let number = busy::number(self.fd, self.index);
        self.count(slot, false);
        self.direction.wake_up(slot);
        match outcome {
            // A call that has moved bytes or has a time limit is never restarted.
            Err(Errno::INTR)
                if moved == 0 && !matches!(self.limit, Limit::Until(_)) && handlers_restart() =>
            {
                signals::forget_handled();
            }
            Err(error) => return Err(error),
            Ok(_) => {
                self.rung = sleep.fds[0].revents != 0;
                if sleep.fds[1].revents & !libc::POLLOUT != 0 {
                    slot.look.store(true, Ordering::Release);
                }
            }
        }
        if number != Some(self.fd) {
            self.renumber(number)?;
        }
        Ok(())
    }

    /// The time limit begins anew.
    pub(crate) fn renew(&mut self) {
        self.limit = Limit::NotAsked;
    }

    /// Under which number the call goes on.
    pub(crate) fn number(&self) -> i32 {
        self.fd
    }

    /// Whether that is another than the program gave: the kernel cannot do its call for it.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved
    }

    /// The call is over.
    #[inline]
    pub(crate) fn leave(&self) {
        if self.stays {
            busy::leave(self.index, Stay::Moving(self.direction));
        }
    }

    /// What is left of the socket's `SO_RCVTIMEO` or `SO_SNDTIMEO`; an error when it has run out.
    fn limit(&mut self) -> Result<Option<Duration>, Errno> {
        if let Limit::NotAsked = self.limit {
            let name =
                if self.direction == Direction::In { libc::SO_RCVTIMEO } else { libc::SO_SNDTIMEO };
            let time = kernel::option::<libc::timeval>(self.fd, libc::SOL_SOCKET, name);
            let time = time
                .map(|t| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000))
                .unwrap_or_default();
            self.limit =
                if time.is_zero() { Limit::None } else { Limit::Until(Instant::now() + time) };
        }
        match self.limit {
            Limit::Until(end) => match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Ok(Some(left)),
                _ => Err(Errno::AGAIN),
            },
            _ => Ok(None),
        }
    }
}

/// After what time a writer that does not listen looks for mail again.
const DEAF: Duration = Duration::from_millis(50);

/// Whether a sleeping writer should try again: half of the ring is free, or the ring is not the way any more.
#[inline]
pub(crate) fn can_send(slot: &Slot, ends: Ends) -> bool {
    let stream = &slot.outward.stream;
    let window = stream.window();
    // The credit comes last: the peer writes it at every read, so that to look at it costs each of them a transfer of its line.
    policy::may_grow(stream.tier())
        || stream.spare(ends.mine) * 2 >= window
        || stream.closed(ends.theirs)
        || slot.finished.load(Ordering::Relaxed)
        || ends.mine.told(CLOSED)
}

/// Takes back what the bell still says from before, for a thread that is about to sleep, but does not if it has `found` something. All
/// who sleep on the connection share the bell: if other threads, or processes of the family, were rung for, they may not have looked yet, and
/// are rung again. It may have been for less than they wait for, or another has taken that: as the peer takes them to be awake, they are
/// announced anew. In the directions that are the thread's `own` others are rung where it has found something.
pub(crate) fn silence(index: u32, ends: Ends, own: &[Direction], found: impl Fn() -> bool) {
    let (slot, local) = (slot::get(index), local::get(index));
    local.silence();
    let both = [Direction::In, Direction::Out];
    if !thread::alone() || slot.tenure.holders() != 1 {
        if found() {
            local.ring_own();
        }
        let others = both.into_iter().filter(|direction| !own.contains(direction));
        others.for_each(|other| rouse(other, slot, local, ends));
    }
    let announce_all = || both.into_iter().for_each(|way| announce(way.announcement(ends)));
    if epoll::sleeps_beside_news(index, announce_all) {
        local.ring_own();
        let_look(|| true);
    }
}

/// Announces anew who sleeps in a direction, and rings for them if there is something.
fn rouse(direction: Direction, slot: &Slot, local: &Local, ends: Ends) {
    let sleeper = direction.asleep(slot).load(Ordering::SeqCst);
    let known = sleeper != 0 && sleeper != thread::id();
    // The one that is known may have left, and not the others.
    if !known && direction.in_flight(slot).load(Ordering::SeqCst) == 0 {
        return;
    }
    announce(direction.announcement(ends));
    if !direction.ready(slot, ends) {
        return;
    }
    if known && !kernel::exists(sleeper) {
        return direction.asleep(slot).store(0, Ordering::SeqCst);
    }
    local.ring_own();
    let_look(|| direction.ready(slot, ends));
}

/// Gives those who were rung the processor, and time if there is `still` something for them: they may have less of a priority, or be there no
/// more, having left by `longjmp`, and the bell that says so keeps this thread awake too.
fn let_look(still: impl Fn() -> bool) {
    kernel::give_way();
    if still() {
        kernel::pause(Duration::from_micros(100));
    }
}

/// Whether a peer that froze the ring has said how its unread bytes come to TCP.
pub(crate) fn handover_answered(ends: Ends) -> bool {
    [HANDED, HAND_YOURSELF, CLOSED].into_iter().any(|flag| ends.mine.told(flag))
}

/// After a signal that interrupted a sleep: would the native call have gone on? The kernel knows, per handler. Which of them ran is not
/// known where they were installed past the C library, or are its own: then the call is interrupted if there are handlers of both kinds
/// among those, which programs with such a handler expect.
fn handlers_restart() -> bool {
    let handled = signals::handled();
    (1..=64).filter(|signal| handled == 0 || handled >> (signal - 1) & 1 != 0).all(|signal| {
        kernel::signal_action(signal).is_none_or(|action| {
            // One that is called once only is gone; its flags are not.
            let others = [libc::SIG_DFL, libc::SIG_IGN, signals::door()];
            let passes_by = !others.contains(&action.handler);
            handled == 0 && !passes_by || action.flags & libc::SA_RESTART as usize != 0
        })
    })
}
