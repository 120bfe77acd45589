//! An importer that scribbles without end over everything that it may write, while others go on with their work: the memory of an export,
//! its mailbox, its redirections and their pool, its event, its own command queue.
//!
//! `VMMC_TEST_OPERATIONS=100000000 cargo test --release -p vmmc --test malice` for the full number.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::dice::Dice;
use harness::stranger::Stranger;
use harness::{FOREVER, Node, kill, role, say};
use vmmc::{
    AccessError, Export, ExportId, Import, ImportSource, Notification, Notify, PostedBuffer,
    Rights, TransferError, WaitError,
};
use vmmc_os::{Access, Mapping, memory_len};
use vmmc_proto::Request;

/// Operations in the ordinary run.
const OPERATIONS: u64 = 300_000;

const LEN: usize = 256 << 10;
const POOL: usize = 64 << 10;

#[test]
fn actor() {
    let Some((_, export)) = role() else { return };
    let node = Node::of_environment();
    let mut stranger = Stranger::new(&node);
    let (handle, descriptors) =
        stranger.import(export.parse::<ExportId>().unwrap(), Rights::READ_WRITE);
    // Memory, event, mailbox, redirections: what has no length is the event.
    let maps: Vec<Mapping> = descriptors
        .iter()
        .filter_map(|descriptor| {
            memory_len(descriptor).ok().filter(|len| *len > 0).zip(Some(descriptor))
        })
        .map(|(len, memory)| Mapping::new(memory, 0, len as usize, Access::ReadWrite).unwrap())
        .collect();
    assert_eq!((descriptors.len(), maps.len()), (4, 3));
    let event = &descriptors[1];
    say("imported");
    let mut dice = Dice::new(u64::from(std::process::id()));
    let queue = std::iter::once(&stranger.queue);
    let places: Vec<(*mut u8, usize)> =
        maps.iter().chain(queue).map(|map| (map.as_ptr(), map.len())).collect();
    loop {
        for _ in 0..1000 {
            let (start, len) = places[dice.throw(places.len() as u64) as usize];
            // The control words lie at the beginning, those of redirections behind the pool.
            let reach = [128, 2048, len as u64][dice.throw(3) as usize].min(len as u64) / 8;
            let behind = dice.throw(2) * (len as u64 / 8 - reach);
            let at = (dice.throw(reach) + behind) as usize;
            // SAFETY: aligned, inside a mapping that lives as long as this process; others use it by atomics and copies only.
            let word = unsafe { &*start.cast::<AtomicU64>().add(at) };
            let old = word.load(Ordering::Relaxed);
            let new = match dice.throw(6) {
                0 => dice.any(),
                1 => old ^ 1 << dice.throw(64),
                2 => dice.throw(5),
                3 => dice.throw(1 << 12) << 2 | dice.throw(4),
                4 => old.wrapping_add(1),
                _ => u64::MAX - dice.throw(3),
            };
            word.store(new, Ordering::Relaxed);
        }
        // A valid command now and then keeps the service at this queue.
        if let Some(claim) = stranger.commands().claim() {
            let command = vmmc_shm::command::Command {
                direction: vmmc_shm::command::Direction::Send,
                handle: if dice.throw(2) == 0 { handle } else { dice.any() },
                offset: dice.throw(2 * LEN as u64),
                len: dice.throw(40_000),
                local: dice.any(),
                signal: (dice.throw(2) == 0).then(|| (dice.throw(2 * LEN as u64), dice.any())),
                notify: (dice.throw(2) == 0).then(|| (dice.any(), dice.any())),
            };
            let _ = stranger.commands().post(claim, &command);
        }
        stranger.say(&Request::Ring, &[]);
        // Not made to block, which it could be: see the library's page on what other processes can do.
        let count = [1, u64::MAX - 1, dice.any() >> 1][dice.throw(3) as usize];
        if dice.throw(50) == 0 {
            let _ = rustix::io::write(event, &count.to_ne_bytes());
        }
    }
}

/// The exporter and an honest importer, which know nothing of the other one.
struct Honest {
    export: Export,
    neighbour: Export,
    mapped: Import,
    write_only: Import,
    dice: Dice,
    taken: u64,
}

impl Honest {
    /// A range that mostly fits, and whether it does.
    fn range(&mut self, most: u64) -> (usize, usize, bool) {
        let len = self.dice.throw(most) as usize;
        let offset = self.dice.throw((LEN + 64) as u64) as usize;
        (offset, len, offset + len <= LEN)
    }

    fn note(&mut self, notification: Notification) {
        assert_eq!(notification.export, self.export.id());
        assert!(notification.offset.checked_add(notification.len).is_some_and(|end| end <= LEN));
        self.taken += 1;
    }

