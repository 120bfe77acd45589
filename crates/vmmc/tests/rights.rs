//! Who may import what, and what they may do with it; and that revoking means it.

mod harness;

use std::time::Duration;

use harness::{Node, listen, role, say, until};
use vmmc::{
    Allow, ExportError, ExportId, ExportState, ImportError, ImportSource, Notify, Path, Process,
    ProcessId, Rights, TransferError,
};

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::open().unwrap();
    let source = ImportSource::Id(argument.parse::<ExportId>().unwrap());
    match role.as_str() {
        "scribbler" => {
            let import = process.import(source).open().unwrap();
            let start = import.as_ptr().unwrap();
            say("imported");
            // Everything that it may write, all the time, also after it is told to stop.
            for round in 0u64.. {
                for offset in (0..import.len()).step_by(8) {
                    // SAFETY: inside the mapping, aligned.
                    unsafe { start.add(offset).cast::<u64>().write_volatile(round | 1) };
                }
                if import.state() == ExportState::Revoked && round > 1000 {
                    break;
                }
            }
            say("scribbled on");
            listen();
        }
        "read-only" => {
            let import = process.import(source).rights(Rights::READ).open().unwrap();
            let start = import.as_ptr().unwrap();
            let page = import.len().next_multiple_of(4096);
            // SAFETY: changes the protection of our own mapping, which must be refused.
            let result =
                unsafe { libc::mprotect(start.cast(), page, libc::PROT_READ | libc::PROT_WRITE) };
            say(format!("mprotect {result}"));
            // SAFETY: inside the mapping; expected to be killed by it.
            unsafe { start.write_volatile(1) };
            say("survived");
        }
        _ => {}
    }
}

#[test]
fn rights_are_granted_as_asked_or_refused() {
    let node = Node::new();
    let process = node.open();
    let every = [Rights::READ, Rights::WRITE, Rights::READ_WRITE];
    for granted in every {
        let export = process.export(64).rights(granted).create().unwrap();
        export.write(0, b"exporter").unwrap();
        for asked in every {
            let import = process.import(ImportSource::Id(export.id())).rights(asked).open();
            if !granted.contains(asked) {
                assert_eq!(import.unwrap_err(), ImportError::Rights);
                continue;
            }
            let import = import.unwrap();
            assert_eq!(import.rights(), asked);
            let engine = asked == Rights::WRITE;
            assert_eq!(import.path(), if engine { Path::Engine } else { Path::Mapped });
            let mut bytes = [0; 8];
            let fetched = import.fetch(0, &mut bytes);
            let sent = import.send(8, b"importer");
            let can = |right, result| {
                if asked.contains(right) {
                    assert_eq!(result, Ok(()), "{asked}");
                } else {
                    assert_eq!(result, Err(TransferError::Rights), "{asked}");
                }
            };
            can(Rights::READ, fetched);
            can(Rights::WRITE, sent);
            can(Rights::WRITE, import.signal(16, 1));
        }
    }
}

#[test]
fn a_read_only_mapping_cannot_be_widened() {
    let node = Node::new();
    let process = node.open();
    for rights in [Rights::READ, Rights::READ_WRITE] {
        let export = process.export(4096).rights(rights).create().unwrap();
        let mut actor = node.actor("read-only", &export.id().to_string());
        assert_eq!(actor.hear(), "mprotect -1");
        let status = actor.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSEGV));
        assert_eq!(export.load_signal(0), Ok(0));
    }
}

#[test]
fn only_the_admitted_import() {
    let node = Node::new();
    let process = node.open();
    // SAFETY: plain system calls.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let refused = Err(ImportError::NotAllowed);
    let key = [7; 16];
    for (allow, shown, expected) in [
        (Allow::SameUser, None, Ok(())),
        (Allow::User(uid), None, Ok(())),
        (Allow::User(uid + 1), None, refused),
        (Allow::Group(gid), None, Ok(())),
        (Allow::Group(gid + 1), None, refused),
        (Allow::Key(key), Some(key), Ok(())),
        (Allow::Key(key), Some([8; 16]), refused),
        (Allow::Key(key), None, refused),
        (Allow::Anyone, None, Ok(())),
    ] {
        let export = process.export(64).allow(allow).create().unwrap();
        let mut options = process.import(ImportSource::Id(export.id()));
        if let Some(shown) = shown {
            options = options.key(shown);
        }
        assert_eq!(options.open().map(drop), expected, "{allow:?}");
    }
}

#[test]
fn exports_are_found_by_id_and_by_name() {
    let node = Node::new();
    let (process, other) = (node.options().name("first").open().unwrap(), node.open());
    let export = process.export(64).name("board").create().unwrap();
    let later = other.export(64).name("board").create().unwrap();
    let by_name = other.import(ImportSource::Name("board".into())).open().unwrap();
    assert_eq!(by_name.id(), export.id());
    let named = |process: ProcessId| ImportSource::Named { process, name: "board".into() };
    assert_eq!(process.import(named(other.id())).open().unwrap().id(), later.id());
    let listed = process.exports().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[0].id, listed[0].name.as_str(), listed[0].len), (export.id(), "board", 64));
    let processes = other.processes().unwrap();
    let first = processes.iter().find(|found| found.id == process.id()).unwrap();
    assert_eq!((first.pid, first.name.as_str()), (std::process::id(), "first"));
    export.unexport().unwrap();
    let by_name = other.import(ImportSource::Name("board".into())).open().unwrap();
    assert_eq!(by_name.id(), later.id());
}

