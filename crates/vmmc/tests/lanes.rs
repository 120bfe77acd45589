//! Engines that processes of two nodes host themselves, and what goes on when one of the processes does not.

mod harness;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{FOREVER, Node, listen, say, until};
use vmmc::{ExportState, Import, ImportSource, Notify, Path, Process, Rights, TransferError};

/// A process of its own, for the tests that stop or kill one.
#[test]
fn actor() {
    let Some((role, argument)) = harness::role() else { return };
    let process = Process::open().unwrap();
    match role.as_str() {
        "exporter" => exporter(&process),
        "watcher" => watcher(&process),
        "sender" => {
            let import = import(&process, &argument);
            say("ready");
            for round in 1.. {
                import.send_signal(64, &[round as u8; 20_000], 0, round).unwrap();
            }
        }
        _ => panic!("no such role: {role}"),
    }
}

/// Counts notifications, and tells when asked.
fn exporter(process: &Process) {
    let export = process.export(65_536).name("board").notify(Notify::Event).create().unwrap();
    let counted = Mutex::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while let Ok(notification) = export.wait(FOREVER) {
                if notification.lost == 0 {
                    // What the mailbox had no room for is told by its number, at another place.
                    assert!(notification.last_word > last, "in order, and none twice");
                    last = notification.last_word;
                }
                *counted.lock().unwrap() += notification.lost.max(1);
            }
        });
        say("ready");
        while listen() == "count" {
            say(*counted.lock().unwrap());
        }
        std::process::exit(0);
    });
}

/// Looks at a word and at bytes that were sent before it. Told to, it stops itself, which it is never in the middle of a packet for: it is who
/// lets the engine work.
fn watcher(process: &Process) {
    let export = process.export(65_536).name("board").create().unwrap();
    let (seen, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            let mut bytes = [0; 5000];
            loop {
                let word = export.load_signal(0).unwrap();
                assert!(word >= last, "{word} after {last}: a word was written twice");
                export.read(64, &mut bytes).unwrap();
                // Of this number, or of the next ones.
                let ahead = |byte: &u8| byte.wrapping_sub(word as u8) < 128;
                assert!(bytes.iter().all(ahead), "older bytes under the word {word}");
                if word > last && stop.swap(false, Ordering::Relaxed) {
                    say("stopping");
                    // SAFETY: a signal to this process.
                    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
                }
                last = word;
                seen.store(word, Ordering::Relaxed);
                process.progress();
                std::thread::yield_now();
            }
        });
        say("ready");
        loop {
            match listen().as_str() {
                "word" => say(seen.load(Ordering::Relaxed)),
                "stop" => stop.store(true, Ordering::Relaxed),
                _ => std::process::exit(0),
            }
        }
    });
}

fn import(process: &Process, node: &str) -> Import {
    process.import(ImportSource::Name("board".to_owned())).node(node).open().unwrap()
}

/// What a sender did.
#[derive(Default)]
struct Sent {
    last: u64,
    done: u64,
    /// Calls that ended without an answer: the exporter was stopped in the middle of a packet.
    unsure: u64,
}

impl Sent {
    /// Sends the next number as a notification; whether it was done.
    fn next(&mut self, import: &Import) -> bool {
        self.last += 1;
        match import.send_notify(8, &self.last.to_le_bytes()) {
            Ok(()) => self.done += 1,
            Err(TransferError::Timeout) => self.unsure += 1,
            Err(error) => panic!("{error}"),
        }
        self.unsure == 0
    }
}

#[test]
fn an_exporter_that_is_stopped_at_any_moment_gets_everything_once() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let mut exporter = ada.actor("exporter", "");
    assert_eq!(exporter.hear(), "ready");
    let importer = grace.open();
    let import = import(&importer, "ada");
    let mut total = Sent::default();
    for round in 0..6_u64 {
        let mut sent = Sent { last: total.last, ..Sent::default() };
        // By the services it asks for another lane now and then.
        until("a lane", || {
            sent.next(&import);
            import.path() == Path::Lane
        });
        std::thread::scope(|scope| {
            let stopper = scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(3_000 + 1_234 * round));
                exporter.signal(libc::SIGSTOP);
            });
            while sent.next(&import) && !stopper.is_finished() {}
        });
        // Nobody answers there any more; the services carry on.
        for _ in 0..20 {
            if !sent.next(&import) {
                break;
            }
        }
        exporter.signal(libc::SIGCONT);
        total = Sent {
            last: sent.last,
            done: total.done + sent.done,
            unsure: total.unsure + sent.unsure,
        };
    }
    let expected = total.done..=total.done + total.unsure;
    until("all counted", || {
        exporter.tell("count");
        let counted: u64 = exporter.hear().parse().unwrap();
        assert!(counted <= *expected.end(), "{counted} notifications of {expected:?}");
        expected.contains(&counted)
    });
}

