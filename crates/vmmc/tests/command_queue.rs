//! The command queue of write-only imports: posters that are strangers, posters that vanish, and a service that does.

mod harness;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::stranger::Stranger;
use harness::{FOREVER, Node, kill, listen, role, say, until};
use vmmc::{Export, Import, ImportSource, Process, Rights, TransferError};
use vmmc_os::{Access, Mapping, connect_packets, create_memory};
use vmmc_proto::{Answer, Hello, Request, VERSION};
use vmmc_shm::command::{Command, Direction, MEMORY, Outcome, PAYLOAD, PIECE, SLOTS};

fn write_only(process: &Process, export: &Export) -> Import {
    process.import(ImportSource::Id(export.id())).rights(Rights::WRITE).open().unwrap()
}

fn plain(handle: u64, offset: u64, len: u64) -> Command {
    Command {
        direction: Direction::Send,
        handle,
        offset,
        len,
        local: 0,
        signal: None,
        notify: None,
    }
}

#[test]
fn commands_of_a_stranger_are_checked() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(100_000).create().unwrap();
    let others = process.export(4096).create().unwrap();
    let foreign = write_only(&process, &others);
    let mut stranger = Stranger::new(&node);
    let handle = stranger.import(export.id(), Rights::WRITE).0;
    let len = export.len() as u64;
    for (offset, count) in [
        (len, 1),
        (len + 1, 0),
        (u64::MAX, 1),
        (u64::MAX, 0),
        (1, len),
        (0, u64::MAX),
        (0, PIECE as u64 + 1),
    ] {
        assert_eq!(
            stranger.order(&plain(handle, offset, count)),
            Outcome::Range,
            "{offset} {count}"
        );
    }
    for (offset, _) in [(4, ()), (len - 7, ()), (u64::MAX - 7, ()), (1, ())] {
        let command = Command { signal: Some((offset, 1)), ..plain(handle, 0, 8) };
        assert_eq!(stranger.order(&command), Outcome::Range, "signal {offset}");
    }
    let command = Command { notify: Some((0, 8)), ..plain(handle, 0, 8) };
    assert_eq!(stranger.order(&command), Outcome::Range, "nobody asked for notifications");
    let fetch = Command { direction: Direction::Fetch, ..plain(handle, 0, 8) };
    assert_eq!(stranger.order(&fetch), Outcome::Unknown);
    // Imports of others cannot be used: the handles of one service are not far from each other.
    for other in [handle - 1, handle + 1, 0, u64::MAX] {
        assert_eq!(stranger.order(&plain(other, 0, 8)), Outcome::Unknown);
    }
    let mut found = vec![0; export.len()];
    export.read(0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 0), "a refused command wrote");
    assert_eq!(stranger.order(&plain(handle, len - 8, 8)), Outcome::Done);
    foreign.send(0, b"still served").unwrap();
}

#[test]
fn noise_in_a_queue_hurts_only_its_owner() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(4096).create().unwrap();
    let secret = process.export(4096).create().unwrap();
    let import = write_only(&process, &export);
    let mut stranger = Stranger::new(&node);
    let handle = stranger.import(export.id(), Rights::WRITE).0;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..300u64 {
        for at in (0..PAYLOAD).step_by(8) {
            // Half of the words look like what belongs there.
            let word = match next() % 8 {
                0 => handle,
                1 | 2 => round << 2 | 1,
                3 => next() % 5000,
                4 => 1 | (next() % 4) << 8,
                _ => next(),
            };
            // SAFETY: inside the mapping and aligned.
            unsafe { &*stranger.queue.as_ptr().add(at).cast::<AtomicU64>() }
                .store(word, Ordering::Relaxed);
        }
        stranger.say(&Request::Ring, &[]);
        import.send(0, &round.to_le_bytes()).unwrap();
    }
    let mut found = [1; 4096];
    secret.read(0, &mut found).unwrap();
    assert_eq!(found, [0; 4096], "wrote where nothing was imported");
    drop(stranger);
    until("the stranger is forgotten", || node.status()["processes"] == 1);
}

