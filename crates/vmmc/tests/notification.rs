//! Notifications: events, handlers, many waiters, overflow, and mailboxes full of nonsense.

mod harness;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use harness::{FOREVER, Node, role, until};
use vmmc::{ExportId, ImportSource, Notification, Notify, Process, Rights, WaitError};

#[test]
fn actor() {
    let Some((_, export)) = role() else { return };
    let process = Process::open().unwrap();
    let source = ImportSource::Id(export.parse::<ExportId>().unwrap());
    let import = process.import(source).open().unwrap();
    for round in 0..1000u64 {
        import.send_notify(0, &round.to_le_bytes()).unwrap();
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
        assert_eq!(notification, Notification { offset: 8, len: 8, last_word: round, many: false });
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
fn overflow_is_told() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(4096).notify(Notify::Event).create().unwrap();
    let mut actor = node.actor("sender", &export.id().to_string());
    assert!(actor.child.wait().unwrap().success());
    let mut last = None;
    let mut single = 0;
    let many = loop {
        let notification = export.wait(FOREVER).unwrap();
        if notification.many {
            break notification;
        }
        assert!(last.is_none_or(|last| last < notification.last_word));
        last = Some(notification.last_word);
        single += 1;
    };
    assert!(single < 1000);
    assert_eq!((many.offset, many.len), (0, 4096));
    assert_eq!(export.wait(Duration::ZERO), Err(WaitError::Timeout));
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
                    assert!(!notification.many);
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
    assert!(!readable());
    assert_eq!(export.wait(Duration::from_millis(1)), Err(WaitError::Timeout));
}
