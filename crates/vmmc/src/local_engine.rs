//! The process's own engine: a thread that executes what a caller does not want to wait for.
//!
//! ```text
//! callers --post--> ring[64] --> engine thread, one operation after the other
//!            \                ^
//!             +--> line ------+   only while the ring is full, in the same order
//! ```
//!
//! Posting is lock-free while the ring has room. When it has none, operations stand in a line, in the order in which they were posted,
//! and the engine moves them up. The line holds only operations whose handles are alive or were dropped since, so it is bounded by what callers
//! keep: a caller who waits for some before he posts more never makes it long.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};

use crossbeam_queue::ArrayQueue;
use vmmc_os::{futex_wait, futex_wake, start_thread};

use crate::operation::Job;
use crate::process::lock;

/// Operations in the ring.
const RING: usize = 64;

/// A thread with its queue; the thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LocalEngine {
    queue: Arc<Queue>,
}

struct Queue {
    ring: ArrayQueue<Arc<dyn Job>>,
    line: Mutex<VecDeque<Arc<dyn Job>>>,
    /// Length of the line.
    lined: AtomicUsize,
    /// 1: the thread sleeps, and whoever posts wakes it.
    asleep: AtomicU32,
    stop: AtomicBool,
}

impl LocalEngine {
    /// Starts the thread; `None` when the system has no room for one.
    pub(crate) fn start(name: &str) -> Option<Self> {
        let queue = Arc::new(Queue::new());
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
    fn new() -> Self {
        Self {
            ring: ArrayQueue::new(RING),
            line: Mutex::default(),
            lined: AtomicUsize::new(0),
            asleep: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn push(&self, job: Arc<dyn Job>) {
        // Acquire: pairs with "moved up". Whoever stood in line is in the ring before us.
        let refused = match self.lined.load(Ordering::Acquire) {
            0 => self.ring.push(job).err(),
            _ => Some(job),
        };
        if let Some(job) = refused {
            let mut line = lock(&self.line);
            line.push_back(job);
            self.lined.store(line.len(), Ordering::Relaxed);
        }
    }

    fn wake(&self) {
        // Either we see the announcement, or the engine, which looks again behind its fence, sees what we have stored.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) != 0 && self.asleep.swap(0, Ordering::Relaxed) != 0 {
            futex_wake(&self.asleep, 1);
        }
    }

    /// The engine thread.
    fn serve(&self) {
        loop {
            while let Some(job) = self.next() {
                // Wakers and buffers are the program's code. A panic there is not the next operation's fault.
                let _ = catch_unwind(AssertUnwindSafe(move || job.run()));
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.asleep.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.is_empty() && !self.stop.load(Ordering::Relaxed) {
                let _ = futex_wait(&self.asleep, 1, None);
            }
            self.asleep.store(0, Ordering::Relaxed);
        }
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
        let mut line = lock(&self.line);
        while let Some(job) = line.pop_front() {
            if let Err(job) = self.ring.push(job) {
                line.push_front(job);
                break;
            }
        }
        // Release: "moved up".
        self.lined.store(line.len(), Ordering::Release);
    }

    fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.lined.load(Ordering::Relaxed) == 0
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("ring", &self.ring.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    /// Longer than anything takes; only to end a test that hangs.
    const FOREVER: Duration = Duration::from_secs(30);

    /// Says its number when it is run.
    struct Number(usize, Sender<usize>);

    impl Job for Number {
        fn run(&self) {
            let _ = self.1.send(self.0);
        }
    }

    /// Runs until the other end of the channel is gone.
    struct Held(Mutex<Receiver<()>>);

    impl Job for Held {
        fn run(&self) {
            let _ = lock(&self.0).recv();
        }
    }

    struct Panics;

    impl Job for Panics {
        fn run(&self) {
            panic!("a job's own");
        }
    }

    #[test]
    fn jobs_beyond_the_ring_stand_in_line_and_run_in_order() {
        let engine = LocalEngine::start("vmmc-test").unwrap();
        let (release, held) = channel();
        let (said, heard) = channel();
        engine.post(Arc::new(Held(Mutex::new(held))));
        for number in 0..10 * RING {
            engine.post(Arc::new(Number(number, said.clone())));
        }
        assert!(engine.queue.lined.load(Ordering::Relaxed) > 0);
        assert!(heard.try_recv().is_err(), "the first is not over");
        drop(release);
        for number in 0..10 * RING {
            assert_eq!(heard.recv_timeout(FOREVER), Ok(number));
        }
    }

    #[test]
    fn nobody_overtakes_the_line() {
        let queue = Queue::new();
        let (said, heard) = channel();
        let post = |number| queue.push(Arc::new(Number(number, said.clone())));
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
        let engine = LocalEngine::start("vmmc-test").unwrap();
        let (said, heard) = channel();
        const EACH: usize = 5000;
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (engine, said) = (&engine, said.clone());
                scope.spawn(move || {
                    for number in 0..EACH {
                        engine.post(Arc::new(Number(thread * EACH + number, said.clone())));
                    }
                });
            }
        });
        let mut next = [0; 3];
        for _ in 0..3 * EACH {
            let number = heard.recv_timeout(FOREVER).unwrap();
            assert_eq!(next[number / EACH], number % EACH);
            next[number / EACH] += 1;
        }
    }

    #[test]
    fn the_thread_survives_a_panic_and_ends_with_the_engine() {
        let engine = LocalEngine::start("vmmc-test").unwrap();
        let (said, heard) = channel();
        engine.post(Arc::new(Panics));
        engine.post(Arc::new(Number(1, said)));
        assert_eq!(heard.recv_timeout(FOREVER), Ok(1));
        let queue = Arc::downgrade(&engine.queue);
        drop(engine);
        let deadline = std::time::Instant::now() + FOREVER;
        while queue.strong_count() > 0 {
            assert!(std::time::Instant::now() < deadline, "the thread does not end");
            std::thread::yield_now();
        }
    }
}
