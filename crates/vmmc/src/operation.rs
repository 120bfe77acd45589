//! An asynchronous operation from its posting to its end, and who owns the buffer meanwhile.
//!
//! ```text
//! Queued  (operation)  --run-->     Running (engine)  --end-->   Over (operation)  --taken-->  Taken
//!  | ^                               |  ^      |                   ^
//!  | |                       a step  v  |      | not its turn      |
//!  | |                            Begun (engine)                   |
//!  | +-----------------------------------------+                   |
//!  +--cancel: at once----------------------------------------------+
//! ```
//!
//! The buffer is *moved* from stage to stage: at any moment it belongs to the operation, the engine or the caller, and the compiler
//! sees to it. So nobody can free it under a copy, whatever is dropped when.
//!
//! What a lane sends lies in the buffer between two steps as well. So the buffer stays at one address ([`Parcel`]), and the work, which takes
//! back what it lent when it is dropped, is always dropped before it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::parcel::Parcel;
use crate::process::lock;
use crate::transfer::TransferError;

/// An asynchronous transfer: it goes on whether or not it is looked at, and has the buffer until it is over.
///
/// Wait for it in any of three ways: by looking ([`Transfer::is_over`]), by sleeping ([`Transfer::wait`],
/// [`Transfer::wait_timeout`]), or by `.await` in any executor. Its waker is called on the library's engine thread: it must not wait.
///
/// **Dropping it cancels it**, as [`Transfer::cancel`] does, and the buffer is dropped when nobody uses it any more. That is safe at every
/// moment, in the middle of a copy too; but part may be written, and [`Import::flush`](crate::Import::flush) is what tells when no
/// more is.
#[must_use = "dropping a transfer cancels it"]
pub struct Transfer<B>(Progress<B>);

/// How a transfer ended. The buffer comes back in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished<B> {
    /// Whether all was transferred, or why not.
    pub result: Result<(), TransferError>,
    /// What was handed over.
    pub buffer: B,
}

enum Progress<B> {
    /// Done at the call.
    Over(Finished<B>),
    Posted(Arc<Operation<B>>),
    Taken,
}

/// What an engine executes.
pub(crate) trait Job: Send + Sync {
    /// Goes on with it. Nothing happens when it is over.
    fn run(&self) -> Ran;

    /// Whether its owner has ended it: unless it has begun, there is nothing left to run. Takes no lock.
    fn is_ended(&self) -> bool;

    /// What it has to wait for.
    fn order(&self) -> Order;
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ran {
    Over,
    /// All is posted; others may begin.
    Posted,
    /// More is to be posted, before others begin.
    Posting,
    /// Nothing of it is under way: it begins, perhaps anew, when nothing of its import is.
    Alone,
}

/// How a transfer stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Over(Result<(), TransferError>),
    /// All of it is in a queue.
    Posted,
    /// The queue has no room for the rest.
    Posting,
    /// As [`Ran::Alone`].
    Alone,
}

/// Which earlier operations have to be over before one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whose it is; 0 for all imports.
    pub(crate) import: usize,
    /// It begins when all earlier ones of its import are over. Otherwise whoever executes the commands keeps them in order.
    pub(crate) alone: bool,
    /// It reads what later ones may write: a link reads again for an answer that was lost.
    pub(crate) reads: bool,
}

impl Order {
    pub(crate) fn waits_for(self, earlier: Self) -> bool {
        let hinders = self.alone || earlier.reads && !self.reads;
        hinders && (self.import == 0 || self.import == earlier.import)
    }
}

/// Whether an operation that runs shall go on.
#[derive(Debug)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    /// For synchronous transfers.
    pub(crate) const fn never() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn check(&self) -> Result<(), TransferError> {
        if self.is_asked() { Err(TransferError::Cancelled) } else { Ok(()) }
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) struct Operation<B> {
    state: Mutex<State<B>>,
    stop: Stop,
    order: Order,
}

struct State<B> {
    stage: Stage<B>,
    waker: Option<Waker>,
}

enum Stage<B> {
    // The work in front, so that it is dropped before the buffer of which it may have lent something.
    Queued(Work<B>, Parcel<B>),
    Running,
    /// Between two steps.
    Begun(Work<B>, Parcel<B>),
    Over(Parcel<B>, Result<(), TransferError>),
    /// The buffer's own code panicked.
    Panicked(Box<dyn Any + Send>),
    Taken,
}

type Work<B> = Box<dyn FnMut(&mut Parcel<B>, &Stop) -> Step + Send>;