#[test]
fn a_queue_that_is_too_short_is_refused() {
    let node = Node::new();
    let _process = node.open();
    let socket = connect_packets(&node.path().join("node.sock")).unwrap();
    let memory = create_memory(MEMORY).unwrap();
    let queue = Mapping::new(&memory, 0, MEMORY, Access::ReadWrite).unwrap();
    let mut stranger = Stranger { socket, queue, last_seq: 0 };
    let hello = Hello {
        version: VERSION,
        name: String::new(),
        resume: None,
        control: false,
        pairing_only: false,
        hosts_lanes: false,
        heir: None,
    };
    stranger.say(&Request::Hello(hello), &[]);
    assert!(matches!(stranger.hear().0, Answer::Welcome(_)));
    let short = create_memory(MEMORY - 4096).unwrap();
    assert!(stranger.ask(|seq| Request::Queue { seq }, Some(&short)).is_err());
    assert!(stranger.ask(|seq| Request::Queue { seq }, None).is_err());
}

/// More threads than the queue has slots: a full queue makes them wait, and each thread's words stay in order.
#[test]
fn a_full_queue_is_back_pressure() {
    let node = Node::new();
    let (exporter, importer) = (node.open(), node.open());
    let threads = SLOTS + 16;
    let export = exporter.export(threads * 8).create().unwrap();
    let import = write_only(&importer, &export);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..threads)
            .map(|thread| {
                let import = &import;
                scope.spawn(move || (1..=50).for_each(|n| import.signal(thread * 8, n).unwrap()))
            })
            .collect();
        let over = &over;
        let export = &export;
        scope.spawn(move || {
            let mut last = vec![0; threads];
            while !over.load(Ordering::Relaxed) {
                for (thread, last) in last.iter_mut().enumerate() {
                    let found = export.load_signal(thread * 8).unwrap();
                    assert!(found >= *last, "went back");
                    *last = found;
                }
                std::thread::yield_now();
            }
        });
        let joined: Vec<_> = senders.into_iter().map(|sender| sender.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(joined.iter().all(Result::is_ok));
    });
    for thread in 0..threads {
        assert_eq!(export.load_signal(thread * 8), Ok(50));
    }
}

/// The notes of an export in the order in which the service wrote them: offsets.
fn notified(export: &Export, count: usize) -> Vec<usize> {
    let next = |_| {
        let notification = export.wait(FOREVER).unwrap();
        assert!(notification.lost == 0, "more than a mailbox holds");
        notification.offset
    };
    (0..count).map(next).collect()
}

#[test]
fn a_full_queue_of_one_process_does_not_keep_others_waiting() {
    const BUSY: u64 = 48;
    let node = Node::new();
    let process = node.open();
    let export = process.export(4096).notify(vmmc::Notify::Event).create().unwrap();
    let (mut busy, mut modest) = (Stranger::new(&node), Stranger::new(&node));
    let handles =
        [&mut busy, &mut modest].map(|stranger| stranger.import(export.id(), Rights::WRITE).0);
    // The service finds all of it together, the busy process's first.
    let pid = node.service_pid().unwrap();
    kill(pid, libc::SIGSTOP);
    for number in 0..BUSY {
        let command = Command { notify: Some((number, 1)), ..plain(handles[0], number, 1) };
        let _ = busy.commands().post(busy.commands().claim().unwrap(), &command);
    }
    busy.say(&Request::Ring, &[]);
    let command = Command { notify: Some((1000, 1)), ..plain(handles[1], 1000, 1) };
    let _ = modest.commands().post(modest.commands().claim().unwrap(), &command);
    modest.say(&Request::Ring, &[]);
    kill(pid, libc::SIGCONT);
    let order = notified(&export, BUSY as usize + 1);
    let turn = order.iter().position(|offset| *offset == 1000).unwrap();
    assert!(turn < BUSY as usize, "the modest process was served last");
    let of_busy: Vec<usize> = order.into_iter().filter(|offset| *offset != 1000).collect();
    assert_eq!(of_busy, (0..BUSY as usize).collect::<Vec<_>>(), "and each in its own order");
}

#[test]
fn what_a_process_had_posted_when_it_ended_is_done() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(SLOTS * 8).create().unwrap();
    let mut stranger = Stranger::new(&node);
    let handle = stranger.import(export.id(), Rights::WRITE).0;
    // More than one turn's worth, and the service is not told of it.
    for number in 0..SLOTS as u64 {
        let signal = Some((number * 8, number + 1));
        let command = Command { signal, ..plain(handle, 0, 0) };
        let _ = stranger.commands().post(stranger.commands().claim().unwrap(), &command);
    }
    assert_eq!(export.load_signal(0), Ok(0), "nobody has rung");
    drop(stranger);
    until("the last command is done", || {
        export.load_signal((SLOTS - 1) * 8).unwrap() == SLOTS as u64
    });
    for number in 0..SLOTS {
        assert_eq!(export.load_signal(number * 8), Ok(number as u64 + 1));
    }
}

