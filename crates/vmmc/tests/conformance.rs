//! What export, import, send, fetch and signal promise, on each path. A path is a function that makes an import of an
//! export; what holds for one must hold for all.

mod harness;

use harness::{FOREVER, Node, until};
use vmmc::{
    AccessError, Export, ExportState, Import, ImportSource, Notify, Path, Process, Rights,
    TransferError,
};

/// A path under test.
#[derive(Clone, Copy)]
struct Open {
    /// Where exporter and importer are.
    nodes: fn() -> (Node, Node),
    /// Whether processes host engines of their own.
    engines: bool,
    /// Imports an export over the path.
    import: fn(&Process, &Export) -> Import,
}

impl Open {
    /// Exporter and importer are two VMMC processes in one address space here; other tests use two.
    fn processes(self) -> ((Node, Node), Process, Process) {
        let nodes = (self.nodes)();
        let open = |node: &Node| node.options().hosts_engine(self.engines).open().unwrap();
        let (exporter, importer) = (open(&nodes.0), open(&nodes.1));
        assert_ne!(exporter.id(), importer.id());
        (nodes, exporter, importer)
    }

    fn import(self, process: &Process, export: &Export) -> Import {
        (self.import)(process, export)
    }

    /// An import that may only read, wherever the export is.
    fn reader(self, process: &Process, export: &Export) -> Import {
        let source = process.import(ImportSource::Id(export.id())).rights(Rights::READ);
        let here = process.id().node == export.id().process.node;
        if here { source.open() } else { source.node("ada").open() }.unwrap()
    }
}

const MAPPED: Open = Open {
    nodes: one_node,
    engines: true,
    import: |process, export| {
        let import = process.import(ImportSource::Id(export.id())).open().unwrap();
        assert_eq!(import.path(), Path::Mapped);
        import
    },
};

const ENGINE: Open = Open {
    nodes: one_node,
    engines: true,
    import: |process, export| {
        let source = ImportSource::Id(export.id());
        let import = process.import(source).rights(Rights::WRITE).open().unwrap();
        assert_eq!(import.path(), Path::Engine);
        assert_eq!(import.as_ptr(), None);
        import
    },
};

const LINK: Open = Open {
    nodes: two_nodes,
    engines: false,
    import: |process, export| {
        let source = ImportSource::Id(export.id());
        let import = process.import(source).node("ada").open().unwrap();
        assert_eq!(import.path(), Path::Engine);
        import
    },
};

const LANE: Open = Open {
    nodes: two_nodes,
    engines: true,
    import: |process, export| {
        let source = ImportSource::Id(export.id());
        let import = process.import(source).node("ada").open().unwrap();
        until("a lane", || import.path() == Path::Lane);
        import
    },
};

fn two_nodes() -> (Node, Node) {
    let [first, second] = Node::cluster(["ada", "grace"]);
    (first, second)
}

fn one_node() -> (Node, Node) {
    let node = Node::new();
    let same = node.same();
    (node, same)
}