impl<B: Send> Operation<B> {
    /// `work` is called until it says that it is over; not at all if the operation is cancelled before.
    pub(crate) fn new(
        order: Order,
        buffer: B,
        work: impl FnMut(&mut Parcel<B>, &Stop) -> Step + Send + 'static,
    ) -> Arc<Self> {
        let stage = Stage::Queued(Box::new(work), Parcel::new(buffer));
        let state = Mutex::new(State { stage, waker: None });
        Arc::new(Self { state, stop: Stop::never(), order })
    }
}

impl<B> Operation<B> {
    /// Asks it to stop; if it has not begun, it ends here.
    fn cancel(&self) {
        self.stop.ask();
        let mut state = lock(&self.state);
        if let Stage::Queued(..) = state.stage
            && let Stage::Queued(work, buffer) = std::mem::replace(&mut state.stage, Stage::Taken)
        {
            state.stage = Stage::Over(buffer, Err(TransferError::Cancelled));
            let waker = state.waker.take();
            drop(state);
            drop(work);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Nobody will take its end. The buffer goes at once, unless the engine has it.
    fn abandon(&self) {
        self.stop.ask();
        let mut state = lock(&self.state);
        let waker = state.waker.take();
        let stage = match state.stage {
            Stage::Running | Stage::Begun(..) => None,
            _ => Some(std::mem::replace(&mut state.stage, Stage::Taken)),
        };
        drop(state);
        // Both may be the program's code, which must not run under the lock.
        drop((stage, waker));
    }

    fn is_over(&self) -> bool {
        !matches!(lock(&self.state).stage, Stage::Queued(..) | Stage::Running | Stage::Begun(..))
    }

    /// The end, if it is there; otherwise `waker` will be called.
    fn poll(&self, waker: &Waker) -> Option<Finished<B>> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.stage, Stage::Taken) {
            Stage::Over(buffer, result) => Some(Finished { result, buffer: buffer.open() }),
            Stage::Panicked(cause) => {
                drop(state);
                resume_unwind(cause)
            }
            stage => {
                state.stage = stage;
                match &mut state.waker {
                    Some(known) => known.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                None
            }
        }
    }
}

impl<B: Send> Job for Operation<B> {
    fn run(&self) -> Ran {
        let mut state = lock(&self.state);
        // The buffer first, so that it is dropped last.
        let (mut buffer, mut work);
        (work, buffer) = match std::mem::replace(&mut state.stage, Stage::Running) {
            Stage::Queued(work, buffer) | Stage::Begun(work, buffer) => (work, buffer),
            // Cancelled.
            stage => {
                state.stage = stage;
                return Ran::Over;
            }
        };
        drop(state);
        let stepped = catch_unwind(AssertUnwindSafe(|| work(&mut buffer, &self.stop)));
        let mut state = lock(&self.state);
        let (stage, ran) = match stepped {
            Ok(Step::Posted) => (Stage::Begun(work, buffer), Ran::Posted),
            Ok(Step::Posting) => (Stage::Begun(work, buffer), Ran::Posting),
            Ok(Step::Alone) => (Stage::Queued(work, buffer), Ran::Alone),
            // What `work` holds must be free when somebody learns of the end; and who learns that it is free (nothing is pending any more) must
            // find the end. So it is dropped under the lock, which nothing of it takes: it is the library's code.
            Ok(Step::Over(result)) => {
                drop(work);
                (Stage::Over(buffer, result), Ran::Over)
            }
            Err(cause) => {
                drop(work);
                (Stage::Panicked(cause), Ran::Over)
            }
        };
        state.stage = stage;
        if ran == Ran::Over {
            let waker = state.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
        ran
    }

    fn is_ended(&self) -> bool {
        self.stop.is_asked()
    }

    fn order(&self) -> Order {
        self.order
    }
}

impl<B> Transfer<B> {
    /// One that was over at once.
    #[inline]
    pub(crate) fn over(result: Result<(), TransferError>, buffer: B) -> Self {
        Self(Progress::Over(Finished { result, buffer }))
    }

    pub(crate) fn posted(operation: Arc<Operation<B>>) -> Self {
        Self(Progress::Posted(operation))
    }

    /// Whether it has ended, well or not: then waiting takes no time.
    #[inline]
    pub fn is_over(&self) -> bool {
        match &self.0 {
            Progress::Over(_) | Progress::Taken => true,
            Progress::Posted(operation) => operation.is_over(),
        }
    }

    /// Ends it soon with [`TransferError::Cancelled`], unless it was faster. One that has not begun ends here and writes nothing; of one
    /// that has, part may be written.
    pub fn cancel(&self) {
        if let Progress::Posted(operation) = &self.0 {
            operation.cancel();
        }
    }

