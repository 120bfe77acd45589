//! Many processes, many imports and many pairs at one service.

mod harness;

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use harness::{Node, until};
use vmmc::{ImportSource, PairMemory, PairingEvent};

#[test]
fn a_thousand_processes_and_their_pairs() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    // Of each pair this process has two sockets, and four events.
    let pairs = limit.maximum.map_or(2000, |maximum| (maximum as usize / 10).min(2000));
    let processes = pairs / 2;
    let node = Node::new();
    let processes: Vec<_> = (0..processes).map(|_| node.open_polled()).collect();
    assert_eq!(node.status()["processes"], processes.len());
    assert_eq!(processes[0].processes().unwrap().len(), processes.len());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ends = Vec::new();
    for number in 0..pairs {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        for (socket, place) in [(near, number), (far, number * 7 + 3)] {
            let process = &processes[place % processes.len()];
            let offer = process.pair_offer(socket.as_fd()).unwrap();
            ends.push((process, offer, socket));
        }
    }
    let mut exports = Vec::new();
    let mut imports = Vec::new();
    let memory = PairMemory { len: 1 << 20, mapped: 4096, stream: false };
    until("all are ready", || {
        for process in &processes {
            while process.has_mail() {
                match process.poll() {
                    Some(PairingEvent::Matched { offer, pair, .. }) => {
                        let end = ends
                            .iter()
                            .find(|(of, found, _)| of.id() == process.id() && *found == offer);
                        let socket = end.unwrap().2.as_fd();
                        exports.push((pair, process.pair_export(pair, memory, socket).unwrap()));
                    }
                    Some(PairingEvent::Ready { pair, import }) => imports.push((pair, import)),
                    Some(other) => panic!("{other:?}"),
                    None => break,
                }
            }
        }
        imports.len() == 2 * pairs
    });
    assert_eq!(node.status()["pairs"], pairs);
    // Everybody has the memory of its own peer.
    for (pair, import) in &imports {
        import.signal(0, pair.0).unwrap();
    }
    for (pair, export) in &exports {
        assert_eq!(export.load_signal(0), Ok(pair.peer().0));
    }
    drop((imports, exports));
    drop(ends);
    drop(processes);
    until("all is forgotten", || {
        let status = node.status();
        status["pairs"] == 0 && status["processes"] == 0 && status["offers"] == 0
    });
}

/// Resident bytes and open descriptors of another process.
fn footprint(pid: i32) -> (usize, usize) {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (pages * rustix::param::page_size(), descriptors)
}

#[test]
fn imports_cost_the_service_little_memory_and_no_descriptors() {
    const PROCESSES: usize = 20;
    const IMPORTS: usize = 20_000;
    let node = Node::new();
    let processes: Vec<_> = (0..PROCESSES).map(|_| node.open_polled()).collect();
    let service = node.service_pid().unwrap();
    let exports: Vec<_> =
        processes.iter().map(|process| process.export(4096).create().unwrap()).collect();
    let (before, open) = footprint(service);
    let mut imports = Vec::with_capacity(IMPORTS);
    for number in 0..IMPORTS {
        let export = &exports[number / PROCESSES % PROCESSES];
        let process = &processes[number % PROCESSES];
        imports.push(process.import(ImportSource::Id(export.id())).open().unwrap());
    }
    assert_eq!(node.status()["imports"], IMPORTS);
    let (after, still_open) = footprint(service);
    // A thousand bytes each would be 100 MB for a hundred thousand.
    assert!(after < before + 1000 * IMPORTS, "{} bytes an import", (after - before) / IMPORTS);
    assert!(still_open <= open + 2, "{still_open} descriptors, {open} before");
    imports[IMPORTS - 1].signal(0, 7).unwrap();
    assert_eq!(exports[(IMPORTS - 1) / PROCESSES % PROCESSES].load_signal(0), Ok(7));
    drop(imports);
    until("all are given back", || node.status()["imports"] == 0);
}
