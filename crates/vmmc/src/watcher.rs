//! The thread that reads what the service sends, and finds a new service when it dies.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmmc_os::{Event, OsError, start_thread, wait_readable};

use crate::process::Inner;

/// Starts it; it ends soon after `stop` is signalled, or when the process value is gone.
pub(crate) fn start(inner: &Arc<Inner>, stop: Arc<Event>) -> Result<(), OsError> {
    let inner = Arc::downgrade(inner);
    start_thread("vmmc-watcher", move || watch(&inner, &stop))
}

fn watch(inner: &Weak<Inner>, stop: &Event) {
    while let Some(process) = inner.upgrade() {
        let connection = process.connection();
        connection.pump(&process.mail);
        if connection.is_lost() {
            let start = process.options.start_service && !connection.said_goodbye();
            drop(process);
            if !come_back(inner, stop, start) {
                return;
            }
            continue;
        }
        // Nothing of the process is kept while sleeping, so that dropping the last handle ends it.
        drop(process);
        match wait_readable(&[connection.socket(), stop.as_fd()], None) {
            Ok(ready) if ready & 2 == 0 => {}
            _ => return,
        }
    }
}

/// Tries until a service answers; `false` when the process is gone.
fn come_back(inner: &Weak<Inner>, stop: &Event, start: bool) -> bool {
    let mut pause = Duration::from_millis(5);
    loop {
        match inner.upgrade() {
            Some(process) if process.reconnect(start, true).is_ok() => return true,
            Some(_) => {}
            None => return false,
        }
        if wait_readable(&[stop.as_fd()], Some(pause)) == Ok(1) {
            return false;
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