    /// One operation, and what may come of it.
    fn act(&mut self) {
        let inside = |fits: bool| if fits { Ok(()) } else { Err(TransferError::Range) };
        let here = |fits: bool| if fits { Ok(()) } else { Err(AccessError::Range) };
        match self.dice.throw(10_000) {
            0..2500 => {
                let (offset, len, fits) = self.range(300);
                assert_eq!(self.mapped.send(offset, &bytes(len)), inside(fits));
            }
            2500..4000 => {
                let (offset, len, fits) = self.range(300);
                assert_eq!(self.mapped.fetch(offset, &mut bytes(len)), inside(fits));
            }
            4000..5500 => {
                let (offset, len, fits) = self.range(300);
                assert_eq!(self.export.read(offset, &mut bytes(len)), here(fits));
                assert_eq!(self.export.write(offset, &bytes(len)), here(fits));
            }
            5500..6500 => {
                let at = self.dice.throw(LEN as u64 / 8) as usize * 8;
                self.mapped.signal(at, self.dice.any()).unwrap();
                self.export.load_signal(at).unwrap();
            }
            6500..7500 => {
                let (offset, len, fits) = self.range(64);
                assert_eq!(self.mapped.send_notify(offset, &bytes(len)), inside(fits));
            }
            7500..9000 => {
                if let Some(notification) = self.export.take_notification() {
                    self.note(notification);
                }
            }
            9000..9300 => match self.export.wait(Duration::ZERO) {
                Ok(notification) => self.note(notification),
                Err(error) => assert_eq!(error, WaitError::Timeout),
            },
            9300..9304 => match self.export.wait(Duration::from_micros(100)) {
                Ok(notification) => self.note(notification),
                Err(error) => assert_eq!(error, WaitError::Timeout),
            },
            9304..9600 => {
                let (offset, len, fits) = self.range(4096);
                let finished = self.mapped.send_async(offset, bytes(len)).wait();
                assert_eq!((finished.result, finished.buffer.len()), (inside(fits), len));
            }
            9600..9610 => {
                let (offset, len, fits) = self.range(4096);
                let finished = self.write_only.send_async(offset, bytes(len));
                assert_eq!(finished.wait().result, inside(fits));
                assert_eq!(self.write_only.send(offset, &bytes(len)), inside(fits));
            }
            9610..9614 => self.redirect(),
            9614 => assert_eq!(self.mapped.send(0, &bytes(LEN)), Ok(())),
            _ => self.look_at_the_neighbour(),
        }
    }

    /// Posts, is sent something, and finishes: however the other one meddles, each byte of the buffer was sent or lay in the export.
    fn redirect(&mut self) {
        let (offset, len, fits) = self.range(8192);
        let buffer = if self.dice.throw(2) == 0 {
            match self.export.redirect_buffer(len.max(1)) {
                Ok(buffer) => PostedBuffer::Shared(buffer),
                Err(_) => return,
            }
        } else {
            PostedBuffer::Private(bytes(len.max(1)))
        };
        let len = buffer.len();
        let Ok(posting) = self.export.post(offset, buffer) else { return };
        assert!(fits || len == 1);
        self.mapped.send(offset, &bytes(len)).unwrap();
        let Ok(redirected) = self.export.finish(posting) else { return };
        assert_eq!(redirected.buffer.len(), len);
        let mut end = 0;
        for range in redirected.redirected {
            assert!(end <= range.start && range.start < range.end && range.end <= len);
            end = range.end;
        }
        redirected.buffer.read(0, &mut vec![0; len]).unwrap();
    }

    fn look_at_the_neighbour(&mut self) {
        let at = self.dice.throw(LEN as u64 / 8) as usize * 8;
        assert_eq!(self.neighbour.load_signal(at), Ok(NEIGHBOUR));
    }
}

fn bytes(len: usize) -> Vec<u8> {
    vec![7; len]
}

const NEIGHBOUR: u64 = 0x6e65_6967_6862_6f72;

#[test]
fn a_scribbler_breaks_holds_up_and_reaches_nobody_else() {
    let node = Node::new();
    let (exporter, importer) = (node.open(), node.open());
    let export = exporter.export(LEN).redirectable(POOL).notify(Notify::Event).create().unwrap();
    let neighbour = exporter.export(LEN).create().unwrap();
    (0..LEN).step_by(8).for_each(|at| neighbour.write(at, &NEIGHBOUR.to_le_bytes()).unwrap());
    let service = node.service_pid();
    let [mapped, write_only] = [Rights::READ_WRITE, Rights::WRITE].map(|rights| {
        importer.import(ImportSource::Id(export.id())).rights(rights).open().unwrap()
    });
    let mut scribbler = node.actor("scribbler", &export.id().to_string());
    assert_eq!(scribbler.hear(), "imported");
    let wanted = std::env::var("VMMC_TEST_OPERATIONS");
    let wanted = wanted.ok().and_then(|n| n.parse().ok()).unwrap_or(OPERATIONS);

    let done = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let pid = scribbler.pid();
    let watchdog = std::thread::spawn({
        let (done, over) = (Arc::clone(&done), Arc::clone(&over));
        move || {
            let mut last = u64::MAX;
            while !over.load(Ordering::Relaxed) {
                let now = done.load(Ordering::Relaxed);
                if now == last {
                    eprintln!("nothing is done any more after {now} operations");
                    kill(pid, libc::SIGKILL);
                    std::process::abort();
                }
                last = now;
                std::thread::park_timeout(FOREVER);
            }
        }
    });
    let dice = Dice::new(7);
    let mut honest = Honest { export, neighbour, mapped, write_only, dice, taken: 0 };
    for number in 0..wanted {
        honest.act();
        done.store(number, Ordering::Relaxed);
    }
    over.store(true, Ordering::Relaxed);
    watchdog.thread().unpark();
    watchdog.join().unwrap();
    assert!(honest.taken > 0);
    assert!(scribbler.child.try_wait().unwrap().is_none(), "the scribbler is at work");
    assert_eq!(node.service_pid(), service, "the service is the same");
    (0..LEN).step_by(8).for_each(|_| honest.look_at_the_neighbour());
    // Without it all is as it was.
    scribbler.kill();
    let Honest { export, mapped, .. } = honest;
    let fresh = exporter.export(4096).notify(Notify::Event).create().unwrap();
    let import = importer.import(ImportSource::Id(fresh.id())).open().unwrap();
    import.send_notify(0, b"sound").unwrap();
    assert_eq!(fresh.wait(FOREVER).unwrap().len, 5);
    export.unexport().unwrap();
    assert_eq!(mapped.send(0, b"x"), Err(TransferError::Revoked));
}
