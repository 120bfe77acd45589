//! What a client may do with the children that it announces, and what not.

mod harness;

use std::os::fd::{AsFd, BorrowedFd};

use harness::stranger::Stranger;
use harness::{Node, until};
use vmmc_os::{Descriptor, Event, create_memory, packet_pair, send};
use vmmc_proto::{HeirId, PairId, Request, encode_request};

/// Whether the service has closed its end: what is sent comes back as an error.
fn is_refused(socket: &Descriptor) -> bool {
    let harmless = encode_request(&Request::PairDrop { pair: PairId(1), linger: false }).unwrap();
    send(socket, &harmless, &[]).is_err()
}

fn announce(client: &Stranger, heir: u64, descriptors: &[BorrowedFd<'_>]) {
    client.say(&Request::PairHeir { heir: HeirId(heir) }, descriptors);
}

#[test]
fn what_is_no_socket_of_packets_announces_nobody() {
    let node = Node::new();
    let _process = node.open();
    let mut client = Stranger::new(&node);
    let (memory, event) = (create_memory(4096).unwrap(), Event::new().unwrap());
    let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
    announce(&client, 1, &[]);
    announce(&client, 2, &[memory.as_fd()]);
    announce(&client, 3, &[event.as_fd()]);
    announce(&client, 4, &[stream.as_fd()]);
    drop(stream);
    // It goes on with whoever sent that.
    assert!(client.ask(|seq| Request::Reserve { seq, bytes: 0 }, None).is_err());
    assert_eq!(node.status()["processes"], 2);
    other.set_nonblocking(true).unwrap();
    assert_eq!(std::io::Read::read(&mut &other, &mut [0]).unwrap(), 0, "it was closed");
}

#[test]
fn an_heir_may_let_go_and_nothing_else() {
    let node = Node::new();
    let _process = node.open();
    let mut client = Stranger::new(&node);
    let (socket, theirs) = packet_pair().unwrap();
    announce(&client, 1, &[theirs.as_fd()]);
    // The name is taken.
    let (second, seconds) = packet_pair().unwrap();
    announce(&client, 1, &[seconds.as_fd()]);
    drop(seconds);
    until("refused", || is_refused(&second));
    assert!(!is_refused(&socket));
    for request in [Request::Ring, Request::Status { seq: 1 }, Request::Stop { seq: 1 }] {
        let (socket, theirs) = packet_pair().unwrap();
        announce(&client, 2, &[theirs.as_fd()]);
        send(&socket, &encode_request(&request).unwrap(), &[]).unwrap();
        drop(theirs);
        until("refused", || is_refused(&socket));
    }
    // Whoever made it has the service's end too, which then is waited for no longer.
    send(&socket, b"nonsense", &[]).unwrap();
    until("out of the list", || {
        let (again, theirs) = packet_pair().unwrap();
        announce(&client, 1, &[theirs.as_fd()]);
        drop(theirs);
        assert!(client.ask(|seq| Request::Reserve { seq, bytes: 0 }, None).is_err());
        !is_refused(&again)
    });
    drop(theirs);
    assert_eq!(node.status()["processes"], 2);
}
