//! An address space that opened VMMC.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use vmmc_os::{Descriptor, Event, ForkMark, OsError, page_size, process_id};
use vmmc_proto::{
    Answer, ExportId, MAX_EXPORT_LEN, NodeId, ProcessId, Refusal, Request, Rights, VERSION,
};

use crate::connection::{Connection, RequestError};
use crate::export::{Announced, ExportOptions};
use crate::import::{ImportOptions, ImportSource};
use crate::lanes::Lanes;
use crate::local_engine::LocalEngine;
use crate::mail::Mail;
use crate::notifier::Notifier;
use crate::open::{OpenError, OpenOptions};
use crate::pair_bell::PairBell;
use crate::standing::Standing;
use crate::utlb::{Pinning, Utlb};
use crate::watcher;

/// An address space that opened VMMC. A clone is the same process; it stays open until the last clone and the last of its
/// exports and imports are gone. Every call may be made from every thread.
#[derive(Debug, Clone)]
pub struct Process {
    pub(crate) inner: Arc<Inner>,
}

/// What the layer says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Version of the library.
    pub version: &'static str,
    /// Version of the protocol with the service.
    pub protocol: u32,
    /// This process.
    pub process: ProcessId,
    /// This node.
    pub node: NodeId,
    /// Process number of the node service that was met last.
    pub service_pid: u32,
    /// Bytes of a page: in-place exports are whole pages.
    pub page_size: usize,
    /// Longest export, bytes.
    pub max_export_len: u64,
    /// Most exports of one process.
    pub max_exports: usize,
    /// Most waiting offers of one process.
    pub max_offers: usize,
    /// Where the service is.
    pub runtime_dir: PathBuf,
}

/// A process of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its VMMC id.
    pub id: ProcessId,
    /// Its process number as the service sees it; 0 if it is in a process namespace that the service does not see.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// How it calls itself.
    pub name: String,
}

/// An export of this node; memories of pairs are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its id.
    pub id: ExportId,
    /// Its name; empty if it has none.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// The most that an importer can get.
    pub rights: Rights,
}

/// Why the service gave no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum QueryError {
    /// the node service is gone: try again when a new one runs
    ServiceLost,
    /// the node service does not answer: it is stopped or overloaded; see `vmmc node status`
    Timeout,
    /// the node service refused: it is of another version
    Refused,
}