    /// Sleeps until it is over.
    ///
    /// # Panics
    /// If its end was taken before by polling it as a future, or if the buffer's own code panicked.
    #[inline]
    pub fn wait(mut self) -> Finished<B> {
        match self.take_over() {
            Some(finished) => finished,
            None => self.sleep_until_over(),
        }
    }

    #[cold]
    fn sleep_until_over(mut self) -> Finished<B> {
        let waker = this_thread();
        loop {
            if let Some(finished) = self.poll_end(&waker) {
                return finished;
            }
            std::thread::park();
        }
    }

    /// Sleeps until it is over, at most `timeout`.
    ///
    /// # Errors
    /// The transfer itself when the time is over: it goes on.
    ///
    /// # Panics
    /// As [`Transfer::wait`].
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Finished<B>, Self> {
        // A time that the clock cannot show is for ever.
        let Some(deadline) = Instant::now().checked_add(timeout) else { return Ok(self.wait()) };
        let waker = this_thread();
        loop {
            if let Some(finished) = self.poll_end(&waker) {
                return Ok(finished);
            }
            match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => std::thread::park_timeout(left),
                _ => return Err(self),
            }
        }
    }

    /// What was over at the call.
    #[inline]
    fn take_over(&mut self) -> Option<Finished<B>> {
        match std::mem::replace(&mut self.0, Progress::Taken) {
            Progress::Over(finished) => Some(finished),
            progress => {
                self.0 = progress;
                None
            }
        }
    }

    #[inline]
    fn poll_end(&mut self, waker: &Waker) -> Option<Finished<B>> {
        match self.take_over() {
            None => self.look(waker),
            finished => finished,
        }
    }

    #[cold]
    fn look(&mut self, waker: &Waker) -> Option<Finished<B>> {
        let Progress::Posted(operation) = &self.0 else { panic!("the end was taken before") };
        let finished = operation.poll(waker)?;
        self.0 = Progress::Taken;
        Some(finished)
    }
}

/// Never pinned in place: the buffer moves with its owner.
impl<B> Unpin for Transfer<B> {}

impl<B> Future for Transfer<B> {
    type Output = Finished<B>;

    /// # Panics
    /// If it was polled to its end before, or if the buffer's own code panicked.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Finished<B>> {
        self.poll_end(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl<B> Drop for Transfer<B> {
    #[inline]
    fn drop(&mut self) {
        if let Progress::Posted(operation) = &self.0 {
            operation.abandon();
        }
    }
}

impl<B> fmt::Debug for Transfer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("over", &self.is_over()).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Operation<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").field("over", &self.is_over()).finish_non_exhaustive()
    }
}

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

fn this_thread() -> Waker {
    Waker::from(Arc::new(Unpark(std::thread::current())))
}

/// All of it runs under Miri: no test here needs a system call, or memory of another process.
#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    use super::*;

    /// Counts how often it is woken.
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    fn poll<B>(transfer: &mut Transfer<B>, waker: &Waker) -> Poll<Finished<B>> {
        Pin::new(transfer).poll(&mut Context::from_waker(waker))
    }

    const ORDER: Order = Order { import: 1, alone: false, reads: false };

    /// Writes 7 into each byte.
    fn filling(len: usize) -> (Arc<Operation<Vec<u8>>>, Transfer<Vec<u8>>) {
        let operation =
            Operation::new(ORDER, vec![0; len], |buffer: &mut Parcel<Vec<u8>>, stop| {
                buffer.get_mut().fill(7);
                Step::Over(stop.check())
            });
        (Arc::clone(&operation), Transfer::posted(operation))
    }

    #[test]
    fn the_last_waker_is_called_once_and_the_buffer_comes_back() {
        let (operation, mut transfer) = filling(3);
        let ((early, first), (late, second)) = (counter(), counter());
        assert!(poll(&mut transfer, &first).is_pending());
        assert!(poll(&mut transfer, &second).is_pending());
        operation.run();
        operation.run();
        assert_eq!((early.0.load(Ordering::Relaxed), late.0.load(Ordering::Relaxed)), (0, 1));
        let Poll::Ready(finished) = poll(&mut transfer, &first) else { panic!("not over") };
        assert_eq!(finished, Finished { result: Ok(()), buffer: vec![7; 3] });
    }

