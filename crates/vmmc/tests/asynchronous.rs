//! Asynchronous transfers: who has the buffer, what is dropped or cancelled when, and every way to wait.

mod harness;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use harness::{FOREVER, Node, until};
use vmmc::{Export, Import, ImportSource, Process, Rights, TransferError};

/// More than is copied at the call.
const LARGE: usize = 1 << 20;

struct World {
    // Before the node: what is open ends before the service does.
    import: Import,
    export: Export,
    importer: Process,
    exporter: Process,
    _node: Node,
}

impl World {
    fn new() -> Self {
        let node = Node::new();
        // The exporter has no watcher, which would bring it back from the dead.
        let (exporter, importer) = (node.open_polled(), node.open());
        let export = exporter.export(4 * LARGE).create().unwrap();
        let import = importer.import(ImportSource::Id(export.id())).open().unwrap();
        Self { import, export, importer, exporter, _node: node }
    }

    fn write_only(&self) -> Import {
        let source = ImportSource::Id(self.export.id());
        self.importer.import(source).rights(Rights::WRITE).open().unwrap()
    }

    fn content(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut found = vec![0; len];
        self.export.read(offset, &mut found).unwrap();
        found
    }
}

/// A buffer that holds up whoever looks at it for the `at`-th time, until the test lets it go on.
#[derive(Debug)]
struct Gate {
    bytes: Vec<u8>,
    looks: AtomicUsize,
    at: usize,
    reached: Sender<()>,
    open: Mutex<Receiver<()>>,
}

impl Gate {
    /// The gate; what tells that somebody stands before it; what opens it.
    fn new(bytes: Vec<u8>, at: usize) -> (Self, Receiver<()>, Sender<()>) {
        let (reached, is_reached) = channel();
        let (opener, open) = channel();
        let gate = Self { bytes, looks: AtomicUsize::new(0), at, reached, open: Mutex::new(open) };
        (gate, is_reached, opener)
    }
}

impl AsRef<[u8]> for Gate {
    fn as_ref(&self) -> &[u8] {
        if self.looks.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            self.reached.send(()).unwrap();
            self.open.lock().unwrap().recv_timeout(FOREVER).unwrap();
        }
        &self.bytes
    }
}

/// Holds the engine of `import`'s path up at an operation of two pieces, the first of which is written and the second not:
/// each is looked at when it is posted, checked and copied. What opens the gate comes with it.
fn in_the_middle(import: &Import) -> (vmmc::Transfer<Vec<(usize, Gate)>>, Sender<()>) {
    let (first, ..) = Gate::new(vec![1; LARGE], usize::MAX);
    let (second, reached, open) = Gate::new(vec![2; LARGE], 3);
    let transfer = import.send_vectored_async(vec![(0, first), (LARGE, second)]);
    reached.recv_timeout(FOREVER).unwrap();
    (transfer, open)
}

#[test]
fn a_transfer_cancelled_in_the_middle_ends_there() {
    let world = World::new();
    for import in [&world.import, &world.write_only()] {
        world.export.write(0, &vec![0; 2 * LARGE]).unwrap();
        let (transfer, open) = in_the_middle(import);
        assert!(!transfer.is_over());
        transfer.cancel();
        assert!(!transfer.is_over(), "the engine still has the buffer");
        let transfer = transfer.wait_timeout(Duration::from_millis(20)).unwrap_err();
        open.send(()).unwrap();
        let finished = transfer.wait();
        assert_eq!(finished.result, Err(TransferError::Cancelled));
        assert_eq!(finished.buffer[1].1.bytes, vec![2; LARGE], "the buffer comes back");
        assert!(world.content(LARGE, LARGE).iter().all(|byte| *byte == 0), "not begun");
    }
}

#[test]
fn a_transfer_dropped_in_the_middle_keeps_its_buffer_as_long_as_it_is_copied() {
    let world = World::new();
    let (transfer, open) = in_the_middle(&world.import);
    drop(transfer);
    // Were the buffer gone, its channel would be closed.
    open.send(()).unwrap();
    world.import.flush().unwrap();
    assert!(world.content(0, LARGE).iter().all(|byte| *byte == 1));
    assert!(world.content(LARGE, LARGE).iter().all(|byte| *byte == 0), "the rest was cancelled");
    until("the buffer is dropped", || open.send(()).is_err());
}

