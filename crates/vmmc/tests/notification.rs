//! Notifications: events, handlers, futures, many waiters, overflow; who is rung, and who is not.

mod harness;

use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use harness::{FOREVER, Node, role, until};
use rustix::event::epoll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmmc::{Export, ExportId, ImportSource, Notification, Notify, Process, Rights, WaitError};

#[test]
fn actor() {
    let Some((role, export)) = role() else { return };
    let process = Process::open().unwrap();
    let source = ImportSource::Id(export.parse::<ExportId>().unwrap());
    let import = process.import(source).open().unwrap();
    for round in 0..1000u64 {
        import.send_notify(0, &round.to_le_bytes()).unwrap();
        if role == "slow sender" && round % 10 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

#[test]
fn handlers_run_on_one_thread_in_order_and_never_after_unexport() {
    let node = Node::new();
    let process = node.open();
    let (heard, hear) = channel();
    let handler = move |notification: Notification| {
        heard.send((std::thread::current().id(), notification)).unwrap();
    };
    let export = process.export(64).notify(Notify::Handler(Box::new(handler))).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let mut threads = Vec::new();
    for round in 0..500u64 {
        import.send_notify(8, &round.to_le_bytes()).unwrap();
        let (thread, notification) = hear.recv_timeout(FOREVER).unwrap();
        let expected =
            Notification { export: import.id(), offset: 8, len: 8, last_word: round, lost: 0 };
        assert_eq!(notification, expected);
        threads.push(thread);
    }
    threads.dedup();
    assert_eq!(threads.len(), 1);
    assert_ne!(threads[0], std::thread::current().id());
    export.unexport().unwrap();
    // The handler is gone, and with it the sending half of the channel.
    assert!(import.send_notify(8, b"late").is_err());
    assert!(hear.recv_timeout(FOREVER).is_err());
}

#[test]
fn a_handler_may_unexport_and_a_panic_hurts_only_itself() {
    let node = Node::new();
    let process = node.open();
    let (done, wait) = channel();
    let panicking = process
        .export(64)
        .notify(Notify::Handler(Box::new(|_| std::panic::resume_unwind(Box::new("on purpose")))))
        .create()
        .unwrap();
    let mut victim = Some(process.export(64).create().unwrap());
    let handler = Box::new(move |_| {
        if let Some(victim) = victim.take() {
            victim.unexport().unwrap();
        }
        done.send(()).unwrap();
    });
    let export = process.export(64).notify(Notify::Handler(handler)).create().unwrap();
    for id in [panicking.id(), export.id()] {
        let import = process.import(ImportSource::Id(id)).open().unwrap();
        import.send_notify(0, b"x").unwrap();
    }
    wait.recv_timeout(FOREVER).unwrap();
}

#[test]
fn overflow_is_told_with_its_count() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(4096).notify(Notify::Event).create().unwrap();
    let mut actor = node.actor("sender", &export.id().to_string());
    assert!(actor.child.wait().unwrap().success());
    for round in 0..64 {
        let notification = export.wait(FOREVER).unwrap();
        assert_eq!((notification.last_word, notification.lost), (round, 0));
    }
    let rest = export.wait(FOREVER).unwrap();
    assert_eq!((rest.offset, rest.len, rest.lost), (0, 4096, 1000 - 64));
    assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
}

/// The flag belongs to the event, so that every importer can change it for all.
#[test]
fn an_importer_that_makes_the_event_block_holds_nobody_up() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let event = import.notify_fd().unwrap();
    // SAFETY: a plain system call on a descriptor of this test's.
    assert_eq!(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    let fill = || rustix::io::write(event, &(u64::MAX - 1).to_ne_bytes());
    let (done, is_done) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The exporter clears an event that nobody has signalled.
            assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
            assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
            assert_eq!(fill(), Ok(8));
            // A notifier rings an event whose counter is full.
            import.send_notify(0, b"rung").unwrap();
            assert_eq!(export.wait(FOREVER).unwrap().len, 4);
            done.send(()).unwrap();
        });
        if is_done.recv_timeout(FOREVER).is_err() {
            eprintln!("somebody waits for ever");
            std::process::abort();
        }
    });
}

