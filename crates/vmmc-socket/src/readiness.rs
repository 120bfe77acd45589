//! `poll` and `select` with lifted connections among the descriptors.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use vmmc::stream::announce;

use crate::bells::SharedBell;
use crate::busy::{self, Stay};
use crate::descriptor::{self, Kind};
use crate::epoll;
use crate::kernel::{self, Errno, Outcome};
use crate::local::{self, Bed, Local, Pin};
use crate::route::{InFlight, Step};
use crate::slot::{self, Phase, Way};
use crate::thread::{self, MICROSECOND};
use crate::wait::{self, Direction};
use crate::{armed_poll, explain, lift, lower, receive, rest, signals, spin, transmit};

const IN: i16 = libc::POLLIN | libc::POLLRDNORM;
const OUT: i16 = libc::POLLOUT | libc::POLLWRNORM;
/// What only TCP tells of, whatever is in the rings.
const TCP_ONLY: i16 = libc::POLLPRI | libc::POLLRDHUP;
/// After how long, and then how often, a spinning poll asks the kernel about everything else.
const KERNEL_LOOK: (u64, u64) = (MICROSECOND, 20 * MICROSECOND);

/// What a list comes to that is longer than a process may have descriptors.
const TOO_LONG: Outcome = Err(Errno(libc::EINVAL));

/// On the stack, for as many descriptors as programs poll that have few.
type List<T> = SmallVec<[T; 16]>;

thread_local! {
    /// The connection that was ready last: where its peer runs, the next bytes probably come from.
    static LAST_READY: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// For how long a call may wait. Its clock starts when it begins to wait: most calls find something at once, and need none.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    time: Option<Duration>,
    end: Option<Instant>,
}

impl Limit {
    /// So long; `None`: for ever.
    pub fn new(time: Option<Duration>) -> Self {
        Self { time, end: None }
    }

    /// What is left of it now; `None`: for ever.
    pub fn left(self) -> Option<Duration> {
        match self.end {
            Some(end) => Some(end.saturating_duration_since(Instant::now())),
            None => self.time,
        }
    }

    fn start(&mut self) {
        if self.end.is_none() {
            self.end = self.time.and_then(|time| Instant::now().checked_add(time));
        }
    }

    fn is_zero(self) -> bool {
        self.time == Some(Duration::ZERO)
    }
}

/// What a poll sleeps on for the rings of lifted connections.
#[derive(Default)]
struct Beds {
    bells: List<i32>,
    /// At shared bells, each once, however many of the connections share it.
    ears: List<i32>,
    shared: List<*const SharedBell>,
    /// For how long it may sleep.
    patience: Option<Duration>,
}

impl Beds {
    /// Before the connection is announced. What an ear was rung before that is old.
    fn enter(&mut self, local: &Local, pin: &Pin<'_>) {
        let shared = local.shared(pin).map_or(std::ptr::null(), std::ptr::from_ref);
        if !shared.is_null() && self.shared.contains(&shared) {
            return;
        }
        let bed = local.bed(pin);
        self.lie_for(bed.patience());
        match bed {
            Bed::Own(bell) => self.bells.push(bell),
            Bed::Ear(ear) => {
                self.shared.push(shared);
                kernel::hush(ear);
                self.ears.push(ear);
            }
        }
    }

    /// For no longer than `time`, if it says one.
    fn lie_for(&mut self, time: Option<Duration>) {
        self.patience = [self.patience, time].into_iter().flatten().min();
    }
}

/// Room for a call's own copy of the program's list: from when it waits on, the program may use that for something else, as the kernel
/// copies it when the call begins.
#[derive(Debug, Default)]
pub struct Room(List<libc::pollfd>);