#[test]
fn what_is_cancelled_or_dropped_before_its_turn_is_never_written() {
    let world = World::new();
    let (busy, open) = in_the_middle(&world.import);
    let cancelled = world.import.send_async(2 * LARGE, vec![9; LARGE]);
    cancelled.cancel();
    assert!(cancelled.is_over(), "at once, whatever the engine does");
    let owned = Arc::<[u8]>::from(vec![9; LARGE]);
    drop(world.import.send_async(2 * LARGE, Arc::clone(&owned)));
    assert_eq!(Arc::strong_count(&owned), 1, "the buffer goes with the handle");
    let small = world.import.send_async(3 * LARGE, *b"after");
    assert!(!small.is_over(), "also a small one keeps its place");
    open.send(()).unwrap();
    assert_eq!(cancelled.wait().result, Err(TransferError::Cancelled));
    assert_eq!(busy.wait().result, Ok(()));
    assert_eq!(small.wait().result, Ok(()));
    assert!(world.content(2 * LARGE, LARGE).iter().all(|byte| *byte == 0));
    assert_eq!(world.content(3 * LARGE, 5), b"after");
}

#[test]
fn an_export_revoked_in_the_middle_is_an_error() {
    for write_only in [false, true] {
        let World { import, export, importer, exporter, _node } = World::new();
        let source = ImportSource::Id(export.id());
        let engine = importer.import(source).rights(Rights::WRITE).open().unwrap();
        let (transfer, open) = in_the_middle(if write_only { &engine } else { &import });
        export.unexport().unwrap();
        open.send(()).unwrap();
        assert_eq!(transfer.wait().result, Err(TransferError::Revoked));
        drop(exporter);
    }
}

#[test]
fn an_exporter_that_dies_in_the_middle_is_an_error() {
    for write_only in [false, true] {
        let World { import, export, importer, exporter, _node } = World::new();
        let source = ImportSource::Id(export.id());
        let engine = importer.import(source).rights(Rights::WRITE).open().unwrap();
        let (transfer, open) = in_the_middle(if write_only { &engine } else { &import });
        // Abandoned in place, as by a crash.
        std::mem::forget(export);
        let fd = exporter.owned_fds()[0];
        // SAFETY: shuts a socket of this test's own down; the library sees its connection end.
        unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        until("dead", || import.state() == vmmc::ExportState::Dead);
        open.send(()).unwrap();
        assert_eq!(transfer.wait().result, Err(TransferError::Dead));
    }
}

#[test]
fn a_full_queue_holds_nobody_up_and_loses_nothing() {
    let world = World::new();
    for import in [&world.import, &world.write_only()] {
        let (busy, open) = in_the_middle(import);
        // Many times what the queue has room for, by two threads; each thread's in its order.
        std::thread::scope(|scope| {
            for thread in 0..2usize {
                scope.spawn(move || {
                    let at = (2 + thread) * LARGE;
                    let post = |n: usize| import.send_async(at, (n as u64).to_le_bytes());
                    let transfers: Vec<_> = (1..=1000).map(post).collect();
                    for (n, transfer) in (1..).zip(transfers) {
                        if n % 3 == 0 {
                            drop(transfer);
                        } else if n % 3 == 1 {
                            assert_eq!(transfer.wait().result, Ok(()), "{n}");
                        }
                    }
                });
            }
            let blocked = import.flush_async().wait_timeout(Duration::from_millis(20));
            let flush = blocked.expect_err("the engine is held up");
            open.send(()).unwrap();
            assert_eq!(flush.wait().result, Ok(()));
        });
        assert_eq!(busy.wait().result, Ok(()));
        import.flush().unwrap();
        for thread in 0..2 {
            assert_eq!(world.content((2 + thread) * LARGE, 8), 1000u64.to_le_bytes());
        }
    }
}

/// Owned bytes that nobody can mistake for others once they are freed.
struct Canary {
    bytes: Vec<u8>,
    alive: Arc<AtomicUsize>,
}

impl Canary {
    fn new(byte: u8, len: usize, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { bytes: vec![byte; len], alive: Arc::clone(alive) }
    }
}

impl AsRef<[u8]> for Canary {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Canary {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.bytes.fill(0xdd);
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn dropping_and_cancelling_under_load_is_safe() {
    let world = World::new();
    let alive = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let (world, alive) = (&world, &alive);
            scope.spawn(move || {
                let (at, value) = (usize::from(thread) * LARGE, thread + 1);
                let mut kept = Vec::new();
                for round in 0..300usize {
                    let len = LARGE - round * 1999 % 800_000;
                    let transfer = world.import.send_async(at, Canary::new(value, len, alive));
                    let fetch = world.import.fetch_async(at, Canary::new(0, len, alive));
                    match round % 5 {
                        0 => drop((transfer, fetch)),
                        1 => {
                            std::thread::yield_now();
                            transfer.cancel();
                            let finished = transfer.wait();
                            assert!(finished.buffer.bytes.iter().all(|byte| *byte == value));
                            drop(fetch);
                        }
                        2 => {
                            let _ = transfer.wait_timeout(Duration::from_micros(50));
                            fetch.cancel();
                        }
                        3 => {
                            assert_eq!(transfer.wait().result, Ok(()));
                            let fetched = fetch.wait();
                            assert_eq!(fetched.result, Ok(()));
                            assert!(fetched.buffer.bytes.iter().all(|byte| *byte == value));
                        }
                        _ => kept.push(transfer),
                    }
                    kept.truncate(round % 7);
                }
            });
        }
    });
    world.import.flush().unwrap();
    for thread in 0..3u8 {
        let found = world.content(usize::from(thread) * LARGE, LARGE);
        // The last bytes may never have been reached.
        assert!(
            found.iter().all(|byte| *byte == thread + 1 || *byte == 0),
            "freed bytes were sent"
        );
        assert_eq!(found[0], thread + 1);
    }
    drop(world);
    until("no buffer is leaked", || alive.load(Ordering::Relaxed) == 0);
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The plainest executor.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(FOREVER),
        }
    }
}

