//! The process's own engine: a thread that executes what a caller does not want to wait for.
//!
//! ```text
//! callers --post--> ring[64] --> engine thread: begun[64], each goes on in steps
//!            \                ^
//!             +--> line ------+   only while the ring is full, in the same order
//! ```
//!
//! Posting is lock-free. An operation that finds the ring full stays with its handle: it stands in a line, in the order of posting, and the
//! engine moves it up. Those that were ended meanwhile leave the line when it has become long, so it is no longer than the
//! handles that callers keep make it (and a ring more). One caller at a time sees to that; the others do not wait for it.
//!
//! A copy is over in one step. What an engine elsewhere does takes several, and the thread begins others meanwhile: their commands are in its
//! queue together.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_queue::{ArrayQueue, SegQueue};
use vmmc_os::{futex_wait, futex_wake, start_thread};

use crate::operation::{Job, Order, Ran};
use crate::process::lock;

/// Operations in the ring, and operations that have begun.
const RING: usize = if cfg!(miri) { 8 } else { 64 };

/// A thread with its queue; the thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LocalEngine {
    queue: Arc<Queue>,
}

/// Where the thread waits when all that it could do has begun.
pub(crate) trait Pause: Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Changes when an operation may go on.
    fn changes(&self) -> u32;

    /// Sleeps until that changes, somebody nudges, or `found`.
    fn pause(&self, found: &mut dyn FnMut() -> bool);

    /// Ends a pause.
    fn nudge(&self);
}

struct Queue {
    ring: ArrayQueue<Arc<dyn Job>>,
    /// The end of the line: those that found no room.
    line: SegQueue<Arc<dyn Job>>,
    /// Its beginning, with those that have ended taken out. For the engine, and for one caller at a time.
    front: Mutex<VecDeque<Arc<dyn Job>>>,
    /// Length of the line; those that are joining it count.
    lined: AtomicUsize,
    /// The length at which those that were ended are looked for.
    sweep: AtomicUsize,
    /// [`ASLEEP`] or [`PAUSING`]: whoever posts wakes the thread.
    rest: AtomicU32,
    stop: AtomicBool,
    pause: Option<Box<dyn Pause>>,
}

const ASLEEP: u32 = 1;
const PAUSING: u32 = 2;

impl LocalEngine {
    /// Starts the thread; `None` when the system has no room for one. Without a `pause` every job has to be over in one step.
    pub(crate) fn start(name: &str, pause: Option<impl Pause + 'static>) -> Option<Self> {
        let queue = Arc::new(Queue::new(pause.map(|pause| Box::new(pause) as Box<dyn Pause>)));
        let own = Arc::clone(&queue);
        start_thread(name, move || own.serve()).ok()?;
        Some(Self { queue })
    }

    /// Posts an operation behind all that were posted before.
    pub(crate) fn post(&self, job: Arc<dyn Job>) {
        self.queue.push(job);
        self.queue.wake();
    }
}

impl Drop for LocalEngine {
    fn drop(&mut self) {
        // Not joined: the last operation may be what dropped the process, on that very thread.
        self.queue.stop.store(true, Ordering::Relaxed);
        self.queue.wake();
    }
}

impl Queue {
    fn new(pause: Option<Box<dyn Pause>>) -> Self {
        Self {
            ring: ArrayQueue::new(RING),
            line: SegQueue::new(),
            front: Mutex::default(),
            lined: AtomicUsize::new(0),
            sweep: AtomicUsize::new(RING),
            rest: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            pause,
        }
    }

    fn push(&self, job: Arc<dyn Job>) {
        // Acquire: pairs with "moved up". Whoever stood in line is in the ring before us.
        let refused = match self.lined.load(Ordering::Acquire) {
            0 => self.ring.push(job).err(),
            _ => Some(job),
        };
        let Some(job) = refused else { return };
        // Before it joins: who comes later on this thread must not overtake it.
        let lined = self.lined.fetch_add(1, Ordering::Relaxed) + 1;
        self.line.push(job);
        if lined >= self.sweep.load(Ordering::Relaxed)
            && let Ok(front) = self.front.try_lock()
        {
            self.let_go_of_the_ended(front);
        }
    }

    fn let_go_of_the_ended(&self, mut front: MutexGuard<'_, VecDeque<Arc<dyn Job>>>) {
        front.extend(std::iter::from_fn(|| self.line.pop()));
        let before = front.len();
        front.retain(|job| !job.is_ended());
        let gone = before - front.len();
        let left = self.lined.fetch_sub(gone, Ordering::Relaxed) - gone;
        self.sweep.store(RING.max(2 * left), Ordering::Relaxed);
    }