/// A revocation in the middle of a send of many pieces is told as such, whatever was written before it.
#[test]
fn an_export_revoked_during_a_send_of_many_pieces_is_an_error() {
    let node = Node::new();
    let (exporter, importer) = (node.open(), node.open());
    let big = vec![7; 1 << 22];
    for _ in 0..5 {
        let export = exporter.export(big.len()).create().unwrap();
        let import = write_only(&importer, &export);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let deadline = Instant::now() + FOREVER;
                while Instant::now() < deadline {
                    if let Err(error) = import.send(0, &big) {
                        return error;
                    }
                }
                panic!("the revocation was not seen");
            });
            until("begun", || {
                let mut found = [0];
                export.read(0, &mut found).unwrap();
                found[0] == 7
            });
            export.unexport().unwrap();
            assert_eq!(sender.join().unwrap(), TransferError::Revoked);
        });
    }
}

#[test]
fn a_killed_service_fails_the_send_and_the_next_one_serves() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(1 << 20).create().unwrap();
    let import = write_only(&process, &export);
    let big = vec![7; 1 << 20];
    import.send(0, &big).unwrap();
    for _ in 0..3 {
        let pid = node.service_pid().unwrap();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let deadline = Instant::now() + FOREVER;
                while Instant::now() < deadline {
                    match import.send(0, &big) {
                        Ok(()) => {}
                        Err(error) => return error,
                    }
                }
                panic!("the service's death was not seen");
            });
            std::thread::sleep(Duration::from_millis(20));
            // Stopped first, so that the death falls into a send and not between two.
            kill(pid, libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(20));
            kill(pid, libc::SIGKILL);
            assert_eq!(sender.join().unwrap(), TransferError::ServiceLost);
        });
        until("served again", || import.send(0, &big).is_ok());
    }
}

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::options().open().unwrap();
    let source = ImportSource::Id(argument.parse().unwrap());
    let import = process.import(source).rights(Rights::WRITE).open().unwrap();
    // The service knows the queue.
    import.signal(0, 0).unwrap();
    say("ready");
    if role == "asynchronous poster" {
        listen();
        let post = |number: usize| import.signal_async(number * 8, number as u64 + 1);
        let transfers: Vec<_> = (0..TOGETHER).map(post).collect();
        assert!(transfers.iter().all(|transfer| !transfer.is_over()), "the service is stopped");
        listen();
    }
    let bytes = vec![1; 300_000];
    loop {
        import.send_signal(8, &bytes, 0, 1).unwrap();
    }
}

/// Operations that one poster has under way.
const TOGETHER: usize = 40;

/// None waits for the end of another: all are done for a poster that is gone, as all were in the queue.
#[test]
fn asynchronous_operations_are_in_the_queue_together() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(4096).create().unwrap();
    let mut actor = node.actor("asynchronous poster", &export.id().to_string());
    assert_eq!(actor.hear(), "ready");
    let service = node.service_pid().unwrap();
    kill(service, libc::SIGSTOP);
    actor.tell("post");
    // Its thread has posted what it has room for long before.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(export.load_signal(0), Ok(0));
    actor.kill();
    kill(service, libc::SIGCONT);
    until("the last is done", || export.load_signal((TOGETHER - 1) * 8) == Ok(TOGETHER as u64));
    for number in 0..TOGETHER {
        assert_eq!(export.load_signal(number * 8), Ok(number as u64 + 1));
    }
}

#[test]
fn a_poster_killed_in_the_middle_leaves_nothing() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(1 << 19).create().unwrap();
    for _ in 0..5 {
        let mut actor = node.actor("poster", &export.id().to_string());
        assert_eq!(actor.hear(), "ready");
        std::thread::sleep(Duration::from_millis(10));
        actor.kill();
    }
    until("all are forgotten", || {
        let status = node.status();
        status["processes"] == 1 && status["imports"] == 0
    });
    let import = write_only(&process, &export);
    import.send_signal(8, &[2; 100], 0, 2).unwrap();
    assert_eq!(export.load_signal(0), Ok(2));
}