/// A `ppoll` under way.
#[derive(Debug)]
pub struct Polling<'a> {
    fds: &'a mut [libc::pollfd],
    /// Where the answers belong, if `fds` is a copy.
    given: &'a mut [libc::pollfd],
    room: Option<&'a mut Room>,
    limit: &'a mut Limit,
    mask: *const libc::sigset_t,
    /// Place in `fds` and slot of those that are lifted.
    lifted: List<(usize, u32)>,
    /// Slots of those that were, when another thread closed one: it does not end before the call does.
    before: List<u32>,
    /// Of those that are not lifted: while this thread may sleep on such a TCP socket, the connection must not be lifted.
    blind: List<InFlight>,
    /// The last sleep was ended by a bell, which says so until it is silenced.
    rung: bool,
    /// Noted as a guest of the lifted ones ([`crate::busy`]).
    stays: bool,
    question: Question,
    /// The sleep that is due asks no question, just for `fds`.
    plain: bool,
    /// What was left of the time when it began.
    left: Option<Duration>,
}

/// What the kernel is asked; in one place for all questions of a call, as moving it would cost more than filling it in.
#[derive(Debug, Default)]
struct Question {
    /// First the program's own, in their order, then `bells` bells, then ears.
    list: List<libc::pollfd>,
    bells: usize,
    time: Option<Duration>,
    /// So many connections have something already.
    immediate: usize,
    /// Those that are under way on the lifted connections.
    asleep: List<InFlight>,
    /// When it began, if that is measured.
    since: Option<u64>,
}

impl<'a> Polling<'a> {
    /// Nothing is done yet. There is `room` for a copy of the list where it is the program's own.
    ///
    /// # Safety
    /// As long as this is used `mask` is null or points to a signal mask.
    pub unsafe fn new(
        fds: &'a mut [libc::pollfd],
        room: Option<&'a mut Room>,
        limit: &'a mut Limit,
        mask: *const libc::sigset_t,
    ) -> Self {
        Self {
            fds,
            given: &mut [],
            room,
            limit,
            mask,
            lifted: List::new(),
            before: List::new(),
            blind: List::new(),
            rung: false,
            stays: false,
            question: Question::default(),
            plain: false,
            left: None,
        }
    }

    /// Goes on, after a sleep that ended so if there was one. If this does not ask for another, it is over and holds nothing.
    pub fn go(&mut self, slept: Option<Outcome>) -> Step {
        let step = match slept {
            None => self.begin(),
            Some(outcome) => self.woken(outcome),
        };
        if !matches!(step, Step::Sleep) {
            for (given, answer) in self.given.iter_mut().zip(self.fds.iter()) {
                given.revents = answer.revents;
            }
            if self.stays {
                let lifted = self.lifted.iter().map(|(_, index)| index);
                lifted.chain(&self.before).for_each(|index| busy::leave(*index, Stay::Polling));
            }
            empty(&mut self.blind);
            empty(&mut self.lifted);
            empty(&mut self.before);
            empty(&mut self.question.list);
        }
        step
    }

    /// What to poll, and for how long, when a sleep is due.
    pub fn sleep(&mut self) -> (&mut [libc::pollfd], Option<Duration>, *const libc::sigset_t) {
        match self.plain {
            true => (self.fds, self.left, self.mask),
            false => (&mut self.question.list, self.question.time, self.mask),
        }
    }

    /// The call is about to sleep: it has its own list from now on.
    fn keep(&mut self) {
        let Some(Room(copy)) = self.room.take() else { return };
        if copy.try_reserve_exact(self.fds.len()).is_ok() {
            copy.extend_from_slice(self.fds);
            self.given = std::mem::replace(&mut self.fds, copy);
        }
    }

    fn begin(&mut self) -> Step {
        signals::forget_handled();
        self.set_out().unwrap_or(Step::Kernel)
    }

    /// `None`: none of the descriptors concerns the layer.
    fn set_out(&mut self) -> Option<Step> {
        let mut tracked = false;
        for fd in self.fds.iter() {
            match descriptor::kind_called(fd.fd) {
                Kind::Connection(_) => tracked = true,
                // An epoll object that is looked at from outside must be true in the kernel.
                Kind::Set(number) => epoll::lower_all(number),
                _ => {}
            }
        }
        if !tracked {
            return None;
        }
        if crate::layer::has_mail() {
            lift::progress();
        }
        for (n, fd) in self.fds.iter().enumerate() {
            let Some(index) = descriptor::connection_called(fd.fd) else { continue };
            let slot = slot::get(index);
            match (slot.phase() != Phase::Attached)
                .then(|| InFlight::begin(fd.fd, index, slot, Stay::Polling))
                .flatten()
            {
                Some(call) => self.blind.push(call),
                None => self.lifted.push((n, index)),
            }
        }
        // With nothing lifted among them the kernel is asked once, as the program would; unless something else has to be looked after.
        if self.lifted.is_empty() && (self.limit.is_zero() || rest::before_sleep().is_none()) {
            return Some(self.sleep_plainly());
        }
        if self.limit.is_zero() || self.any_rings() {
            match self.kernel() {
                Ok(0) if !self.limit.is_zero() => {}
                outcome => return Some(Step::Done(outcome)),
            }
        }
        self.limit.start();
        let stirred = self.mask.is_null() && !self.lifted.is_empty() && self.spin();
        Some(self.wait(stirred))
    }

