//! Exporting memory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vmmc_os::{
    Access, Descriptor, Mapping, OsError, create_memory, detach_in_place, fill_memory, page_size,
    seal_read_only, share_in_place,
};
use vmmc_proto::{Allow, ExportDeclaration, MAX_EXPORT_LEN, MAX_NAME, Refusal, Request, Rights};

use super::{Announced, Bell, Export, Memory};
use crate::Process;
use crate::connection::RequestError;
use crate::lanes::Reachable;
use crate::notification::{Doorbell, Notify};
use crate::process::lock;
use crate::range::Extensions;
use crate::redirection::{Pool, Redirection};

/// An export in the making; see [`Process::export`].
#[derive(Debug)]
#[must_use = "nothing is exported before create"]
pub struct ExportOptions<'p> {
    process: &'p Process,
    len: usize,
    name: String,
    rights: Rights,
    allow: Allow,
    notify: Notify,
    pool: Option<usize>,
}

/// Why memory cannot be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum ExportError {
    /// the length is zero, or it or the pool more than 1 TiB: export at least one byte, and less
    Length,
    /// memory exported in place must be whole pages: align address and length to `LayerInfo::page_size`
    Unaligned,
    /// the name is longer than 255 bytes: shorten it
    Name,
    /// handlers need a thread: open the process with a watcher, or use `Notify::Event`
    HandlerNeedsWatcher,
    /// no descriptors, memory or address space left ({0}): raise `ulimit -n`, or export less
    Exhausted(OsError),
    /// the service admits no more exports: unexport some
    Limit,
    /// the node service is gone: try again when a new one runs
    ServiceLost,
    /// the node service does not answer: it is stopped or overloaded; see `vmmc node status`
    Timeout,
    /// the node service refused the memory ({0:?}): it is of another version
    Refused(Refusal),
}

impl<'p> ExportOptions<'p> {
    pub(crate) fn new(process: &'p Process, len: usize) -> Self {
        Self {
            process,
            len,
            name: String::new(),
            rights: Rights::READ_WRITE,
            allow: Allow::SameUser,
            notify: Notify::None,
            pool: None,
        }
    }

    /// A name to find it by; need not be unique. Default: none.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The most that an importer can get. Default: read and write.
    ///
    /// With [`Rights::READ`] the memory is sealed: no process can ever map it for writing, whoever it is.
    pub fn rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    /// Who may import. Default: processes of the same user.
    pub fn allow(mut self, allow: Allow) -> Self {
        self.allow = allow;
        self
    }

    /// What to do with notifications. Default: take none.
    pub fn notify(mut self, notify: Notify) -> Self {
        self.notify = notify;
        self
    }

    /// Lets arrivals be redirected: [`Export::post`]. The export gets a pool of `bytes`, rounded up to whole pages, which importers
    /// that may write map too; [`Export::redirect_buffer`] takes memory out of it. 0 is enough to post memory that
    /// importers do not reach. Default: no redirection, and a send does not look for any.
    pub fn redirectable(mut self, bytes: usize) -> Self {
        self.pool = Some(bytes);
        self
    }

