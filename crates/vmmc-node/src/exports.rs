//! Who exported what, and who imported it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::os::fd::AsFd;
use std::rc::Rc;

use vmmc_os::{
    Access, Credentials, Descriptor, Event, Mapping, is_event, memory_len, memory_seals,
    random_u64, read_memory, reopen_read_only, reserve_memory, ring_stranger,
    strangers_can_be_rung, write_memory,
};
use vmmc_proto::{
    Allow, ExportDeclaration, ExportEntry, ExportId, Grant, MAX_ENTRIES, MAX_EXPORT_LEN, MAX_NAME,
    PAGE_SIZE, ProcessId, Refusal, Rights,
};
use vmmc_shm::mailbox::{Mailbox, Note};
use vmmc_shm::redirection::{Place, Table};
use vmmc_shm::table::ExportState;

use crate::accounts::is_stranger;
use crate::slots::{Slot, Slots};

/// An export that is not revoked.
#[derive(Debug)]
struct Export {
    serial: u64,
    declaration: ExportDeclaration,
    owner: Credentials,
    memory: Rc<Descriptor>,
    read_only: Option<Rc<Descriptor>>,
    notify: Option<(Rc<Descriptor>, Rc<Descriptor>)>,
    /// The page of the last signal word that the engine wrote, and where it lies: the next one is mostly there too.
    words: Option<(u64, Mapping)>,
    /// Mapped when the engine first notifies.
    mailbox: Option<Mapping>,
    redirection: Option<Redirection>,
    slot: Slot,
}

/// Memory for redirection: posted memory, then the page of the table.
#[derive(Debug)]
struct Redirection {
    memory: Rc<Descriptor>,
    pool: u64,
    /// Mapped when the engine first writes.
    table: Option<Mapping>,
}

/// An import that is not given back.
#[derive(Debug, Clone, Copy)]
struct Import {
    export: ExportId,
    rights: Rights,
    slot: Slot,
}

/// All exports and imports, pair memories excluded.
#[derive(Debug)]
pub(crate) struct Exports {
    by_id: HashMap<ExportId, Export>,
    by_serial: BTreeMap<u64, ExportId>,
    by_name: HashMap<String, BTreeMap<u64, ExportId>>,
    imports: HashMap<u64, Import>,
    /// Imports of each state word, revoked exports included; the word is free at 0 once the export is gone.
    users: HashMap<u32, u64>,
    last_serial: u64,
    last_handle: u64,
}

impl Exports {
    pub(crate) fn new() -> Self {
        Self {
            by_id: HashMap::new(),
            by_serial: BTreeMap::new(),
            by_name: HashMap::new(),
            imports: HashMap::new(),
            users: HashMap::new(),
            last_serial: 0,
            // A handle that an earlier service gave must not mean another import here.
            last_handle: random_u64() >> 1,
        }
    }

    /// Most exports of one process.
    pub(crate) const MAX_OF_PROCESS: usize = 64 * 1024;
    /// Most imports of one process.
    pub(crate) const MAX_IMPORTS: usize = 64 * 1024;