    fn sleep_plainly(&mut self) -> Step {
        self.left = self.limit.left();
        self.limit.start();
        self.plain = true;
        Step::Sleep
    }

    /// Another thread has closed a number, and it may be another connection's, or whatever, by now: the kernel too looks at what a number is each time it looks.
    fn set_out_anew(&mut self) -> Step {
        empty(&mut self.blind);
        self.before.extend(std::mem::take(&mut self.lifted).iter().map(|(_, index)| *index));
        self.set_out().unwrap_or_else(|| self.sleep_plainly())
    }

    fn has_lost(&self, n: usize, index: u32) -> bool {
        descriptor::connection(self.fds[n].fd) != Some(index)
    }

    fn has_lost_any(&self) -> bool {
        self.lifted.iter().any(|&(n, index)| self.has_lost(n, index))
    }

    /// Until something is found, or a sleep is due; not before a second look if something `stirred`.
    fn wait(&mut self, mut stirred: bool) -> Step {
        loop {
            if self.has_lost_any() {
                return self.set_out_anew();
            }
            match self.kernel() {
                Ok(0) => {}
                outcome => return Step::Done(outcome),
            }
            if std::mem::take(&mut stirred) {
                continue;
            }
            self.left = self.limit.left();
            self.keep();
            self.prepare(self.left, true);
            if self.question.time != Some(Duration::ZERO) {
                return Step::Sleep;
            }
            let outcome = self.ask();
            if let Some(outcome) = self.after(outcome) {
                return Step::Done(outcome);
            }
        }
    }

    fn woken(&mut self, outcome: Outcome) -> Step {
        let outcome = match outcome {
            _ if self.plain => return Step::Done(outcome),
            TOO_LONG => self.ask(),
            outcome => outcome,
        };
        match self.after(outcome) {
            // Of what was the number's when it went to sleep.
            Some(Ok(_)) if self.has_lost_any() => self.set_out_anew(),
            Some(outcome) => Step::Done(outcome),
            None => self.wait(false),
        }
    }

    /// What a question for all the time that is left comes to, if that ends the call.
    fn after(&mut self, outcome: Outcome) -> Option<Outcome> {
        match self.answer(outcome) {
            Ok(0) if self.left.is_none_or(|left| !left.is_zero()) => None,
            outcome => Some(outcome),
        }
    }

    /// Looks for a bounded time at the rings, and now and then at all else; true if something may be there.
    fn spin(&mut self) -> bool {
        let last = LAST_READY.get();
        let likely = self.lifted.iter().find(|&&(_, index)| index == last).or(self.lifted.first());
        let peer = likely.and_then(|&(_, index)| {
            local::get(index).pin().map(|pin| pin.ends().mine.cpu.load(Ordering::Relaxed))
        });
        let (mut last, mut patience) = (thread::ticks(), KERNEL_LOOK.0);
        let start = explain::clock();
        let found = spin::until(
            || peer.unwrap_or(0),
            || {
                if self.any_rings() {
                    return true;
                }
                let now = thread::ticks();
                if now.wrapping_sub(last) <= patience {
                    return false;
                }
                (last, patience) = (now, KERNEL_LOOK.1);
                self.others_stir()
            },
        );
        explain::spun_since(start);
        found
    }