#[test]
fn every_notification_wakes_one_of_many_waiters() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let sum = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let notification = export.wait(FOREVER).unwrap();
                    assert_eq!(notification.lost, 0);
                    sum.fetch_add(notification.last_word, Ordering::Relaxed);
                }
            });
        }
        let mut sent = 0;
        for round in 1..=400u64 {
            import.send_notify(0, &round.to_le_bytes()).unwrap();
            sent += round;
            if round % 32 == 0 {
                until("taken", || sum.load(Ordering::Relaxed) == sent);
            }
        }
        until("all taken", || sum.load(Ordering::Relaxed) == 400 * 401 / 2);
    });
}

#[test]
fn the_event_is_readable_as_long_as_there_is_something() {
    let node = Node::new();
    let process = node.open_polled();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let source = ImportSource::Id(export.id());
    let import = process.import(source).rights(Rights::READ_WRITE).open().unwrap();
    let readable = || {
        let fd = export.event_fd().unwrap().as_raw_fd();
        let mut polled = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which the export keeps open.
        unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
    };
    assert!(!readable());
    import.send_notify(0, b"a").unwrap();
    import.send_notify(0, b"b").unwrap();
    assert!(readable());
    export.wait(FOREVER).unwrap();
    assert!(readable());
    export.wait(FOREVER).unwrap();
    assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
    assert!(!readable());
    import.send_notify(0, b"c").unwrap();
    assert!(readable());
    assert_eq!(export.take_notification().unwrap().last_word, u64::from(b'c'));
    assert_eq!(export.take_notification(), None);
    assert_eq!(export.wait(Duration::from_millis(1)), Err(WaitError::Timeout));
}

/// How often the exporter's event was signalled; clears it.
fn rings(export: &Export) -> u64 {
    let mut count = [0u8; 8];
    match rustix::io::read(export.event_fd().unwrap(), &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::AGAIN);
            0
        }
    }
}

#[test]
fn only_an_exporter_that_may_sleep_is_rung() {
    let node = Node::new();
    let process = node.open_polled();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let imports = [Rights::READ_WRITE, Rights::WRITE]
        .map(|rights| process.import(ImportSource::Id(export.id())).rights(rights).open().unwrap());
    for import in &imports {
        assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
        (0..10).for_each(|_| import.send_notify(0, b"x").unwrap());
        assert_eq!(rings(&export), 1, "it announced that it sleeps: the first rings, and no other");
        while export.take_notification().is_some() {}
        (0..10).for_each(|_| import.send_notify(0, b"x").unwrap());
        assert_eq!(rings(&export), 0, "it only polled since");
        assert!((0..10).all(|_| export.wait(FOREVER).is_ok()));
    }
}

#[test]
fn no_waiter_sleeps_over_a_notification() {
    const EACH: u64 = 5000;
    const LAST: u64 = u64::MAX;
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let import = || process.import(ImportSource::Id(export.id())).open().unwrap();
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for sender in 0..2 {
            let import = import();
            scope.spawn(move || {
                for round in 0..EACH {
                    import.send_notify(0, &round.to_le_bytes()).unwrap();
                    if (round + sender).is_multiple_of(17) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let notification = export.wait(FOREVER).unwrap();
                    if notification.last_word == LAST {
                        break;
                    }
                    taken.fetch_add(notification.lost.max(1), Ordering::Relaxed);
                }
            });
        }
        until("all are taken", || taken.load(Ordering::Relaxed) == 2 * EACH);
        (0..3).for_each(|_| import().send_notify(0, &LAST.to_le_bytes()).unwrap());
    });
    assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    let deadline = Instant::now() + FOREVER;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "never woken");
        std::thread::park_timeout(left);
    }
}

