//! Asynchronous transfers: posting them, and what runs where.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmmc_proto::Rights;

use crate::Process;
use crate::by_engine::{AtTheQueue, Flying};
use crate::import::Import;
use crate::lanes::AtTheLanes;
use crate::local_engine::LocalEngine;
use crate::operation::{Job, Operation, Order, Ran, Step, Stop, Transfer};
use crate::parcel::Parcel;
use crate::process::{Executor, Inner};
use crate::route::Route;
use crate::transfer::TransferError;

/// The most bytes that are copied at the call, on the caller's core. Waking the engine costs about as much as copying that many.
const AT_THE_CALL: usize = 256 * 1024;

/// Asynchronous transfers.
///
/// **Ownership.** A buffer is handed over, and comes back with the [`Finished`](crate::Finished) end: any owner of bytes will do, such as `Vec<u8>`,
/// `Box<[u8]>`, `[u8; 8]`, for sends also `Arc<[u8]>` or `&'static [u8]`. Dropping a [`Transfer`] is safe at any moment and cancels it.
///
/// **Order.** The asynchronous operations of one import take effect in the order in which they were posted: bytes of an earlier one are
/// visible at the exporter before a signal word of a later one, and before [`Import::flush`] returns. Synchronous calls do not wait for
/// asynchronous ones: `flush` between them, or signal with [`Import::signal_async`]. Between imports there is no order. Over a lane a write waits
/// until fetches before it are over.
///
/// **Where it runs.** On a mapped import, up to 256 KiB are copied at the call if nothing is pending before them: no system call, no lock,
/// no allocation, and the transfer is over. Larger ones are copied by a thread of the library, which starts with the first
/// of them and ends with the [`Process`]; a second one drives the service's queue for write-only imports, and a third the lanes to other
/// nodes, where up to 64 operations are on their way together. A forked child has no such threads: there everything is done at the call. They start in polled mode ([`OpenOptions::watcher`](crate::OpenOptions::watcher)) too. A program
/// that ends does not wait for what is under way: flush before.
///
/// **Back-pressure.** The engine's queue has 64 places. Posting takes no lock, whether there is room or not: an operation that finds none stays with its
/// handle: it is pending, it is neither an error nor does the call wait, and it takes the next place in the order of posting. So what is
/// under way is bounded by the queue, and what waits by the handles that the program keeps; one that is dropped gives its buffer back at once. A
/// producer that is faster than the engine waits for an earlier transfer, and thereby for room:
///
/// ```no_run
/// # fn produce() -> Option<Vec<u8>> { None }
/// # fn example(import: vmmc::Import) -> Result<(), vmmc::TransferError> {
/// let mut under_way = std::collections::VecDeque::new();
/// while let Some(block) = produce() {
///     if under_way.len() == 16 {
///         let oldest: vmmc::Transfer<Vec<u8>> = under_way.pop_front().unwrap();
///         oldest.wait().result?; // or `.await`
///     }
///     under_way.push_back(import.send_async(0, block));
/// }
/// # Ok(())
/// # }
/// ```
impl Import {
    /// Posts a write of `buffer` at `offset`.
    ///
    /// Its end has an error ([`TransferError`]) if not all was written.
    #[inline]
    pub fn send_async<B>(&self, offset: usize, buffer: B) -> Transfer<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        self.post_send(offset, buffer, None)
    }

    /// Posts a write of `buffer` and then of the signal word: whoever loads the word's new value sees these bytes, and those of all
    /// asynchronous sends posted before on this import.
    ///
    /// Its end has an error ([`TransferError`]) if not all was written; then the word was not.
    #[inline]
    pub fn send_signal_async<B>(
        &self,
        offset: usize,
        buffer: B,
        signal_offset: usize,
        value: u64,
    ) -> Transfer<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        self.post_send(offset, buffer, Some((signal_offset, value)))
    }

    /// Posts a write of the signal word at `offset`, a multiple of 8, behind all asynchronous sends of this import.
    #[inline]
    pub fn signal_async(&self, offset: usize, value: u64) -> Transfer<()> {
        if self.route.is_immediate(8) {
            return Transfer::over(self.route.send(offset, &[], Some((offset, value))), ());
        }
        let mut flying = Flying::default();
        self.post((), move |route, _, stop| {
            let piece = [(offset, &[][..])].into_iter();
            // SAFETY: there are no bytes.
            unsafe { route.send_in_steps(&mut flying, piece, Some((offset, value)), stop) }
        })
    }

    /// Posts a read of as many bytes as `buffer` has, from `offset`. Bytes that somebody is writing may come half old, half new.
    ///
    /// Its end has an error ([`TransferError`]) if not all was read; the buffer then holds some old bytes and some new.
    #[inline]
    pub fn fetch_async<B>(&self, offset: usize, mut buffer: B) -> Transfer<B>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let bytes = buffer.as_mut();
        if self.route.is_immediate(bytes.len()) {
            return Transfer::over(self.route.fetch(offset, bytes), buffer);
        }
        let place = (offset, bytes.len());
        if let Err(error) = self.route.check(offset, bytes.len(), Rights::READ) {
            return Transfer::over(Err(error), buffer);
        }
        let mut flying = Flying::default();
        self.post_fetch(buffer, move |route, buffer, stop| {
            // SAFETY: the parcel keeps the bytes where they are, and the operation keeps it for us; `flying` is dropped before it.
            unsafe {
                route.fetch_in_steps(&mut flying, place, move || buffer.get_mut().as_mut(), stop)
            }
        })
    }

    /// Posts a gathering write: each buffer at its own offset, as [`Import::send_vectored`].
    pub fn send_vectored_async<B>(&self, pieces: Vec<(usize, B)>) -> Transfer<Vec<(usize, B)>>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        fn slices<B: AsRef<[u8]>>(
            pieces: &[(usize, B)],
        ) -> impl Iterator<Item = (usize, &[u8])> + Clone {
            pieces.iter().map(|(offset, buffer)| (*offset, buffer.as_ref()))
        }
        if self.route.is_immediate(total(slices(&pieces).map(|(_, bytes)| bytes.len()))) {
            let sent = self.route.send_pieces(slices(&pieces), None, &Stop::never());
            return Transfer::over(sent, pieces);
        }
        let mut flying = Flying::default();
        self.post(pieces, move |route, pieces, stop| {
            // SAFETY: as in `post_long_send`.
            unsafe { route.send_in_steps(&mut flying, slices(pieces.get()), None, stop) }
        })
    }

    /// Posts a scattering read: each buffer from its own offset, as [`Import::fetch_vectored`].
    pub fn fetch_vectored_async<B>(&self, mut pieces: Vec<(usize, B)>) -> Transfer<Vec<(usize, B)>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let route = &self.route;
        let mut checked = route.live();
        let mut bytes = 0usize;
        for (offset, buffer) in &mut pieces {
            let len = buffer.as_mut().len();
            checked = checked.and_then(|()| route.check(*offset, len, Rights::READ));
            bytes = bytes.saturating_add(len);
        }
        if checked.is_err() {
            return Transfer::over(checked, pieces);
        }
        if route.is_immediate(bytes) {
            let mut each = pieces.iter_mut();
            let fetched =
                each.try_for_each(|(offset, buffer)| route.fetch(*offset, buffer.as_mut()));
            return Transfer::over(fetched, pieces);
        }
        let lens: Vec<_> =
            pieces.iter_mut().map(|(at, bytes)| (*at, bytes.as_mut().len())).collect();
        let (mut done, mut flying) = (0, Flying::default());
        self.post_fetch(pieces, move |route, pieces, stop| {
            while let Some(place) = lens.get(done) {
                // SAFETY: as in `fetch_async`.
                let step = unsafe {
                    route.fetch_in_steps(
                        &mut flying,
                        *place,
                        || pieces.get_mut()[done].1.as_mut(),
                        stop,
                    )
                };
                match step {
                    Step::Over(Ok(())) => (done, flying) = (done + 1, Flying::default()),
                    Step::Posted => return Step::Posting,
                    step => return step,
                }
            }
            Step::Over(Ok(()))
        })
    }

    /// Returns when every asynchronous operation posted before on this import is over: what they sent is in the exporter's memory.
    /// A cancelled or dropped one is over too, and writes no more. Synchronous sends are there when they return.
    ///
    /// # Errors
    /// [`TransferError::Revoked`] or [`TransferError::Dead`] if the export is gone by then.
    pub fn flush(&self) -> Result<(), TransferError> {
        self.flush_async().wait().result
    }

    /// [`Import::flush`] as an operation: it is over when all before it are.
    pub fn flush_async(&self) -> Transfer<()> {
        if self.route.pending.load(Ordering::Acquire) == 0 {
            return Transfer::over(self.route.live(), ());
        }
        let order = Order { alone: true, ..self.order() };
        self.post_in_order(order, (), |route, _, _| Step::Over(route.live()))
    }

    #[inline]
    fn post_send<B>(&self, offset: usize, buffer: B, signal: Option<(usize, u64)>) -> Transfer<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let bytes = buffer.as_ref();
        if self.route.is_immediate(bytes.len()) {
            return Transfer::over(self.route.send(offset, bytes, signal), buffer);
        }
        let len = bytes.len();
        self.post_long_send((offset, len), buffer, signal)
    }

    #[cold]
    fn post_long_send<B>(
        &self,
        (offset, len): (usize, usize),
        buffer: B,
        signal: Option<(usize, u64)>,
    ) -> Transfer<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        if let Err(error) = self.route.check(offset, len, Rights::WRITE) {
            return Transfer::over(Err(error), buffer);
        }
        let mut flying = Flying::default();
        self.post(buffer, move |route, buffer, stop| {
            let piece = [(offset, buffer.get().as_ref())].into_iter();
            // SAFETY: the parcel keeps the bytes where they are, and the operation keeps it for us, shared until we are over; `flying` is
            // dropped before it.
            unsafe { route.send_in_steps(&mut flying, piece, signal, stop) }
        })
    }

    #[cold]
    fn post<B: Send + 'static>(
        &self,
        buffer: B,
        work: impl FnMut(&Route, &Parcel<B>, &Stop) -> Step + Send + 'static,
    ) -> Transfer<B> {
        let mut work = work;
        self.post_in_order(self.order(), buffer, move |route, buffer, stop| {
            work(route, buffer, stop)
        })
    }

    #[cold]
    fn post_fetch<B: Send + 'static>(
        &self,
        buffer: B,
        work: impl FnMut(&Route, &mut Parcel<B>, &Stop) -> Step + Send + 'static,
    ) -> Transfer<B> {
        self.post_in_order(Order { reads: true, ..self.order() }, buffer, work)
    }

    /// The order of what writes: whoever executes the commands of an import does it one after the other.
    fn order(&self) -> Order {
        Order { import: Arc::as_ptr(&self.route).addr(), alone: false, reads: false }
    }

    /// Hands an operation to the engine of this import's path.
    fn post_in_order<B: Send + 'static>(
        &self,
        order: Order,
        buffer: B,
        mut work: impl FnMut(&Route, &mut Parcel<B>, &Stop) -> Step + Send + 'static,
    ) -> Transfer<B> {
        let pending = Pending::new(&self.route);
        let operation =
            Operation::new(order, buffer, move |buffer, stop| work(&pending.0, buffer, stop));
        let process = &self.route.process;
        process.execute(self.route.executor(), Arc::clone(&operation) as Arc<dyn Job>);
        Transfer::posted(operation)
    }
}