    /// Checks and enters an export.
    pub(crate) fn add(
        &mut self,
        slots: &mut Slots,
        id: ExportId,
        owner: Credentials,
        declaration: ExportDeclaration,
        descriptors: Vec<Descriptor>,
    ) -> Result<(), Refusal> {
        let mut descriptors = descriptors.into_iter();
        let memory = descriptors.next().ok_or(Refusal::Invalid)?;
        let mut two = || (descriptors.next(), descriptors.next());
        let (event, mailbox) = if declaration.notify { two() } else { (None, None) };
        let redirection = descriptors.next();
        let notify = match (declaration.notify, event, mailbox) {
            (true, Some(event), Some(mailbox)) => Some((event, mailbox)),
            (false, None, None) => None,
            _ => return Err(Refusal::Invalid),
        };
        let redirection = match (declaration.pool, redirection, descriptors.next()) {
            (Some(pool), Some(memory), None) => {
                Some(Redirection { memory: Rc::new(memory), pool, table: None })
            }
            (None, None, None) => None,
            _ => return Err(Refusal::Invalid),
        };
        let plausible = (1..=MAX_EXPORT_LEN).contains(&declaration.len)
            && declaration.name.len() <= MAX_NAME
            && declaration.rights.is_valid()
            && !self.by_id.contains_key(&id);
        if !plausible || !is_fixed_memory(&memory, declaration.len) {
            return Err(Refusal::Invalid);
        }
        if declaration.rights == Rights::READ
            && !memory_seals(&memory).is_ok_and(|seals| seals.no_new_writers)
        {
            return Err(Refusal::Invalid);
        }
        if let Some((event, mailbox)) = &notify
            && (!is_event(event.as_fd()) || !is_fixed_memory(mailbox, PAGE_SIZE as u64))
        {
            return Err(Refusal::Invalid);
        }
        if let Some(Redirection { memory, pool, .. }) = &redirection {
            let whole = *pool <= MAX_EXPORT_LEN && pool.is_multiple_of(PAGE_SIZE as u64);
            if !whole || !is_fixed_memory(memory, pool + PAGE_SIZE as u64) {
                return Err(Refusal::Invalid);
            }
        }
        let slot = slots.take().ok_or(Refusal::Limit)?;
        self.last_serial += 1;
        let serial = self.last_serial;
        self.by_serial.insert(serial, id);
        if !declaration.name.is_empty() {
            self.by_name.entry(declaration.name.clone()).or_default().insert(serial, id);
        }
        let export = Export {
            serial,
            declaration,
            owner,
            memory: Rc::new(memory),
            read_only: None,
            notify: notify.map(|(event, mailbox)| (Rc::new(event), Rc::new(mailbox))),
            words: None,
            mailbox: None,
            redirection,
            slot,
        };
        self.by_id.insert(id, export);
        Ok(())
    }

    /// Takes an export out: revoked, or its process is dead.
    pub(crate) fn remove(
        &mut self,
        slots: &mut Slots,
        id: ExportId,
        state: ExportState,
    ) -> Result<(), Refusal> {
        let export = self.by_id.remove(&id).ok_or(Refusal::UnknownExport)?;
        slots.mark(export.slot, state);
        self.by_serial.remove(&export.serial);
        if let Some(named) = self.by_name.get_mut(&export.declaration.name) {
            named.remove(&export.serial);
            if named.is_empty() {
                self.by_name.remove(&export.declaration.name);
            }
        }
        if !self.users.contains_key(&export.slot.index) {
            slots.give_back(export.slot);
        }
        Ok(())
    }

    /// The export of `process` that has this name; the oldest.
    pub(crate) fn find(&self, process: ProcessId, name: &str) -> Option<ExportId> {
        self.by_name.get(name)?.values().find(|id| id.process == process).copied()
    }

    /// The export of any process of this user (of any user with `None`) that has this name; the oldest.
    pub(crate) fn find_any(&self, uid: Option<u32>, name: &str) -> Option<ExportId> {
        let mut named = self.by_name.get(name)?.values();
        let owner = |id| self.by_id.get(id).map(|export| export.owner.uid);
        named.find(|id| uid.is_none_or(|uid| owner(id) == Some(uid))).copied()
    }