impl Process {
    /// Opens VMMC with default options: the service is started if none runs.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open() -> Result<Self, OpenError> {
        Self::options().open()
    }

    /// Opens VMMC otherwise.
    pub fn options() -> OpenOptions {
        OpenOptions::default()
    }

    /// This process's id. Another service, started after the first died, lets the process keep it.
    pub fn id(&self) -> ProcessId {
        lock(&self.inner.link).id
    }

    /// The user that this process is to the service: its effective user when it connected.
    pub fn user(&self) -> u32 {
        lock(&self.inner.link).connection.welcome.uid
    }

    /// Versions, ids and limits.
    pub fn info(&self) -> LayerInfo {
        let link = lock(&self.inner.link);
        LayerInfo {
            version: env!("CARGO_PKG_VERSION"),
            protocol: VERSION,
            process: link.id,
            node: link.id.node,
            service_pid: link.connection.welcome.service_pid,
            page_size: page_size(),
            max_export_len: MAX_EXPORT_LEN,
            max_exports: link.connection.welcome.max_exports as usize,
            max_offers: link.connection.welcome.max_offers as usize,
            runtime_dir: self.inner.options.dir(),
        }
    }

    /// All processes of this node, this one included: translates ids into process numbers and back.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, QueryError> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            match self.inner.request(&[], |seq| Request::Processes { seq, after })?.1 {
                Answer::Processes { entries, .. } if entries.is_empty() => return Ok(found),
                Answer::Processes { entries, .. } => {
                    after = entries.iter().fold(after + 1, |last, entry| last.max(entry.serial));
                    found.extend(entries.into_iter().map(|entry| ProcessInfo {
                        id: entry.id,
                        pid: entry.pid,
                        uid: entry.uid,
                        name: entry.name,
                    }));
                }
                _ => return Err(QueryError::Refused),
            }
        }
    }

    /// All exports of this node.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn exports(&self) -> Result<Vec<ExportInfo>, QueryError> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            match self.inner.request(&[], |seq| Request::Exports { seq, after })?.1 {
                Answer::Exports { entries, .. } if entries.is_empty() => return Ok(found),
                Answer::Exports { entries, .. } => {
                    after = entries.iter().fold(after + 1, |last, entry| last.max(entry.serial));
                    found.extend(entries.into_iter().map(|entry| ExportInfo {
                        id: entry.id,
                        name: entry.name,
                        len: entry.len,
                        rights: entry.rights,
                    }));
                }
                _ => return Err(QueryError::Refused),
            }
        }
    }

    /// Lets the process's own engine work: takes what other nodes have sent, and answers. For a thread that waits by looking at memory, such as a
    /// signal word; [`Export::wait`](crate::Export::wait) and calls that wait do it themselves. When nobody looks, a thread of the library
    /// does, some tens of microseconds later. Without imports from, or by, other nodes it is one load. Whether anything happened.
    pub fn progress(&self) -> bool {
        self.inner.lanes.poll()
    }

    /// Begins an export of `len` bytes of new memory.
    pub fn export(&self, len: usize) -> ExportOptions<'_> {
        ExportOptions::new(self, len)
    }

    /// Begins an import.
    pub fn import(&self, source: ImportSource) -> ImportOptions<'_> {
        ImportOptions::new(self, source)
    }

    /// In a forked child: opens VMMC anew with the same options. The parent's exports and imports stay usable as memory in the
    /// child as far as fork has copied them, but the old value and they no longer speak with the service.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn reopen_after_fork(&self) -> Result<Self, OpenError> {
        // Takes no lock of the old value: another thread of the parent may have held it at the fork.
        let options = self.inner.options.clone();
        if options.pairing_only { options.open_for_pairing() } else { options.open() }
    }

    /// Polled mode, after [`crate::PairingEvent::ServiceLost`]: connects to a new service, if there is one, announces the exports
    /// again and checks the imports. Starts no service. Also useful with a watcher, to hurry it.
    ///
    /// # Errors
    /// [`OpenError::NoService`] at once when there is none; else see [`OpenError`].
    pub fn reconnect(&self) -> Result<(), OpenError> {
        if self.inner.is_forked() {
            return Err(OpenError::NoService(self.inner.options.dir()));
        }
        self.inner.reconnect(false, !self.inner.options.watcher)
    }

    /// The descriptors that the library itself uses to speak with the service, so that a program that closes everything can
    /// spare them. Descriptors of exports and imports are told by [`crate::Export::event_fd`] and [`crate::Import::notify_fd`];
    /// besides them an export with a name or id keeps its memory's, which nothing depends on but reconnecting.
    pub fn owned_fds(&self) -> Vec<RawFd> {
        let mut fds = vec![lock(&self.inner.link).connection.raw_socket()];
        fds.extend(self.inner.lanes.raw_fds());
        fds.extend(self.inner.stop.iter().map(|stop| stop.as_fd().as_raw_fd()));
        fds.extend(lock(&self.inner.notifier).iter().map(|notifier| notifier.raw_fd()));
        fds
    }

    pub(crate) fn with_options(
        options: OpenOptions,
        lanes: fn(RawFd) -> Lanes,
    ) -> Result<Self, OpenError> {
        let lanes = Arc::new(lanes(options.descriptor_floor));
        let connection = Arc::new(options.connect(&lanes, options.start_service, None)?);
        let mail = Mail::new();
        mail.attach(&connection);
        let stop = if options.watcher {
            let stop = Event::new().and_then(|stop| stop.raise(options.descriptor_floor));
            Some(Arc::new(stop.map_err(OpenError::Exhausted)?))
        } else {
            None
        };
        let inner = Arc::new(Inner::new(options, lanes, connection, mail, stop));
        let _ = inner.lanes.home.set(Arc::downgrade(&inner));
        if let Some(stop) = &inner.stop {
            watcher::start(&inner, Arc::clone(stop)).map_err(OpenError::Exhausted)?;
        }
        Ok(Self { inner })
    }
}

#[cfg(test)]
impl Process {
    /// Without mail or a watcher.
    pub(crate) fn of_connection(connection: Connection) -> Self {
        let lanes = Arc::new(Lanes::new(0));
        let options = Self::options();
        let inner = Inner::new(options, lanes, Arc::new(connection), Mail::new(), None);
        Self { inner: Arc::new(inner) }
    }
}

impl From<RequestError> for QueryError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost => Self::ServiceLost,
            RequestError::Timeout => Self::Timeout,
            RequestError::Unsendable | RequestError::Refused(_) => Self::Refused,
        }
    }
}