impl Process {
    /// [`Import::flush`] for all imports of this process, whatever became of their exports.
    pub fn flush(&self) {
        for executor in [Executor::Copies, Executor::Commands, Executor::Lanes] {
            if self.inner.engine(executor).get().is_none() {
                continue;
            }
            let order = Order { import: 0, alone: true, reads: false };
            let marker = Operation::new(order, (), |_, _| Step::Over(Ok(())));
            self.inner.execute(executor, Arc::clone(&marker) as Arc<dyn Job>);
            let _ = Transfer::posted(marker).wait();
        }
    }
}

impl Inner {
    /// Has a job done, behind all that were given before for the same path.
    fn execute(self: &Arc<Self>, executor: Executor, job: Arc<dyn Job>) {
        let process = || Arc::downgrade(self);
        let start = || match executor {
            Executor::Copies => LocalEngine::start("vmmc-copies", None::<AtTheQueue>),
            Executor::Commands => LocalEngine::start("vmmc-commands", Some(AtTheQueue(process()))),
            Executor::Lanes => LocalEngine::start("vmmc-lanes", Some(AtTheLanes::new(process()))),
        };
        // A forked child has its parent's engines, but not their threads.
        match (!self.is_forked()).then(|| self.engine(executor).get_or_init(start)) {
            Some(Some(engine)) => engine.post(job),
            _ => {
                while job.run() != Ran::Over {
                    self.lanes.poll();
                }
            }
        }
    }
}

impl Route {
    fn executor(&self) -> Executor {
        match (self.start.is_null(), self.standing.is_elsewhere()) {
            (false, _) => Executor::Copies,
            (true, false) => Executor::Commands,
            (true, true) => Executor::Lanes,
        }
    }

    /// Whether so many bytes are copied at the call.
    #[inline]
    fn is_immediate(&self, len: usize) -> bool {
        // Acquire: pairs with "over"; what was copied by the engine comes before what we copy.
        len <= AT_THE_CALL && !self.start.is_null() && self.pending.load(Ordering::Acquire) == 0
    }
}

/// An operation that was posted on a route and is not over.
struct Pending(Arc<Route>);

impl Pending {
    fn new(route: &Arc<Route>) -> Self {
        route.pending.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(route))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Release: "over".
        self.0.pending.fetch_sub(1, Ordering::Release);
    }
}

fn total(mut lens: impl Iterator<Item = usize>) -> usize {
    lens.try_fold(0usize, usize::checked_add).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
