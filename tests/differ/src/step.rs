//! What a program is made of, and how a step reads as a line for the player that takes it.

use std::fmt;

/// A process of the program: an index into [`NAMES`].
pub(crate) type Actor = usize;

/// A place in a process's table of descriptors.
pub(crate) type Place = usize;

/// The two that hold the connections at the start, and two that only `fork` brings.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Places in a table; the player has as many.
pub(crate) const PLACES: usize = 12;

/// One step of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub(crate) by: Actor,
    pub(crate) action: Action,
}

/// Names of flags or events, as the player knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) Vec<&'static str>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Send {
        place: Place,
        call: &'static str,
        count: usize,
        flags: Names,
        stamp: u32,
    },
    Receive {
        place: Place,
        call: &'static str,
        count: usize,
        flags: Names,
    },
    /// Sending in place, in two steps: space is lent now, and sent by [`Action::Commit`].
    Reserve {
        place: Place,
        count: usize,
    },
    Commit {
        place: Place,
        count: usize,
        stamp: u32,
    },
    /// Receiving in place, in two steps: what is there is lent now, and taken by [`Action::Release`].
    Borrow {
        place: Place,
        count: usize,
    },
    Release {
        place: Place,
        count: usize,
    },
    Stream {
        place: Place,
        to: Actor,
        into: Place,
        count: usize,
        pieces: [usize; 2],
        stamp: u32,
    },
    Poll {
        call: &'static str,
        wait: bool,
        wanted: Vec<(Place, Names)>,
    },
    EpollCreate {
        place: Place,
    },
    EpollCtl {
        set: Place,
        what: &'static str,
        place: Place,
        events: Names,
    },
    EpollWait {
        set: Place,
        call: &'static str,
        wait: bool,
    },
    Shutdown {
        place: Place,
        what: &'static str,
    },
    Linger {
        place: Place,
        on: bool,
    },
    Ask {
        place: Place,
        what: &'static str,
    },
    Close {
        place: Place,
    },
    Dup {
        call: &'static str,
        from: Place,
        to: Place,
    },
    Nonblocking {
        place: Place,
        way: &'static str,
        on: bool,
    },
    Pass {
        place: Place,
        to: Actor,
        into: Place,
    },
    Fork {
        child: Actor,
    },
    Exec,
    Spawn,
    Leave {
        how: &'static str,
    },
    Signal {
        to: Actor,
    },
    /// Begins a call that has to sleep; then others take the steps that wake it.
    Sleep {
        call: Box<Action>,
        wakers: Vec<Step>,
    },
}

impl Names {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("0") } else { f.write_str(&self.0.join("|")) }
    }
}

/// The line for the player; what a conductor makes of several lines is written as if it were one.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Send { place, call, count, flags, stamp } => {
                write!(f, "send {place} {call} {count} {flags} {stamp}")
            }
            Action::Receive { place, call, count, flags } => {
                write!(f, "receive {place} {call} {count} {flags}")
            }
            Action::Reserve { place, count } => write!(f, "reserve {place} {count}"),
            Action::Commit { place, count, stamp } => write!(f, "commit {place} {count} {stamp}"),
            Action::Borrow { place, count } => write!(f, "borrow {place} {count}"),
            Action::Release { place, count } => write!(f, "release {place} {count}"),
            Action::Stream { place, to, into, count, pieces: [out, _], stamp } => {
                write!(f, "out {place} {count} {out} {stamp} (to {} {into})", NAMES[*to])
            }
            Action::Poll { call, wait, wanted } => {
                write!(f, "poll {call} {}", if *wait { -1 } else { 0 })?;
                wanted.iter().try_for_each(|(place, events)| write!(f, " {place} {events}"))
            }
            Action::EpollCreate { place } => write!(f, "epoll_create {place}"),
            Action::EpollCtl { set, what, place, events } => {
                write!(f, "epoll_ctl {set} {what} {place} {events}")
            }
            Action::EpollWait { set, call, wait } => {
                write!(f, "epoll_wait {set} {call} {}", if *wait { -1 } else { 0 })
            }
            Action::Shutdown { place, what } => write!(f, "shutdown {place} {what}"),
            Action::Linger { place, on } => write!(f, "linger {place} {} 0", i32::from(*on)),
            Action::Ask { place, what } => write!(f, "ask {place} {what}"),
            Action::Close { place } => write!(f, "close {place}"),
            Action::Dup { call, from, to } => write!(f, "dup {call} {from} {to}"),
            Action::Nonblocking { place, way, on } => {
                write!(f, "nonblocking {place} {way} {}", i32::from(*on))
            }
            Action::Pass { place, to, into } => {
                write!(f, "pass {place} {} (into {into})", NAMES[*to])
            }
            Action::Fork { child } => write!(f, "fork {}", NAMES[*child]),
            Action::Exec => f.write_str("exec"),
            Action::Spawn => f.write_str("spawn"),
            Action::Leave { how } => write!(f, "leave {how}"),
            Action::Signal { to } => write!(f, "signal {}", NAMES[*to]),
            Action::Sleep { call, wakers } => {
                write!(f, "{call}; sleeps until")?;
                wakers.iter().try_for_each(|step| write!(f, " [{step}]"))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", NAMES[self.by], self.action)
    }
}