    /// Exports new memory, all zero.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn create(self) -> Result<Export, ExportError> {
        let size = self.check(self.len)?;
        let memory = self.memory(size)?;
        let mapping =
            Mapping::new(&memory, 0, size, Access::ReadWrite).map_err(ExportError::Exhausted)?;
        if self.rights == Rights::READ {
            seal_read_only(&memory).map_err(ExportError::Exhausted)?;
        }
        let (start, len) = (mapping.as_ptr(), self.len);
        self.announce(start, len, memory, Memory::Own(mapping))
    }

    /// Exports memory that exists, without moving it: `len` bytes from `ptr` on, whole pages. The length given to
    /// [`Process::export`] does not matter. The contents stay, also after the export is taken back.
    ///
    /// # Errors
    /// See [`ExportError`]; the memory is as before then.
    ///
    /// # Safety
    /// The range is private memory of this process (allocated, anonymous) that stays mapped and is not given back to its allocator as long
    /// as the export lives; no other thread writes it while it is exported or taken back (writes could be lost); and
    /// while it is exported nobody here has Rust references to it, for importers may write at any time.
    pub unsafe fn create_in_place(self, ptr: *mut u8, len: usize) -> Result<Export, ExportError> {
        let size = self.check(len)?;
        if size != len || !ptr.addr().is_multiple_of(page_size()) || ptr.is_null() {
            return Err(ExportError::Unaligned);
        }
        let memory = self.memory(size)?;
        // SAFETY: the caller promises that the range is mapped and that nobody writes it now.
        let contents = unsafe { std::slice::from_raw_parts(ptr, len) };
        fill_memory(&memory, contents).map_err(ExportError::Exhausted)?;
        // SAFETY: the caller promises that the range is its own and stays mapped; it is page-aligned.
        unsafe { share_in_place(&memory, ptr, len) }.map_err(ExportError::Exhausted)?;
        let sealed = if self.rights == Rights::READ { seal_read_only(&memory) } else { Ok(()) };
        let exported = sealed
            .map_err(ExportError::Exhausted)
            .and_then(|()| self.announce(ptr, len, memory, Memory::InPlace));
        if exported.is_err() {
            // SAFETY: the range was shared just now. An error leaves it shared with nobody, which is as good as private.
            let _ = unsafe { detach_in_place(ptr, len) };
        }
        exported
    }

    /// Bytes of memory for `len`, whole pages.
    fn check(&self, len: usize) -> Result<usize, ExportError> {
        if len == 0 || len as u64 > MAX_EXPORT_LEN || !self.rights.is_valid() {
            return Err(ExportError::Length);
        }
        if self.pool.is_some_and(|bytes| bytes as u64 > MAX_EXPORT_LEN) {
            return Err(ExportError::Length);
        }
        if self.name.len() > MAX_NAME {
            return Err(ExportError::Name);
        }
        if matches!(self.notify, Notify::Handler(_)) && !self.process.inner.options.watcher {
            return Err(ExportError::HandlerNeedsWatcher);
        }
        Ok(len.next_multiple_of(page_size()))
    }

    fn memory(&self, size: usize) -> Result<Descriptor, ExportError> {
        let floor = self.process.inner.options.descriptor_floor;
        create_memory(size).and_then(|memory| memory.raise(floor)).map_err(ExportError::Exhausted)
    }

    fn announce(
        self,
        start: *mut u8,
        len: usize,
        memory: Descriptor,
        mapped: Memory,
    ) -> Result<Export, ExportError> {
        let inner = &self.process.inner;
        let floor = inner.options.descriptor_floor;
        let id = inner.fresh_export();
        let notify = match &self.notify {
            Notify::None => None,
            Notify::Event | Notify::Handler(_) => {
                let (doorbell, mailbox) =
                    Doorbell::new(id, len, self.allow, floor).map_err(ExportError::Exhausted)?;
                Some((Arc::new(doorbell), mailbox))
            }
        };
        let bell = notify.as_ref().map_or(Bell::None, |(b, _)| Bell::Mailbox(Arc::clone(b)));
        let redirection = self.pool.map(|bytes| Pool::new(bytes, floor)).transpose();
        let (pool, redirection) = redirection.map_err(ExportError::Exhausted)?.unzip();
        let by_lane = match (&pool, &redirection) {
            (Some(pool), Some(memory)) => {
                let mapped = Redirection::map(memory, pool.len());
                Some(Arc::new(mapped.map_err(ExportError::Exhausted)?))
            }
            _ => None,
        };
        let declaration = ExportDeclaration {
            number: id.number,
            len: len as u64,
            name: self.name,
            rights: self.rights,
            allow: self.allow,
            notify: notify.is_some(),
            pool: pool.as_ref().map(|pool: &Pool| pool.len() as u64),
        };
        let announced = Arc::new(Announced { declaration, memory, notify, redirection });
        let doorbell = announced.notify.as_ref().map(|(doorbell, _)| Arc::clone(doorbell));
        inner.lanes.admit(id.number, Reachable { start, len, doorbell, redirection: by_lane });
        let answer = inner.request(&announced.descriptors(), |seq| Request::Export {
            seq,
            declaration: announced.declaration.clone(),
        });
        lock(&inner.announced).insert(id.number, Arc::clone(&announced));
        // A service that came between answer and entry has not heard of it.
        let answer = answer.and_then(|(connection, _, _)| {
            let current = Arc::ptr_eq(&connection, &inner.connection());
            if current { Ok(()) } else { Err(RequestError::Lost) }
        });
        if let Err(error) = answer {
            // Whatever became of it there, nobody is to find it.
            lock(&inner.announced).remove(&id.number);
            inner.lanes.withdraw(id.number);
            let connection = inner.connection();
            let seq = connection.unheard();
            let _ = connection.post(&Request::Unexport { seq, number: id.number }, &[]);
            return Err(error.into());
        }
        let mut handled = false;
        if let (Notify::Handler(handler), Bell::Mailbox(doorbell)) = (self.notify, &bell) {
            inner
                .with_notifier(|notifier| notifier.add(id.number, Arc::clone(doorbell), handler))
                .map_err(ExportError::Exhausted)?;
            handled = true;
        }
        let handled = AtomicBool::new(handled);
        let extensions = Extensions::new(len);
        let process = Arc::clone(inner);
        let pool = pool.map(Arc::new);
        Ok(Export { start, len, id, process, memory: mapped, bell, handled, extensions, pool })
    }
}

impl From<RequestError> for ExportError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost => Self::ServiceLost,
            RequestError::Timeout => Self::Timeout,
            RequestError::Unsendable => Self::Name,
            RequestError::Refused(Refusal::Limit) => Self::Limit,
            RequestError::Refused(Refusal::Exhausted) => Self::Exhausted(OsError::NFILE),
            RequestError::Refused(why) => Self::Refused(why),
        }
    }
}