/// What all clones, exports and imports of a process share.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Whose address space this was made in: a forked child has another.
    pid: u32,
    /// None if there was no memory for it.
    mark: Option<ForkMark>,
    pub(crate) options: OpenOptions,
    pub(crate) mail: Mail,
    link: Mutex<Link>,
    /// Signalled when `link` is new.
    linked: Condvar,
    pub(crate) next_offer: AtomicU64,
    /// Bells of other processes that several pairs with them share.
    pub(crate) peer_bells: Mutex<HashMap<(ProcessId, u64), Weak<PairBell>>>,
    /// Exports, to be announced to a new service.
    pub(crate) announced: Mutex<HashMap<u64, Arc<Announced>>>,
    /// Imports, to be checked at a new service; by address of the standing.
    pub(crate) standings: Mutex<HashMap<usize, Arc<Standing>>>,
    pub(crate) notifier: Mutex<Option<Notifier>>,
    /// Tells the watcher to end.
    stop: Option<Arc<Event>>,
    /// Held by whoever shows the command queue to a service.
    pub(crate) attaching: Mutex<()>,
    /// The engine that this process hosts.
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) utlb: OnceLock<Utlb>,
    pub(crate) pinning: Pinning,
    /// The threads for asynchronous operations, once there are any; see [`Inner::engine`].
    engines: [OnceLock<Option<LocalEngine>>; 3],
}

/// Whose thread does asynchronous operations. None of them waits for another.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Executor {
    /// To mapped imports.
    Copies,
    /// By the service's queue.
    Commands,
    /// To other nodes.
    Lanes,
}

#[derive(Debug)]
struct Link {
    id: ProcessId,
    connection: Arc<Connection>,
    next_export: u64,
}

impl Inner {
    fn new(
        options: OpenOptions,
        lanes: Arc<Lanes>,
        connection: Arc<Connection>,
        mail: Mail,
        stop: Option<Arc<Event>>,
    ) -> Self {
        Self {
            pid: process_id(),
            mark: ForkMark::new().ok(),
            options,
            mail,
            link: Mutex::new(Link { id: connection.welcome.process, connection, next_export: 1 }),
            linked: Condvar::new(),
            next_offer: AtomicU64::new(1),
            peer_bells: Mutex::default(),
            announced: Mutex::new(HashMap::new()),
            standings: Mutex::new(HashMap::new()),
            notifier: Mutex::new(None),
            stop,
            attaching: Mutex::new(()),
            lanes,
            utlb: OnceLock::new(),
            pinning: Pinning::default(),
            engines: [const { OnceLock::new() }; 3],
        }
    }

    /// Whether this is a forked child of the process that opened VMMC.
    pub(crate) fn is_forked(&self) -> bool {
        process_id() != self.pid
    }

    /// As [`Self::is_forked`], but not of a child of vfork, which has this memory and this connection to the service.
    pub(crate) fn is_copy(&self) -> bool {
        self.mark.as_ref().map_or_else(|| self.is_forked(), ForkMark::is_forked)
    }

    /// The thread of such operations; `None` in it when none could be started.
    pub(crate) fn engine(&self, executor: Executor) -> &OnceLock<Option<LocalEngine>> {
        &self.engines[executor as usize]
    }