    /// Checks an importer and gives it a handle and the descriptors.
    pub(crate) fn import(
        &mut self,
        id: ExportId,
        importer: &Credentials,
        rights: Rights,
        key: Option<[u8; 16]>,
        again: bool,
    ) -> Result<(Grant, Vec<Rc<Descriptor>>), Refusal> {
        let export = self.by_id.get_mut(&id).ok_or(Refusal::UnknownExport)?;
        if !admits(export.declaration.allow, &export.owner, importer, key) {
            return Err(Refusal::NotAllowed);
        }
        if !rights.is_valid() || !export.declaration.rights.contains(rights) {
            return Err(Refusal::Rights);
        }
        let mapped = rights.contains(Rights::READ);
        let notify = export.notify.is_some() && rights.contains(Rights::WRITE);
        let redirection = export.redirection.as_ref().filter(|_| mapped);
        let pool = redirection.filter(|_| rights.contains(Rights::WRITE)).map(|found| found.pool);
        let mut descriptors = Vec::new();
        if mapped && !again {
            descriptors.push(if rights == Rights::READ {
                if export.read_only.is_none() {
                    let file = reopen_read_only(&*export.memory).map_err(|_| Refusal::Exhausted)?;
                    export.read_only = Some(Rc::new(file));
                }
                Rc::clone(export.read_only.as_ref().ok_or(Refusal::Exhausted)?)
            } else {
                Rc::clone(&export.memory)
            });
            if let (true, Some((event, mailbox))) = (notify, &export.notify) {
                descriptors.push(Rc::clone(event));
                descriptors.push(Rc::clone(mailbox));
            }
            if let Some(redirection) = export.redirection.as_ref().filter(|_| pool.is_some()) {
                descriptors.push(Rc::clone(&redirection.memory));
            }
        }
        let slot = export.slot;
        let len = export.declaration.len;
        let stranger = export.owner.uid != importer.uid;
        let handle = self.fresh_handle();
        self.imports.insert(handle, Import { export: id, rights, slot });
        *self.users.entry(slot.index).or_default() += 1;
        let grant = Grant {
            handle,
            export: id,
            len,
            slot: slot.index,
            live: slot.live(),
            mapped,
            notify,
            pool,
            stranger,
        };
        Ok((grant, descriptors))
    }

    /// Takes an import out.
    pub(crate) fn unimport(&mut self, slots: &mut Slots, handle: u64) {
        let Some(import) = self.imports.remove(&handle) else { return };
        let Some(users) = self.users.get_mut(&import.slot.index) else { return };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&import.slot.index);
            if !self.by_id.contains_key(&import.export) {
                slots.give_back(import.slot);
            }
        }
    }

    /// Engine path: writes on behalf of an importer that has no mapping.
    pub(crate) fn send(
        &mut self,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        signal: Option<(u64, u64)>,
        notify: Option<(u64, u64)>,
    ) -> Result<(), Refusal> {
        let import = self.imports.get(&handle).ok_or(Refusal::Invalid)?;
        if !import.rights.contains(Rights::WRITE) {
            return Err(Refusal::Rights);
        }
        let export = self.by_id.get_mut(&import.export).ok_or(Refusal::Gone)?;
        let len = export.declaration.len;
        let fits = |offset: u64, count: u64| offset <= len && count <= len - offset;
        if !fits(offset, bytes.len() as u64) {
            return Err(Refusal::Range);
        }
        if let Some((offset, _)) = signal
            && (!fits(offset, 8) || !offset.is_multiple_of(8))
        {
            return Err(Refusal::Range);
        }
        if let Some((offset, count)) = notify
            && (!fits(offset, count) || export.notify.is_none())
        {
            return Err(Refusal::Range);
        }
        export.write(offset, bytes)?;
        if let Some((offset, value)) = signal {
            export.store_signal(offset, value)?;
        }
        if let Some((offset, len)) = notify {
            let tail = &bytes[bytes.len().saturating_sub(8)..];
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            export.notify(Note { offset, len, last_word: u64::from_le_bytes(word) })?;
        }
        Ok(())
    }

    /// As [`Exports::send`], the notification alone.
    pub(crate) fn notify(
        &mut self,
        handle: u64,
        offset: u64,
        len: u64,
        last_word: u64,
    ) -> Result<(), Refusal> {
        let export = self.reached(handle, Rights::WRITE, offset, len)?;
        if export.notify.is_none() {
            return Err(Refusal::Range);
        }
        export.notify(Note { offset, len, last_word })
    }

    /// Reads on behalf of an importer on another node.
    pub(crate) fn fetch(
        &mut self,
        handle: u64,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Refusal> {
        let export = self.reached(handle, Rights::READ, offset, into.len() as u64)?;
        if read_fully(&export.memory, offset, into) { Ok(()) } else { Err(Refusal::Memory) }
    }

    /// The export behind an import that has this right, if the range lies in it.
    fn reached(
        &mut self,
        handle: u64,
        right: Rights,
        offset: u64,
        count: u64,
    ) -> Result<&mut Export, Refusal> {
        let import = self.imports.get(&handle).ok_or(Refusal::Invalid)?;
        if !import.rights.contains(right) {
            return Err(Refusal::Rights);
        }
        let export = self.by_id.get_mut(&import.export).ok_or(Refusal::Gone)?;
        let len = export.declaration.len;
        if offset > len || count > len - offset { Err(Refusal::Range) } else { Ok(export) }
    }

    /// What an import may do over a lane.
    pub(crate) fn lane_rights(&self, handle: u64) -> Option<Rights> {
        self.imports.get(&handle).map(|import| import.rights)
    }

    /// A handle that no import of this service had.
    pub(crate) fn fresh_handle(&mut self) -> u64 {
        self.last_handle += 1;
        self.last_handle
    }

    /// A page of the list, after `after`, as a user sees it: what strangers keep to themselves is not shown to a stranger.
    pub(crate) fn list(&self, after: u64, uid: u32) -> Vec<ExportEntry> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let all = self.by_serial.range(range);
        let shown = all.filter_map(|(serial, id)| {
            let export = self.by_id.get(id)?;
            let Export { owner, declaration, .. } = export;
            let kept = declaration.allow == Allow::SameUser && owner.uid != uid;
            if is_stranger(uid) && kept {
                return None;
            }
            Some(ExportEntry {
                serial: *serial,
                id: *id,
                name: export.declaration.name.clone(),
                len: export.declaration.len,
                rights: export.declaration.rights,
            })
        });
        shown.take(MAX_ENTRIES).collect()
    }

    pub(crate) fn export_count(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn import_count(&self) -> usize {
        self.imports.len()
    }
}