    fn wake(&self) {
        // Either we see the announcement, or the engine, which looks again behind its fence, sees what we have stored.
        fence(Ordering::SeqCst);
        if self.rest.load(Ordering::Relaxed) == 0 {
            return;
        }
        match (self.rest.swap(0, Ordering::Relaxed), &self.pause) {
            (ASLEEP, _) => drop(futex_wake(&self.rest, 1)),
            (PAUSING, Some(pause)) => pause.nudge(),
            _ => {}
        }
    }

    /// The engine thread.
    fn serve(&self) {
        let mut begun = Begun::default();
        loop {
            let changes = self.pause.as_ref().map_or(0, |pause| pause.changes());
            begun.go_on();
            while begun.has_room()
                && let Some(job) = self.next()
            {
                begun.begin(job);
            }
            match &self.pause {
                Some(pause) if !begun.is_empty() => self.rest(PAUSING, || {
                    pause.pause(&mut || {
                        pause.changes() != changes || begun.has_room() && !self.is_empty()
                    });
                }),
                _ if self.stop.load(Ordering::Relaxed) => return,
                _ => self.rest(ASLEEP, || {
                    if self.is_empty() && !self.stop.load(Ordering::Relaxed) {
                        let _ = futex_wait(&self.rest, ASLEEP, None);
                    }
                }),
            }
        }
    }

    fn rest(&self, how: u32, sleep: impl FnOnce()) {
        self.rest.store(how, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        sleep();
        self.rest.store(0, Ordering::Relaxed);
    }

    fn next(&self) -> Option<Arc<dyn Job>> {
        let job = self.ring.pop();
        if self.lined.load(Ordering::Relaxed) == 0 {
            return job;
        }
        self.move_up();
        job.or_else(|| self.ring.pop())
    }

    fn move_up(&self) {
        let mut front = lock(&self.front);
        while let Some(job) = front.pop_front().or_else(|| self.line.pop()) {
            if let Err(job) = self.ring.push(job) {
                front.push_front(job);
                break;
            }
            // Release: "moved up".
            self.lined.fetch_sub(1, Ordering::Release);
        }
    }

    fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.lined.load(Ordering::Relaxed) == 0
    }
}

/// What the thread has taken over, in the order of posting.
#[derive(Default)]
struct Begun {
    jobs: Vec<Held>,
    /// The last of them has more to post.
    posting: bool,
}

struct Held {
    /// `None` when it is over.
    job: Option<Arc<dyn Job>>,
    order: Order,
    begun: bool,
    posting: bool,
    /// It is under way only when nothing else of its import is.
    alone: bool,
}

impl Begun {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn has_room(&self) -> bool {
        self.jobs.len() < RING && !self.posting
    }

    /// Takes a job over, and begins it if it need not wait.
    fn begin(&mut self, job: Arc<dyn Job>) {
        let order = job.order();
        let job = Some(job);
        self.jobs.push(Held { job, order, begun: false, posting: false, alone: false });
        self.step(self.jobs.len() - 1);
        if self.jobs.last().is_some_and(|held| held.job.is_none()) {
            self.jobs.pop();
        }
    }

    /// A step of each that may take one.
    fn go_on(&mut self) {
        self.posting = false;
        (0..self.jobs.len()).for_each(|at| self.step(at));
        self.jobs.retain(|held| held.job.is_some());
    }

    fn step(&mut self, at: usize) {
        let (earlier, later) = self.jobs.split_at_mut(at);
        let own = &mut later[0];
        let mut again = true;
        while again && !earlier.iter().any(|earlier| own.waits_for(earlier)) {
            let ran = run(&mut own.job);
            (own.begun, own.posting) = (ran != Ran::Alone, ran == Ran::Posting);
            // Undone, or not for a link that keeps the order: it begins anew when its turn has come.
            again = ran == Ran::Alone;
            own.alone |= again;
        }
        self.posting |= own.posting;
    }
}

impl Held {
    fn waits_for(&self, earlier: &Self) -> bool {
        if earlier.job.is_none() {
            return false;
        }
        let related = self.order.import == earlier.order.import;
        match (self.begun, self.posting) {
            (false, _) => {
                self.order.waits_for(earlier.order) || related && (self.alone || earlier.alone)
            }
            // They end in their order, so there is nothing to see yet.
            (true, false) => related,
            (true, true) => false,
        }
    }
}

