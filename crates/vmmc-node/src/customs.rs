//! What processes of other users hand over is touched on a thread of that user's alone.
//!
//! A descriptor can be made so that looking at it, writing to it, or even closing it waits for whoever made it. A file of a FUSE file
//! system answers `fstat`, `poll` and `close` when its server likes. A TCP socket's lock is held as long as a `send` of its owner
//! reads from memory that such a file is behind, and closing one waits for unsent bytes as long as its owner has said. So in the host's
//! service each user has a *hall*: a thread that looks at what the user's processes send along before the service sees it, and writes to and closes
//! sockets. Who makes his hall wait, waits alone: until something has been looked at, nothing more is read from the process that sent it.
//!
//! Memory and events that have been found to be such are plain objects of the kernel's, which wait for nobody. The service of one
//! user has no halls: such a process could stop the service anyway.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmmc_os::{
    ConnectionIdentity, Descriptor, Event, IdentityError, OsError, connection_identity, end_stream,
    is_event, is_packet_socket, memory_seals, reset_at_close, start_thread,
};
use vmmc_proto::{PairId, Request};

use crate::clients::ClientKey;
use crate::injection::{Injection, Progress};

/// What came along with a request, looked at.
#[derive(Debug)]
pub(crate) struct Goods {
    /// Memory and events, as far as they are such.
    pub(crate) descriptors: Vec<Descriptor>,
    /// The last, where the request is about a connection.
    pub(crate) socket: Option<Socket>,
    /// Some were lost on the way.
    pub(crate) truncated: bool,
}

/// A TCP socket of a client's.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: Option<Arc<Descriptor>>,
    /// What the kernel said of it when it came.
    pub(crate) identity: Result<ConnectionIdentity, IdentityError>,
    /// Where it is written to and closed; `None`: here.
    hall: Option<Hall>,
}

/// A user's hall.
#[derive(Debug, Clone)]
pub(crate) struct Hall(Sender<Task>);

#[derive(Debug)]
enum Task {
    Look(ClientKey, Box<Request>, Vec<Descriptor>, bool, Hall),
    Write(PairId, Arc<Descriptor>, Injection),
    End(Arc<Descriptor>),
    ResetAtClose(Arc<Descriptor>),
    Close(Arc<Descriptor>),
}

/// What a hall has to say.
#[derive(Debug)]
pub(crate) enum Report {
    /// A request, with what came along.
    Looked(ClientKey, Box<Request>, Goods),
    /// How far lowered bytes came, and how many requests were finished with.
    Wrote(PairId, Injection, Progress, usize),
}

/// All halls.
#[derive(Debug)]
pub(crate) struct Customs {
    halls: HashMap<u32, Hall>,
    all: Hall,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    /// Readable when there are reports.
    pub(crate) bell: Arc<Event>,
}

impl Goods {
    /// Looks at what came along with a request. May wait for whoever sent it.
    pub(crate) fn look(
        request: &Request,
        mut descriptors: Vec<Descriptor>,
        truncated: bool,
        hall: Option<Hall>,
    ) -> Self {
        let connection = matches!(
            request,
            Request::PairOffer { .. }
                | Request::PairHolders { .. }
                | Request::PairExport { .. }
                | Request::PairHold { .. }
        );
        let socket = if connection { descriptors.pop() } else { None };
        let socket = socket.map(|descriptor| Socket {
            identity: connection_identity(descriptor.as_fd()),
            descriptor: Some(Arc::new(descriptor)),
            hall: hall.clone(),
        });
        if hall.is_some() {
            let heir = matches!(request, Request::PairHeir { .. });
            descriptors.retain(|found| match heir {
                true => is_packet_socket(found.as_fd()),
                false => memory_seals(found).is_ok() || is_event(found.as_fd()),
            });
        }
        Self { descriptors, socket, truncated }
    }
}