    /// Whether the kernel has something to say of all that the rings do not tell.
    fn others_stir(&self) -> bool {
        let mut rest = List::from_slice(self.fds);
        for &(n, index) in &self.lifted {
            let slot = slot::get(index);
            if slot.inward.way() == Way::Ring && slot.outward.way() == Way::Ring {
                rest[n].fd = -1;
            }
            rest[n].events = self.of_tcp(n, index, 0);
        }
        rest.iter().any(|fd| fd.fd >= 0)
            && matches!(kernel::poll(&mut rest, Some(Duration::ZERO), std::ptr::null()), Ok(1..))
    }

    fn wanted(&self, n: usize) -> i16 {
        self.fds[n].events | libc::POLLERR | libc::POLLHUP
    }

    fn any_rings(&self) -> bool {
        self.lifted.iter().any(|&(n, index)| self.rings(n, index) != 0)
    }

    /// The wanted events of a lifted connection that its rings tell of.
    fn rings(&self, n: usize, index: u32) -> i16 {
        let fd = self.fds[n].fd;
        let (slot, local) = (slot::get(index), local::get(index));
        let Some(pin) = local.pin() else { return 0 };
        let ends = pin.ends();
        let mut now = epoll::ended(fd, slot, ends) as i16;
        let stream = &slot.inward.stream;
        let unread = match slot.inward.way() {
            Way::Ring if !stream.frozen(ends.mine) => stream.stirred(ends.mine),
            _ => stream.unread(ends.mine) > 0 && receive::reaches_ring(fd, slot, ends),
        };
        if unread {
            now |= IN;
        }
        let room = match slot.outward.way() {
            _ if slot.finished.load(Ordering::Relaxed) => true,
            Way::Ring => transmit::has_room(fd, slot, ends),
            Way::Handover => wait::handover_answered(ends),
            Way::Tcp | Way::Lowered => false,
        };
        if room {
            now |= OUT;
        }
        now & self.wanted(n)
    }

    /// The wanted events of a lifted connection, whoever tells of them.
    fn ready(&self, n: usize, index: u32) -> i16 {
        let fd = self.fds[n].fd;
        let (slot, local) = (slot::get(index), local::get(index));
        let Some(pin) = local.pin() else { return kernel::pending(fd, self.fds[n].events) };
        let ends = pin.ends();
        // The kernel would have room: what a call that sends would wait for, one that asks waits for too.
        if self.fds[n].events & OUT != 0 && slot.outward.way() == Way::Handover {
            lower::await_handover(index);
        }
        let mut now = self.rings(n, index);
        let in_ring = slot.inward.way() == Way::Ring && !slot.inward.stream.frozen(ends.mine);
        if !in_ring || slot.look.load(Ordering::Acquire) {
            now |= epoll::readiness_beside_the_ring(fd, slot, ends) as i16;
        }
        if self.fds[n].events & OUT != 0 && matches!(slot.outward.way(), Way::Tcp | Way::Lowered) {
            now |= match kernel::pending(fd, libc::POLLOUT) & libc::POLLOUT {
                0 => 0,
                _ => OUT,
            };
        }
        // Over both ways, there is room for whatever will be refused.
        if now & libc::POLLHUP != 0 {
            now |= OUT;
        }
        now & self.wanted(n)
    }

    /// What to ask the kernel of the TCP socket of a lifted connection, of which `known` is known.
    fn of_tcp(&self, n: usize, index: u32, known: i16) -> i16 {
        let (slot, local) = (slot::get(index), local::get(index));
        // Of TCP itself only ends and errors are news; its readiness to send always holds.
        let ring_out = matches!(slot.outward.way(), Way::Ring | Way::Handover);
        // Where the peer froze the ring, its next bytes come by TCP.
        let frozen = local.pin().is_some_and(|pin| slot.inward.stream.frozen(pin.ends().mine));
        let ring_in = slot.inward.way() == Way::Ring && !frozen;
        let ended = slot.look.load(Ordering::Relaxed);
        let events = self.fds[n].events;
        events & libc::POLLPRI
            | match (ring_in, ring_out) {
                // It was told already, and is not what the program waits for.
                (true, true) if ended && known == 0 => 0,
                (false, true) if ended && known == 0 => events & !OUT,
                (true, true) => libc::POLLIN | libc::POLLRDHUP,
                (true, false) => events & !IN | libc::POLLRDHUP,
                (false, true) => events & !OUT | libc::POLLIN,
                (false, false) => events,
            }
    }