/// A step of a job. Wakers and buffers are the program's code, what runs when they are dropped too. A panic there is not the next operation's
/// fault.
fn run(job: &mut Option<Arc<dyn Job>>) -> Ran {
    let step = || {
        let Some(own) = job.take() else { return Ran::Over };
        let ran = own.run();
        *job = (ran != Ran::Over).then_some(own);
        ran
    };
    catch_unwind(AssertUnwindSafe(step)).unwrap_or(Ran::Over)
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("ring", &self.ring.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    /// Longer than anything takes; only to end a test that hangs.
    const FOREVER: Duration = Duration::from_secs(30);

    /// Its steps, whether it was ended, its order.
    struct Steps<F>(F, bool, Order);

    impl<F: Fn() -> Ran + Send + Sync> Job for Steps<F> {
        fn run(&self) -> Ran {
            (self.0)()
        }

        fn is_ended(&self) -> bool {
            self.1
        }

        fn order(&self) -> Order {
            self.2
        }
    }

    const ORDER: Order = Order { import: 1, alone: false, reads: false };

    fn once(act: impl Fn() + Send + Sync + 'static) -> Arc<dyn Job> {
        let step = move || {
            act();
            Ran::Over
        };
        Arc::new(Steps(step, false, ORDER))
    }

    /// Runs until the other end of the channel is gone.
    fn held(until: Receiver<()>) -> Arc<dyn Job> {
        let until = Mutex::new(until);
        once(move || _ = lock(&until).recv())
    }

    /// Says a number when it is run.
    fn number(number: usize, said: &std::sync::mpsc::Sender<usize>) -> Arc<dyn Job> {
        let said = said.clone();
        once(move || _ = said.send(number))
    }

    struct NoPause;

    impl Pause for NoPause {
        fn changes(&self) -> u32 {
            0
        }

        fn pause(&self, _: &mut dyn FnMut() -> bool) {
            std::thread::yield_now();
        }

        fn nudge(&self) {}
    }

    fn start() -> LocalEngine {
        LocalEngine::start("vmmc-test", None::<NoPause>).unwrap()
    }

    #[test]
    fn jobs_beyond_the_ring_stand_in_line_and_run_in_order() {
        let engine = start();
        let (release, until) = channel();
        let (said, heard) = channel();
        engine.post(held(until));
        for each in 0..10 * RING {
            engine.post(number(each, &said));
        }
        assert!(engine.queue.lined.load(Ordering::Relaxed) > 0);
        assert!(heard.try_recv().is_err(), "the first is not over");
        drop(release);
        for each in 0..10 * RING {
            assert_eq!(heard.recv_timeout(FOREVER), Ok(each));
        }
    }

    #[test]
    fn the_line_is_as_long_as_the_handles_that_are_kept() {
        let queue = Queue::new(None);
        let (said, heard) = channel();
        for each in 0..100 * RING {
            if each % 50 == 0 {
                queue.push(number(each, &said));
            }
            queue.push(Arc::new(Steps(|| Ran::Over, true, ORDER)));
            let kept = each / 50 + 1;
            assert!(queue.lined.load(Ordering::Relaxed) <= 2 * kept + RING);
        }
        while let Some(job) = queue.next() {
            job.run();
        }
        let expected: Vec<_> = (0..100 * RING).step_by(50).collect();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn who_posts_waits_neither_for_the_engine_nor_for_who_looks_after_the_line() {
        let queue = Queue::new(None);
        let (said, heard) = channel();
        let front = lock(&queue.front);
        (0..10 * RING).for_each(|each| queue.push(number(each, &said)));
        drop(front);
        while let Some(job) = queue.next() {
            job.run();
        }
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), (0..10 * RING).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_overtakes_the_line() {
        let queue = Queue::new(None);
        let (said, heard) = channel();
        let post = |each| queue.push(number(each, &said));
        (0..=RING).for_each(post);
        // There is room again, but the line has not moved up yet.
        queue.ring.pop().unwrap().run();
        post(RING + 1);
        while let Some(job) = queue.next() {
            job.run();
        }
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), (0..RING + 2).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn each_threads_jobs_stay_in_order_while_others_post() {
        let engine = start();
        let (said, heard) = channel();
        const EACH: usize = if cfg!(miri) { 30 } else { 5000 };
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (engine, said) = (&engine, said.clone());
                scope.spawn(move || {
                    for each in 0..EACH {
                        engine.post(number(thread * EACH + each, &said));
                    }
                });
            }
        });
        let mut next = [0; 3];
        for _ in 0..3 * EACH {
            let each = heard.recv_timeout(FOREVER).unwrap();
            assert_eq!(next[each / EACH], each % EACH);
            next[each / EACH] += 1;
        }
    }

    #[test]
    fn the_thread_survives_a_panic_and_ends_with_the_engine() {
        let engine = start();
        let (said, heard) = channel();
        engine.post(once(|| panic!("a job's own")));
        engine.post(number(1, &said));
        assert_eq!(heard.recv_timeout(FOREVER), Ok(1));
        let queue = Arc::downgrade(&engine.queue);
        drop(engine);
        let deadline = std::time::Instant::now() + FOREVER;
        while queue.strong_count() > 0 {
            assert!(std::time::Instant::now() < deadline, "the thread does not end");
            std::thread::yield_now();
        }
    }

    /// A job that stands as the cell says.
    fn standing(order: Order, stands: &Arc<Mutex<Ran>>) -> Arc<dyn Job> {
        let stands = Arc::clone(stands);
        Arc::new(Steps(move || *lock(&stands), false, order))
    }

    #[test]
    fn posted_jobs_are_under_way_together_and_one_that_posts_holds_the_others_back() {
        let cells = [Ran::Posted, Ran::Posting].map(|ran| Arc::new(Mutex::new(ran)));
        let mut begun = Begun::default();
        begun.begin(standing(ORDER, &cells[0]));
        assert!(begun.has_room());
        begun.begin(standing(ORDER, &cells[1]));
        assert!(!begun.has_room());
        *lock(&cells[1]) = Ran::Posted;
        begun.go_on();
        assert_eq!((begun.jobs.len(), begun.has_room()), (2, true));
        *lock(&cells[0]) = Ran::Over;
        begun.go_on();
        assert_eq!(begun.jobs.len(), 1);
        (1..RING).for_each(|_| begun.begin(standing(ORDER, &cells[1])));
        assert!(!begun.has_room(), "there is a bound");
    }

    #[test]
    fn one_that_comes_alone_waits_for_the_earlier_ones_of_its_import() {
        let alone = |import| Order { import, alone: true, ..ORDER };
        let [first, later] = [Ran::Posted; 2].map(|ran| Arc::new(Mutex::new(ran)));
        for (order, waits) in [(alone(1), true), (alone(2), false), (alone(0), true)] {
            *lock(&first) = Ran::Posted;
            let mut begun = Begun::default();
            begun.begin(standing(ORDER, &first));
            begun.begin(standing(order, &later));
            assert_eq!(begun.jobs[1].begun, !waits);
            *lock(&first) = Ran::Over;
            begun.go_on();
            assert_eq!((begun.jobs.len(), begun.jobs[0].begun), (1, true));
        }
    }

    #[test]
    fn what_writes_waits_for_what_reads_before_it() {
        let cell = Arc::new(Mutex::new(Ran::Posted));
        let reading = Order { reads: true, ..ORDER };
        for (first, later, waits) in [
            (reading, ORDER, true),
            (reading, reading, false),
            (ORDER, reading, false),
            (reading, Order { import: 2, ..ORDER }, false),
        ] {
            let mut begun = Begun::default();
            begun.begin(standing(first, &cell));
            begun.begin(standing(later, &cell));
            assert_eq!(begun.jobs[1].begun, !waits);
        }
    }

    #[test]
    fn undone_jobs_begin_anew_one_after_the_other_and_nobody_overtakes_them() {
        let cells = [Ran::Posted; 4].map(|ran| Arc::new(Mutex::new(ran)));
        let elsewhere = Order { import: 2, ..ORDER };
        let mut begun = Begun::default();
        cells[..3].iter().for_each(|cell| begun.begin(standing(ORDER, cell)));
        // Its turn has come, so it says what it does next.
        let turn = Arc::new(Mutex::new(vec![Ran::Posted, Ran::Alone]));
        let own = Arc::clone(&turn);
        begun.jobs[0].job =
            Some(Arc::new(Steps(move || lock(&own).pop().unwrap_or(Ran::Posted), false, ORDER)));
        *lock(&cells[1]) = Ran::Alone;
        begun.go_on();
        assert!(begun.jobs[0].alone && begun.jobs[0].begun && lock(&turn).is_empty());
        begun.begin(standing(ORDER, &cells[3]));
        begun.begin(standing(elsewhere, &cells[3]));
        assert_eq!(
            begun.jobs.iter().map(|held| held.begun).collect::<Vec<_>>(),
            [true, true, true, false, true]
        );
    }
}
