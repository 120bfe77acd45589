//! A process that keeps to no library.

use std::os::fd::AsFd;
use std::time::Instant;

use vmmc::{ExportId, Rights};
use vmmc_os::{
    Access, Descriptor, Mapping, OsError, connect_packets, create_memory, receive, send,
    wait_readable,
};
use vmmc_proto::{
    Answer, Hello, MAX_MESSAGE, Request, Target, VERSION, decode_answer, encode_request,
};
use vmmc_shm::command::{Command, CommandQueue, MEMORY, Outcome};

use super::{FOREVER, Node, until};

/// A process that speaks with the service by hand.
pub(crate) struct Stranger {
    pub(crate) socket: Descriptor,
    pub(crate) queue: Mapping,
    pub(crate) last_seq: u32,
}

impl Stranger {
    pub(crate) fn new(node: &Node) -> Self {
        let socket = connect_packets(&node.path().join("node.sock")).unwrap();
        let memory = create_memory(MEMORY).unwrap();
        let queue = Mapping::new(&memory, 0, MEMORY, Access::ReadWrite).unwrap();
        let mut stranger = Self { socket, queue, last_seq: 0 };
        let name = "stranger".to_owned();
        let hello = Hello {
            version: VERSION,
            name,
            resume: None,
            control: false,
            pairing_only: false,
            hosts_lanes: false,
            heir: None,
        };
        stranger.say(&Request::Hello(hello), &[]);
        assert!(matches!(stranger.hear().0, Answer::Welcome(_)));
        assert_eq!(stranger.ask(|seq| Request::Queue { seq }, Some(&memory)), Ok(()));
        // One is all that a process gets.
        assert!(stranger.ask(|seq| Request::Queue { seq }, Some(&memory)).is_err());
        stranger
    }

    pub(crate) fn say(&self, request: &Request, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        let packet = encode_request(request).unwrap();
        let deadline = Instant::now() + FOREVER;
        while let Err(error) = send(&self.socket, &packet, descriptors) {
            assert_eq!(error, OsError::AGAIN);
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    pub(crate) fn hear(&self) -> (Answer, Vec<Descriptor>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        wait_readable(&[self.socket.as_fd()], Some(FOREVER)).unwrap();
        let received = receive(&self.socket, &mut buffer).unwrap();
        (decode_answer(&buffer[..received.len]).unwrap(), received.descriptors)
    }

    pub(crate) fn ask(
        &mut self,
        make: impl FnOnce(u32) -> Request,
        memory: Option<&Descriptor>,
    ) -> Result<(), Answer> {
        self.last_seq += 1;
        let descriptors: Vec<_> = memory.iter().map(|memory| memory.as_fd()).collect();
        self.say(&make(self.last_seq), &descriptors);
        match self.hear().0 {
            Answer::Done { .. } => Ok(()),
            other => Err(other),
        }
    }

    /// Its handle, and what comes with it.
    pub(crate) fn import(&mut self, id: ExportId, rights: Rights) -> (u64, Vec<Descriptor>) {
        let target = Target::Id(id);
        let request =
            Request::Import { seq: 9, node: None, target, rights, key: None, again: false };
        self.say(&request, &[]);
        match self.hear() {
            (Answer::Granted { grant, .. }, descriptors) => (grant.handle, descriptors),
            (other, _) => panic!("{other:?}"),
        }
    }

    pub(crate) fn commands(&self) -> &CommandQueue {
        // SAFETY: page-aligned, longer than a queue, mapped as long as `self`.
        unsafe { CommandQueue::at(self.queue.as_ptr()) }
    }

    /// What the service makes of one command.
    pub(crate) fn order(&self, command: &Command) -> Outcome {
        let claim = self.commands().claim().unwrap();
        let slot = claim.slot();
        let _ = self.commands().post(claim, command);
        self.say(&Request::Ring, &[]);
        let mut found = None;
        until("executed", || {
            found = self.commands().reap(slot, |outcome| outcome);
            found.is_some()
        });
        found.unwrap()
    }
}
