//! SIGKILL of anybody at any moment, whatever it is doing: nobody hangs, everybody learns of it, nothing is left behind.
//!
//! `VMMC_TEST_KILLS=1000 cargo test --release -p vmmc --test crash` for a longer loop.

mod harness;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use harness::dice::Dice;
use harness::{FOREVER, Node, kill, role, say, until};
use vmmc::utlb::Access;
use vmmc::{
    Export, ExportState, Import, ImportSource, Notify, PostedBuffer, Process, Rights, TransferError,
};
use vmmc_os::{process_descriptor, wait_readable};

/// Rounds of the loop in the ordinary run.
const ROUNDS: u32 = 200;

/// Where the survivor and the exporter post memory.
const POSTED: usize = 256 << 10;

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::open().unwrap();
    match role.as_str() {
        "exporter" => be_exporter(&process),
        "importer" => be_importer(&process, ImportSource::Id(argument.parse().unwrap())),
        _ => {}
    }
}

/// Busy with what an exporter may do, until killed.
fn be_exporter(process: &Process) {
    let export = process.export(1 << 20).name("crash").redirectable(64 << 10);
    let export = export.notify(Notify::Handler(Box::new(|_| {}))).create().unwrap();
    let looked_at = process.export(4096).notify(Notify::Event).create().unwrap();
    say(export.id());
    loop {
        let more = process.export(4096).create();
        let _ = export.load_signal(0);
        let _ = looked_at.wait(Duration::ZERO);
        redirect(&export);
        pin(process);
        drop(more);
    }
}

/// Busy with what an importer may do, until killed.
fn be_importer(process: &Process, source: ImportSource) {
    let import = process.import(source.clone()).open().unwrap();
    let write_only = process.import(source.clone()).rights(Rights::WRITE).open();
    let write_only = write_only.unwrap();
    say("imported");
    for round in 0u64.. {
        let _ = import.send_signal(0, &[1; 5000], 8192, round);
        let _ = import.send_notify(16, b"bytes");
        let _ = import.send(POSTED, &[3; 8192]);
        // In the command queue together, and some of them dropped there.
        let posted: Vec<_> = (0..20)
            .map(|number| write_only.send_signal_async(32768, vec![4; 3000], 40960, number))
            .collect();
        posted.into_iter().skip(5).for_each(|transfer| _ = transfer.wait());
        let _ = write_only.send(POSTED, &[5; 100_000]);
        let _ = write_only.send_notify(16, b"by the engine");
        if round.is_multiple_of(16) {
            // By the engine thread, and dropped in the middle.
            drop(import.send_async(400_000, vec![2; 600_000]));
            let fetched = import.fetch_async(400_000, vec![0; 600_000]);
            let _ = import.flush();
            drop(fetched);
            drop(process.import(source.clone()).open());
            pin(process);
        }
    }
}

fn redirect(export: &Export) {
    for buffer in [export.redirect_buffer(8192).ok().map(PostedBuffer::Shared), None] {
        let buffer = buffer.unwrap_or_else(|| PostedBuffer::Private(vec![0; 5000]));
        if let Ok(posting) = export.post(POSTED, buffer) {
            let _ = export.finish(posting);
        }
    }
}

/// More than the table may hold at once, so that pages come and go.
fn pin(process: &Process) {
    let Ok(buffer) = process.utlb().allocate(1 << 20) else { return };
    for page in 0..64 {
        let _ = process.utlb().lookup(buffer.as_ptr().wrapping_add(page << 14), 100, Access::Read);
    }
}