#[test]
fn what_is_under_way_when_an_exporter_stops_is_done_once_and_in_order() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let mut watcher = ada.actor("watcher", "");
    assert_eq!(watcher.hear(), "ready");
    let importer = grace.open();
    let import = import(&importer, "ada");
    let (mut number, unsure) = (0_u64, Cell::new(false));
    let mut under_way = VecDeque::new();
    // Three operations for each number, up to 30 numbers on their way.
    let mut post = || {
        number += 1;
        let send = |at, len| import.send_async(at, vec![number as u8; len]);
        let bytes = (send(64, 5000), send(144, 80));
        under_way.push_back((bytes, import.signal_async(0, number)));
        if under_way.len() == 30 {
            let ((large, small), word) = under_way.pop_front().unwrap();
            let results = [large.wait().result, small.wait().result, word.wait().result];
            // It was stopped in the middle of a packet, by the engine's thread after all: nobody knows what it will do.
            unsure.set(unsure.get() || results.contains(&Err(TransferError::Timeout)));
            assert!(unsure.get() || results == [Ok(()); 3], "{results:?}");
        }
        number
    };
    for _ in 0..3 {
        until("a lane", || {
            post();
            import.path() == Path::Lane
        });
        watcher.tell("stop");
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| assert_eq!(watcher.hear(), "stopping"));
            while !stopping.is_finished() {
                post();
            }
        });
        // Nobody answers there any more; the services carry on.
        for _ in 0..40 {
            post();
        }
        import.flush().unwrap();
        if unsure.get() {
            return;
        }
        watcher.signal(libc::SIGCONT);
        let last = post().to_string();
        until("the last word", || {
            watcher.tell("word");
            watcher.hear() == last
        });
    }
}

/// Bytes that are poisoned when they are given up.
struct Poisoned(Vec<u8>);

impl AsRef<[u8]> for Poisoned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Poisoned {
    fn drop(&mut self) {
        self.0.fill(0xee);
    }
}

/// Bytes that outlive who owns them, and what they were when he gave them up.
struct Outlived(&'static [AtomicU8], Arc<Mutex<Vec<u8>>>);

impl AsMut<[u8]> for Outlived {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: atomics are bytes; they are this value's until it is dropped, which alone looks at them before.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().cast_mut().cast(), self.0.len()) }
    }
}

impl Drop for Outlived {
    fn drop(&mut self) {
        *self.1.lock().unwrap() = self.0.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
    }
}

#[test]
fn what_is_dropped_or_cancelled_over_a_lane_is_not_touched_any_more() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer) = (ada.open(), grace.open());
    let export = exporter.export(1 << 20).name("board").rights(Rights::READ_WRITE).create();
    let export = export.unwrap();
    let import = importer
        .import(ImportSource::Name("board".to_owned()))
        .node("ada")
        .rights(Rights::READ_WRITE)
        .open()
        .unwrap();
    until("a lane", || import.path() == Path::Lane);
    let mut outlived = Vec::new();
    for round in 0..300_usize {
        let len = [8, 3000, 70_000, 400_000][round % 4];
        let kept = import.send_async(0, Poisoned(vec![1; len]));
        let sent = import.send_async(500_000, Poisoned(vec![2; len]));
        let into: &'static [AtomicU8] = Vec::leak((0..len).map(|_| AtomicU8::new(7)).collect());
        let then = Arc::new(Mutex::new(Vec::new()));
        let fetched = import.fetch_async(0, Outlived(into, Arc::clone(&then)));
        outlived.push((into, then));
        if round % 3 == 0 {
            sent.cancel();
            let finished = sent.wait();
            assert!(matches!(finished.result, Ok(()) | Err(TransferError::Cancelled)));
            drop(fetched);
        } else {
            drop((fetched, sent));
        }
        assert_eq!(kept.wait().result, Ok(()), "nobody else's is touched");
        let mut found = vec![0; 1 << 20];
        export.read(0, &mut found).unwrap();
        assert!(!found.contains(&0xee), "bytes were read after their end");
    }
    import.flush().unwrap();
    for (bytes, then) in outlived {
        let now: Vec<_> = bytes.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        assert!(*then.lock().unwrap() == now, "bytes were written after their end");
    }
    assert_eq!(import.path(), Path::Lane, "and the lane goes on");
}