impl Export {
    /// Writes bytes to where they belong: into the export, or into memory that is posted for them.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let Some(redirection) = &mut self.redirection else {
            return write_memory(&*self.memory, offset, bytes).map_err(|_| Refusal::Memory);
        };
        let (memory, pool) = (Rc::clone(&redirection.memory), redirection.pool);
        let table = redirection.table()?;
        let mut done = 0;
        while done < bytes.len() {
            let place = table.place(offset + done as u64, (bytes.len() - done) as u64, pool);
            #[allow(clippy::cast_possible_truncation, reason = "at most the rest")]
            let count = match &place {
                Place::Default(count) => *count as usize,
                Place::Posted(claim) => claim.len() as usize,
            };
            let piece = &bytes[done..done + count];
            let accepted = match place {
                Place::Default(_) => false,
                Place::Posted(claim) => {
                    write_memory(&*memory, claim.destination(), piece)
                        .map_err(|_| Refusal::Memory)?;
                    claim.commit()
                }
            };
            if !accepted {
                write_memory(&*self.memory, offset + done as u64, piece)
                    .map_err(|_| Refusal::Memory)?;
            }
            done += count;
        }
        Ok(())
    }

    /// Stores a signal word so that nobody sees half of it, after everything written before.
    fn store_signal(&mut self, offset: u64, value: u64) -> Result<(), Refusal> {
        let page = offset - offset % PAGE_SIZE as u64;
        let mapping = match self.words.take() {
            Some((at, mapping)) if at == page => mapping,
            _ => {
                reserve_memory(&*self.memory, page, PAGE_SIZE as u64)
                    .map_err(|_| Refusal::Memory)?;
                Mapping::new(&*self.memory, page, PAGE_SIZE, Access::ReadWrite)
                    .map_err(|_| Refusal::Exhausted)?
            }
        };
        let within = usize::try_from(offset - page).map_err(|_| Refusal::Range)?;
        // SAFETY: `within` is a multiple of 8 below the page's size, so the word is aligned and inside the mapping, which
        // lives longer than this borrow; others may change it, which an atomic allows. The memory cannot shrink (checked when it was exported).
        let word = unsafe { &*mapping.as_ptr().add(within).cast::<std::sync::atomic::AtomicU64>() };
        word.store(value, std::sync::atomic::Ordering::Release);
        self.words = Some((page, mapping));
        Ok(())
    }

    fn notify(&mut self, note: Note) -> Result<(), Refusal> {
        let (event, mailbox) = self.notify.as_ref().ok_or(Refusal::Range)?;
        if self.mailbox.is_none() {
            // Its page must exist before the first store: a store that finds no memory would end the service.
            reserve_memory(&**mailbox, 0, PAGE_SIZE as u64).map_err(|_| Refusal::Memory)?;
            let mapping = Mapping::new(&**mailbox, 0, PAGE_SIZE, Access::ReadWrite)
                .map_err(|_| Refusal::Exhausted)?;
            self.mailbox = Some(mapping);
        }
        let mapping = self.mailbox.as_ref().ok_or(Refusal::Exhausted)?;
        // SAFETY: the mapping is page-aligned, a page long (more than a mailbox), writable, and outlives the borrow;
        // the memory cannot shrink (checked when it was exported).
        let mailbox = unsafe { Mailbox::at(mapping.as_ptr()) };
        if let Some(sleep) = mailbox.push(note) {
            ring(event)?;
            mailbox.rung(sleep);
        }
        Ok(())
    }
}