    /// The current connection; it may be lost.
    pub(crate) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&lock(&self.link).connection)
    }

    /// As [`Inner::connection`]; none if this thread, or another, is just at it.
    pub(crate) fn connection_unless_locked(&self) -> Option<Arc<Connection>> {
        Some(Arc::clone(&self.link.try_lock().ok()?.connection))
    }

    pub(crate) fn id(&self) -> ProcessId {
        lock(&self.link).id
    }

    /// A number that no export of this process had.
    pub(crate) fn fresh_export(&self) -> ExportId {
        let mut link = lock(&self.link);
        link.next_export += 1;
        ExportId { process: link.id, number: link.next_export }
    }

    pub(crate) fn fresh_offer(&self) -> u64 {
        self.next_offer.fetch_add(1, Ordering::Relaxed)
    }

    /// Hands the notification thread a task; starts it if there is none.
    pub(crate) fn with_notifier(&self, task: impl FnOnce(&Notifier)) -> Result<(), OsError> {
        let mut notifier = lock(&self.notifier);
        if notifier.is_none() {
            *notifier = Some(Notifier::start(self.options.descriptor_floor)?);
        }
        notifier.as_ref().map(task);
        Ok(())
    }

    /// Asks the service, waiting for a new one if the old is gone and a watcher looks for it.
    pub(crate) fn request(
        &self,
        descriptors: &[BorrowedFd<'_>],
        make: impl Fn(u32) -> Request,
    ) -> Result<(Arc<Connection>, Answer, Vec<Descriptor>), RequestError> {
        if self.is_forked() {
            return Err(RequestError::Lost);
        }
        let deadline = Instant::now() + self.options.patience();
        let mut link = lock(&self.link);
        loop {
            let connection = Arc::clone(&link.connection);
            drop(link);
            let result = if connection.is_lost() {
                Err(RequestError::Lost)
            } else {
                connection
                    .request(&self.mail, deadline, false, descriptors, &make)
                    .map(|(answer, descriptors)| (Arc::clone(&connection), answer, descriptors))
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if result.as_ref().err() != Some(&RequestError::Lost)
                || !self.options.watcher
                || left.is_zero()
            {
                return result;
            }
            link = lock(&self.link);
            if Arc::ptr_eq(&link.connection, &connection) {
                let waited = self.linked.wait_timeout(link, left);
                link = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Connects to a new service and takes everything up again. `reads`: the caller reads its own answers, as the watcher does
    /// and as everybody does in polled mode.
    pub(crate) fn reconnect(&self, start: bool, reads: bool) -> Result<(), OpenError> {
        let old = self.connection();
        if !old.is_lost() {
            return Ok(());
        }
        self.mail.detach();
        let connection = Arc::new(self.options.connect(&self.lanes, start, Some(self.id()))?);
        {
            let mut link = lock(&self.link);
            if !Arc::ptr_eq(&link.connection, &old) {
                // Another thread was faster.
                return Ok(());
            }
            link.id = connection.welcome.process;
            link.connection = Arc::clone(&connection);
        }
        self.mail.attach(&connection);
        let result = self.resume(&connection, reads);
        self.linked.notify_all();
        match result {
            Err(RequestError::Lost) => Err(OpenError::NoService(self.options.dir())),
            Err(RequestError::Timeout) => {
                // Half announced is not announced: the next try begins anew.
                connection.abandon();
                Err(OpenError::Unresponsive)
            }
            Ok(()) | Err(RequestError::Unsendable | RequestError::Refused(_)) => Ok(()),
        }
    }

    /// Announces the exports and checks the imports.
    fn resume(&self, connection: &Connection, reads: bool) -> Result<(), RequestError> {
        let exports: Vec<_> = lock(&self.announced).values().cloned().collect();
        for export in exports {
            let deadline = Instant::now() + self.options.patience();
            let announced =
                connection.request(&self.mail, deadline, reads, &export.descriptors(), |seq| {
                    Request::Export { seq, declaration: export.declaration.clone() }
                });
            // Refused: its importers will find it dead. Nothing better can be done here.
            if let Err(error @ (RequestError::Lost | RequestError::Timeout)) = announced {
                return Err(error);
            }
        }
        let deadline = Instant::now() + self.options.patience();
        self.pinning.announce(connection, &self.mail, deadline, reads)?;
        self.linked.notify_all();
        let imports: Vec<_> = lock(&self.standings).values().cloned().collect();
        // An exporter that has not come back by then is taken for dead.
        let grace = if self.options.watcher { 500 } else { 150 };
        let give_up = Instant::now() + std::time::Duration::from_millis(grace);
        for standing in imports {
            self.check(connection, reads, &standing, give_up)?;
        }
        Ok(())
    }

    /// Asks a new service for an import that an earlier one granted.
    fn check(
        &self,
        connection: &Connection,
        reads: bool,
        standing: &Standing,
        give_up: Instant,
    ) -> Result<(), RequestError> {
        loop {
            let deadline = Instant::now() + self.options.patience();
            let answer =
                connection.request(&self.mail, deadline, reads, &[], |seq| standing.request(seq));
            match answer {
                Ok((Answer::Granted { grant, .. }, _)) => {
                    standing.renew(&connection.table, &grant);
                    if standing.is_elsewhere() {
                        // Without an answer it goes through the services.
                        let _ = connection.post(&Request::Lane { handle: grant.handle }, &[]);
                    }
                    return Ok(());
                }
                Err(error @ (RequestError::Lost | RequestError::Timeout)) => return Err(error),
                Err(RequestError::Refused(
                    Refusal::UnknownExport | Refusal::UnknownProcess | Refusal::DeadProcess,
                )) if Instant::now() < give_up => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Ok(_) | Err(_) => {
                    standing.declare_dead();
                    return Ok(());
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A child shares these objects with its parent, which goes on using them.
        if self.is_forked() {
            return;
        }
        self.lanes.stop();
        if let Some(stop) = &self.stop {
            stop.signal();
        }
    }
}

/// Locks a mutex; what it guards is always consistent, so a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