#[test]
fn kills_at_random_moments_leave_nothing_behind() {
    let node = Node::new();
    let shared_memory = || std::fs::read_dir("/dev/shm").map_or(0, Iterator::count);
    let before = shared_memory();
    let survivor = node.open();
    let ours = survivor.export(1 << 20).redirectable(64 << 10).notify(Notify::Event);
    let ours = ours.create().unwrap();
    let mut dice = Dice::new(2);
    let rounds = std::env::var("VMMC_TEST_KILLS").ok().and_then(|n| n.parse().ok());
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let mut exporter = node.actor("exporter", "");
        let theirs = exporter.hear().parse().unwrap();
        let [import, write_only] = [Rights::READ_WRITE, Rights::WRITE].map(|rights| {
            retry(|| survivor.import(ImportSource::Id(theirs)).rights(rights).open().ok())
        });
        let mut importer = node.actor("importer", &ours.id().to_string());
        importer.hear();
        std::thread::sleep(Duration::from_micros(dice.throw(5000)));
        let mut service = None;
        match dice.throw(3) {
            0 => exporter.kill(),
            1 => importer.kill(),
            _ => {
                let pid = retry(|| node.service_pid());
                // Its number may soon be another's.
                service = process_descriptor(pid.cast_unsigned()).ok();
                kill(pid, libc::SIGKILL);
            }
        }
        // While all this happens, nothing that the survivor does waits for ever or fails in an odd way.
        let large = import.send_async(0, vec![1; 1 << 20]);
        let by_engine = [1, 2, 3].map(|byte| write_only.send_async(0, vec![byte; 100_000]));
        redirect(&ours);
        let _ = import.send_notify(0, b"told");
        let sent = import.send(0, b"still there?").and(large.wait().result);
        assert!(
            matches!(sent, Ok(()) | Err(TransferError::Dead | TransferError::Revoked)),
            "round {round}: {sent:?}"
        );
        for transfer in by_engine {
            use TransferError::{Dead, Revoked, ServiceLost, Timeout};
            let sent = transfer.wait().result;
            assert!(
                matches!(sent, Ok(()) | Err(Dead | Revoked | ServiceLost | Timeout)),
                "round {round}: {sent:?}"
            );
        }
        exporter.kill();
        importer.kill();
        until("the exporter's death is seen", || {
            matches!(import.send(0, b"x"), Err(TransferError::Dead | TransferError::Revoked))
        });
        assert!(ours.load_signal(0).is_ok());
        while ours.wait(Duration::ZERO).is_ok() {}
        if let Some(service) = service {
            let ended = || wait_readable(&[service.as_fd()], Some(Duration::ZERO)) == Ok(1);
            until("the killed service has ended", ended);
        }
    }
    // Everything is as after one clean round: the survivor works, and nothing else is known to anybody.
    let check = node.open();
    let import = retry(|| check.import(ImportSource::Id(ours.id())).open().ok());
    import.send_notify(0, b"the end").unwrap();
    ours.wait(FOREVER).unwrap();
    drop((import, check));
    until("only the survivor is known", || {
        let status = node.status();
        status["processes"] == 1
            && status["exports"] == 1
            && status["imports"] == 0
            && status["reserved_bytes"] == 0
    });
    assert!(shared_memory() <= before);
    drop((ours, survivor));
    assert!(node.command(&["stop"]).status.success());
    let left: Vec<_> = std::fs::read_dir(node.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Tries until it works: between two services nothing is known.
#[track_caller]
fn retry<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + FOREVER;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn exporter_and_importer(node: &Node) -> (Process, Export, Process, Import) {
    let (exporter, importer) = (node.open(), node.open());
    let export = exporter.export(4096).name("kept").notify(Notify::Event).create().unwrap();
    let import = importer.import(ImportSource::Id(export.id())).open().unwrap();
    (exporter, export, importer, import)
}

#[test]
fn exports_and_imports_survive_the_service() {
    let node = Node::new();
    let (exporter, export, importer, import) = exporter_and_importer(&node);
    let ids = (exporter.id(), importer.id());
    let first = node.service_pid().unwrap();
    kill(first, libc::SIGKILL);
    import.send_signal(0, b"without a service", 1024, 1).unwrap();
    assert_eq!(export.load_signal(1024), Ok(1));
    until("a new service", || node.service_pid().is_some_and(|pid| pid != first));
    until("all are back", || {
        let status = node.status();
        status["processes"] == 2 && status["exports"] == 1 && status["imports"] == 1
    });
    assert_eq!((exporter.id(), importer.id()), ids);
    assert_eq!(import.state(), ExportState::Live);
    import.send_notify(0, b"again").unwrap();
    export.wait(FOREVER).unwrap();
    // The new service revokes what the old one granted, and passes on what the old one was given.
    let second = importer.import(ImportSource::Name("kept".into())).open().unwrap();
    second.send_signal(0, b"x", 8, 9).unwrap();
    assert_eq!(export.load_signal(8), Ok(9));
    export.unexport().unwrap();
    assert_eq!(import.state(), ExportState::Revoked);
    assert_eq!(second.state(), ExportState::Revoked);
}

#[test]
fn an_exporter_that_dies_with_the_service_is_missed() {
    let node = Node::new();
    let importer = node.open();
    let mut exporter = node.actor("exporter", "");
    let source = ImportSource::Id(exporter.hear().parse().unwrap());
    let import = importer.import(source).open().unwrap();
    exporter.signal(libc::SIGSTOP);
    kill(node.service_pid().unwrap(), libc::SIGKILL);
    exporter.kill();
    until("dead", || import.state() == ExportState::Dead);
    assert_eq!(import.send(0, b"x"), Err(TransferError::Dead));
}

#[test]
fn a_service_that_was_told_to_leave_is_not_started_again() {
    let node = Node::new();
    let (_exporter, export, importer, import) = exporter_and_importer(&node);
    assert!(node.command(&["stop"]).status.success());
    assert_eq!(std::fs::read_dir(node.path()).unwrap().count(), 0);
    import.send_signal(0, b"x", 8, 2).unwrap();
    assert_eq!(export.load_signal(8), Ok(2));
    assert!(importer.processes().is_err());
    assert!(node.service_pid().is_none());
    // When somebody starts one, all come back.
    assert!(node.command(&["start"]).status.success());
    until("all are back", || node.status()["imports"] == 1);
    assert_eq!(importer.processes().unwrap().len(), 2);
}
