//! Importing what others export.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use vmmc_os::{Access, Event, Mapping, OsError, page_size, strangers_can_be_rung};
use vmmc_proto::{Answer, ExportId, Grant, PAGE_SIZE, ProcessId, Refusal, Request, Rights, Target};
use vmmc_shm::table::ExportState;

use crate::Process;
use crate::connection::{RequestError, Table};
use crate::pair_bell::{PairBell, PeerEvent};
use crate::process::{Inner, lock};
use crate::range::{DiscardError, ExtendError, Extensions};
use crate::redirection::Redirection;
use crate::route::Route;
use crate::standing::{Standing, Terms};

/// Which export to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportSource {
    /// By its id.
    Id(ExportId),
    /// By its name among a process's exports.
    Named {
        /// The exporting process.
        process: ProcessId,
        /// The export's name.
        name: String,
    },
    /// By its name among all exports of the node that are of the importer's user; the oldest of that name.
    Name(String),
}

/// An import in the making; see [`Process::import`].
#[derive(Debug)]
#[must_use = "nothing is imported before open"]
pub struct ImportOptions<'p> {
    process: &'p Process,
    node: Option<String>,
    source: ImportSource,
    rights: Rights,
    key: Option<[u8; 16]>,
}

/// Why an export cannot be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum ImportError {
    /// no such process: check the id against `Process::processes`
    UnknownProcess,
    /// the process is dead: find its successor by `Process::processes`
    DeadProcess,
    /// no such export: check the id or name against `Process::exports`
    UnknownExport,
    /// the export does not admit this process: the exporter must allow this user, group or key
    NotAllowed,
    /// the export does not grant these rights: ask for fewer
    Rights,
    /// the exporter is another user's, and no event of such can be rung safely here: raise fs.aio-max-nr, or allow io_setup and io_submit
    NoBell,
    /// no descriptors, memory or address space left ({0}): raise `ulimit -n` or vm.max_map_count
    Exhausted(OsError),
    /// the service admits no more imports of this process: unimport some
    Limit,
    /// the name is too long: at most 255 bytes
    Name,
    /// the node service is gone: try again when a new one runs
    ServiceLost,
    /// the node service does not answer: it is stopped or overloaded; see `vmmc node status`
    Timeout,
    /// the node service answered nonsense: it is of another version
    Version,
    /// no such node: add it to node.toml of this node's service, and start the service again
    UnknownNode,
    /// the node cannot be reached: check that its service runs, its addresses in node.toml, and the network
    Unreachable,
    /// the node does not talk to this one: give both the same cluster key, version and protection, and different names, in node.toml
    Denied,
}

/// How bytes get to the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// The memory is mapped here: a send is a copy, without a system call.
    Mapped,
    /// The node service transfers on our behalf: a mapping cannot be write-only, so imports with that right have none, nor have imports from
    /// other nodes.
    Engine,
    /// The engines of this process and of the exporter's, on another node, transfer without their services. As long as the exporter's process
    /// is stopped, and shortly after an import, such an import is on [`Path::Engine`].
    Lane,
}

/// The use of somebody's export. Dropping it gives it back; asynchronous operations that were posted go on to their end first.
///
/// On [`Path::Mapped`] send, signal and fetch make no system call, take no lock and allocate nothing; the exporter takes no part.
#[derive(Debug)]
pub struct Import {
    /// Asynchronous operations hold it too, and may outlive the import.
    pub(crate) route: Arc<Route>,
    pub(crate) event: Option<PeerEvent>,
    pub(crate) mailbox: Option<Mapping>,
    /// The exporter takes notifications.
    pub(crate) notifies: bool,
    /// The exporter is another user's, so that its event may block.
    pub(crate) stranger: bool,
    extensions: Extensions,
}

impl<'p> ImportOptions<'p> {
    pub(crate) fn new(process: &'p Process, source: ImportSource) -> Self {
        Self { process, node: None, source, rights: Rights::READ_WRITE, key: None }
    }

    /// On which node the export is, by its name in `node.toml`. Default: this one. Whatever the rights, such an import takes the engine
    /// path.
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// What to do with it. Default: read and write. [`Rights::READ`] gets a mapping that can never be written,
    /// [`Rights::WRITE`] the engine path.
    pub fn rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    /// The key that the export asks for.
    pub fn key(mut self, key: [u8; 16]) -> Self {
        self.key = Some(key);
        self
    }

