//! Pairing: two ends of a TCP connection find each other, talk through memory, and go back to TCP.

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{FOREVER, Node, listen, role, say, until};
use vmmc::{
    BrokenReason, Export, ExportState, Import, OfferId, PairBell, PairError, PairId, PairMemory,
    PairingEvent, Process,
};

const MEMORY: PairMemory = PairMemory { len: 1 << 20, mapped: 8192, stream: false };

#[test]
fn actor() {
    match role() {
        Some((role, port)) if role == "end" => end(&port, false),
        Some((role, port)) if role == "end-outliving-service" => end(&port, true),
        Some((role, _)) if role == "polled" => polled(),
        _ => {}
    }
}

/// Connects, pairs, echoes one word through memory, then does what it is told.
fn end(port: &str, restarts: bool) {
    let process = Process::options().watcher(false).open().unwrap();
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    process.pair_offer(socket.as_fd()).unwrap();
    let side = Side::pair(&process, &socket);
    side.expect_word(0, 41);
    side.import.signal(0, 42).unwrap();
    say("paired");
    if restarts {
        until("service lost", || matches!(process.poll(), Some(PairingEvent::ServiceLost)));
        assert!(!process.has_mail(), "told once");
        assert_eq!(process.pair_drop(side.pair), Err(PairError::ServiceLost));
        until("reconnected", || process.reconnect().is_ok());
        process.pair_hold(side.pair, socket.as_fd()).unwrap();
        say("held");
    }
    loop {
        match listen().as_str() {
            "handed" => {
                assert!(
                    matches!(next(&process), PairingEvent::Handed { pair } if pair == side.pair)
                );
                say("handed");
            }
            "inject" => {
                process.pair_inject(side.pair, b"unread", false).unwrap();
                let mut unread = [0; 6];
                socket.read_exact(&mut unread).unwrap();
                say(std::str::from_utf8(&unread).unwrap());
            }
            "settle" => process.pair_settle(side.pair).unwrap(),
            "eof" => {
                assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
                say("eof");
            }
            "write" => socket.write_all(b"after").unwrap(),
            "drop" => process.pair_drop(side.pair).unwrap(),
            "close" => {
                drop(socket);
                process.pair_drop(side.pair).unwrap();
                say("closed");
                listen();
                return;
            }
            "say much, let go and end" => {
                for _ in 0..100 {
                    process.pair_settle(side.pair).unwrap();
                }
                process.pair_drop(side.pair).unwrap();
                std::process::exit(0);
            }
            "export" => say(side.export.id()),
            _ => return,
        }
    }
}

/// One end after Ready.
struct Side {
    pair: PairId,
    export: Export,
    import: Import,
}

impl Side {
    fn pair(process: &Process, socket: &TcpStream) -> Self {
        let (_, pair) = matched(process);
        let export = process.pair_export(pair, MEMORY, socket.as_fd()).unwrap();
        match next(process) {
            PairingEvent::Ready { pair: ready, import } if ready == pair => {
                Self { pair, export, import }
            }
            other => panic!("{other:?}"),
        }
    }

    fn expect_word(&self, offset: usize, value: u64) {
        until("word", || self.export.load_signal(offset).unwrap() == value);
    }
}

fn next(process: &Process) -> PairingEvent {
    let deadline = Instant::now() + FOREVER;
    loop {
        if process.has_mail()
            && let Some(event) = process.poll()
        {
            return event;
        }
        assert!(Instant::now() < deadline, "no event");
        std::thread::yield_now();
    }
}

fn matched(process: &Process) -> (OfferId, PairId) {
    match next(process) {
        PairingEvent::Matched { offer, pair, .. } => (offer, pair),
        other => panic!("{other:?}"),
    }
}

