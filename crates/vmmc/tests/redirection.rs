//! Redirection: what arrives goes to posted memory, and the receiver is told exactly where every byte lies.
#![allow(clippy::single_range_in_vec_init, reason = "they are lists of ranges")]

mod harness;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{FOREVER, Node, listen, role, say, until};
use vmmc::{
    Export, ExportId, Import, ImportSource, Notify, Path, PostedBuffer, Process, RedirectError,
    Redirected, Rights,
};

const MIB: usize = 1 << 20;

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::open().unwrap();
    let id = ImportSource::Id(argument.parse::<ExportId>().unwrap());
    let import = process.import(id).open().unwrap();
    match role.as_str() {
        // Sends without end: the test stops or kills it.
        "sender" => {
            let mut round = 0u8;
            say("sending");
            loop {
                round = round.wrapping_add(1);
                import.send(0, &vec![round; MIB]).unwrap();
            }
        }
        _ => {
            import.send(0, &[7; 1000]).unwrap();
            say("sent");
            listen();
        }
    }
}

fn nodes() -> [Node; 2] {
    Node::cluster(["ada", "grace"])
}

/// An export with a pool, and an import of each path: mapped, by the engine, by a lane from another node.
fn redirectable([node, elsewhere]: &[Node; 2], len: usize, pool: usize) -> (Export, [Import; 3]) {
    let process = node.open();
    let export = process.export(len).redirectable(pool).notify(Notify::Event).create().unwrap();
    let source = ImportSource::Id(export.id());
    let [mapped, engine] = [Rights::READ_WRITE, Rights::WRITE]
        .map(|rights| process.import(source.clone()).rights(rights).open().unwrap());
    let lane = elsewhere.open().import(source).node("ada").rights(Rights::WRITE).open().unwrap();
    until("a lane", || lane.path() == Path::Lane);
    (export, [mapped, engine, lane])
}

fn contents(buffer: &PostedBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes).unwrap();
    bytes
}