    /// What the kernel has to tell right now. Fills in the answers.
    fn kernel(&mut self) -> Outcome {
        self.prepare(Some(Duration::ZERO), false);
        let (list, asks_often) = (&self.question.list, self.mask.is_null());
        let known_as_silent = self.question.immediate > 0 && list.iter().all(|fd| fd.fd < 0)
            || asks_often && armed_poll::is_silent(list);
        let outcome = if known_as_silent { Ok(0) } else { self.ask() };
        if asks_often && !known_as_silent && outcome == Ok(0) {
            armed_poll::was_silent(&self.question.list);
        }
        self.answer(outcome)
    }

    fn ask(&mut self) -> Outcome {
        poll_list(&mut self.question.list, self.fds.len(), self.question.time, self.mask)
    }

    /// What to ask the kernel, of the lifted connections by their bells and TCP sockets; with `announced` after telling the
    /// peers that this side sleeps.
    fn prepare(&mut self, left: Option<Duration>, announced: bool) {
        self.question.list.clear();
        let own = self.fds.iter().map(|fd| libc::pollfd { revents: 0, ..*fd });
        self.question.list.extend(own);
        let most = if announced { rest::before_sleep() } else { None };
        let mut immediate = 0;
        let mut beds = Beds::default();
        for &(n, index) in &self.lifted {
            let slot = slot::get(index);
            if !slot.ready.load(Ordering::Relaxed) {
                lift::retry_ready(index, slot);
            }
            let local = local::get(index);
            if announced && local.pin().is_some_and(|p| lower::has_left(slot, p.ends())) {
                lower::follow(self.fds[n].fd, index);
            }
            if announced && local.is_crowded() {
                lower::park(self.fds[n].fd, index);
            }
        }
        // Before the look whether there are rings: nobody is told of later ones under a sleep that knows of none.
        if announced {
            self.stays = true;
            for &(n, index) in &self.lifted {
                busy::enter(self.fds[n].fd, index, Stay::Polling);
                let calls = self.asleep(n, index);
                self.question.asleep.extend(calls);
                directions(self.fds[n].events)
                    .iter()
                    .for_each(|one| one.doze_off(slot::get(index)));
            }
        }
        for &(n, index) in &self.lifted {
            let slot = slot::get(index);
            if announced {
                self.announce(n, index, &mut beds);
            }
            // What TCP has said before is looked at again: it may have been said without being news to this list.
            let known = if slot.look.load(Ordering::Acquire) {
                self.ready(n, index)
            } else {
                self.rings(n, index)
            };
            immediate += usize::from(known != 0);
            let tcp = self.of_tcp(n, index, known);
            self.question.list[n].events = tcp;
            // Who has bytes to read will read them before he can make anything of what else TCP could say, and asks again;
            // unless that is that there is room.
            let room = self.fds[n].events & OUT != 0 && slot.outward.way() != Way::Ring;
            let beside = tcp & self.fds[n].events & TCP_ONLY != 0 || room;
            if known & IN != 0 && !beside {
                self.question.list[n].fd = -1;
                self.fds[n].revents = known;
            }
        }
        let mut left = left;
        if announced {
            self.rung = false;
            left = [left, most, beds.patience].into_iter().flatten().min();
        }
        let time = if immediate > 0 { Some(Duration::ZERO) } else { left };
        let Beds { bells, ears, .. } = beds;
        let heard = |&fd: &i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let question = &mut self.question;
        question.list.extend(bells.iter().chain(&ears).map(heard));
        question.since = explain::clock().filter(|_| time != Some(Duration::ZERO));
        (question.bells, question.time, question.immediate) = (bells.len(), time, immediate);
    }