/// A listening socket, and the other process connected to it and paired with this one.
fn paired_with_actor(node: &Node, role: &str) -> (Process, harness::Actor, TcpStream, Side) {
    let process = node.open_polled();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut actor = node.actor(role, &port.to_string());
    let (socket, _) = listener.accept().unwrap();
    process.pair_offer(socket.as_fd()).unwrap();
    let side = Side::pair(&process, &socket);
    side.import.signal(0, 41).unwrap();
    side.expect_word(0, 42);
    assert_eq!(actor.hear(), "paired");
    (process, actor, socket, side)
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn two_processes_find_each_other_and_see_each_others_end() {
    let node = Node::new();
    let (process, mut actor, mut socket, side) = paired_with_actor(&node, "end");
    assert_eq!(node.status()["pairs"], 1);
    // The peer closes its descriptor and drops the pair: the kernel must send FIN although the service held the socket.
    actor.tell("close");
    assert_eq!(actor.hear(), "closed");
    socket.set_read_timeout(Some(FOREVER)).unwrap();
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
    match next(&process) {
        PairingEvent::Broken { pair, why: BrokenReason::PeerDropped } => {
            assert_eq!(pair, side.pair)
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(side.import.state(), ExportState::Revoked);
    process.pair_drop(side.pair).unwrap();
    until("pair gone", || node.status()["pairs"] == 0);
}

/// Stops the node's service; what it does first when it goes on is what it was told first.
fn stop(node: &Node) -> i32 {
    let service = node.service_pid().unwrap();
    harness::kill(service, libc::SIGSTOP);
    until("stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{service}/stat")).unwrap();
        stat.contains(") T ")
    });
    service
}

#[test]
fn what_a_process_said_before_its_end_is_heard() {
    // It may have left something unread, and the service may find its end closed before it reads.
    for (leaves_unread, is_told) in [(false, false), (true, false), (false, true)] {
        let node = Node::new();
        let (process, mut actor, _socket, side) = paired_with_actor(&node, "end");
        let tell = || process.pair_inject(side.pair, b"unread", false).unwrap();
        if leaves_unread {
            tell();
        }
        let service = stop(&node);
        if is_told {
            tell();
        }
        actor.tell("say much, let go and end");
        actor.finish();
        harness::kill(service, libc::SIGCONT);
        match next(&process) {
            PairingEvent::Broken { pair, why } => {
                assert_eq!((pair, why), (side.pair, BrokenReason::PeerDropped));
            }
            other => panic!("{other:?}"),
        }
        until("not among the processes", || node.status()["processes"] == 1);
    }
}