#[test]
fn lists_of_any_length_are_complete() {
    let node = Node::new();
    let process = node.open();
    let exports: Vec<_> =
        (0..300).map(|_| process.export(8).name(&"n".repeat(255)).create().unwrap()).collect();
    let mut listed: Vec<_> = process.exports().unwrap().iter().map(|export| export.id).collect();
    let mut expected: Vec<_> = exports.iter().map(|export| export.id()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[test]
fn unknown_and_dead_are_told_apart() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(64).create().unwrap();
    let open = |id| process.import(ImportSource::Id(id)).open().map(drop);
    let mut unknown = export.id();
    unknown.number += 1000;
    assert_eq!(open(unknown), Err(ImportError::UnknownExport));
    let mut stranger = export.id();
    stranger.process.incarnation ^= 1;
    assert_eq!(open(stranger), Err(ImportError::UnknownProcess));
    let other = node.open();
    let theirs = other.export(64).create().unwrap();
    let dead = theirs.id();
    drop((theirs, other));
    until("noticed", || open(dead) == Err(ImportError::DeadProcess));
    let missing = process.import(ImportSource::Name("missing".into())).open();
    assert_eq!(missing.unwrap_err(), ImportError::UnknownExport);
    let long = process.import(ImportSource::Name("x".repeat(300))).open();
    assert_eq!(long.unwrap_err(), ImportError::Name);
}

#[test]
fn lengths_and_names_are_checked() {
    let node = Node::new();
    let process = node.open_polled();
    for len in [0, usize::MAX, (1 << 40) + 1] {
        assert_eq!(process.export(len).create().unwrap_err(), ExportError::Length);
    }
    let long = process.export(8).name(&"x".repeat(256)).create();
    assert_eq!(long.unwrap_err(), ExportError::Name);
    let handler = process.export(8).notify(Notify::Handler(Box::new(|_| {}))).create();
    assert_eq!(handler.unwrap_err(), ExportError::HandlerNeedsWatcher);
    let mut page = vec![0u8; 3 * 4096];
    for (offset, len) in [(1, 4096), (0, 100)] {
        let start = page.as_mut_ptr().wrapping_add(page.as_ptr().align_offset(4096) + offset);
        // SAFETY: must be refused before anything is touched.
        let result = unsafe { process.export(1).create_in_place(start, len) };
        assert_eq!(result.unwrap_err(), ExportError::Unaligned);
    }
    // Sparse: a long export costs nothing until it is touched.
    let export = process.export(1 << 36).create().unwrap();
    let import = process.import(ImportSource::Id(export.id())).open().unwrap();
    import.signal((1 << 36) - 8, 3).unwrap();
    assert_eq!(export.load_signal((1 << 36) - 8), Ok(3));
}

/// Private pages as a program might have them.
struct Pages(*mut u8, usize);

impl Pages {
    fn new(len: usize) -> Self {
        // SAFETY: maps fresh pages at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self(start.cast(), len)
    }

    fn load(&self, offset: usize) -> u64 {
        assert!(offset + 8 <= self.1);
        // SAFETY: inside the pages.
        unsafe { self.0.add(offset).cast::<u64>().read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages are ours, and nobody uses them any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

#[test]
fn memory_is_exported_in_place_and_a_late_writer_hits_an_orphan() {
    let node = Node::new();
    let process = node.open();
    let pages = Pages::new(8 * 4096);
    // SAFETY: inside the pages, which nobody else knows yet.
    unsafe { pages.0.cast::<u64>().write(77) };
    // SAFETY: the pages are private, page-aligned, and outlive the export; this thread alone uses them.
    let export = unsafe { process.export(0).create_in_place(pages.0, pages.1) }.unwrap();
    assert_eq!((export.as_ptr(), export.len()), (pages.0, pages.1));
    assert_eq!(pages.load(0), 77, "contents stay");
    let mut scribbler = node.actor("scribbler", &export.id().to_string());
    assert_eq!(scribbler.hear(), "imported");
    until("scribbled", || pages.load(8 * 4096 - 8) != 0);
    export.unexport().unwrap();
    let after: Vec<u64> = (0..pages.1).step_by(8).map(|offset| pages.load(offset)).collect();
    assert_eq!(scribbler.hear(), "scribbled on");
    let later: Vec<u64> = (0..pages.1).step_by(8).map(|offset| pages.load(offset)).collect();
    assert!(after == later, "a late writer was seen");
    assert!(later.iter().all(|word| *word != 0), "contents stay");
    // The pages are ordinary memory again: they can be exported once more.
    // SAFETY: as above.
    let again = unsafe { process.export(0).create_in_place(pages.0, pages.1) }.unwrap();
    drop(again);
    assert_eq!(pages.load(8), later[1]);
}

#[test]
fn a_scribbling_importer_spoils_only_the_export() {
    let node = Node::new();
    let process = node.open();
    let export = process.export(65536).notify(Notify::Event).create().unwrap();
    let neighbour = process.export(65536).create().unwrap();
    let mut scribblers: Vec<_> =
        (0..2).map(|_| node.actor("scribbler", &export.id().to_string())).collect();
    for scribbler in &mut scribblers {
        assert_eq!(scribbler.hear(), "imported");
    }
    until("scribbled", || export.load_signal(65528).unwrap() > 3);
    let _ = export.wait(Duration::ZERO);
    for offset in (0..65536).step_by(8) {
        assert_eq!(neighbour.load_signal(offset), Ok(0));
    }
    assert_eq!(process.exports().unwrap().len(), 2);
    export.unexport().unwrap();
    for scribbler in &mut scribblers {
        assert_eq!(scribbler.hear(), "scribbled on");
    }
}
