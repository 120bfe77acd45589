//! Asynchronous transfers by the engine's thread into memory that nobody shares: everything but the service, so that all of it runs under Miri,
//! which sees every use of freed memory, every race, and every order that nothing guarantees.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use vmmc_os::{Event, Mapping};
use vmmc_proto::{ExportId, Grant, NodeId, ProcessId, Rights};
use vmmc_shm::table::{ExportState, StatusTable, state_word};

use super::*;
use crate::connection::{Connection, Table};
use crate::pair_bell::PeerEvent;
use crate::standing::{Standing, Terms};

/// More than is copied at the call, and two steps of a copy.
const LARGE: usize = AT_THE_CALL + 8;
const SLOT: u32 = 5;
const FOREVER: Duration = Duration::from_secs(60);

const fn rounds(native: usize) -> usize {
    if cfg!(miri) { 4 } else { native }
}

struct World {
    import: Import,
    table: Arc<Table>,
}

impl World {
    fn new() -> Self {
        let table = Arc::new(Table(Mapping::unshared(StatusTable::LEN).unwrap()));
        let owner = ProcessId { node: NodeId(1), index: 1, incarnation: 1 };
        let process = Process::of_connection(Connection::to_nobody(&table, owner));
        let len = 4 * LARGE;
        let grant = Grant {
            handle: 1,
            export: ExportId { process: owner, number: 1 },
            len: len as u64,
            slot: SLOT,
            live: state_word(1, ExportState::Live),
            mapped: true,
            notify: false,
            pool: None,
            stranger: false,
        };
        let world = |import| Self { import, table: Arc::clone(&table) };
        let terms = Terms { node: None, rights: Rights::READ_WRITE, key: None };
        let standing = Standing::new(&table, &grant, terms).unwrap();
        let memory = Mapping::unshared(len).unwrap();
        let event = (PeerEvent::Own(Event::new().unwrap()), false);
        let world = world(Import::of_pair(&process.inner, standing, memory, len, event));
        world.exporter_is(ExportState::Live);
        world
    }

    fn exporter_is(&self, state: ExportState) {
        self.table.view().state(SLOT).unwrap().store(state_word(1, state), Ordering::Release);
    }

    fn content(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut found = vec![0; len];
        self.import.fetch(offset, &mut found).unwrap();
        found
    }
}

/// Bytes, and what runs whenever somebody asks for them. They are spoilt when they are dropped.
struct Watched<F> {
    bytes: Vec<u8>,
    look: F,
    dropped: Arc<AtomicUsize>,
}

impl<F: Fn()> Watched<F> {
    fn new(bytes: Vec<u8>, dropped: &Arc<AtomicUsize>, look: F) -> Self {
        Self { bytes, look, dropped: Arc::clone(dropped) }
    }
}

impl<F: Fn()> AsRef<[u8]> for Watched<F> {
    fn as_ref(&self) -> &[u8] {
        (self.look)();
        &self.bytes
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.bytes.fill(0xdd);
        self.dropped.fetch_add(1, Ordering::Release);
    }
}

type Watch = Watched<Box<dyn Fn() + Send>>;

/// An operation of two pieces that holds the engine up, with the first written and the second not.
struct Middle {
    transfer: Transfer<Vec<(usize, Watch)>>,
    /// Lets the engine go on.
    open: Sender<()>,
    /// How many of the pieces are dropped.
    dropped: Arc<AtomicUsize>,
}

/// Each piece is looked at when it is posted, checked and copied; the second holds up who copies.
fn in_the_middle(import: &Import) -> Middle {
    let (reached, is_reached) = channel();
    let (open, opened): (_, Receiver<()>) = channel();
    let (opened, looks) = (Mutex::new(opened), AtomicU64::new(0));
    let dropped = Arc::new(AtomicUsize::new(0));
    let first = Watched::new(vec![1; LARGE], &dropped, Box::new(|| ()) as Box<dyn Fn() + Send>);
    let gate = move || {
        if looks.fetch_add(1, Ordering::Relaxed) == 2 {
            reached.send(()).unwrap();
            opened.lock().unwrap().recv_timeout(FOREVER).unwrap();
        }
    };
    let second = Watched::new(vec![2; LARGE], &dropped, Box::new(gate) as Box<dyn Fn() + Send>);
    let transfer = import.send_vectored_async(vec![(0, first), (LARGE, second)]);
    is_reached.recv_timeout(FOREVER).unwrap();
    Middle { transfer, open, dropped }
}

#[test]
fn dropped_in_the_middle_the_buffer_stays_as_long_as_it_is_copied() {
    let world = World::new();
    let Middle { transfer, open, dropped } = in_the_middle(&world.import);
    drop(transfer);
    assert_eq!(dropped.load(Ordering::Acquire), 0, "the engine has it");
    open.send(()).unwrap();
    world.import.flush().unwrap();
    assert_eq!(world.content(0, 2 * LARGE), [vec![1; LARGE], vec![0; LARGE]].concat());
    while dropped.load(Ordering::Acquire) < 2 {
        std::thread::yield_now();
    }
}

#[test]
fn a_future_dropped_in_the_middle_of_its_await_is_a_transfer_dropped() {
    let world = World::new();
    let Middle { mut transfer, open, dropped } = in_the_middle(&world.import);
    let waits = |transfer: &mut Transfer<_>| {
        std::pin::Pin::new(transfer).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    };
    assert!(waits(&mut transfer) && waits(&mut transfer));
    drop(async move { transfer.await.result });
    assert_eq!(dropped.load(Ordering::Acquire), 0, "the engine has it");
    drop(open);
    let after = world.import.send_async(2 * LARGE, vec![3; LARGE]);
    assert_eq!(after.wait().result, Ok(()));
    assert_eq!(world.content(2 * LARGE, LARGE), vec![3; LARGE]);
}