#[test]
fn what_a_child_let_go_of_before_it_opened_is_not_its_own() {
    let node = Node::new();
    let process = node.open_polled();
    let (near, far) = connection();
    let near_offer = process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    let mut pairs = [matched(&process), matched(&process)];
    pairs.sort_by_key(|(offer, _)| *offer != near_offer);
    let [near_pair, far_pair] = pairs.map(|(_, pair)| pair);
    let heir = process.pair_heir().unwrap();
    let service = stop(&node);
    for _ in 0..100 {
        heir.pair_settle(near_pair).unwrap();
    }
    heir.pair_drop(near_pair, false).unwrap();
    let _child = std::thread::scope(|scope| {
        let opening = scope.spawn(|| node.options().watcher(false).heir(&heir).open().unwrap());
        std::thread::sleep(Duration::from_millis(100));
        harness::kill(service, libc::SIGCONT);
        opening.join().unwrap()
    });
    process.pair_drop(near_pair).unwrap();
    match next(&process) {
        PairingEvent::Broken { pair, why: BrokenReason::PeerDropped } => {
            assert_eq!(pair, far_pair);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_ends_in_one_process_are_told_apart() {
    let node = Node::new();
    let process = node.open();
    let (near, far) = connection();
    let near_offer = process.pair_offer(near.as_fd()).unwrap();
    let far_offer = process.pair_offer(far.as_fd()).unwrap();
    let mut pairs = [matched(&process), matched(&process)];
    pairs.sort_by_key(|(offer, _)| *offer != near_offer);
    assert_eq!([pairs[0].0, pairs[1].0], [near_offer, far_offer]);
    let [near_pair, far_pair] = [pairs[0].1, pairs[1].1];
    assert_eq!(near_pair.peer(), far_pair);
    let near_export = process.pair_export(near_pair, MEMORY, near.as_fd()).unwrap();
    let far_export = process.pair_export(far_pair, MEMORY, far.as_fd()).unwrap();
    for _ in 0..2 {
        match next(&process) {
            PairingEvent::Ready { pair, import } => {
                let (value, export) =
                    if pair == near_pair { (1, &far_export) } else { (2, &near_export) };
                import.send_signal(64, b"hello", 0, value).unwrap();
                assert_eq!(export.load_signal(0).unwrap(), value);
                // Memory that was not mapped at first can be mapped later, without its descriptor.
                let end = MEMORY.len - 8;
                let more = import.extend(MEMORY.len).unwrap();
                let theirs = export.extend(MEMORY.len).unwrap();
                // SAFETY: both ranges are `MEMORY.len` bytes, mapped as long as import and export.
                unsafe {
                    more.add(end).cast::<u64>().write_volatile(value);
                    assert_eq!(theirs.add(end).cast::<u64>().read_volatile(), value);
                    assert_eq!(theirs.cast::<u64>().read_volatile(), value);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn discarded_pages_of_a_pair_read_as_zero_on_both_sides() {
    let node = Node::new();
    let process = node.open();
    let (near, far) = connection();
    let near_offer = process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    let mut pairs = [matched(&process), matched(&process)];
    pairs.sort_by_key(|(offer, _)| *offer != near_offer);
    let exports: Vec<Export> = pairs
        .iter()
        .zip([&near, &far])
        .map(|((_, pair), socket)| process.pair_export(*pair, MEMORY, socket.as_fd()).unwrap())
        .collect();
    let PairingEvent::Ready { pair, import } = next(&process) else { panic!("not ready") };
    let export = &exports[usize::from(pair == pairs[0].1)];
    let (theirs, mine) = (import.extend(MEMORY.len).unwrap(), export.extend(MEMORY.len).unwrap());
    // SAFETY: both are mapped for `MEMORY.len` bytes as long as import and export live; nobody else writes.
    let byte = |start: *mut u8, at: usize| unsafe { start.add(at).read_volatile() };
    for at in [4096, 8192, 12288, MEMORY.len - 1] {
        // SAFETY: as above.
        unsafe { theirs.add(at).write_volatile(7) };
        assert_eq!(byte(mine, at), 7, "the same memory");
    }
    for range in [0..0, 1..4096, 0..100, 4096..MEMORY.len + 4096] {
        assert_eq!(import.discard(range), Err(vmmc::DiscardError::Range));
    }
    import.discard(8192..MEMORY.len).unwrap();
    assert_eq!([4096, 8192, 12288, MEMORY.len - 1].map(|at| byte(mine, at)), [7, 0, 0, 0]);
    assert_eq!([4096, 8192, 12288, MEMORY.len - 1].map(|at| byte(theirs, at)), [7, 0, 0, 0]);
}

/// Both ends of a connection in this process, the second exporter's bell shared.
fn pair_sharing(process: &Process, bell: &PairBell, place: u32) -> (Import, [Export; 2]) {
    let (near, far) = connection();
    let near_offer = process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    let mut pairs = [matched(process), matched(process)];
    pairs.sort_by_key(|(offer, _)| *offer != near_offer);
    let [near_pair, far_pair] = pairs.map(|(_, pair)| pair);
    let own = process.pair_export(near_pair, MEMORY, near.as_fd()).unwrap();
    let place = (bell, place);
    let shared = process.pair_export_sharing(far_pair, MEMORY, far.as_fd(), place).unwrap();
    assert!(own.event_fd().is_some() && shared.event_fd().is_none());
    let mut imports = [next(process), next(process)].map(|event| match event {
        PairingEvent::Ready { pair, import } => (pair == near_pair, import),
        other => panic!("{other:?}"),
    });
    imports.sort_by_key(|(of_near, _)| !of_near);
    let [(_, theirs), (_, other)] = imports;
    assert!(other.shared_bell().is_none());
    (theirs, [own, shared])
}

#[test]
fn pairs_share_a_bell_whose_marks_say_for_whom_it_was_rung() {
    let node = Node::new();
    let process = node.open();
    let bell = process.pair_bell().unwrap();
    let (first, _exports) = pair_sharing(&process, &bell, 7);
    let (second, _others) = pair_sharing(&process, &bell, 4000);
    let at = |import: &Import| {
        let (bell, place) = import.shared_bell().unwrap();
        (Arc::as_ptr(bell), place)
    };
    assert_eq!((at(&first).1, at(&second).1), (7, 4000));
    assert_eq!(at(&first).0, at(&second).0, "one descriptor for both");
    let taken = || {
        let mut places = Vec::new();
        bell.marks().take(|place| places.push(place));
        places
    };
    let silenced = || vmmc::bell::silence(bell.event_fd());
    assert_eq!((silenced(), taken()), (0, vec![]));
    second.send_notify(0, b"news").unwrap();
    assert_eq!((silenced(), taken()), (1, vec![4000]));
    first.send_notify(0, b"news").unwrap();
    second.send_notify(0, b"news").unwrap();
    assert_eq!((silenced(), taken()), (2, vec![7, 4000]));
}

#[test]
fn a_shared_bell_without_marks_is_refused() {
    let node = Node::new();
    let process = node.open_polled();
    let bell = process.pair_bell().unwrap();
    let (import, _exports) = pair_sharing(&process, &bell, 0);
    // A bell that came from somebody else has no marks to send along.
    let (foreign, _) = import.shared_bell().unwrap();
    let (near, far) = connection();
    let near_offer = process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    let pairs = [matched(&process), matched(&process)];
    let (_, pair) = pairs.into_iter().find(|(offer, _)| *offer == near_offer).unwrap();
    process.pair_export_sharing(pair, MEMORY, near.as_fd(), (foreign.as_ref(), 1)).unwrap();
    match next(&process) {
        PairingEvent::Broken { pair: broken, why: BrokenReason::Refused } => {
            assert_eq!(broken, pair)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unmatched_offer_does_not_delay_fin() {
    let node = Node::new();
    let process = node.open_polled();
    let (near, mut far) = connection();
    process.pair_offer(near.as_fd()).unwrap();
    until("offer", || node.status()["offers"] == 1);
    drop(near);
    far.set_read_timeout(Some(FOREVER)).unwrap();
    assert_eq!(far.read(&mut [0; 8]).unwrap(), 0);
    drop(process);
    until("offers gone with their process", || node.status()["offers"] == 0);
}

#[test]
fn a_process_learns_whether_it_is_alone_with_a_connection() {
    let node = Node::new();
    let process = node.open_polled();
    let (near, _far) = connection();
    let alone = || {
        let asked = process.pair_holders(near.as_fd()).unwrap();
        match next(&process) {
            PairingEvent::Holders { inquiry, alone } if inquiry == asked => alone,
            other => panic!("{other:?}"),
        }
    };
    // Children that other tests start have everything for a moment.
    until("alone", alone);
    let mut other = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::from(OwnedFd::from(near.try_clone().unwrap())))
        .spawn()
        .unwrap();
    assert!(!alone());
    drop(other.stdin.take());
    other.wait().unwrap();
    until("alone again", alone);
    // What is no connection has no answer but this one.
    let asked = process.pair_holders(std::io::stdin().as_fd()).unwrap();
    let answer = next(&process);
    assert!(
        matches!(answer, PairingEvent::Holders { inquiry, alone: false } if inquiry == asked),
        "{answer:?}"
    );
}

#[test]
fn what_is_no_connection_is_ignored_and_wrong_sockets_break_the_pair() {
    let node = Node::new();
    let process = node.open_polled();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    process.pair_offer(listener.as_fd()).unwrap();
    process.pair_offer(std::io::stdin().as_fd()).unwrap();
    let (near, far) = connection();
    process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    let (_, first) = matched(&process);
    let (_, second) = matched(&process);
    let (other, _keep) = connection();
    process.pair_export(first, MEMORY, other.as_fd()).unwrap();
    let mut broken = [next(&process), next(&process)].map(|event| match event {
        PairingEvent::Broken { pair, why: BrokenReason::Refused } => pair,
        other => panic!("{other:?}"),
    });
    broken.sort();
    let mut both = [first, second];
    both.sort();
    assert_eq!(broken, both);
}

#[test]
fn lengths_are_checked() {
    let node = Node::new();
    let process = node.open_polled();
    let (near, _far) = connection();
    for (len, mapped) in [(0, 0), (4096, 0), (4096, 8192), (usize::MAX, 4096)] {
        let memory = PairMemory { len, mapped, stream: false };
        let result = process.pair_export(PairId(2), memory, near.as_fd());
        assert_eq!(result.unwrap_err(), PairError::Length, "{len} {mapped}");
    }
}

#[test]
fn bytes_are_lowered_through_the_socket_of_a_stopped_peer() {
    let node = Node::new();
    let (process, mut actor, mut socket, side) = paired_with_actor(&node, "end");
    actor.signal(libc::SIGSTOP);
    // More than all socket buffers hold, in a large and small pieces, so that the service has to wait for room.
    let mut sent: Vec<u8> = (0..12_000_000u32).map(|n| (n % 251) as u8).collect();
    process.pair_inject(side.pair, &sent, false).unwrap();
    for piece in [&b"small"[..], b"", b"pieces"] {
        process.pair_inject(side.pair, piece, false).unwrap();
        sent.extend_from_slice(piece);
    }
    assert_eq!(node.status()["processes"], 2, "the service does not wait");
    socket.set_read_timeout(Some(FOREVER)).unwrap();
    let mut received = vec![0; sent.len()];
    socket.read_exact(&mut received).unwrap();
    assert!(received == sent, "bytes differ");
    actor.signal(libc::SIGCONT);
    for _ in 0..4 {
        actor.tell("handed");
        assert_eq!(actor.hear(), "handed");
    }
    actor.tell("write");
    let mut after = [0; 5];
    socket.read_exact(&mut after).unwrap();
    assert_eq!(&after, b"after");
}

#[test]
fn lowered_bytes_go_out_though_both_sides_have_let_go() {
    let node = Node::new();
    let (process, mut actor, mut socket, side) = paired_with_actor(&node, "end");
    let sent: Vec<u8> = (0..12_000_000u32).map(|n| (n % 249) as u8).collect();
    process.pair_inject(side.pair, &sent, false).unwrap();
    process.pair_drop(side.pair).unwrap();
    actor.tell("close");
    assert_eq!(actor.hear(), "closed");
    let mut received = Vec::new();
    socket.set_read_timeout(Some(FOREVER)).unwrap();
    socket.read_to_end(&mut received).unwrap();
    assert!(received == sent, "bytes differ: {} of {}", received.len(), sent.len());
    until("pair gone", || node.status()["pairs"] == 0);
}

#[test]
fn a_killed_peer_breaks_the_pair_and_its_connection() {
    let node = Node::new();
    let (process, mut actor, mut socket, side) = paired_with_actor(&node, "end");
    actor.kill();
    match next(&process) {
        PairingEvent::Broken { pair, why: BrokenReason::PeerDied } => assert_eq!(pair, side.pair),
        other => panic!("{other:?}"),
    }
    assert_eq!(side.import.state(), ExportState::Dead);
    socket.set_read_timeout(Some(FOREVER)).unwrap();
    assert!(matches!(socket.read(&mut [0; 8]), Ok(0) | Err(_)));
    // Nobody holds the other end's socket any more.
    process.pair_inject(side.pair, b"bytes", false).unwrap();
    match next(&process) {
        PairingEvent::Broken { why: BrokenReason::InjectFailed, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn pairs_outlive_the_service() {
    let node = Node::new();
    let (process, mut actor, mut socket, side) = paired_with_actor(&node, "end-outliving-service");
    harness::kill(node.service_pid().unwrap(), libc::SIGKILL);
    // Without any call to the kernel the death is seen.
    until("mail", || process.has_mail());
    assert!(matches!(next(&process), PairingEvent::ServiceLost));
    assert!(process.poll().is_none() && !process.has_mail());
    assert!(process.reconnect().is_err(), "no service is started in polled mode");
    // Memory goes on working.
    side.import.signal(8, 1).unwrap();
    assert_eq!(side.import.state(), ExportState::Live);
    let id = process.id();
    assert!(node.command(&["start"]).status.success());
    process.reconnect().unwrap();
    assert_eq!(process.id(), id);
    process.pair_hold(side.pair, socket.as_fd()).unwrap();
    // Lowered bytes wait for the peer's socket, until the peer has announced itself.
    process.pair_inject(side.pair, b"lowered", false).unwrap();
    assert_eq!(actor.hear(), "held");
    socket.set_read_timeout(Some(FOREVER)).unwrap();
    let mut received = [0; 7];
    socket.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"lowered");
    actor.tell("handed");
    assert_eq!(actor.hear(), "handed");
    actor.kill();
    match next(&process) {
        PairingEvent::Broken { pair, why: BrokenReason::PeerDied } => assert_eq!(pair, side.pair),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_service_makes_nobody_wait_for_ever() {
    let node = Node::new();
    let process = node.open_polled();
    let service = node.service_pid().unwrap();
    harness::kill(service, libc::SIGSTOP);
    let (near, _far) = connection();
    // Offers go through until the socket is full, and then say so.
    let full = (0..100_000).find_map(|_| process.pair_offer(near.as_fd()).err());
    assert_eq!(full, Some(PairError::WouldBlock));
    assert!(process.poll().is_none());
    assert!(process.processes().is_err());
    assert!(node.options().watcher(false).open().is_err());
    harness::kill(service, libc::SIGCONT);
    until("answers again", || process.processes().is_ok());
}

#[test]
fn a_closed_end_lingers_until_its_peer_has_read_everything() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    process.pair_linger(side.pair).unwrap();
    drop(socket);
    // What the peer has not read goes through the socket that was closed here.
    actor.tell("inject");
    assert_eq!(actor.hear(), "unread");
    assert_eq!(node.status()["pairs"], 1);
    actor.tell("settle");
    actor.tell("eof");
    assert_eq!(actor.hear(), "eof");
    actor.tell("drop");
    until("pair gone", || node.status()["pairs"] == 0);
}

#[test]
fn a_peer_that_settled_first_keeps_no_socket() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    actor.tell("settle");
    actor.tell("export");
    actor.hear();
    process.pair_linger(side.pair).unwrap();
    drop(socket);
    actor.tell("eof");
    assert_eq!(actor.hear(), "eof");
}

#[test]
fn a_lingering_end_goes_with_its_peer() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    process.pair_linger(side.pair).unwrap();
    drop(socket);
    until("told", || process.processes().is_ok());
    actor.kill();
    until("pair gone", || node.status()["pairs"] == 0);
}

#[test]
fn what_must_not_be_lost_waits_for_a_busy_service() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    let service = node.service_pid().unwrap();
    harness::kill(service, libc::SIGSTOP);
    while process.pair_offer(socket.as_fd()) != Err(PairError::WouldBlock) {}
    let busy = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        harness::kill(service, libc::SIGCONT);
    });
    // Were it lost, the service would keep its duplicate of the socket, and the peer would never see the end.
    process.pair_drop(side.pair).unwrap();
    drop(socket);
    actor.tell("eof");
    assert_eq!(actor.hear(), "eof");
    busy.join().unwrap();
}

#[test]
fn a_service_that_stays_stopped_is_given_up_and_lets_go_when_it_goes_on() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    let service = node.service_pid().unwrap();
    harness::kill(service, libc::SIGSTOP);
    while process.pair_offer(socket.as_fd()) != Err(PairError::WouldBlock) {}
    assert_eq!(process.pair_drop(side.pair), Err(PairError::ServiceLost));
    drop(socket);
    harness::kill(service, libc::SIGCONT);
    actor.tell("eof");
    assert_eq!(actor.hear(), "eof");
}

/// A forked child does `act`, with a stream to its parent. It does not outlive the test's failure.
fn forked(act: impl FnOnce(&UnixStream)) -> (libc::pid_t, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: the child only makes library calls and system calls, writes to its stream and exits; other threads of the
    // test program are not needed by what it calls, except the allocator, which libc keeps usable after fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // Without its copy of our end the child sees the test's failure as an end.
        drop(ours);
        // SAFETY: a plain call; the alarm ends a child that waits in vain.
        unsafe { libc::alarm(60) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&theirs)));
        // SAFETY: ends the child without running the test program's exit handlers.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    ours.set_read_timeout(Some(FOREVER)).unwrap();
    (child, ours)
}

/// The parent lets go: the child still holds the end, so the peer sees nothing.
fn parent_lets_go(
    node: &Node,
    actor: &mut harness::Actor,
    (process, socket, side): (Process, TcpStream, Side),
) {
    process.pair_drop(side.pair).unwrap();
    until("dropped", || process.processes().is_ok());
    drop((process, side, socket));
    actor.tell("export");
    actor.hear();
    assert_eq!(node.status()["pairs"], 1);
}

/// The child ends, and with it the pair.
fn child_ends(node: &Node, actor: &mut harness::Actor, child: libc::pid_t, mut ours: UnixStream) {
    ours.write_all(b"x").unwrap();
    let mut status = 0;
    // SAFETY: waits for a child of this process's.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    actor.tell("drop");
    until("pair gone", || node.status()["pairs"] == 0);
}

#[test]
fn a_forked_child_holds_the_end_too() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    let (child, mut ours) = forked(|mut theirs| {
        assert_eq!(process.pair_drop(side.pair), Err(PairError::Forked));
        let again = process.reopen_after_fork().unwrap();
        again.pair_hold(side.pair, socket.as_fd()).unwrap();
        until("held", || again.processes().is_ok());
        side.import.signal(16, 7).unwrap();
        theirs.write_all(b"h").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
    });
    ours.read_exact(&mut [0]).unwrap();
    parent_lets_go(&node, &mut actor, (process, socket, side));
    child_ends(&node, &mut actor, child, ours);
}

#[test]
fn a_forked_child_has_what_was_kept_for_it() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    let heir = process.pair_heir().unwrap();
    let (child, mut ours) = forked(|mut theirs| {
        theirs.read_exact(&mut [0]).unwrap();
        let own = Process::options().runtime_dir(node.path()).watcher(false).heir(&heir);
        let own = own.open().unwrap();
        assert!(own.has_inherited());
        theirs.write_all(b"h").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
    });
    drop(heir);
    // Before the child has said anything.
    parent_lets_go(&node, &mut actor, (process, socket, side));
    ours.write_all(b"x").unwrap();
    ours.read_exact(&mut [0]).unwrap();
    assert_eq!(node.status()["pairs"], 1);
    child_ends(&node, &mut actor, child, ours);
}

#[test]
fn what_was_kept_for_a_child_goes_with_it_or_as_it_says() {
    let node = Node::new();
    let (process, mut actor, socket, side) = paired_with_actor(&node, "end");
    let [first, second] = [(); 2].map(|()| process.pair_heir().unwrap());
    process.pair_drop(side.pair).unwrap();
    first.pair_drop(side.pair, false).unwrap();
    until("dropped", || process.processes().is_ok());
    drop((process, side, socket));
    assert_eq!(node.status()["pairs"], 1);
    // Nobody has the second any more, as if the child had been killed: the service's is the last descriptor of our end.
    drop(second);
    actor.tell("eof");
    assert_eq!(actor.hear(), "eof");
    drop(first);
}

#[test]
fn polled_mode_starts_no_thread() {
    let node = Node::new();
    let mut actor = node.actor("polled", "");
    let before = actor.hear();
    assert_eq!(actor.hear(), before);
}

/// Says how many threads there are before and after everything that polled mode can do.
fn polled() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    say(threads());
    let process = Process::options().watcher(false).open().unwrap();
    let export = process.export(100).notify(vmmc::Notify::Event).create().unwrap();
    let import = process.import(vmmc::ImportSource::Id(export.id())).open().unwrap();
    import.send_notify(0, b"x").unwrap();
    export.wait(FOREVER).unwrap();
    let (near, far) = connection();
    process.pair_offer(near.as_fd()).unwrap();
    process.pair_offer(far.as_fd()).unwrap();
    matched(&process);
    say(threads());
}