macro_rules! on_each_path {
    ($($test:ident),* $(,)?) => {
        mod on_mapped { $(#[test] fn $test() { super::$test(super::MAPPED); })* }
        mod by_engine { $(#[test] fn $test() { super::$test(super::ENGINE); })* }
        mod over_link { $(#[test] fn $test() { super::$test(super::LINK); })* }
        mod over_lane { $(#[test] fn $test() { super::$test(super::LANE); })* }
    };
}

on_each_path!(
    bytes_arrive_exactly,
    signals_come_after_bytes,
    ranges_are_checked,
    unaligned_signals_are_refused,
    notifications_come_in_order_with_their_bytes,
    nobody_is_notified_unasked,
    revocation_is_seen_and_reaches_nobody,
    death_of_the_exporter_is_seen,
    threads_send_at_once,
    vectors_arrive_exactly_or_not_at_all,
    asynchronous_bytes_arrive_exactly,
    asynchronous_operations_take_effect_in_their_order,
    asynchronous_vectors_arrive_exactly,
    flush_comes_after_all_before_it,
    asynchronous_errors_give_the_buffer_back,
    asynchronous_operations_end_when_the_export_goes,
    operations_outlive_their_import,
    what_is_there_is_fetched,
);

fn bytes_arrive_exactly(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(300_001).create().unwrap();
    let import = open.import(&importer, &export);
    assert_eq!((import.len(), import.id()), (300_001, export.id()));
    let mut expected = vec![0u8; export.len()];
    for (step, len) in
        [0usize, 1, 2, 3, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 32768, 32769, 200_000]
            .into_iter()
            .enumerate()
    {
        for offset in [0, 1, 8, 4090, 100_000, export.len() - len] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + step + offset) as u8).collect();
            import.send(offset, &bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes);
        }
    }
    let mut found = vec![0; export.len()];
    export.read(0, &mut found).unwrap();
    assert!(found == expected, "bytes differ");
}

fn signals_come_after_bytes(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(8192).create().unwrap();
    let import = open.import(&importer, &export);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=500u64 {
                import.send(0, &[round as u8; 4000]).unwrap();
                import.send_signal(4096, &[round as u8; 1000], 8184, round).unwrap();
                until("acknowledged", || {
                    let mut word = [0; 8];
                    export.read(8176, &mut word).unwrap();
                    u64::from_le_bytes(word) == round
                });
            }
        });
        for round in 1..=500u64 {
            until("signal", || export.load_signal(8184).unwrap() == round);
            let mut found = vec![0; 5096];
            export.read(0, &mut found).unwrap();
            let arrived = |bytes: &[u8]| bytes.iter().all(|byte| *byte == round as u8);
            assert!(arrived(&found[..4000]) && arrived(&found[4096..]), "round {round}");
            export.write(8176, &round.to_le_bytes()).unwrap();
        }
    });
    import.signal(0, u64::MAX).unwrap();
    assert_eq!(export.load_signal(0), Ok(u64::MAX));
}

fn ranges_are_checked(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(100).notify(Notify::Event).create().unwrap();
    let import = open.import(&importer, &export);
    for (offset, len) in [(0, 101), (100, 1), (101, 0), (usize::MAX, 1), (usize::MAX, 0), (99, 2)] {
        let bytes = vec![1; len];
        let range = Err(TransferError::Range);
        assert_eq!(import.send(offset, &bytes), range, "{offset} {len}");
        assert_eq!(import.send_notify(offset, &bytes), range);
        assert_eq!(import.send_signal(offset, &bytes, 0, 1), range);
        assert_eq!(export.write(offset, &bytes), Err(AccessError::Range));
        assert_eq!(export.read(offset, &mut bytes.clone()), Err(AccessError::Range));
    }
    assert_eq!(import.send_signal(0, b"x", 96, 1), Err(TransferError::Range));
    assert_eq!(import.signal(96, 1), Err(TransferError::Range));
    assert_eq!(import.signal(usize::MAX - 7, 1), Err(TransferError::Range));
    assert_eq!(export.load_signal(96), Err(AccessError::Range));
    assert_eq!(import.send(100, b""), Ok(()));
    let mut found = [9; 100];
    export.read(0, &mut found).unwrap();
    assert_eq!(found, [0; 100], "nothing was written");
}

fn unaligned_signals_are_refused(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(4096).create().unwrap();
    let import = open.import(&importer, &export);
    for offset in [1, 4, 7, 9, 4084] {
        assert_eq!(import.signal(offset, 1), Err(TransferError::Unaligned));
        assert_eq!(import.send_signal(0, b"x", offset, 1), Err(TransferError::Unaligned));
        assert_eq!(export.load_signal(offset), Err(AccessError::Unaligned));
    }
}

fn notifications_come_in_order_with_their_bytes(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).notify(Notify::Event).create().unwrap();
    let import = open.import(&importer, &export);
    assert!(export.wait(std::time::Duration::ZERO).is_err());
    for round in 0..60u64 {
        import.send_notify(round as usize * 1000, &round.to_le_bytes()).unwrap();
    }
    import.send_notify(0, &vec![5; 100_000]).unwrap();
    for round in 0..60u64 {
        let notification = export.wait(FOREVER).unwrap();
        assert_eq!((notification.offset, notification.len), (round as usize * 1000, 8));
        assert_eq!((notification.last_word, notification.lost), (round, 0));
        assert_eq!(notification.export, export.id());
    }
    let notification = export.wait(FOREVER).unwrap();
    assert_eq!((notification.offset, notification.len), (0, 100_000));
    let mut found = vec![0; 100_000];
    export.read(0, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 5));
    assert!(export.wait(std::time::Duration::ZERO).is_err());
}