impl Redirection {
    fn table(&mut self) -> Result<&Table, Refusal> {
        if self.table.is_none() {
            // As for a mailbox: its page must exist before the first store.
            reserve_memory(&*self.memory, self.pool, PAGE_SIZE as u64)
                .map_err(|_| Refusal::Memory)?;
            let table = Mapping::new(&*self.memory, self.pool, PAGE_SIZE, Access::ReadWrite)
                .map_err(|_| Refusal::Exhausted)?;
            self.table = Some(table);
        }
        let table = self.table.as_ref().ok_or(Refusal::Exhausted)?;
        // SAFETY: the mapping is page-aligned, a page long (more than a table), writable, and outlives the borrow; the
        // memory cannot shrink (checked when it was exported).
        Ok(unsafe { Table::at(table.as_ptr()) })
    }
}

/// Makes an event readable that its exporter, and every importer, can make block.
fn ring(event: &Descriptor) -> Result<(), Refusal> {
    if strangers_can_be_rung() {
        ring_stranger(event.as_fd());
        return Ok(());
    }
    let event = Descriptor::duplicate(event.as_fd()).map_err(|_| Refusal::Exhausted)?;
    Event::from_descriptor(event).signal_unless_full();
    Ok(())
}

fn is_fixed_memory(memory: &Descriptor, len: u64) -> bool {
    memory_seals(memory).is_ok_and(|seals| seals.fixed_size)
        && memory_len(memory).is_ok_and(|found| found >= len.next_multiple_of(PAGE_SIZE as u64))
}

fn admits(
    allow: Allow,
    owner: &Credentials,
    importer: &Credentials,
    key: Option<[u8; 16]>,
) -> bool {
    match allow {
        Allow::SameUser => importer.uid == owner.uid || importer.uid == 0,
        Allow::User(uid) => importer.uid == uid,
        Allow::Group(gid) => importer.gid == gid,
        // All bytes are compared whatever they are, so that time does not tell how many were right.
        Allow::Key(wanted) => key.is_some_and(|key| {
            key.iter().zip(&wanted).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
        }),
        Allow::Anyone => true,
    }
}

/// A copy that its owner can no longer change.
pub(crate) fn read_fully(memory: &Descriptor, offset: u64, bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        match read_memory(memory, offset + done as u64, &mut bytes[done..]) {
            Ok(count) if count > 0 => done += count,
            Err(vmmc_os::OsError::INTR) => {}
            _ => return false,
        }
    }
    true
}
