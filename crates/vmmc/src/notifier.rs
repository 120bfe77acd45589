//! The thread that runs notification handlers.

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
    Remove { number: u64, removed: SyncSender<()> },
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { number, .. } => write!(f, "Add({number})"),
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

    /// When it returns, the handler does not run and never will, unless it is the handler itself that calls.
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

fn run(shared: &Shared, poller: Poller) {
    *lock(&shared.thread) = Some(std::thread::current().id());
    let mut handlers: HashMap<u64, (Arc<Doorbell>, Handler)> = HashMap::new();
    loop {
        let Ok(ready) = poller.wait(None) else { return };
        for (number, _) in ready {
            if number == WAKE {
                shared.wake.drain();
                for command in std::mem::take(&mut *lock(&shared.commands)) {
                    match command {
                        Command::Add { number, doorbell, handler } => {
                            // Fails only when memory is exhausted; then the notifications wait in the mailbox.
                            let _ = poller.add(doorbell.event_fd(), number, Readiness::READ);
                            handlers.insert(number, (doorbell, handler));
                        }
                        Command::Remove { number, removed } => {
                            if let Some((doorbell, _)) = handlers.remove(&number) {
                                poller.remove(doorbell.event_fd());
                            }
                            let _ = removed.send(());
                        }
                        Command::Stop => return,
                    }
                }
                continue;
            }
            let Some((doorbell, handler)) = handlers.get_mut(&number) else { continue };
            // One at a time, so that a busy export does not keep the others waiting; the event stays readable.
            let Some(notification) = doorbell.take() else { continue };
            let ran = catch_unwind(AssertUnwindSafe(|| handler(notification)));
            if ran.is_err()
                && let Some((doorbell, _)) = handlers.remove(&number)
            {
                // A handler that panicked is not run again; the others are not to suffer for it.
                poller.remove(doorbell.event_fd());
            }
        }
    }
}
