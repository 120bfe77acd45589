//! The thread that runs notification handlers, and wakes the futures that await notifications.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use vmmc_os::{Event, OsError, Poller, Readiness, process_id, start_thread};

use crate::notification::{Doorbell, Notification};
use crate::process::lock;

type Handler = Box<dyn FnMut(Notification) + Send>;

/// Notifications of one export handled before it is the next one's turn.
const BUDGET: usize = 16;

/// The owner's side of the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Notifier {
    shared: Arc<Shared>,
    pid: u32,
}

#[derive(Debug)]
struct Shared {
    wake: Event,
    commands: Mutex<Vec<Command>>,
    thread: Mutex<Option<ThreadId>>,
}

enum Command {
    Add { number: u64, doorbell: Arc<Doorbell>, handler: Handler },
    Watch { number: u64, doorbell: Arc<Doorbell> },
    Remove { number: u64, removed: SyncSender<()> },
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { number, .. } => write!(f, "Add({number})"),
            Self::Watch { number, .. } => write!(f, "Watch({number})"),
            Self::Remove { number, .. } => write!(f, "Remove({number})"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

impl Notifier {
    pub(crate) fn start(floor: i32) -> Result<Self, OsError> {
        let shared = Arc::new(Shared {
            wake: Event::new()?.raise(floor)?,
            commands: Mutex::new(Vec::new()),
            thread: Mutex::new(None),
        });
        let poller = Poller::new()?.raise(floor)?;
        poller.add(&shared.wake, WAKE, Readiness::READ)?;
        let of_thread = Arc::clone(&shared);
        start_thread("vmmc-notifier", move || run(&of_thread, poller))?;
        Ok(Self { shared, pid: process_id() })
    }

    pub(crate) fn add(&self, number: u64, doorbell: Arc<Doorbell>, handler: Handler) {
        self.command(Command::Add { number, doorbell, handler });
    }

    /// From now on the export's futures are woken when a notification comes. May be said more than once.
    pub(crate) fn watch(&self, number: u64, doorbell: Arc<Doorbell>) {
        self.command(Command::Watch { number, doorbell });
    }

    /// When it returns, the handler does not run and never will, unless it is the handler itself that calls; and no future is woken.
    pub(crate) fn remove(&self, number: u64) {
        let (removed, done) = sync_channel(1);
        self.command(Command::Remove { number, removed });
        if *lock(&self.shared.thread) != Some(std::thread::current().id()) {
            // An error means that the thread is gone, and the handler with it.
            let _ = done.recv();
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.shared.wake.as_fd().as_raw_fd()
    }

    fn command(&self, command: Command) {
        lock(&self.shared.commands).push(command);
        self.shared.wake.signal();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // A forked child has no such thread, and must not end its parent's.
        if self.pid == process_id() {
            self.command(Command::Stop);
        }
    }
}

const WAKE: u64 = 0;

/// What the thread does for an export.
struct Watched {
    doorbell: Arc<Doorbell>,
    /// Runs after the futures are woken; those look for themselves.
    handler: Option<Handler>,
}

fn run(shared: &Shared, poller: Poller) {
    *lock(&shared.thread) = Some(std::thread::current().id());
    let mut exports: HashMap<u64, Watched> = HashMap::new();
    loop {
        let Ok(ready) = poller.wait(None) else { return };
        for (number, _) in ready {
            if number == WAKE {
                shared.wake.drain();
                for command in std::mem::take(&mut *lock(&shared.commands)) {
                    if !obey(command, &poller, &mut exports) {
                        return;
                    }
                }
                continue;
            }
            let Some(Watched { doorbell, handler }) = exports.get_mut(&number) else { continue };
            doorbell.wakers.wake();
            let Some(handler) = handler else { continue };
            let ran = catch_unwind(AssertUnwindSafe(|| handle(doorbell, handler)));
            if ran.is_err()
                && let Some(Watched { doorbell, .. }) = exports.remove(&number)
            {
                // A handler that panicked is not run again; the others are not to suffer for it.
                poller.remove(doorbell.event_fd());
            }
        }
    }
}

/// A few at a time, so that a busy export does not keep the others waiting.
fn handle(doorbell: &Doorbell, handler: &mut Handler) {
    for _ in 0..BUDGET {
        let Some(notification) = doorbell.take_or_await_edge() else { return };
        handler(notification);
    }
    doorbell.look_again();
}

/// Whether the thread goes on.
fn obey(command: Command, poller: &Poller, exports: &mut HashMap<u64, Watched>) -> bool {
    // Adding fails only when memory is exhausted; then the notifications wait in the mailbox. Edges, because to clear an event
    // is a system call before each sleep, and is not for this thread to do where futures look themselves.
    match command {
        Command::Add { number, doorbell, handler } => {
            let _ = poller.add_edge(doorbell.event_fd(), number);
            exports.insert(number, Watched { doorbell, handler: Some(handler) });
        }
        Command::Watch { number, doorbell } => {
            let _ = poller.add_edge(doorbell.event_fd(), number);
            exports.insert(number, Watched { doorbell, handler: None });
        }
        Command::Remove { number, removed } => {
            if let Some(Watched { doorbell, .. }) = exports.remove(&number) {
                poller.remove(doorbell.event_fd());
            }
            let _ = removed.send(());
        }
        Command::Stop => return false,
    }
    true
}