#[test]
fn a_future_is_woken_in_any_executor() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let turns = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=200u64 {
                // A dropped future takes nothing along.
                let mut dropped = pin!(export.notified());
                let mut context = Context::from_waker(Waker::noop());
                assert!(dropped.as_mut().poll(&mut context).is_pending());
                turns.store(round, Ordering::Release);
                assert_eq!(block_on(export.notified()).unwrap().last_word, round);
            }
        });
        for round in 1..=200u64 {
            until("it waits", || turns.load(Ordering::Acquire) == round);
            import.send_notify(0, &round.to_le_bytes()).unwrap();
        }
    });
}

#[test]
fn each_notification_completes_one_future() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    let sum = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let notification = block_on(export.notified()).unwrap();
                    sum.fetch_add(notification.last_word, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=40u64 {
            import.send_notify(0, &round.to_le_bytes()).unwrap();
        }
    });
    assert_eq!(sum.into_inner(), 40 * 41 / 2);
}

#[test]
fn futures_that_nobody_could_wake_are_refused() {
    let node = Node::new();
    let process = node.open();
    let silent = process.export(64).create().unwrap();
    assert_eq!(block_on(silent.notified()), Err(WaitError::NoNotifications));
    let polled = node.open_polled();
    let export = polled.export(64).notify(Notify::Event).create().unwrap();
    assert_eq!(block_on(export.notified()), Err(WaitError::NoThread));
    let import = polled.import(ImportSource::Id(export.id())).open().unwrap();
    import.send_notify(0, b"x").unwrap();
    assert_eq!(block_on(export.notified()).unwrap().last_word, u64::from(b'x'));
}

/// An async runtime that can await descriptors needs no thread of the library.
#[test]
fn tokio_awaits_the_event() {
    let node = Node::new();
    let process = node.open_polled();
    let export = process.export(64).notify(Notify::Event).create().unwrap();
    let mut actor = node.actor("slow sender", &export.id().to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let event = export.event_fd().unwrap();
        // SAFETY: the export, which outlives the runtime, keeps the descriptor open.
        let event = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.unwrap();
        // On a busy machine the sender fills the mailbox; the count of what found no room comes after what is in it.
        let (mut next, mut told) = (0, 0);
        while told < 1000 {
            let mut ready = event.readable().await.unwrap();
            match export.wait(Duration::ZERO) {
                Ok(notification) if notification.lost > 0 => told += notification.lost,
                Ok(notification) => {
                    assert!(notification.last_word >= next, "{} < {next}", notification.last_word);
                    next = notification.last_word + 1;
                    told += 1;
                }
                Err(_) => ready.clear_ready(),
            }
        }
        assert_eq!(told, 1000);
    };
    runtime.block_on(async { tokio::time::timeout(FOREVER, all).await }).unwrap();
    assert!(actor.child.wait().unwrap().success());
}

#[test]
fn an_epoll_set_has_events_of_many_exports() {
    let node = Node::new();
    let process = node.open_polled();
    let exports: Vec<_> =
        (0..10).map(|_| process.export(64).notify(Notify::Event).create().unwrap()).collect();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (index, export) in exports.iter().enumerate() {
        let (data, event) = (epoll::EventData::new_u64(index as u64), export.event_fd().unwrap());
        epoll::add(&epoll, event, data, epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
    }
    let ready = || {
        let mut events = Vec::with_capacity(16);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
        events.iter().map(|event| event.data.u64()).collect::<Vec<_>>()
    };
    assert!(ready().is_empty());
    for _ in 0..3 {
        for index in [7u64, 2] {
            let id = exports[index as usize].id();
            let import = process.import(ImportSource::Id(id)).open().unwrap();
            import.send_notify(0, &index.to_le_bytes()).unwrap();
        }
        assert_eq!(ready(), [7, 2]);
        for index in [7u64, 2] {
            let export = &exports[index as usize];
            let notification = export.wait(Duration::ZERO).unwrap();
            assert_eq!((notification.export, notification.last_word), (export.id(), index));
            assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
        }
        assert!(ready().is_empty());
    }
}
