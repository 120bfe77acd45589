//! A process's translation table: the node's account, what becomes of it at deaths, recording and replaying.

mod harness;

use std::process::Command;

use harness::{FOREVER, Node, role, say, until, vmmc_program};
use vmmc::Process;
use vmmc::utlb::{Access, Located, Options};

/// Looks up and keeps so many bytes.
fn pin(process: &Process, len: usize) -> vmmc::utlb::Buffer {
    let buffer = process.utlb().allocate(len).unwrap();
    let Ok(Located::Pinned(hold)) = process.utlb().lookup(buffer.as_ptr(), len, Access::Read)
    else {
        panic!("no room");
    };
    assert_eq!(hold.len(), len);
    buffer
}

#[test]
fn actor() {
    let Some((role, argument)) = role() else { return };
    let process = Process::open().unwrap();
    match role.as_str() {
        "pinner" => {
            let buffer = pin(&process, argument.parse().unwrap());
            say("pinned");
            std::thread::sleep(FOREVER);
            drop(buffer);
        }
        "tracer" => {
            let buffer = pin(&process, 5 * process.info().page_size);
            let at = |page: usize| buffer.as_ptr().wrapping_add(page * process.info().page_size);
            for page in [0, 1, 2, 4, 4, 1] {
                drop(process.utlb().lookup(at(page), 8, Access::Read).unwrap());
            }
            // Ends without cleaning up.
            std::process::abort();
        }
        _ => {}
    }
}

fn reserved(node: &Node) -> u64 {
    node.status()["reserved_bytes"].as_u64().unwrap()
}

#[test]
fn the_node_keeps_the_account_and_gets_it_back_from_the_killed() {
    let node = Node::new();
    let process = node.open();
    assert_eq!(reserved(&node), 0, "a process without a table has nothing");
    let buffer = pin(&process, 1 << 20);
    let own = reserved(&node);
    assert!(own >= process.utlb().counters().pinned_bytes && own <= 4 << 20, "{own}");

    let mut other = node.actor("pinner", "3145728");
    assert_eq!(other.hear(), "pinned");
    assert!(reserved(&node) >= own + (3 << 20));
    other.kill();
    until("its bytes are returned", || reserved(&node) == own);

    drop((buffer, process));
    until("all is returned", || reserved(&node) == 0);
}

#[test]
fn a_new_service_learns_what_is_pinned() {
    let node = Node::new();
    let process = node.open();
    let _buffer = pin(&process, 1 << 20);
    let before = reserved(&node);
    let old = node.service_pid();
    harness::kill(old.unwrap(), libc::SIGKILL);
    until("a new service", || node.service_pid().is_some_and(|pid| Some(pid) != old));
    until("it knows", || reserved(&node) == before);
    let _more = pin(&process, 1 << 20);
}

#[test]
fn a_node_without_room_makes_tables_evict() {
    let node = Node::new();
    let limit: u64 = 1 << 20;
    let mut service = Command::new(vmmc_program())
        .args(["node", "serve"])
        .env("VMMC_RUNTIME_DIR", node.path())
        .env("VMMC_NODE_PINNED_BYTES", limit.to_string())
        .spawn()
        .unwrap();
    until("it runs", || node.status()["running"] == true);
    let process = node.options().utlb(Options::default().bounce(64 << 10)).open().unwrap();
    let buffer = process.utlb().allocate(4 << 20).unwrap();
    let mut done = 0;
    while done < buffer.len() {
        let at = buffer.as_ptr().wrapping_add(done);
        match process.utlb().lookup(at, buffer.len() - done, Access::Read).unwrap() {
            Located::Pinned(hold) => done += hold.len(),
            Located::Bounce(_) => panic!("its own pages can go"),
        }
        assert!(process.utlb().counters().pinned_bytes <= limit);
    }
    assert_eq!(reserved(&node), limit);
    assert!(process.utlb().counters().pages_unpinned >= 3 << 8);
    assert!(node.command(&["stop"]).status.success());
    service.wait().unwrap();
}

#[test]
fn a_program_is_recorded_and_replayed() {
    let node = Node::new();
    // Makes the runtime directory and the service.
    let process = node.open();
    let trace = node.path().join("trace.utlb");
    let vmmc = |arguments: &[&str]| {
        let mut command = Command::new(vmmc_program());
        command.arg("utlb").args(arguments).env("VMMC_RUNTIME_DIR", node.path());
        command
    };
    let this = std::env::current_exe().unwrap();
    let trace = trace.to_str().unwrap();
    let recorded = vmmc(&["record", "-o", trace, "--", this.to_str().unwrap()])
        .args(["--exact", "actor", "--nocapture", "--test-threads=1"])
        .env("VMMC_TEST_ROLE", "tracer")
        .env("VMMC_TEST_ARGUMENT", "")
        .output()
        .unwrap();
    assert!(!recorded.status.success(), "it aborts");

    let replay = |limit: &str, policy: &str| -> serde_json::Value {
        let output = vmmc(&["replay", trace, "--limit", limit, "--policy", policy, "--json"]);
        let output = { output }.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let page = process.info().page_size as u64;
    let all = replay("1M", "lru");
    assert_eq!(all["memory_footprint"], 5 * page);
    assert_eq!([&all["lookups"], &all["hits"], &all["pins"]], [7, 6, 1], "{all}");
    assert_eq!([&all["pages_pinned"], &all["unpins"], &all["ni_misses"]], [5, 0, 5]);
    // Room for two: 0 1 | 2 3 | 4, then 0 1 2 4 4 1.
    let few = replay(&(2 * page).to_string(), "lru");
    assert_eq!([&few["lookups"], &few["check_misses"]], [9, 8], "{few}");
    assert_eq!(few["peak_pinned_bytes"], 2 * page);

    let missing = vmmc(&["replay", "/no/such/trace"]).output().unwrap();
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot read the trace"));
    assert!(!missing.status.success());
}