    #[test]
    fn cancelled_in_the_queue_it_ends_at_once_and_is_never_run() {
        let (operation, mut transfer) = filling(3);
        let (count, waker) = counter();
        assert!(poll(&mut transfer, &waker).is_pending());
        transfer.cancel();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        operation.run();
        let finished = transfer.wait();
        assert_eq!(finished.result, Err(TransferError::Cancelled));
        assert_eq!(finished.buffer, [0; 3]);
    }

    #[test]
    fn the_buffer_is_dropped_once_whenever_the_handle_goes() {
        let buffer = Arc::new(());
        let work = |_: &mut Parcel<Arc<()>>, _: &Stop| Step::Over(Ok(()));
        // In the queue: at once.
        let operation = Operation::new(ORDER, Arc::clone(&buffer), work);
        drop(Transfer::posted(Arc::clone(&operation)));
        assert_eq!(Arc::strong_count(&buffer), 1);
        operation.run();
        // Over, and not taken.
        let operation = Operation::new(ORDER, Arc::clone(&buffer), work);
        operation.run();
        drop(Transfer::posted(operation));
        assert_eq!(Arc::strong_count(&buffer), 1);
        // Running: when the engine is through.
        let (running, is_running) = channel();
        let (finish, may_finish) = channel::<()>();
        let operation = Operation::new(ORDER, Arc::clone(&buffer), move |_, stop| {
            running.send(()).unwrap();
            may_finish.recv().unwrap();
            Step::Over(stop.check())
        });
        let transfer = Transfer::posted(Arc::clone(&operation));
        std::thread::scope(|scope| {
            scope.spawn(|| operation.run());
            is_running.recv().unwrap();
            drop(transfer);
            assert_eq!(Arc::strong_count(&buffer), 2, "the engine has it");
            finish.send(()).unwrap();
        });
        drop(operation);
        assert_eq!(Arc::strong_count(&buffer), 1);
    }

    #[test]
    fn what_has_begun_goes_on_in_steps_and_is_not_ended_by_its_owner_alone() {
        let stepping = || {
            let mut steps = [Step::Posting, Step::Posted].into_iter();
            let operation = Operation::new(ORDER, vec![1], move |_: &mut Parcel<Vec<u8>>, stop| {
                steps.next().unwrap_or(Step::Over(stop.check()))
            });
            assert_eq!((operation.run(), operation.run()), (Ran::Posting, Ran::Posted));
            (Arc::clone(&operation), Transfer::posted(operation))
        };
        let (operation, transfer) = stepping();
        assert!(!transfer.is_over());
        assert_eq!((operation.run(), operation.run()), (Ran::Over, Ran::Over));
        assert_eq!(transfer.wait(), Finished { result: Ok(()), buffer: vec![1] });
        let (operation, transfer) = stepping();
        transfer.cancel();
        assert!(!transfer.is_over(), "the engine still has to look after it");
        assert_eq!(operation.run(), Ran::Over);
        assert_eq!(transfer.wait().result, Err(TransferError::Cancelled));
        let (operation, transfer) = stepping();
        drop(transfer);
        assert_eq!(operation.run(), Ran::Over);
    }

    #[test]
    fn every_race_of_running_cancelling_and_waiting_ends_well() {
        for round in 0..if cfg!(miri) { 12 } else { 200 } {
            let (operation, mut transfer) = filling(8);
            std::thread::scope(|scope| {
                scope.spawn(|| operation.run());
                if round % 3 == 0 {
                    transfer.cancel();
                }
                if round % 3 == 1 {
                    drop(transfer);
                    return;
                }
                let finished = loop {
                    match transfer.wait_timeout(Duration::from_millis(1)) {
                        Ok(finished) => break finished,
                        Err(still) => transfer = still,
                    }
                };
                match finished.result {
                    Ok(()) => assert_eq!(finished.buffer, [7; 8]),
                    Err(error) => assert_eq!((error, round % 3), (TransferError::Cancelled, 0)),
                }
            });
        }
    }

    #[test]
    fn a_panic_goes_to_whoever_waits_and_to_nobody_else() {
        let panicking = || {
            let operation = Operation::new(ORDER, (), |_, _| panic!("the buffer's own"));
            operation.run();
            Transfer::posted(operation)
        };
        assert!(panicking().is_over());
        drop(panicking());
        let caught = catch_unwind(AssertUnwindSafe(|| panicking().wait()));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"the buffer's own"));
    }

    #[test]
    fn what_was_over_at_the_call_is_there_at_the_first_look() {
        let mut transfer = Transfer::over(Ok(()), [1, 2]);
        assert!(transfer.is_over());
        transfer.cancel();
        let (count, waker) = counter();
        assert!(poll(&mut transfer, &waker).is_ready());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }
}