#[test]
fn a_plain_executor_is_woken() {
    let world = World::new();
    let engine = world.write_only();
    block_on(async {
        for round in 1..=20u8 {
            for import in [&world.import, &engine] {
                let sent = import.send_async(0, vec![round; LARGE]).await;
                assert_eq!((sent.result, sent.buffer.len()), (Ok(()), LARGE));
                let fetched = world.import.fetch_async(0, sent.buffer).await;
                assert_eq!(fetched.result, Ok(()));
                assert!(fetched.buffer.iter().all(|byte| *byte == round));
            }
        }
        let pieces = vec![(0, vec![0; LARGE]), (8, vec![0; 3])];
        let fetched = world.import.fetch_vectored_async(pieces).await;
        assert_eq!(fetched.result, Ok(()));
        assert!(fetched.buffer.iter().all(|(_, bytes)| bytes.iter().all(|byte| *byte == 20)));
    });
}

#[test]
fn tokio_is_woken_and_its_cancellation_is_safe() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let import = Arc::new(world.import);
    let tasks: Vec<_> = (0..4u8)
        .map(|task| {
            let import = Arc::clone(&import);
            runtime.spawn(async move {
                let at = usize::from(task) * LARGE;
                let mut buffer = vec![task; LARGE];
                for round in 0..100 {
                    let send = import.send_async(at, buffer);
                    if round % 2 == 0 {
                        // Either ends, or is dropped in whatever state it is.
                        let limit = Duration::from_micros(100);
                        let _ = tokio::time::timeout(limit, send).await;
                        buffer = vec![task; LARGE];
                    } else {
                        let finished = send.await;
                        finished.result.unwrap();
                        buffer = finished.buffer;
                    }
                }
                import.send_async(at, buffer).await.result
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(runtime.block_on(task).unwrap(), Ok(()));
    }
    for task in 0..4u8 {
        let mut found = vec![9; LARGE];
        import.fetch(usize::from(task) * LARGE, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == task));
    }
}

/// Shows what it likes, or panics.
struct Liar {
    looks: AtomicUsize,
    lens: [usize; 2],
    bytes: Vec<u8>,
}

impl AsRef<[u8]> for Liar {
    fn as_ref(&self) -> &[u8] {
        let look = self.looks.fetch_add(1, Ordering::Relaxed).min(1);
        &self.bytes[..self.lens[look]]
    }
}

#[test]
fn a_buffer_that_lies_about_its_length_or_panics_hurts_only_its_owner() {
    let world = World::new();
    let liar = |lens| Liar { looks: AtomicUsize::new(0), lens, bytes: vec![4; 5 * LARGE] };
    let grown = world.import.send_async(0, liar([LARGE, 5 * LARGE])).wait();
    assert_eq!(grown.result, Err(TransferError::Range));
    let panics = world.import.send_async(0, liar([LARGE, 6 * LARGE]));
    let next = world.import.send_async(0, vec![3; LARGE]);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| panics.wait()));
    assert!(caught.is_err(), "passed on to whoever waits");
    assert_eq!(next.wait().result, Ok(()));
    assert!(world.content(0, LARGE).iter().all(|byte| *byte == 3));
}

#[test]
fn a_scattered_fetch_is_checked_before_it_begins() {
    let world = World::new();
    world.import.send(0, b"abcdefgh").unwrap();
    let (mut one, mut two) = ([0; 3], [0; 2]);
    world.import.fetch_vectored(&mut [(0, &mut one), (6, &mut two)]).unwrap();
    assert_eq!((&one, &two), (b"abc", b"gh"));
    let beyond = world.import.fetch_vectored(&mut [(3, &mut one), (4 * LARGE - 1, &mut two)]);
    assert_eq!((beyond, &one), (Err(TransferError::Range), b"abc"));
    assert_eq!(world.write_only().fetch_vectored(&mut []), Ok(()));
    let refused = world.write_only().fetch_vectored(&mut [(0, &mut one)]);
    assert_eq!(refused, Err(TransferError::Rights));
}
