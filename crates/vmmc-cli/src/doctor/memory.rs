//! Memory that can be shared, and pages.

use std::fs;
use std::ptr;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap, munmap, userfaultfd};

use super::finding::Finding;

pub(super) fn findings() -> Vec<Finding> {
    vec![nameless(), huge_pages(), transparent_huge_pages(), faults()]
}

/// Makes, seals and maps a page, and tries to break the seal.
fn nameless() -> Finding {
    let name = "memfd and seals";
    let probe = || {
        let memory = memfd_create("vmmc-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, 4096)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
        let sealed = ftruncate(&memory, 0) == Err(Errno::PERM);
        fcntl_add_seals(&memory, SealFlags::FUTURE_WRITE)?;
        // SAFETY: a new mapping at an address the system chooses overlaps nothing; it is unmapped at once.
        unsafe {
            let page = mmap(ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &memory, 0)?;
            munmap(page, 4096)?;
        }
        Ok::<bool, Errno>(sealed)
    };
    let change = "use Linux 5.1 or later, and allow memfd_create and fcntl in the sandbox";
    match probe() {
        Ok(true) => Finding::good(
            name,
            "work",
            "exports have no name, cannot be truncated, and can be read-only",
        ),
        Ok(false) => Finding::unusable(
            name,
            "a seal does not hold",
            "an importer could crash the exporter",
            change,
        ),
        Err(cause) => {
            Finding::unusable(name, format!("fail ({cause})"), "nothing can be exported", change)
        }
    }
}

fn huge_pages() -> Finding {
    let name = "huge pages";
    let total = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let total: u64 = total.trim().parse().unwrap_or(0);
    match memfd_create("vmmc-doctor", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) {
        Ok(_) if total > 0 => {
            Finding::good(name, format!("{total} reserved"), "large exports can use them")
        }
        Ok(_) => Finding::limited(
            name,
            "none reserved",
            "large exports use 4 KiB pages: more TLB misses in streams of megabytes",
            "sysctl vm.nr_hugepages=128",
        ),
        Err(cause) => Finding::limited(
            name,
            format!("not supported ({cause})"),
            "large exports use 4 KiB pages",
            "use a kernel with CONFIG_HUGETLBFS",
        ),
    }
}

fn transparent_huge_pages() -> Finding {
    let (name, path) = ("shared huge pages", "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let text = fs::read_to_string(path).unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(c, _)| c);
    match chosen {
        Some(chosen @ ("always" | "within_size" | "advise" | "force")) => Finding::good(
            name,
            format!("shmem: {chosen}"),
            "exports can get huge pages without reserving them",
        ),
        other => Finding::limited(
            name,
            format!("shmem: {}", other.unwrap_or("not supported")),
            "exports use 4 KiB pages unless huge pages are reserved",
            format!("echo advise > {path}"),
        ),
    }
}

fn faults() -> Finding {
    let name = "userfaultfd";
    // USER_MODE_ONLY, which needs no privilege.
    let user_mode_only = UserfaultfdFlags::from_bits_retain(1);
    // SAFETY: the descriptor is closed at once and nothing is registered with it.
    let opened = |flags| unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | flags) };
    match (opened(UserfaultfdFlags::empty()), opened(user_mode_only)) {
        (Ok(_), _) => {
            Finding::good(name, "allowed", "shared virtual memory can catch every access")
        }
        (Err(_), Ok(_)) => Finding::limited(
            name,
            "allowed for accesses in user mode",
            "shared virtual memory catches its program's accesses, but not those of system calls",
            "sysctl vm.unprivileged_userfaultfd=1",
        ),
        (_, Err(cause)) => Finding::limited(
            name,
            format!("not allowed ({cause})"),
            "shared virtual memory falls back to mprotect and SIGSEGV",
            "sysctl vm.unprivileged_userfaultfd=1, and allow userfaultfd in the sandbox",
        ),
    }
}
