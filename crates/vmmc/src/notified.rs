//! Awaiting a notification in any executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use crate::export::Export;
use crate::notification::{Doorbell, Notification, WaitError};

/// The next notification of an export, as a future; see [`Export::notified`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct Notified<'e> {
    export: &'e Export,
    /// Among the futures of the export; 0 before it has waited.
    number: u64,
}

impl<'e> Notified<'e> {
    pub(crate) fn new(export: &'e Export) -> Self {
        Self { export, number: 0 }
    }

    fn doorbell(&self) -> Result<&Arc<Doorbell>, WaitError> {
        self.export.doorbell().ok_or(WaitError::NoNotifications)
    }
}

impl Future for Notified<'_> {
    type Output = Result<Notification, WaitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        if let Some(notification) = self.doorbell()?.take() {
            return Poll::Ready(Ok(notification));
        }
        if self.number == 0 {
            self.export.watch()?;
            self.number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        }
        let doorbell = self.doorbell()?;
        // Registered before the sleep is announced: whoever sees the announcement wakes us.
        doorbell.wakers.set(self.number, context.waker());
        match doorbell.take_or_sleep() {
            Some(notification) => Poll::Ready(Ok(notification)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if self.number != 0
            && let Ok(doorbell) = self.doorbell()
        {
            doorbell.wakers.remove(self.number);
        }
    }
}