    /// Imports.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn open(self) -> Result<Import, ImportError> {
        let inner = &self.process.inner;
        let (target, name) = match self.source {
            ImportSource::Id(id) => (Target::Id(id), 0),
            ImportSource::Named { process, name } => {
                let len = name.len();
                (Target::Named { process, name }, len)
            }
            ImportSource::Name(name) => {
                let len = name.len();
                (Target::Name(name), len)
            }
        };
        let name = name.max(self.node.as_ref().map_or(0, String::len));
        if name > vmmc_proto::MAX_NAME {
            return Err(ImportError::Name);
        }
        let (connection, answer, descriptors) = inner.request(&[], |seq| Request::Import {
            seq,
            node: self.node.clone(),
            target: target.clone(),
            rights: self.rights,
            key: self.key,
            again: false,
        })?;
        let Answer::Granted { grant, .. } = answer else { return Err(ImportError::Version) };
        let terms = Terms { node: self.node, rights: self.rights, key: self.key };
        let import = Import::granted(inner, &connection.table, &grant, terms, descriptors);
        match import {
            Ok(import) => {
                let standing = &import.route.standing;
                let place = Arc::as_ptr(standing).addr();
                lock(&inner.standings).insert(place, Arc::clone(standing));
                if standing.is_elsewhere() {
                    // Without an answer it goes through the services.
                    let _ = connection.post(&Request::Lane { handle: grant.handle }, &[]);
                }
                // A service that came between answer and entry has not heard of it.
                let current = Arc::ptr_eq(&connection, &inner.connection());
                if current { Ok(import) } else { Err(ImportError::ServiceLost) }
            }
            Err(error) => {
                let _ = connection.post(&Request::Unimport { handle: grant.handle }, &[]);
                Err(error)
            }
        }
    }
}

impl From<RequestError> for ImportError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost => Self::ServiceLost,
            RequestError::Timeout => Self::Timeout,
            RequestError::Unsendable => Self::Name,
            RequestError::Refused(why) => match why {
                Refusal::UnknownProcess => Self::UnknownProcess,
                Refusal::DeadProcess => Self::DeadProcess,
                Refusal::UnknownExport | Refusal::Gone => Self::UnknownExport,
                Refusal::NotAllowed => Self::NotAllowed,
                Refusal::Rights => Self::Rights,
                Refusal::Limit => Self::Limit,
                Refusal::Exhausted => Self::Exhausted(OsError::NFILE),
                Refusal::Memory => Self::Exhausted(OsError::NOMEM),
                Refusal::UnknownNode => Self::UnknownNode,
                Refusal::Unreachable => Self::Unreachable,
                Refusal::Denied => Self::Denied,
                Refusal::Version | Refusal::Invalid | Refusal::Range => Self::Version,
            },
        }
    }
}

impl Import {
    fn granted(
        process: &Arc<Inner>,
        table: &Arc<Table>,
        grant: &Grant,
        terms: Terms,
        descriptors: Vec<vmmc_os::Descriptor>,
    ) -> Result<Self, ImportError> {
        let rights = terms.rights;
        let floor = process.options.descriptor_floor;
        let len = usize::try_from(grant.len).map_err(|_| ImportError::Version)?;
        let standing = Standing::new(table, grant, terms).ok_or(ImportError::Version)?;
        let mut descriptors = descriptors.into_iter();
        let mut mapping = None;
        let mut event = None;
        let mut mailbox = None;
        let mut redirection = None;
        if grant.stranger && grant.notify && !strangers_can_be_rung() {
            return Err(ImportError::NoBell);
        }
        if grant.mapped {
            // A descriptor that did not arrive found no free number here.
            let lost = ImportError::Exhausted(OsError::MFILE);
            let memory = descriptors.next().ok_or(lost)?;
            let access = if rights == Rights::READ { Access::ReadOnly } else { Access::ReadWrite };
            let size = len.next_multiple_of(page_size());
            mapping = Some(Mapping::new(&memory, 0, size, access).map_err(ImportError::Exhausted)?);
            if grant.notify {
                let bell = descriptors.next().ok_or(lost)?;
                let bell = bell.raise(floor).map_err(ImportError::Exhausted)?;
                event = Some(PeerEvent::Own(Event::from_descriptor(bell)));
                let memory = descriptors.next().ok_or(lost)?;
                mailbox = Some(
                    Mapping::new(&memory, 0, PAGE_SIZE, Access::ReadWrite)
                        .map_err(ImportError::Exhausted)?,
                );
            }
            if let Some(pool) = grant.pool {
                let memory = descriptors.next().ok_or(lost)?;
                let pool = usize::try_from(pool).map_err(|_| ImportError::Version)?;
                let mapped = Redirection::map(&memory, pool).map_err(ImportError::Exhausted)?;
                redirection = Some(mapped);
            }
        }
        let route = Route {
            start: mapping.as_ref().map_or(std::ptr::null_mut(), Mapping::as_ptr),
            len,
            rights,
            standing: Arc::new(standing),
            redirection,
            process: Arc::clone(process),
            mapping,
            pair: false,
            pending: AtomicUsize::new(0),
        };
        Ok(Self {
            route: Arc::new(route),
            event,
            mailbox,
            notifies: grant.notify,
            stranger: grant.stranger,
            extensions: Extensions::new(len),
        })
    }