fn nobody_is_notified_unasked(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(64).create().unwrap();
    let import = open.import(&importer, &export);
    assert_eq!(import.send_notify(0, b"x"), Err(TransferError::NoNotifications));
    assert_eq!(export.wait(FOREVER), Err(vmmc::WaitError::NoNotifications));
}

fn revocation_is_seen_and_reaches_nobody(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(64).create().unwrap();
    let import = open.import(&importer, &export);
    import.send(0, b"before").unwrap();
    assert_eq!(import.state(), ExportState::Live);
    export.unexport().unwrap();
    // On another node at once means: as soon as a message is there.
    until("revoked", || import.state() != ExportState::Live);
    assert_eq!(import.state(), ExportState::Revoked);
    assert_eq!(import.send(0, b"after"), Err(TransferError::Revoked));
    assert_eq!(import.signal(0, 1), Err(TransferError::Revoked));
    // The word may serve another export now: the old import must not take it for its own.
    let others: Vec<_> = (0..50).map(|_| exporter.export(64).create().unwrap()).collect();
    assert_eq!(import.send(0, b"after"), Err(TransferError::Revoked));
    for other in &others {
        assert_eq!(other.load_signal(0), Ok(0));
    }
}

fn death_of_the_exporter_is_seen(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(64).create().unwrap();
    let import = open.import(&importer, &export);
    let id = export.id();
    // The export is abandoned in place, as by a crash; its process's connection goes.
    std::mem::forget(export);
    let fd = exporter.owned_fds()[0];
    // SAFETY: shuts a socket of this test's own down; the library sees its connection end.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
    until("dead", || import.state() != ExportState::Live);
    assert_eq!(import.state(), ExportState::Dead);
    assert_eq!(import.send(0, b"x"), Err(TransferError::Dead));
    // In truth the process lives, and finds its way back to the service. Who imports anew reaches it by the same id; who was told of its
    // death is not told otherwise.
    until("announced again", || {
        let again = importer.import(ImportSource::Id(id));
        let here = importer.id().node == id.process.node;
        if here { again.open() } else { again.node("ada").open() }.is_ok()
    });
    assert_eq!(import.state(), ExportState::Dead);
    assert_eq!(import.send(0, b"x"), Err(TransferError::Dead));
}

fn threads_send_at_once(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(8 * 4096).create().unwrap();
    let import = open.import(&importer, &export);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let import = &import;
            scope.spawn(move || {
                for round in 0..100u64 {
                    import.send(thread * 4096 + 8, &[round as u8; 4000]).unwrap();
                    import.signal(thread * 4096, round).unwrap();
                }
            });
        }
    });
    for thread in 0..8 {
        assert_eq!(export.load_signal(thread * 4096), Ok(99));
        let mut found = [0; 4000];
        export.read(thread * 4096 + 8, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 99));
    }
}

fn content(export: &Export, offset: usize, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    export.read(offset, &mut found).unwrap();
    found
}

fn vectors_arrive_exactly_or_not_at_all(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(200_000).create().unwrap();
    let import = open.import(&importer, &export);
    let large = vec![7; 100_000];
    import.send_vectored(&[(5, b"one"), (100, &large), (3, b""), (150_000, b"three")]).unwrap();
    assert_eq!(content(&export, 0, 9), b"\0\0\0\0\0one\0");
    assert!(content(&export, 100, 100_000) == large);
    assert_eq!(content(&export, 150_000, 6), b"three\0");
    // Overlapping pieces are written in their order.
    import.send_vectored(&[(0, b"first"), (2, b"second")]).unwrap();
    assert_eq!(content(&export, 0, 8), b"fisecond");
    assert_eq!(import.send_vectored(&[]), Ok(()));
    let beyond = import.send_vectored(&[(0, b"written?"), (199_999, b"xx")]);
    assert_eq!(beyond, Err(TransferError::Range));
    assert_eq!(content(&export, 0, 8), b"fisecond", "nothing was written");
}