#[test]
fn an_exporter_that_computes_goes_on_answering() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer) = (ada.open(), grace.open());
    let export = exporter.export(4096).name("board").create().unwrap();
    let import = import(&importer, "ada");
    until("a lane", || import.path() == Path::Lane);
    // Nobody calls the library at the other end: its thread does the work.
    for round in 1..=200 {
        import.send_signal(8, &[round as u8; 1000], 0, round).unwrap();
        assert_eq!(export.load_signal(0), Ok(round));
        let mut fetched = [0; 1000];
        import.fetch(8, &mut fetched).unwrap();
        assert_eq!(fetched, [round as u8; 1000]);
    }
}

#[test]
fn a_killed_exporter_is_dead_to_who_sends() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    for _ in 0..5 {
        let mut exporter = ada.actor("exporter", "");
        assert_eq!(exporter.hear(), "ready");
        let importer = grace.open();
        let import = import(&importer, "ada");
        until("a lane", || import.path() == Path::Lane);
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                exporter.kill();
            });
            let mut number = 0_u64;
            let error = loop {
                number += 1;
                if let Err(error) = import.send_signal(8, &[7; 3000], 0, number) {
                    break error;
                }
            };
            killer.join().unwrap();
            assert_eq!(error, TransferError::Dead);
        });
        until("dead", || import.state() == ExportState::Dead);
    }
}

#[test]
fn killed_senders_leave_the_others_their_lanes() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let exporter = ada.open();
    let export = exporter.export(65_536).name("board").create().unwrap();
    let importer = grace.open();
    let import = import(&importer, "ada");
    for _ in 0..10 {
        export.write(0, &[0; 8]).unwrap();
        let mut sender = grace.actor("sender", "ada");
        assert_eq!(sender.hear(), "ready");
        until("it sends", || export.load_signal(0).unwrap() > 50);
        sender.kill();
        import.send(30_000, b"still here").unwrap();
        for node in [&ada, &grace] {
            until("given back", || node.status()["imports"] == 1);
        }
    }
}

#[test]
fn two_processes_have_one_lane_each_way() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (first, second) = (ada.open(), grace.open());
    let here = first.export(4096).name("board").create().unwrap();
    let there = second.export(4096).name("board").create().unwrap();
    let (to, fro) = std::thread::scope(|scope| {
        let fro = scope.spawn(|| import(&second, "ada"));
        (import(&first, "grace"), fro.join().unwrap())
    });
    until("lanes", || to.path() == Path::Lane && fro.path() == Path::Lane);
    for round in 1..=500 {
        to.signal(0, round).unwrap();
        assert_eq!(there.load_signal(0), Ok(round));
        fro.signal(0, round).unwrap();
        assert_eq!(here.load_signal(0), Ok(round));
    }
    // Imports that come and go use channels again.
    drop(to);
    for round in 501..=700 {
        let again = import(&first, "grace");
        again.signal(0, round).unwrap();
        assert_eq!(there.load_signal(0), Ok(round));
        fro.signal(0, round).unwrap();
    }
    assert_eq!(here.load_signal(0), Ok(700));
}

#[test]
fn a_process_that_hosts_no_engine_goes_through_the_services() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let exporter = ada.options().hosts_engine(false).open().unwrap();
    let export = exporter.export(4096).name("board").create().unwrap();
    let importer = grace.open();
    let import = import(&importer, "ada");
    for round in 1..=50 {
        import.signal(0, round).unwrap();
        assert_eq!(export.load_signal(0), Ok(round));
    }
    assert_eq!(import.path(), Path::Engine);
    assert!(!exporter.progress());
}

#[test]
fn a_process_tells_others_of_its_paths() {
    let [ada, grace] = Node::cluster(["ada", "grace"]);
    let (exporter, importer, looker) = (ada.open(), grace.open(), grace.open());
    let _export = exporter.export(4096).name("board").create().unwrap();
    let import = import(&importer, "ada");
    assert_eq!(looker.paths(), []);
    // Bytes go on moving until it has told.
    let mut told = Vec::new();
    until("told", || {
        import.send(0, b"bytes").unwrap();
        let exports = looker.exports().unwrap();
        let board = exports.iter().find(|export| export.name == vmmc::paths::NAME);
        let Some(board) = board.filter(|board| board.id.process == importer.id()) else {
            return false;
        };
        let board = looker.import(ImportSource::Id(board.id)).rights(Rights::READ).open().unwrap();
        told = vmmc::paths::read(&board);
        !told.is_empty()
    });
    let [path] = told[..] else { panic!("one lane: {told:?}") };
    let own = importer.paths()[0];
    assert_eq!((path.peer, path.path, path.up), (own.peer, 0, true));
    assert!(path.mtu >= 1200 && path.window > 0 && path.packets_sent > 0, "{path:?}");
    assert!(own.packets_sent >= path.packets_sent);
}