#[test]
fn cancelled_in_the_middle_it_ends_there_and_gives_the_buffer_back() {
    let world = World::new();
    let Middle { transfer, open, dropped } = in_the_middle(&world.import);
    let behind = world.import.send_async(2 * LARGE, vec![9; LARGE]);
    transfer.cancel();
    behind.cancel();
    assert!(!transfer.is_over() && behind.is_over());
    open.send(()).unwrap();
    let finished = transfer.wait();
    assert_eq!(finished.result, Err(TransferError::Cancelled));
    assert_eq!(finished.buffer[1].1.bytes, vec![2; LARGE]);
    assert_eq!(dropped.load(Ordering::Acquire), 0);
    world.import.flush().unwrap();
    assert_eq!(world.content(LARGE, 2 * LARGE), vec![0; 2 * LARGE]);
}

#[test]
fn revoked_in_the_middle_nothing_more_is_written() {
    let world = World::new();
    for (state, error) in
        [(ExportState::Revoked, TransferError::Revoked), (ExportState::Dead, TransferError::Dead)]
    {
        let Middle { transfer, open, .. } = in_the_middle(&world.import);
        world.exporter_is(state);
        open.send(()).unwrap();
        assert_eq!(transfer.wait().result, Err(error));
        world.exporter_is(ExportState::Live);
        assert_eq!(world.content(LARGE, LARGE), vec![0; LARGE]);
    }
}

#[test]
fn the_import_and_its_process_may_go_in_the_middle() {
    let World { import, table } = World::new();
    let Middle { transfer, open, dropped } = in_the_middle(&import);
    let behind = import.send_async(0, vec![4; LARGE]);
    drop((import, table, transfer));
    open.send(()).unwrap();
    assert_eq!(behind.wait().result, Ok(()));
    while dropped.load(Ordering::Acquire) < 2 {
        std::thread::yield_now();
    }
}

#[test]
fn dropping_cancelling_and_awaiting_race_with_the_copy() {
    let world = World::new();
    let (made, dropped) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    std::thread::scope(|scope| {
        for thread in 0..2u8 {
            let (world, made, dropped) = (&world, &made, &dropped);
            scope.spawn(move || {
                let (at, value) = (usize::from(thread) * LARGE, thread + 1);
                for round in 0..rounds(200) {
                    made.fetch_add(1, Ordering::Relaxed);
                    let buffer = Watched::new(vec![value; LARGE], dropped, || ());
                    let transfer = world.import.send_async(at, buffer);
                    let fetch = world.import.fetch_async(at, vec![0; LARGE]);
                    match round % 4 {
                        0 => drop((fetch, transfer)),
                        1 => {
                            transfer.cancel();
                            assert_eq!(transfer.wait().buffer.bytes, vec![value; LARGE]);
                        }
                        2 => {
                            std::thread::yield_now();
                            drop(transfer);
                            fetch.cancel();
                            assert_eq!(fetch.wait().buffer.len(), LARGE);
                        }
                        _ => {
                            assert_eq!(transfer.wait().result, Ok(()));
                            assert_eq!(fetch.wait().buffer, vec![value; LARGE]);
                        }
                    }
                }
                world.import.flush().unwrap();
                // Some came to their end, and what was cut short wrote the same; freed bytes would be others.
                assert!(world.content(at, LARGE) == vec![value; LARGE]);
            });
        }
    });
    assert_eq!(made.load(Ordering::Relaxed), dropped.load(Ordering::Acquire));
}

#[test]
fn a_full_queue_keeps_the_order_and_flush_comes_after_all() {
    let world = World::new();
    let Middle { transfer, open, .. } = in_the_middle(&world.import);
    // More than the ring holds: the rest stands in line.
    let words: Vec<_> = (1..=80).map(|n| world.import.signal_async(3 * LARGE, n)).collect();
    let flush = world.import.flush_async();
    drop(transfer);
    assert!(!flush.is_over());
    open.send(()).unwrap();
    assert_eq!(flush.wait().result, Ok(()));
    assert_eq!(world.import.load_signal(3 * LARGE), Ok(80));
    assert!(words.into_iter().all(|word| word.is_over()));
}

#[test]
fn a_vector_whose_bytes_grow_after_they_were_checked_stays_inside() {
    /// Shows more each time.
    struct Growing(Vec<u8>, AtomicUsize);

    impl AsRef<[u8]> for Growing {
        fn as_ref(&self) -> &[u8] {
            &self.0[..self.1.fetch_add(1, Ordering::Relaxed)]
        }
    }

    let world = World::new();
    let offset = world.import.len() - 3;
    // Looked at to be counted, checked and copied: with 2, 3 and 4 bytes.
    let growing = || Growing(vec![7; LARGE], AtomicUsize::new(2));
    let at_once = world.import.send_vectored_async(vec![(offset, growing())]);
    assert_eq!(at_once.wait().result, Err(TransferError::Range));
    let held = in_the_middle(&world.import);
    let by_the_engine = world.import.send_vectored_async(vec![(offset, growing())]);
    held.open.send(()).unwrap();
    assert_eq!(by_the_engine.wait().result, Err(TransferError::Range));
    assert_eq!(world.content(offset, 3), [0; 3]);
}