fn asynchronous_bytes_arrive_exactly(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(2_000_001).create().unwrap();
    let import = open.import(&importer, &export);
    let mut expected = vec![0u8; export.len()];
    let mut transfers = Vec::new();
    // Posted together; where they overlap the later one counts.
    for (step, len) in
        [0usize, 1, 8, 4097, 32_769, 262_144, 262_145, 1_000_001].into_iter().enumerate()
    {
        for offset in [0, 1, 4090, 900_000] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + step + offset) as u8).collect();
            expected[offset..offset + len].copy_from_slice(&bytes);
            transfers.push((import.send_async(offset, bytes.clone()), bytes));
        }
    }
    for (transfer, bytes) in transfers {
        let finished = transfer.wait();
        assert_eq!(finished.result, Ok(()));
        assert!(finished.buffer == bytes, "the buffer comes back as it was");
    }
    assert!(content(&export, 0, export.len()) == expected, "bytes differ");
}

fn asynchronous_operations_take_effect_in_their_order(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).create().unwrap();
    let import = open.import(&importer, &export);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=50u64 {
                let bytes = vec![round as u8; 600_000];
                let large = import.send_async(64, bytes);
                let small = import.send_async(700_000, [round as u8; 8]);
                let words = import.send_signal_async(700_008, [round as u8; 8], 0, round);
                let last = import.signal_async(8, round);
                assert_eq!(last.wait().result, Ok(()));
                assert!(large.is_over() && small.is_over() && words.is_over());
                until("acknowledged", || content(&export, 16, 8) == round.to_le_bytes());
            }
        });
        for round in 1..=50u64 {
            until("signal", || export.load_signal(0).unwrap() == round);
            assert!(content(&export, 64, 600_000).iter().all(|byte| *byte == round as u8));
            assert_eq!(content(&export, 700_000, 16), [round as u8; 16]);
            until("second signal", || export.load_signal(8).unwrap() == round);
            export.write(16, &round.to_le_bytes()).unwrap();
        }
    });
}

fn asynchronous_vectors_arrive_exactly(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).create().unwrap();
    let import = open.import(&importer, &export);
    for large in [10, 500_000] {
        let pieces = vec![(1, vec![1; large]), (600_000, vec![2; 3]), (600_001, vec![3; 5])];
        let finished = import.send_vectored_async(pieces.clone()).wait();
        assert_eq!((finished.result, finished.buffer == pieces), (Ok(()), true));
        assert!(content(&export, 1, large).iter().all(|byte| *byte == 1));
        assert_eq!(content(&export, 600_000, 7), [2, 3, 3, 3, 3, 3, 0]);
        let beyond = vec![(1, vec![9; large]), ((1 << 20) - 1, vec![9; 2])];
        assert_eq!(import.send_vectored_async(beyond).wait().result, Err(TransferError::Range));
        assert_eq!(content(&export, 1, 1), [1], "nothing was written");
    }
}

fn flush_comes_after_all_before_it(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).create().unwrap();
    let import = open.import(&importer, &export);
    assert_eq!(import.flush(), Ok(()));
    for round in 1..=20u8 {
        let transfers: Vec<_> =
            (0..5).map(|n| import.send_async(n * 200_000, vec![round; 200_000 + n])).collect();
        let big = import.send_async(8, vec![round; 1_000_000]);
        if round % 2 == 0 {
            import.flush().unwrap()
        } else {
            importer.flush()
        }
        assert!(big.is_over() && transfers.iter().all(vmmc::Transfer::is_over));
        assert!(content(&export, 0, 1_000_000).iter().all(|byte| *byte == round));
    }
    export.unexport().unwrap();
    until("revoked", || import.state() != ExportState::Live);
    assert_eq!(import.flush(), Err(TransferError::Revoked));
    importer.flush();
}

