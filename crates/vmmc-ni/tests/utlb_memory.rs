//! The table over real memory, as an ordinary user: 8 MiB may be pinned and no more. The kernel's own count is the oracle.
//!
//! Each test runs in a process of its own: this program again, as the test alone, with the limit set and privileges given up.
#![cfg(not(loom))]

use std::process::Command;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};
use rustix::process::{Resource, Rlimit, setrlimit};
use vmmc_ni::utlb::{Access, Detection, Located, LookupError, Options, Policy, Utlb};

const LIMIT: u64 = 8 << 20;

/// Runs `body` in a process that may pin `LIMIT` bytes.
fn limited(name: &str, body: fn()) {
    const CHILD: &str = "VMMC_UTLB_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        setrlimit(Resource::Memlock, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) })
            .unwrap();
        // No capability, among them the one to pin without limit.
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

/// What the kernel has counted as pinned since a table was made.
fn pinned() -> u64 {
    vmmc_os::pinned_bytes().unwrap()
}

/// Pages that nobody but the test unmaps.
fn map(len: usize) -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the system chooses.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
    start.unwrap().cast()
}

fn unmap(start: *mut u8, len: usize) {
    // SAFETY: mapped by `map`, and the test does not touch it any more.
    unsafe { munmap(start.cast(), len) }.unwrap();
}

/// How many bytes are found in place; the rest goes through bounce buffers.
fn look_up_all(utlb: &Utlb, start: *const u8, len: usize) -> usize {
    let (mut done, mut in_place) = (0, 0);
    while done < len {
        done += match utlb.lookup(start.wrapping_add(done), len - done, Access::Read).unwrap() {
            Located::Pinned(hold) => {
                in_place += hold.len();
                hold.len()
            }
            Located::Bounce(bounce) => bounce.len(),
        };
    }
    in_place
}

#[test]
fn the_kernel_counts_what_the_table_counts() {
    limited("the_kernel_counts_what_the_table_counts", || {
        for policy in Policy::ALL {
            let utlb = Utlb::new(Options::default().policy(policy));
            assert_eq!(utlb.limit(), LIMIT);
            let memory = vec![1u8; 20 << 20];
            let region = utlb.region(&memory);
            for step in [1 << 20, 4096, 3 << 20, 12 << 20, 77_777] {
                for start in (0..memory.len() - step).step_by(step).take(50) {
                    assert_eq!(look_up_all(&utlb, memory[start..].as_ptr(), step), step);
                    assert!(pinned() <= LIMIT);
                }
                assert_eq!(pinned(), utlb.counters().pinned_bytes, "{policy}");
            }
            assert_eq!(utlb.counters().peak_pinned_bytes, LIMIT, "all of it was used");
            assert_eq!(utlb.counters().without_room, 0);
            drop(region);
            assert_eq!(pinned(), utlb.counters().bounce_bytes);
            drop(utlb);
            assert_eq!(pinned(), 0);
        }
    });
}

#[test]
fn pages_that_somebody_else_pins_are_made_room_for() {
    limited("pages_that_somebody_else_pins_are_made_room_for", || {
        let other = map(6 << 20);
        // SAFETY: pins and nothing else.
        unsafe { rustix::mm::mlock(other.cast(), 6 << 20) }.unwrap();
        let utlb = Utlb::new(Options::default());
        let memory = vec![1u8; 4 << 20];
        let _region = utlb.region(&memory);
        assert_eq!(look_up_all(&utlb, memory.as_ptr(), memory.len()), memory.len());
        assert_eq!(pinned(), (6 << 20) + utlb.counters().pinned_bytes);
        assert!(pinned() <= LIMIT && pinned() > LIMIT - 8 * 4096);
        unmap(other, 6 << 20);
    });
}