    /// The peer's memory of a pair: `capacity` bytes of which `mapping` shows the first.
    pub(crate) fn of_pair(
        process: &Arc<Inner>,
        standing: Standing,
        mapping: Mapping,
        capacity: usize,
        (event, stranger): (PeerEvent, bool),
    ) -> Self {
        let route = Route {
            start: mapping.as_ptr(),
            len: mapping.len(),
            rights: Rights::READ_WRITE,
            standing: Arc::new(standing),
            redirection: None,
            process: Arc::clone(process),
            mapping: Some(mapping),
            pair: true,
            pending: AtomicUsize::new(0),
        };
        Self {
            route: Arc::new(route),
            event: Some(event),
            mailbox: None,
            notifies: true,
            stranger,
            extensions: Extensions::new(capacity),
        }
    }

    /// The export's id.
    pub fn id(&self) -> ExportId {
        self.route.standing.export
    }

    /// Bytes; of a pair's memory, those mapped at first.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.route.len
    }

    /// What was asked for and granted.
    pub fn rights(&self) -> Rights {
        self.route.rights
    }

    /// How bytes get there at the moment.
    pub fn path(&self) -> Path {
        match &self.route.mapping {
            Some(_) => Path::Mapped,
            None if self.route.has_lane() => Path::Lane,
            None => Path::Engine,
        }
    }

    /// Whether the export is live, by a look at shared memory. While the node service is gone it says what was last known.
    #[inline]
    pub fn state(&self) -> ExportState {
        self.route.standing.state()
    }

    /// First byte, if mapped; valid for [`Import::len`] bytes as long as the import lives. With [`Rights::READ`] a store
    /// faults. Others write there: use volatile or atomic access, or copies, never references.
    #[inline]
    pub fn as_ptr(&self) -> Option<*mut u8> {
        self.route.mapping.as_ref().map(Mapping::as_ptr)
    }

    /// The exporter's event, for whoever wakes it by hand (write 8 bytes, a 1): pair memory, and exports that take
    /// notifications. That of another user's process may block: see [`bell`](crate::bell).
    pub fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(|event| event.event().as_fd())
    }

    /// Of a pair whose exporter has one event for several: that bell, and the mark to set before ringing.
    pub fn shared_bell(&self) -> Option<(&Arc<PairBell>, u32)> {
        match &self.event {
            Some(PeerEvent::Shared(bell, place)) => Some((bell, *place)),
            _ => None,
        }
    }

    /// Maps the first `len` bytes once more and returns the address, valid as long as the import; the old addresses stay valid.
    ///
    /// # Errors
    /// When `len` is zero or more than the memory has, the import is not mapped, or address space is exhausted.
    pub fn extend(&self, len: usize) -> Result<*mut u8, ExtendError> {
        let mapping = self.route.mapping.as_ref().ok_or(ExtendError::Length)?;
        self.extensions.add(mapping, len)
    }

    /// Gives the pages of `range` (in bytes, page-aligned) back to the system: for both sides they read as zero, and take no
    /// memory, until they are written again.
    ///
    /// # Errors
    /// When the range is wrong, the import is not mapped for writing, or the system refuses.
    pub fn discard(&self, range: std::ops::Range<usize>) -> Result<(), DiscardError> {
        let writable = self.route.rights.contains(Rights::WRITE);
        let mapping = self.route.mapping.as_ref().filter(|_| writable);
        let mapping = mapping.ok_or(DiscardError::Rights)?;
        let page = vmmc_proto::PAGE_SIZE;
        let aligned = range.start.is_multiple_of(page) && range.end.is_multiple_of(page);
        if !aligned || range.is_empty() || range.end > self.extensions.capacity {
            return Err(DiscardError::Range);
        }
        // The import itself may be mapped only in part.
        let all = mapping.duplicate(range.end).map_err(DiscardError::System)?;
        all.discard(range).map_err(DiscardError::System)
    }

    /// Gives the import back, when its asynchronous operations are over.
    pub fn unimport(self) {
        drop(self);
    }
}
