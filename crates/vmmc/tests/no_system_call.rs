//! The data path makes no system call: with a filter that kills on any call but exit, it works.

mod harness;

use harness::{Node, role};
use vmmc::{ExportState, ImportSource, Notify, Process, Rights};

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::options().watcher(false).open().unwrap();
    let source = ImportSource::Id(argument.parse().unwrap());
    let import = process.import(source.clone()).open().unwrap();
    let reader = process.import(source).rights(Rights::READ).open().unwrap();
    let own = process.export(1 << 20).create().unwrap();
    let awake = process.export(1 << 20).notify(Notify::Event).create().unwrap();
    let to_awake = process.import(ImportSource::Id(awake.id())).open().unwrap();
    to_awake.send_notify(0, b"the first finds it announced that it may sleep").unwrap();
    awake.take_notification().unwrap();
    let big = vec![7u8; 1 << 20];
    let mut back = vec![0u8; 1 << 20];
    if role == "forbidden" {
        only_exit();
        // The counter-proof: the filter does kill.
        std::thread::yield_now();
        exit(0);
    }
    only_exit();
    let mut failed = 0;
    for round in 1..=1000u64 {
        let len = [8, 64, 4096, 1 << 20][round as usize % 4];
        failed |= u8::from(import.send(0, &big[..len]).is_err());
        failed |= u8::from(import.send_signal(0, &big[..len - 8], len - 8, round).is_err());
        failed |= u8::from(import.signal(len - 8, round).is_err());
        failed |= u8::from(import.load_signal(len - 8) != Ok(round)) << 1;
        failed |= u8::from(reader.fetch(0, &mut back[..len]).is_err()) << 2;
        failed |= u8::from(back[..len - 8] != big[..len - 8]) << 3;
        failed |= u8::from(own.load_signal(0) != Ok(0)) << 4;
        // Nobody sleeps: neither leaving a notification nor taking it makes a call.
        failed |= u8::from(to_awake.send_notify(0, &big[..len]).is_err()) << 4;
        failed |= u8::from(awake.take_notification().is_none_or(|found| found.len != len)) << 4;
        failed |= u8::from(own.write(8, &big[..8]).is_err()) << 5;
        failed |= u8::from(import.state() != ExportState::Live) << 6;
        failed |= u8::from(process.has_mail()) << 7;
        // Small asynchronous transfers are done at the call.
        failed |= u8::from(import.send_async(64, [round as u8; 64]).wait().result.is_err());
        let tail = import.send_signal_async(128, [7; 8], 192, round);
        failed |= u8::from(!tail.is_over());
        failed |= u8::from(import.fetch_async(128, [0; 8]).wait().buffer != [7; 8]) << 2;
        failed |= u8::from(import.load_signal(192) != Ok(round)) << 1;
        failed |= u8::from(import.flush().is_err());
        // Refusals are the data path too.
        failed |= u8::from(import.send(usize::MAX, b"x").is_ok());
        failed |= u8::from(reader.send(0, b"x").is_ok());
    }
    exit(failed);
}

fn exit(status: u8) -> ! {
    // SAFETY: ends the process at once, by the one call that the filter lets through.
    unsafe { libc::syscall(libc::SYS_exit_group, libc::c_long::from(status)) };
    std::process::abort()
}

/// From now on any system call of this thread but `exit_group` kills the process. (The library has no other thread
/// in polled mode; the test program's own main thread goes on as it likes.)
fn only_exit() {
    let load = |offset| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let equal = |value: libc::c_long, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k: u32::try_from(value).unwrap(),
    };
    let answer =
        |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let mut filter = [
        load(0),
        equal(libc::SYS_exit_group, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the calls have returned.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, set, 0, &raw const program), 0);
    }
}

fn run(role: &str) -> (Node, std::process::ExitStatus) {
    let node = Node::new();
    let process = node.open();
    let export = process.export(1 << 20).create().unwrap();
    let mut actor = node.actor(role, &export.id().to_string());
    let status = actor.child.wait().unwrap();
    drop((export, process));
    (node, status)
}

#[test]
fn send_signal_fetch_and_looking_for_mail_make_no_system_call() {
    let (_node, status) = run("data-path");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn the_filter_kills() {
    let (_node, status) = run("forbidden");
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(signal, Some(libc::SIGSYS));
}