fn default(export: &Export, range: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    export.read(range.start, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_arrives_goes_to_the_posted_memory() {
    let nodes = nodes();
    let (export, imports) = redirectable(&nodes, 100_000, 64 << 10);
    for import in &imports {
        let buffer = export.redirect_buffer(10_000).unwrap();
        let posting = export.post(5000, buffer).unwrap();
        export.write(0, &vec![0; 100_000]).unwrap();
        // Over both edges: 1000 bytes before the range, and 2000 behind it.
        import.send(4000, &vec![1; 13_000]).unwrap();
        import.send_notify(4000, b"now").unwrap();
        export.wait(FOREVER).unwrap();
        assert_eq!(posting.redirected(), [0..10_000]);
        assert_eq!(default(&export, 5000..15_000), vec![0; 10_000], "also in the default buffer");
        assert_eq!(default(&export, 4003..5000), vec![1; 997]);
        assert_eq!(default(&export, 15_000..17_000), vec![1; 2000]);
        let Redirected { buffer, redirected } = export.finish(posting).unwrap();
        assert_eq!(redirected, [0..10_000]);
        assert_eq!(contents(&buffer), vec![1; 10_000]);
        import.send(5000, b"later").unwrap();
        import.signal(0, 1).unwrap();
        until("later", || default(&export, 5000..5005) == b"later");
        assert_eq!(contents(&buffer), vec![1; 10_000]);
    }
}

#[test]
fn a_post_that_is_late_is_completed_by_one_call() {
    let nodes = nodes();
    let (export, imports) = redirectable(&nodes, 8192, 8192);
    for (import, private) in imports.iter().flat_map(|i| [(i, false), (i, true)]) {
        export.write(0, &[0; 8192]).unwrap();
        import.send_notify(100, &[1; 1000]).unwrap();
        export.wait(FOREVER).unwrap();
        let buffer: PostedBuffer = match private {
            true => vec![9; 4000].into(),
            false => export.redirect_buffer(4000).unwrap().into(),
        };
        let posting = export.post(100, buffer).unwrap();
        import.send(1100, &[2; 500]).unwrap();
        import.send_signal(2100, &[3; 100], 8184, 1).unwrap();
        until("signal", || export.load_signal(8184).unwrap() == 1);
        let Redirected { buffer, redirected } = export.finish(posting).unwrap();
        assert_eq!(redirected, if private { vec![] } else { vec![1000..1500, 2000..2100] });
        let parts = [vec![1; 1000], vec![2; 500], vec![0; 500], vec![3; 100], vec![0; 1900]];
        assert_eq!(contents(&buffer), parts.concat());
        import.signal(8184, 0).unwrap();
        until("signal", || export.load_signal(8184).unwrap() == 0);
    }
}

#[test]
fn impossible_posts_are_refused_and_the_buffer_comes_back() {
    let nodes = nodes();
    let (export, _) = redirectable(&nodes, 4096, 8 * 4096);
    let (other, _) = redirectable(&nodes, 4096, 0);
    let plain = nodes[0].open().export(64).create().unwrap();
    assert_eq!(plain.redirect_buffer(1).unwrap_err(), RedirectError::NotRedirectable);
    assert_eq!(other.redirect_buffer(1).unwrap_err(), RedirectError::Pool);
    assert_eq!(export.redirect_buffer(0).unwrap_err(), RedirectError::Range);
    assert_eq!(export.redirect_buffer(usize::MAX).unwrap_err(), RedirectError::Pool);
    let refused = |export: &Export, offset, buffer: PostedBuffer| {
        let len = buffer.len();
        let refused = export.post(offset, buffer).unwrap_err();
        assert_eq!(refused.buffer.len(), len);
        refused.error
    };
    assert_eq!(refused(&plain, 0, vec![0].into()), RedirectError::NotRedirectable);
    for (offset, len) in [(0, 0), (0, 4097), (4096, 1), (usize::MAX, 1)] {
        assert_eq!(refused(&export, offset, vec![0; len].into()), RedirectError::Range);
    }
    let buffer = export.redirect_buffer(1).unwrap();
    assert_eq!(refused(&other, 0, buffer.into()), RedirectError::Foreign);
    let mut postings: Vec<_> = (0..7)
        .map(|at| export.post(at * 10, export.redirect_buffer(10).unwrap()).unwrap())
        .collect();
    let buffer = export.redirect_buffer(10).unwrap();
    assert_eq!(export.redirect_buffer(1).unwrap_err(), RedirectError::Pool);
    assert_eq!(refused(&export, 65, buffer.into()), RedirectError::Overlap);
    let buffer = export.redirect_buffer(10).unwrap();
    assert_eq!(refused(&export, 70, buffer.into()), RedirectError::Postings);
    assert_eq!(other.finish(postings.remove(3)).unwrap_err(), RedirectError::Foreign);
    let buffer = export.redirect_buffer(10).unwrap();
    postings.push(export.post(30, buffer).unwrap());
    postings.into_iter().for_each(|posting| drop(export.finish(posting).unwrap()));
}

#[test]
fn detached_memory_is_out_of_reach_and_is_copied_to() {
    let nodes = nodes();
    let (export, [import, ..]) = redirectable(&nodes, 4096, 8192);
    let mut buffer = export.redirect_buffer(4096).unwrap();
    assert_eq!(buffer.detach().unwrap(), [0; 4096]);
    let posting = export.post(0, buffer).unwrap();
    import.send(0, &[1; 4096]).unwrap();
    let finished = export.finish(posting).unwrap();
    assert_eq!(finished.redirected, []);
    assert_eq!(contents(&finished.buffer), [1; 4096]);
    drop(finished);
    // The range is not handed out again: importers would write other pages than are seen here.
    let buffer = export.redirect_buffer(4096).unwrap();
    assert_eq!(export.redirect_buffer(4096).unwrap_err(), RedirectError::Pool);
    let posting = export.post(0, buffer).unwrap();
    import.send(0, &[2; 4096]).unwrap();
    assert_eq!(export.finish(posting).unwrap().redirected, [0..4096]);
}

/// Posts and withdraws as fast as it can while a thread sends by each path; whatever round a signal tells of is complete.
#[test]
fn post_and_withdraw_under_load_lose_nothing() {
    let nodes = nodes();
    // A sender that is kept from running in the midst of a copy costs the pool a buffer for good.
    let (export, imports) = redirectable(&nodes, MIB, 3 * MIB);
    std::thread::scope(|scope| {
        for (third, import) in imports.iter().enumerate() {
            let export = &export;
            scope.spawn(move || post_and_withdraw(export, import, third * (320 << 10)));
        }
    });
}

fn post_and_withdraw(export: &Export, import: &Import, base: usize) {
    const LEN: usize = 300_000;
    let (told, checked) = (base + LEN, base + LEN + 8);
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1u64.. {
                import.send_signal(base, &[round as u8; LEN], told, round).unwrap();
                // The receiver writes the round that it has checked.
                while export.load_signal(checked).unwrap() != round {
                    if stop.load(Ordering::Relaxed) || began.elapsed() > 2 * FOREVER {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        });
        let mut redirected = 0;
        for round in 1u64.. {
            // The newest bytes of each place, by what each posting told.
            loop {
                let done = export.load_signal(told).unwrap() == round;
                let buffer = export.redirect_buffer(LEN).unwrap();
                let posting = export.post(base, buffer).unwrap();
                if !done && round % 3 != 0 {
                    std::thread::sleep(Duration::from_micros(round % 50));
                }
                let finished = export.finish(posting).unwrap();
                let bytes = contents(&finished.buffer);
                for range in finished.redirected {
                    redirected += range.len();
                    // What came directly is not in the default buffer: keep it there, as a user would keep it.
                    export.write(base + range.start, &bytes[range]).unwrap();
                }
                if done {
                    assert!(bytes.iter().all(|byte| *byte == round as u8), "round {round}");
                    break;
                }
            }
            if round >= 150 && redirected > 0 {
                break;
            }
            assert!(began.elapsed() < FOREVER, "nothing is redirected");
            export.write(checked, &round.to_le_bytes()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Two postings that touch are open together, come and go in turns, and every send covers both.
#[test]
fn two_posts_that_touch_lose_nothing_under_load() {
    const HALF: usize = 200_000;
    const SIGNAL: usize = MIB - 8;
    const CHECKED: usize = MIB - 16;
    let nodes = nodes();
    // A sender that the scheduler stops in mid-copy costs the pool a buffer for good.
    let (export, [import, ..]) = redirectable(&nodes, MIB, 4 * MIB);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let mut redirected = [0usize; 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1u64.. {
                import.send_signal(0, &vec![round as u8; 2 * HALF], SIGNAL, round).unwrap();
                while export.load_signal(CHECKED).unwrap() != round {
                    if stop.load(Ordering::Relaxed) || began.elapsed() > 2 * FOREVER {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        });
        for round in 1..=100u64 {
            loop {
                let done = export.load_signal(SIGNAL).unwrap() == round;
                // The one that is posted first is finished last, and the other way round.
                let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
                let mut open: Vec<_> = order
                    .map(|half| {
                        let buffer = export.redirect_buffer(HALF).unwrap();
                        (half, export.post(half * HALF, buffer).unwrap())
                    })
                    .into();
                if !done {
                    std::thread::sleep(Duration::from_micros(round % 50));
                }
                while let Some((half, posting)) = open.pop() {
                    let finished = export.finish(posting).unwrap();
                    let bytes = contents(&finished.buffer);
                    for range in finished.redirected {
                        redirected[half] += range.len();
                        export.write(half * HALF + range.start, &bytes[range]).unwrap();
                    }
                }
                if done {
                    break;
                }
            }
            let found = default(&export, 0..2 * HALF);
            assert!(found.iter().all(|byte| *byte == round as u8), "round {round}");
            export.write(CHECKED, &round.to_le_bytes()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(redirected.iter().all(|bytes| *bytes > 0), "{redirected:?}");
}

/// A sender that is stopped, and one that is killed, at random moments: the receiver goes on, and what it was given back is
/// written by nobody.
#[test]
fn a_stopped_or_killed_sender_holds_up_nobody() {
    let nodes = nodes();
    let (export, [import, ..]) = redirectable(&nodes, MIB, 64 * MIB);
    let mut stalled = 0;
    for round in 0..20u64 {
        let mut actor = nodes[0].actor("sender", &export.id().to_string());
        actor.hear();
        let mut posting = export.post(0, export.redirect_buffer(MIB).unwrap()).unwrap();
        std::thread::sleep(Duration::from_micros(500 + round * 37));
        let kill = round % 2 == 0;
        if kill {
            actor.kill();
        } else {
            actor.signal(libc::SIGSTOP);
        }
        let finished = export.finish(posting).unwrap();
        let before = contents(&finished.buffer);
        posting = export.post(0, export.redirect_buffer(1000).unwrap()).unwrap();
        if !kill {
            actor.signal(libc::SIGCONT);
            std::thread::sleep(Duration::from_millis(5));
            actor.kill();
        }
        assert!(contents(&finished.buffer) == before, "round {round}: written after the finish");
        import.send(0, &[0xee; 1000]).unwrap();
        let again = export.finish(posting).unwrap();
        assert_eq!(contents(&again.buffer), [0xee; 1000], "round {round}");
        let PostedBuffer::Shared(mut buffer) = finished.buffer else { panic!("private") };
        stalled += usize::from(buffer.detach().is_ok());
    }
    assert_eq!(stalled, 20);
}

#[test]
fn a_revoked_export_takes_its_posted_memory_along() {
    let nodes = nodes();
    let (export, [import, ..]) = redirectable(&nodes, 4096, 4096);
    let buffer = export.redirect_buffer(4096).unwrap();
    let posting = export.post(0, buffer).unwrap();
    import.send(0, &[1; 4096]).unwrap();
    let finished = export.finish(posting).unwrap();
    export.unexport().unwrap();
    assert!(import.send(0, &[2; 4096]).is_err());
    assert_eq!(contents(&finished.buffer), [1; 4096]);
}

#[test]
fn another_process_does_not_know() {
    let nodes = nodes();
    let (export, _) = redirectable(&nodes, 4096, 4096);
    let posting = export.post(0, export.redirect_buffer(2000).unwrap()).unwrap();
    let mut actor = nodes[0].actor("one", &export.id().to_string());
    actor.hear();
    let finished = export.finish(posting).unwrap();
    assert_eq!(finished.redirected, [0..1000]);
    assert_eq!(contents(&finished.buffer)[..1000], [7; 1000]);
    actor.finish();
}
