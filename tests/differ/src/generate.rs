//! Random programs: steps are proposed at random, and those stay that the [`World`] admits.

use crate::random::Random;
use crate::step::{Action, Actor, NAMES, Names, PLACES, Place, Step};
use crate::world::{Loan, Object, World};

/// A program: what is there at its start, and its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Each connection's place, and whether it is warmed up until it is lifted.
    pub(crate) warm: Vec<bool>,
    /// Signal handlers restart calls.
    pub(crate) restarts: bool,
    pub(crate) steps: Vec<Step>,
}

const SENDS: &[&str] = &[
    "write", "send", "send", "sendto", "writev", "sendmsg", "sendmmsg", "sendfile", "syscall",
    "in_place",
];
const RECEIVES: &[&str] = &[
    "read", "recv", "recv", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg", "syscall",
    "in_place",
];
/// Calls that take no flags.
const PLAIN: &[&str] = &["write", "writev", "sendfile", "read", "readv"];

impl Program {
    /// The program of this seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let connections = if random.once_in(3) { 2 } else { 1 };
        // The first is always warm: a program of nothing but kernel connections compares the kernel with itself.
        let warm: Vec<bool> = (0..connections).map(|n| n == 0 || !random.once_in(3)).collect();
        let restarts = random.once_in(2);
        let mut world = World::new(&warm, restarts);
        let mut steps = Vec::new();
        let length = random.between(6, 36);
        for _ in 0..20 * length {
            let Some(step) = propose(&mut random, &world) else { continue };
            if !world.admits(&step) {
                continue;
            }
            world.apply(&step);
            steps.push(step);
            if steps.len() == length {
                break;
            }
        }
        steps.extend(inquest(&world));
        Program { warm, restarts, steps }
    }

    /// Those of the steps, by their numbers, that still make sense without the others.
    pub fn keep(&self, numbers: &[usize]) -> Vec<(usize, Step)> {
        let mut world = World::new(&self.warm, self.restarts);
        let mut kept = Vec::new();
        for &number in numbers {
            let Some(step) = self.steps.get(number).filter(|step| world.admits(step)) else {
                continue;
            };
            world.apply(step);
            kept.push((number, step.clone()));
        }
        kept
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Looks at everything that is still open: a difference that no step has met yet shows now.
fn inquest(world: &World) -> Vec<Step> {
    let mut steps = Vec::new();
    for by in (0..NAMES.len()).filter(|by| world.lives(*by)) {
        for place in (0..PLACES).filter(|place| world.end_at(by, *place).is_some()) {
            let wanted = vec![(place, Names(vec!["IN", "OUT", "RDHUP"]))];
            let flags = Names(vec!["DONTWAIT"]);
            for action in [
                Action::Poll { call: "poll", wait: false, wanted },
                Action::Ask { place, what: "fionread" },
                Action::Receive { place, call: "recv", count: 65536, flags: flags.clone() },
                Action::Receive { place, call: "recv", count: 65536, flags },
            ] {
                steps.push(Step { by, action });
            }
        }
    }
    steps
}

fn propose(random: &mut Random, world: &World) -> Option<Step> {
    let living: Vec<Actor> = (0..NAMES.len()).filter(|actor| world.lives(*actor)).collect();
    let by = random.one_of(&living);
    let held: Vec<(Place, Object)> =
        (0..PLACES).filter_map(|place| Some((place, world.at(by, place)?))).collect();
    let ends: Vec<Place> = held
        .iter()
        .filter(|(_, it)| matches!(it, Object::End(_)))
        .map(|(place, _)| *place)
        .collect();
    let sets: Vec<Place> = held
        .iter()
        .filter(|(_, it)| matches!(it, Object::Set(_)))
        .map(|(place, _)| *place)
        .collect();
    let empty: Vec<Place> = (0..PLACES).filter(|place| world.at(by, *place).is_none()).collect();
    if empty.is_empty() {
        return None;
    }
    let free = empty[0];
    let action = match random.between(0, 99) {
        0..=1 if !sets.is_empty() => Action::Close { place: random.one_of(&sets) },
        0..=4 => Action::EpollCreate { place: free },
        5..=24 if !sets.is_empty() => propose_epoll(random, &sets, &ends)?,
        _ if ends.is_empty() => Action::Leave { how: random.one_of(&["exit", "_exit"]) },
        5..=34 if random.once_in(8) => propose_sent_loan(random, world, by, &ends),
        5..=34 => propose_send(random, &ends),
        35..=56 if random.once_in(6) => propose_received_loan(random, world, by, &ends),
        35..=56 => propose_receive(random, &ends),
        57..=63 => propose_poll(random, &ends, false),
        64..=71 => propose_sleep(random, world, by, &ends, &sets)?,
        72..=74 => Action::Ask {
            place: random.one_of(&ends),
            what: random
                .one_of(&["fionread", "at_mark", "error", "flags", "own", "peer", "fionread"]),
        },
        75..=78 => Action::Shutdown {
            place: random.one_of(&ends),
            what: random.one_of(&["write", "write", "write", "read", "both"]),
        },
        79..=82 => Action::Close { place: random.one_of(&held).0 },
        83..=85 => Action::Dup {
            call: random.one_of(&["dup", "dup2", "dup3", "fcntl"]),
            from: random.one_of(&held).0,
            to: if random.once_in(4) { random.one_of(&held).0 } else { free },
        },
        86..=88 => Action::Nonblocking {
            place: random.one_of(&ends),
            way: random.one_of(&["fcntl", "ioctl"]),
            on: !random.once_in(3),
        },
        89 => Action::Linger { place: random.one_of(&ends), on: !random.once_in(3) },
        90 => {
            let to = random.one_of(&living);
            Action::Pass { place: random.one_of(&ends), to, into: free }
        }
        91..=93 => Action::Fork { child: random.between(2, 3) },
        94 if random.once_in(3) => Action::Exec,
        94 if random.once_in(3) => Action::Spawn,
        94..=96 => Action::Leave { how: random.one_of(&["exit", "_exit"]) },
        _ => {
            let to = random.one_of(&living);
            let held_there: Vec<Place> =
                (0..PLACES).filter(|place| world.end_at(to, *place).is_some()).collect();
            Action::Stream {
                place: random.one_of(&ends),
                to,
                into: *held_there.first()?,
                count: random.one_of(&[5_000, 60_000, 300_000, 700_000]),
                pieces: [random.between(1_000, 70_000), random.between(1_000, 70_000)],
                stamp: stamp(random),
            }
        }
    };
    Some(Step { by, action })
}

fn stamp(random: &mut Random) -> u32 {
    random.between(0, 65535) as u32
}

/// Sizes around those at which a ring ends or is exchanged for a larger one come more often.
fn size(random: &mut Random) -> usize {
    match random.between(0, 9) {
        0..=4 => random.between(1, 40),
        5..=7 => random.between(41, 1500),
        8 => random.between(1700, 5000),
        _ => random.between(5001, 24_000),
    }
}

fn propose_send(random: &mut Random, ends: &[Place]) -> Action {
    let place = random.one_of(ends);
    let call = random.one_of(SENDS);
    let mut flags = Vec::new();
    if !PLAIN.contains(&call) {
        for (flag, times) in [("NOSIGNAL", 3), ("DONTWAIT", 4)] {
            if random.once_in(times) {
                flags.push(flag);
            }
        }
    }
    Action::Send { place, call, count: size(random), flags: Names(flags), stamp: stamp(random) }
}

fn propose_receive(random: &mut Random, ends: &[Place]) -> Action {
    let place = random.one_of(ends);
    let call = random.one_of(RECEIVES);
    let mut flags = Vec::new();
    if !PLAIN.contains(&call) {
        for (flag, times) in [("PEEK", 4), ("WAITALL", 5), ("DONTWAIT", 2), ("TRUNC", 16)] {
            if random.once_in(times) {
                flags.push(flag);
            }
        }
    }
    Action::Receive { place, call, count: size(random), flags: Names(flags) }
}

/// Space on loan is sent, if there is any; else some is lent.
fn propose_sent_loan(random: &mut Random, world: &World, by: Actor, ends: &[Place]) -> Action {
    match world.loan_of(by, Loan::Reserved) {
        Some((place, len)) => {
            Action::Commit { place, count: part(random, len), stamp: stamp(random) }
        }
        None => Action::Reserve { place: random.one_of(ends), count: size(random) },
    }
}

fn propose_received_loan(random: &mut Random, world: &World, by: Actor, ends: &[Place]) -> Action {
    match world.loan_of(by, Loan::Borrowed) {
        Some((place, len)) => Action::Release { place, count: part(random, len) },
        None => Action::Borrow { place: random.one_of(ends), count: size(random) },
    }
}

/// Mostly all of it.
fn part(random: &mut Random, len: usize) -> usize {
    if random.once_in(3) { random.between(0, len) } else { len }
}

fn propose_poll(random: &mut Random, ends: &[Place], wait: bool) -> Action {
    let call = random.one_of(&["poll", "poll", "ppoll", "select", "pselect"]);
    let by_select = call.ends_with("select");
    let count = random.between(1, ends.len().min(3));
    let wanted = (0..count).map(|n| {
        // A place twice in one set of select would be one place.
        let place = if by_select || wait { ends[n] } else { random.one_of(ends) };
        let mut events = vec!["IN"];
        if !wait {
            events = if random.once_in(4) { Vec::new() } else { events };
            events.extend((!random.once_in(3)).then_some("OUT"));
            events.extend(random.once_in(5).then_some("PRI"));
        }
        events.extend((!by_select && random.once_in(2)).then_some("RDHUP"));
        (place, Names(events))
    });
    Action::Poll { call, wait, wanted: wanted.collect() }
}

fn propose_epoll(random: &mut Random, sets: &[Place], ends: &[Place]) -> Option<Action> {
    let set = random.one_of(sets);
    if ends.is_empty() || random.once_in(2) {
        let call = random.one_of(&["epoll_wait", "epoll_wait", "epoll_pwait", "epoll_pwait2"]);
        return Some(Action::EpollWait { set, call, wait: false });
    }
    let mut events = Vec::new();
    for (event, times) in [("IN", 1), ("OUT", 3), ("RDHUP", 3), ("ET", 2), ("ONESHOT", 5)] {
        if random.once_in(times) {
            events.push(event);
        }
    }
    if random.once_in(12) {
        events.remove(0);
    }
    Some(Action::EpollCtl {
        set,
        what: random.one_of(&["add", "add", "add", "mod", "mod", "del"]),
        place: random.one_of(ends),
        events: Names(events),
    })
}

/// A call that sleeps, and what wakes it, mostly at the other end.
fn propose_sleep(
    random: &mut Random,
    world: &World,
    by: Actor,
    ends: &[Place],
    sets: &[Place],
) -> Option<Action> {
    let call = match random.between(0, 3) {
        0 if !sets.is_empty() => Action::EpollWait {
            set: random.one_of(sets),
            call: random.one_of(&["epoll_wait", "epoll_pwait", "epoll_pwait2"]),
            wait: true,
        },
        0..=1 => propose_poll(random, ends, true),
        _ => propose_receive(random, ends),
    };
    let others: Vec<(Actor, Place)> = (0..NAMES.len())
        .filter(|other| *other != by)
        .flat_map(|other| (0..PLACES).map(move |place| (other, place)))
        .filter(|(other, place)| world.end_at(*other, *place).is_some())
        .collect();
    if others.is_empty() {
        return None;
    }
    let mut wakers = Vec::new();
    if random.once_in(4) {
        wakers.push(Step { by: random.one_of(&others).0, action: Action::Signal { to: by } });
    }
    // As many as it takes: those that come too late are cut off.
    for _ in 0..4 {
        let (other, place) = random.one_of(&others);
        let action = match random.between(0, 11) {
            0 => Action::Shutdown { place, what: random.one_of(&["write", "both", "read"]) },
            1 => Action::Close { place },
            2 if other >= 2 => Action::Leave { how: "exit" },
            _ => {
                // In one piece: the call may be woken by the first.
                let call = random.one_of(&["write", "send", "writev", "sendmsg", "sendfile"]);
                let (count, flags) = (random.between(1, 1000), Names::default());
                Action::Send { place, call, count, flags, stamp: stamp(random) }
            }
        };
        wakers.push(Step { by: other, action });
    }
    (1..=wakers.len())
        .map(|count| Action::Sleep {
            call: Box::new(call.clone()),
            wakers: wakers[..count].to_vec(),
        })
        .find(|action| world.admits(&Step { by, action: action.clone() }))
}