#[test]
fn nothing_may_be_pinned_and_nothing_fails() {
    limited("nothing_may_be_pinned_and_nothing_fails", || {
        setrlimit(Resource::Memlock, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        let utlb = Utlb::new(Options::default().limit(LIMIT));
        let memory = vec![1u8; 1 << 20];
        assert_eq!(look_up_all(&utlb, memory.as_ptr(), memory.len()), 0);
        let Ok(Located::Bounce(mut bounce)) = utlb.lookup(memory.as_ptr(), 10, Access::Write)
        else {
            panic!()
        };
        assert!(!bounce.is_pinned());
        bounce.bytes().fill(3);
        assert_eq!((pinned(), utlb.counters().pinned_bytes), (0, 0));
    });
}

#[test]
fn memory_that_was_unmapped_or_replaced_is_found_out() {
    limited("memory_that_was_unmapped_or_replaced_is_found_out", || {
        let (utlb, page) = (Utlb::new(Options::default()), vmmc_os::page_size());
        let start = map(4 * page);
        let base = pinned();
        let Ok(Located::Pinned(hold)) = utlb.lookup(start, 4 * page, Access::Read) else {
            panic!()
        };
        assert_eq!((hold.len(), pinned() - base), (4 * page, 4 * page as u64));

        // Other memory at the same address.
        unmap(start, 4 * page);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let fixed = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the range was just unmapped by this thread, and nobody else maps anything here.
        unsafe { mmap_anonymous(start.cast(), 2 * page, protection, fixed) }.unwrap();
        assert_eq!(pinned(), base);
        let Ok(Located::Pinned(anew)) = utlb.lookup(start, page, Access::Read) else { panic!() };
        assert!(!hold.is_current(), "what was translated is stale");
        assert!(anew.is_current());
        assert_eq!(pinned() - base, page as u64, "the new memory is pinned");
        let beyond = utlb.lookup(start.wrapping_add(2 * page), 1, Access::Read);
        assert_eq!(beyond.unwrap_err(), LookupError::NotMapped);
        assert_eq!(utlb.lookup(start, 3 * page, Access::Read).unwrap_err(), LookupError::NotMapped);
        drop((hold, anew));
        unmap(start, 2 * page);
        assert_eq!(utlb.lookup(start, 1, Access::Read).unwrap_err(), LookupError::NotMapped);
        assert_eq!(utlb.counters().pinned_bytes, utlb.counters().bounce_bytes + 4096);

        // What may only be read is no destination.
        // SAFETY: a new mapping at an address that the system chooses.
        let read_only = unsafe {
            mmap_anonymous(std::ptr::null_mut(), page, ProtFlags::READ, MapFlags::PRIVATE)
        };
        let read_only = read_only.unwrap().cast::<u8>();
        for _ in 0..2 {
            assert!(utlb.lookup(read_only, 8, Access::Read).is_ok());
            let refused = utlb.lookup(read_only, 8, Access::Write);
            assert_eq!(refused.unwrap_err(), LookupError::NotMapped);
        }
    });
}

#[test]
fn buffers_of_the_library_are_watched() {
    limited("buffers_of_the_library_are_watched", || {
        let (utlb, page) = (Utlb::new(Options::default()), vmmc_os::page_size());
        let base = pinned();
        let mut buffer = utlb.allocate(8 * page).unwrap();
        buffer.bytes().fill(5);
        let start = buffer.as_ptr();
        if let Detection::AskEachTime(cause) = utlb.detection() {
            eprintln!("no events here ({cause}): each lookup asks");
        }
        for round in 0..50 {
            let Ok(Located::Pinned(hold)) = utlb.lookup(start, 4 * page, Access::Read) else {
                panic!()
            };
            let asked = utlb.counters().verifications;
            assert!(hold.is_current());
            // SAFETY: not touched as what it was any more; each round empties it by mapping fresh pages over it, which unmaps the old.
            unsafe {
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap_anonymous(start.cast(), 4 * page, protection, flags)
            }
            .unwrap();
            assert_eq!(pinned(), base, "round {round}");
            let Ok(Located::Pinned(anew)) = utlb.lookup(start, 4 * page, Access::Read) else {
                panic!()
            };
            assert!(!hold.is_current(), "round {round}");
            assert_eq!(pinned() - base, 4 * page as u64, "pinned anew");
            drop((hold, anew));
            utlb.forget(start, 4 * page);
            if round == 0 && utlb.detection() == Detection::Events {
                assert_eq!(asked, 0, "no question to the system");
            }
        }
        // Moved away: the old addresses are refused.
        let tail = start.wrapping_add(4 * page);
        assert!(utlb.lookup(tail, 4 * page, Access::Read).is_ok());
        // SAFETY: not touched at its old place any more.
        let moved =
            unsafe { mremap(tail.cast(), 4 * page, 8 * page, MremapFlags::MAYMOVE) }.unwrap();
        if moved != tail.cast() {
            assert_eq!(utlb.lookup(tail, 1, Access::Read).unwrap_err(), LookupError::NotMapped);
        }
        drop(buffer);
    });
}

#[test]
fn a_buffer_stays_until_its_transfers_are_done() {
    limited("a_buffer_stays_until_its_transfers_are_done", || {
        let utlb = Utlb::new(Options::default());
        let buffer = utlb.allocate(100).unwrap();
        let start = buffer.as_ptr();
        let Ok(Located::Pinned(hold)) = utlb.lookup(start, 100, Access::Write) else { panic!() };
        let hold = hold.into_owned();
        drop(buffer);
        assert!(hold.is_current());
        // SAFETY: the hold keeps the buffer.
        unsafe { start.write_volatile(1) };
        drop(hold);
        drop(utlb.allocate(100).unwrap());
        assert_eq!(utlb.lookup(start, 1, Access::Read).unwrap_err(), LookupError::NotMapped);
    });
}
