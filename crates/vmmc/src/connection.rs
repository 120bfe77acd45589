//! The connection to one service, from its Welcome to its loss.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmmc_os::{
    Access, Descriptor, LIFE_LOST, Mapping, OsError, Received, ServicePlace, connect_packets,
    end_both, memory_len, peer_credentials, receive, send, wait_readable, wait_writable,
};
use vmmc_proto::{
    Answer, Hello, MAX_MESSAGE, ProcessId, Refusal, Request, Resume, VERSION, Welcome,
    decode_answer, encode_request, encode_request_into,
};
use vmmc_shm::table::StatusTable;

use crate::commands::Commands;
use crate::lanes::Lanes;
use crate::mail::Mail;
use crate::open::{OpenError, OpenOptions};

/// The service's status table, mapped read-only.
#[derive(Debug)]
pub(crate) struct Table(pub(crate) Mapping);

impl Table {
    pub(crate) fn view(&self) -> &StatusTable {
        // SAFETY: `Connection::open` mapped `LEN` bytes, page-aligned, and checked the memory's length; the mapping
        // lives as long as `self` and nobody here writes it.
        unsafe { StatusTable::at(self.0.as_ptr()) }
    }
}

/// Why a request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// The connection is gone.
    Lost,
    /// No answer in time.
    Timeout,
    /// The message is too long, or the kernel refused to send it.
    Unsendable,
    /// The service refused.
    Refused(Refusal),
}