impl Socket {
    /// To wait until it can be written; nothing else is done to it but here.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(|descriptor| descriptor.as_fd())
    }

    /// Ends its sending direction, after what was written.
    pub(crate) fn end_stream(&self) {
        match (&self.descriptor, &self.hall) {
            (Some(descriptor), Some(hall)) => hall.give(Task::End(Arc::clone(descriptor))),
            (Some(descriptor), None) => end_stream(descriptor.as_fd()),
            (None, _) => {}
        }
    }

    /// Has it reset when it is closed.
    pub(crate) fn reset_at_close(&self) {
        match (&self.descriptor, &self.hall) {
            (Some(descriptor), Some(hall)) => hall.give(Task::ResetAtClose(Arc::clone(descriptor))),
            (Some(descriptor), None) => reset_at_close(descriptor.as_fd()),
            (None, _) => {}
        }
    }

    /// Writes what waits for it: how far that came and how many requests are finished with; `None` where a
    /// [`Report::Wrote`] will tell, with the rest of `waiting`, which is empty until then.
    pub(crate) fn write(&self, id: PairId, waiting: &mut Injection) -> Option<(Progress, usize)> {
        let Some(descriptor) = &self.descriptor else { return Some((Progress::Failed, 0)) };
        match &self.hall {
            Some(_) if waiting.is_empty() => Some((Progress::Done, 0)),
            Some(hall) => {
                let injection = std::mem::take(waiting);
                hall.give(Task::Write(id, Arc::clone(descriptor), injection));
                None
            }
            None => {
                let mut handed = 0;
                Some((waiting.advance(descriptor.as_fd(), || handed += 1), handed))
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let (Some(descriptor), Some(hall)) = (self.descriptor.take(), &self.hall) {
            hall.give(Task::Close(descriptor));
        }
    }
}

impl Hall {
    fn open(name: &str, reporter: Sender<Report>, bell: Arc<Event>) -> Result<Self, OsError> {
        let (sender, tasks) = channel();
        start_thread(name, move || work(&tasks, &reporter, &bell))?;
        Ok(Self(sender))
    }

    fn give(&self, task: Task) {
        // Fails only if its thread has ended, which it does not before whoever could give something.
        let _ = self.0.send(task);
    }
}

impl Customs {
    /// Of the host's service: with a hall for those for whom there is no thread any more.
    pub(crate) fn of_host() -> Result<Self, OsError> {
        let (reporter, reports) = channel();
        let bell = Arc::new(Event::new()?);
        let all = Hall::open("any user", reporter.clone(), Arc::clone(&bell))?;
        Ok(Self { halls: HashMap::new(), all, reports, reporter, bell })
    }

    /// Looks at what came with a request; a report will tell.
    pub(crate) fn look(
        &mut self,
        uid: u32,
        key: ClientKey,
        request: Request,
        descriptors: Vec<Descriptor>,
        truncated: bool,
    ) {
        let hall = self.hall(uid);
        let own = hall.clone();
        hall.give(Task::Look(key, Box::new(request), descriptors, truncated, own));
    }

    /// Closes what came with nonsense.
    pub(crate) fn discard(&mut self, uid: u32, descriptors: Vec<Descriptor>) {
        let hall = self.hall(uid);
        descriptors.into_iter().for_each(|one| hall.give(Task::Close(Arc::new(one))));
    }

    /// A user has no process any more: its hall closes when its last socket is closed.
    pub(crate) fn leave(&mut self, uid: u32) {
        self.halls.remove(&uid);
    }

    /// The next report.
    pub(crate) fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    fn hall(&mut self, uid: u32) -> Hall {
        if let Some(hall) = self.halls.get(&uid) {
            return hall.clone();
        }
        let opened =
            Hall::open(&format!("user {uid}"), self.reporter.clone(), Arc::clone(&self.bell));
        let hall = opened.unwrap_or_else(|_| self.all.clone());
        self.halls.insert(uid, hall.clone());
        hall
    }
}

/// A hall's thread.
fn work(tasks: &Receiver<Task>, reporter: &Sender<Report>, bell: &Event) {
    let report = |report| {
        // The service does not receive any more only when it ends.
        if reporter.send(report).is_ok() {
            bell.signal();
        }
    };
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Look(key, request, descriptors, truncated, hall) => {
                let goods = Goods::look(&request, descriptors, truncated, Some(hall));
                report(Report::Looked(key, request, goods));
            }
            Task::Write(id, socket, mut injection) => {
                let mut handed = 0;
                let progress = injection.advance(socket.as_fd(), || handed += 1);
                drop(socket);
                report(Report::Wrote(id, injection, progress, handed));
            }
            Task::End(socket) => end_stream(socket.as_fd()),
            Task::ResetAtClose(socket) => reset_at_close(socket.as_fd()),
            Task::Close(descriptor) => drop(descriptor),
        }
    }
}