fn asynchronous_errors_give_the_buffer_back(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1_000_000).create().unwrap();
    let import = open.import(&importer, &export);
    for len in [2, 500_000] {
        let bytes = vec![5; len];
        for offset in [1_000_001 - len, 1_000_001, usize::MAX] {
            let finished = import.send_async(offset, bytes.clone()).wait();
            assert_eq!((finished.result, &finished.buffer), (Err(TransferError::Range), &bytes));
        }
        for (word, error) in [(4, TransferError::Unaligned), (1_000_000, TransferError::Range)] {
            let finished = import.send_signal_async(0, bytes.clone(), word, 1).wait();
            assert_eq!((finished.result, &finished.buffer), (Err(error), &bytes));
            assert_eq!(import.signal_async(word, 1).wait().result, Err(error));
        }
        let reader = open.reader(&importer, &export);
        let refused = reader.send_async(0, bytes.clone()).wait();
        assert_eq!((refused.result, &refused.buffer), (Err(TransferError::Rights), &bytes));
        if !import.rights().contains(Rights::READ) {
            let refused = import.fetch_async(0, bytes.clone()).wait();
            assert_eq!((refused.result, &refused.buffer), (Err(TransferError::Rights), &bytes));
        }
    }
    assert!(content(&export, 0, 1_000_000).iter().all(|byte| *byte == 0), "nothing was written");
}

fn asynchronous_operations_end_when_the_export_goes(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).create().unwrap();
    let other = exporter.export(1 << 20).create().unwrap();
    let (import, doomed) = (open.import(&importer, &other), open.import(&importer, &export));
    let transfers: Vec<_> = (0..40).map(|_| doomed.send_async(0, vec![1; 1 << 20])).collect();
    export.unexport().unwrap();
    let late = doomed.send_async(0, vec![1; 1 << 20]);
    assert_eq!(late.wait().result, Err(TransferError::Revoked));
    // One after the other: once it is gone it is gone for all that follow.
    let results: Vec<_> = transfers.into_iter().map(|transfer| transfer.wait().result).collect();
    let gone = results.iter().position(Result::is_err).unwrap_or(results.len());
    assert!(results[gone..].iter().all(|result| *result == Err(TransferError::Revoked)));
    // Nobody else's operations are touched.
    assert_eq!(import.send_async(0, vec![2; 1 << 20]).wait().result, Ok(()));
    assert!(content(&other, 0, 1 << 20).iter().all(|byte| *byte == 2));
}

fn operations_outlive_their_import(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(1 << 20).create().unwrap();
    for round in 1..=10u8 {
        let import = open.import(&importer, &export);
        let transfer = import.send_async(0, vec![round; 1 << 20]);
        drop(import);
        assert_eq!(transfer.wait().result, Ok(()));
        assert!(content(&export, 0, 1 << 20).iter().all(|byte| *byte == round));
    }
    let import = open.import(&importer, &export);
    let transfer = import.send_async(0, vec![11; 1 << 20]);
    drop((import, importer));
    assert_eq!(transfer.wait().result, Ok(()), "and their process");
}

fn what_is_there_is_fetched(open: Open) {
    let (_node, exporter, importer) = open.processes();
    let export = exporter.export(200_000).create().unwrap();
    let import = open.import(&importer, &export);
    if !import.rights().contains(Rights::READ) {
        assert_eq!(import.fetch(0, &mut [0]), Err(TransferError::Rights));
        assert_eq!(import.load_signal(0), Err(TransferError::Rights));
        return;
    }
    let bytes: Vec<u8> = (0..export.len()).map(|at| (at * 11 + at / 256) as u8).collect();
    export.write(0, &bytes).unwrap();
    for (offset, len) in [(0, 0), (0, 1), (5, 4096), (1000, 32_769), (0, 200_000), (199_999, 1)] {
        let mut found = vec![0; len];
        import.fetch(offset, &mut found).unwrap();
        assert!(found == bytes[offset..offset + len], "{len} bytes at {offset}");
    }
    // One's own sends are seen.
    import.send_signal(0, b"mine", 8, 42).unwrap();
    assert_eq!(import.load_signal(8), Ok(42));
    let mut found = [0; 4];
    import.fetch(0, &mut found).unwrap();
    assert_eq!(&found, b"mine");
    assert_eq!(import.fetch(199_999, &mut [0; 2]), Err(TransferError::Range));
    assert_eq!(import.load_signal(4), Err(TransferError::Unaligned));
}