/// A connection to one service.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Descriptor,
    pub(crate) table: Arc<Table>,
    pub(crate) welcome: Welcome,
    /// A watcher thread reads; others need not.
    watched: bool,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    lost: AtomicBool,
    goodbye: AtomicBool,
    next_seq: AtomicU32,
    lanes: Arc<Lanes>,
    /// The command queue, once this service knows it.
    pub(crate) commands: Mutex<Option<Arc<Commands>>>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Requests that somebody waits for.
    expected: HashSet<u32>,
    replies: HashMap<u32, (Answer, Vec<Descriptor>)>,
    /// A thread sleeps on the socket and will read: others must not take its reply away from under it.
    reading: bool,
    /// Room for one packet.
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects and introduces the process.
    pub(crate) fn open(
        options: &OpenOptions,
        lanes: &Arc<Lanes>,
        place: &ServicePlace,
        resume: Option<ProcessId>,
    ) -> Result<Self, OpenError> {
        let dir = place.dir.as_path();
        let owner = place.check(false).map_err(OpenError::RuntimeDir)?;
        let deadline = Instant::now() + options.patience();
        let path = place.socket();
        let socket = loop {
            match connect_packets(&path) {
                Ok(socket) => break socket,
                Err(OsError::NOENT | OsError::CONNREFUSED) => {
                    return Err(OpenError::NoService(dir.into()));
                }
                // The queue of a busy service; a stopped one's stays full.
                Err(OsError::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(OsError::AGAIN) => return Err(OpenError::Unresponsive),
                Err(cause @ (OsError::MFILE | OsError::NFILE | OsError::NOMEM)) => {
                    return Err(OpenError::Exhausted(cause));
                }
                Err(cause) => return Err(OpenError::Connect { path, cause }),
            }
        };
        let socket = socket.raise(options.descriptor_floor).map_err(OpenError::Exhausted)?;
        let service = peer_credentials(&socket).map_err(OpenError::Exhausted)?;
        if service.uid != owner && service.uid != 0 {
            return Err(OpenError::ForeignService { path: dir.into(), uid: service.uid });
        }
        let hello = Request::Hello(Hello {
            version: VERSION,
            name: options.name.clone(),
            resume: resume.map(|process| Resume { process }),
            control: false,
            pairing_only: options.pairing_only,
            hosts_lanes: options.watcher && options.hosts_engine && !options.pairing_only,
            heir: options.heir,
        });
        let packet = encode_request(&hello).map_err(|_| OpenError::Version)?;
        if send(&socket, &packet, &[]).is_err() {
            return Err(OpenError::NoService(dir.into()));
        }
        let (welcome, table) = await_welcome(&socket, dir, deadline)?;
        Ok(Self {
            socket,
            table: Arc::new(table),
            welcome,
            watched: options.watcher,
            inbox: Mutex::new(Inbox::default()),
            arrived: Condvar::new(),
            lost: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            next_seq: AtomicU32::new(1),
            lanes: Arc::clone(lanes),
            commands: Mutex::new(None),
        })
    }

    /// A connection at whose other end nobody is, for tests of what needs no service.
    #[cfg(test)]
    pub(crate) fn to_nobody(table: &Arc<Table>, process: ProcessId) -> Self {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Self {
            socket: std::os::fd::OwnedFd::from(socket).into(),
            table: Arc::clone(table),
            welcome: Welcome {
                version: VERSION,
                process,
                service_pid: 0,
                uid: 0,
                inherited: false,
                mail_slot: 0,
                max_exports: 0,
                max_offers: 0,
            },
            watched: false,
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            lost: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            next_seq: AtomicU32::new(1),
            lanes: Arc::new(Lanes::new(0)),
            commands: Mutex::default(),
        }
    }

    /// Sends a request and waits for its answer. `make` gets the request's number. The watcher thread itself says
    /// `reads: true`, as nobody else will read for it.
    pub(crate) fn request(
        &self,
        mail: &Mail,
        deadline: Instant,
        reads: bool,
        descriptors: &[BorrowedFd<'_>],
        make: impl FnOnce(u32) -> Request,
    ) -> Result<(Answer, Vec<Descriptor>), RequestError> {
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        let packet = encode_request(&make(seq)).map_err(|_| RequestError::Unsendable)?;
        self.lock().expected.insert(seq);
        let result = self
            .send_until(&packet, descriptors, deadline)
            .map_err(|error| match error {
                OsError::TIMEDOUT => RequestError::Timeout,
                OsError::PIPE | OsError::CONNRESET | OsError::NOTCONN => RequestError::Lost,
                _ => RequestError::Unsendable,
            })
            .and_then(|()| self.await_reply(mail, seq, deadline, reads));
        self.lock().expected.remove(&seq);
        match result? {
            (Answer::Refused { why, .. }, _) => Err(RequestError::Refused(why)),
            reply => Ok(reply),
        }
    }

    /// Sends a message that has no answer and must not be lost: waits until the service has room for it, and if that takes
    /// longer than `limit`, gives up on the service.
    pub(crate) fn post_surely(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), OsError> {
        let packet = encode_request(request).map_err(|_| OsError::MSGSIZE)?;
        let sent = self.send_until(&packet, descriptors, Instant::now() + limit);
        if sent == Err(OsError::TIMEDOUT) {
            self.abandon();
        }
        sent
    }

    /// Sends a message that has no answer, without waiting.
    pub(crate) fn post(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), OsError> {
        let packet = encode_request(request).map_err(|_| OsError::MSGSIZE)?;
        self.send_now(&packet, descriptors)
    }

    /// As `post`, for a short message, without taking memory.
    pub(crate) fn post_in_place(&self, request: &Request) -> Result<(), OsError> {
        let mut room = [0; 64];
        let packet = encode_request_into(request, &mut room).map_err(|_| OsError::MSGSIZE)?;
        self.send_now(packet, &[])
    }

    /// A number for a request whose answer nobody waits for.
    pub(crate) fn unheard(&self) -> u32 {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads what has come, without waiting.
    pub(crate) fn pump(&self, mail: &Mail) {
        let mut inbox = self.lock();
        if !inbox.reading {
            self.drain(&mut inbox, mail);
        }
    }

    /// Whether the service is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.is_dead()
    }

    /// Whether it has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.table.view().life().load(Ordering::Relaxed) & LIFE_LOST != 0
    }

    /// Gives up on a service that does not answer. When it looks again it finds this process gone, and lets go of all
    /// that was its.
    pub(crate) fn abandon(&self) {
        self.lost.store(true, Ordering::Relaxed);
        end_both(self.socket.as_fd());
    }

    /// Whether it left on purpose.
    pub(crate) fn said_goodbye(&self) -> bool {
        self.goodbye.load(Ordering::Relaxed)
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn raw_socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn send_now(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), OsError> {
        let sent = send(&self.socket, packet, descriptors);
        if let Err(OsError::PIPE | OsError::CONNRESET | OsError::NOTCONN) = sent {
            self.lost.store(true, Ordering::Relaxed);
        }
        sent
    }

    /// Waits for room in the service's socket; `TIMEDOUT` if there is none before the deadline.
    fn send_until(
        &self,
        packet: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), OsError> {
        loop {
            let error = match self.send_now(packet, descriptors) {
                Err(error @ (OsError::AGAIN | OsError::TOOMANYREFS | OsError::NOBUFS)) => error,
                sent => return sent,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(OsError::TIMEDOUT);
            }
            let _ = if error == OsError::AGAIN {
                wait_writable(self.socket.as_fd(), left)
            } else {
                // Nothing tells when descriptors in flight have arrived.
                wait_readable(&[], Some(Duration::from_millis(1))).map(drop)
            };
        }
    }

    fn await_reply(
        &self,
        mail: &Mail,
        seq: u32,
        deadline: Instant,
        reads: bool,
    ) -> Result<(Answer, Vec<Descriptor>), RequestError> {
        let mut inbox = self.lock();
        loop {
            if !inbox.reading {
                self.drain(&mut inbox, mail);
            }
            if let Some(reply) = inbox.replies.remove(&seq) {
                return Ok(reply);
            }
            if self.is_lost() {
                return Err(RequestError::Lost);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RequestError::Timeout);
            }
            if inbox.reading || (self.watched && !reads) {
                let waited = self.arrived.wait_timeout(inbox, left);
                inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            inbox.reading = true;
            drop(inbox);
            let _ = wait_readable(&[self.socket.as_fd()], Some(left));
            inbox = self.lock();
            inbox.reading = false;
            self.drain(&mut inbox, mail);
            // Somebody else may have to read from now on.
            self.arrived.notify_all();
        }
    }

    /// Reads everything that has come.
    fn drain(&self, inbox: &mut Inbox, mail: &Mail) {
        inbox.buffer.resize(MAX_MESSAGE, 0);
        loop {
            let received = match receive(&self.socket, &mut inbox.buffer) {
                Err(OsError::AGAIN) => return,
                Ok(received) if received.len > 0 => received,
                _ => break,
            };
            let Received { len, descriptors, .. } = received;
            let Ok(answer) = decode_answer(&inbox.buffer[..len]) else { break };
            if answer.is_mail() {
                mail.push(answer, descriptors);
            } else if answer.is_of_lanes() {
                self.lanes.take(answer, descriptors);
            } else if answer == Answer::Goodbye {
                self.goodbye.store(true, Ordering::Relaxed);
            } else if let Some(seq) = answer.seq() {
                if inbox.expected.contains(&seq) {
                    inbox.replies.insert(seq, (answer, descriptors));
                    self.arrived.notify_all();
                } else if let Answer::Granted { grant, .. } = answer {
                    // Whoever asked has given up: nobody else will give it back.
                    let _ = self.post(&Request::Unimport { handle: grant.handle }, &[]);
                }
            }
        }
        self.lost.store(true, Ordering::Relaxed);
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the answer to Hello and maps the table that comes with it.
fn await_welcome(
    socket: &Descriptor,
    dir: &Path,
    deadline: Instant,
) -> Result<(Welcome, Table), OpenError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let received = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receive(socket, &mut buffer) {
            Ok(received) if received.len > 0 => break received,
            Err(OsError::AGAIN) if left.is_zero() => return Err(OpenError::Unresponsive),
            Err(OsError::AGAIN) => {
                let _ = wait_readable(&[socket.as_fd()], Some(left));
            }
            _ => return Err(OpenError::NoService(dir.into())),
        }
    };
    let welcome = match decode_answer(&buffer[..received.len]) {
        Ok(Answer::Welcome(welcome)) if welcome.version == VERSION => welcome,
        Ok(Answer::Refused { why: Refusal::Limit, .. }) => return Err(OpenError::Limit),
        Ok(Answer::Refused { why: Refusal::Exhausted, .. }) => {
            return Err(OpenError::Exhausted(OsError::NFILE));
        }
        _ => return Err(OpenError::Version),
    };
    let Some(table) = received.descriptors.into_iter().next() else {
        return Err(OpenError::Exhausted(OsError::MFILE));
    };
    if memory_len(&table).map_err(OpenError::Exhausted)? < StatusTable::LEN as u64 {
        return Err(OpenError::Version);
    }
    let table = Mapping::new(&table, 0, StatusTable::LEN, Access::ReadOnly)
        .map(Table)
        .map_err(OpenError::Exhausted)?;
    if !table.view().is_open() || table.view().mail(welcome.mail_slot).is_none() {
        return Err(OpenError::Version);
    }
    Ok((welcome, table))
}