    /// Fills in what the kernel has said, and what the rings say now.
    fn answer(&mut self, outcome: Outcome) -> Outcome {
        explain::slept_since(self.question.since.take());
        if !self.question.asleep.is_empty() {
            for &(n, index) in &self.lifted {
                directions(self.fds[n].events).iter().for_each(|one| one.wake_up(slot::get(index)));
            }
        }
        empty(&mut self.question.asleep);
        let Question { list, bells, immediate, .. } = &self.question;
        let (given, immediate) = (self.fds.len(), *immediate);
        self.rung |= list[given..given + bells].iter().any(|bell| bell.revents != 0);
        if outcome.is_err() && (immediate == 0 || outcome == TOO_LONG) {
            return outcome;
        }
        for (fd, answer) in self.fds.iter_mut().zip(list) {
            if fd.fd == answer.fd {
                fd.revents = answer.revents;
            }
        }
        for &(n, index) in &self.lifted {
            if self.has_lost(n, index) {
                self.fds[n].revents = 0;
            } else if list[n].fd >= 0 {
                let look = &slot::get(index).look;
                if list[n].revents & !libc::POLLOUT != 0 {
                    look.store(true, Ordering::Release);
                }
                let silent = list[n].revents == 0 && !look.load(Ordering::Acquire);
                self.fds[n].revents =
                    if silent { self.rings(n, index) } else { self.ready(n, index) };
            }
            if self.fds[n].revents != 0 {
                LAST_READY.set(index);
            }
        }
        Ok(self.fds.iter().filter(|fd| fd.revents != 0).count())
    }

    /// Counts this call among those that are under way on the connection.
    fn asleep(&self, n: usize, index: u32) -> impl Iterator<Item = InFlight> + use<> {
        let (fd, slot) = (self.fds[n].fd, slot::get(index));
        let sends = self.fds[n].events & OUT != 0;
        let outward = sends.then(|| InFlight::counted(fd, index, slot, Direction::Out));
        [Some(InFlight::counted(fd, index, slot, Direction::In)), outward].into_iter().flatten()
    }

    fn announce(&self, n: usize, index: u32, beds: &mut Beds) {
        let local = local::get(index);
        let Some(pin) = local.pin() else { return };
        let theirs = pin.ends().theirs;
        beds.enter(local, &pin);
        let (wanted, reader, writer) =
            (self.fds[n].events, &theirs.reader_waiting, &theirs.writer_waiting);
        let due = self.rung
            || wanted & IN != 0 && reader.load(Ordering::Relaxed) == 0
            || wanted & OUT != 0 && writer.load(Ordering::Relaxed) == 0;
        if due && local.shared(&pin).is_none() {
            let own = directions(wanted & !libc::POLLRDHUP);
            wait::silence(index, pin.ends(), &own, || self.rings(n, index) != 0);
        }
        if wanted & (IN | libc::POLLRDHUP) != 0 {
            announce(reader);
            // Nobody rings when what the peer holds back can be read after all.
            beds.lie_for(pin.ends().mine.corked_for());
        }
        if wanted & OUT != 0 {
            announce(writer);
        }
        transmit::say_where(pin.ends());
    }
}

/// In which a thread sleeps that waits for these events.
fn directions(wanted: i16) -> SmallVec<[Direction; 2]> {
    let wants = [(IN | libc::POLLRDHUP, Direction::In), (OUT, Direction::Out)];
    wants.into_iter().filter(|(events, _)| wanted & events != 0).map(|(_, one)| one).collect()
}

/// Drops what is in the list, and its memory where it is not in place.
fn empty<T>(list: &mut List<T>) {
    list.clear();
    if list.spilled() {
        *list = List::new();
    }
}

/// Polls a list whose first `given` entries are the program's. What the layer put behind them may have made it longer than a process
/// may have descriptors: then without the entries that ask for nothing, of which programs with one for each number have many.
fn poll_list(
    list: &mut List<libc::pollfd>,
    given: usize,
    time: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Outcome {
    let outcome = kernel::poll(list, time, mask);
    let at_once = Some(Duration::ZERO);
    if outcome != TOO_LONG || kernel::poll(&mut list[..given], at_once, mask) == TOO_LONG {
        return outcome;
    }
    let mut asked: List<_> = list.iter().copied().filter(|one| one.fd >= 0).collect();
    let outcome = kernel::poll(&mut asked, time, mask);
    for (one, answer) in list.iter_mut().filter(|one| one.fd >= 0).zip(asked) {
        *one = answer;
    }
    outcome
}
