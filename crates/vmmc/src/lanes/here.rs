//! This process's memory, as its lanes see it: exports that packets may reach, and buffers of calls that wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmmc_link::{Binding, Buffer, Link, Memory, Refusal};
use vmmc_ni::port::{Host, LinkNumber};
use vmmc_os::Mapping;
use vmmc_proto::Rights;
use vmmc_shm::lane::LanePage;
use vmmc_shm::mailbox::{Note, Sleep};

use crate::lane::Lane;
use crate::notification::Doorbell;
use crate::redirection::Redirection;

/// An export as lanes reach it.
#[derive(Debug, Clone)]
pub(crate) struct Reachable {
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
    pub(crate) doorbell: Option<Arc<Doorbell>>,
    pub(crate) redirection: Option<Arc<Redirection>>,
}

// SAFETY: the memory is mapped as long as this can be found: the export withdraws it, under the lock that placing holds, before it unmaps
// or detaches anything. All access is by copies and atomics, which any thread may do.
unsafe impl Send for Reachable {}

/// Everything that packets may touch.
#[derive(Debug, Default)]
pub(crate) struct Here {
    pub(super) ends: BTreeMap<LinkNumber, End>,
    buffers: BTreeMap<u64, Local>,
    last_buffer: u64,
    /// Whose packets are handled now.
    current: Option<LinkNumber>,
    /// The current lane's page is ours until the turn is over.
    entered: bool,
    /// Who has to be woken when it is: not before, for a process may be stopped where it makes a system call.
    rings: Vec<(Arc<Doorbell>, Sleep)>,
}

/// Our end of a link.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Once lanes lead to exports of this process.
    pub(super) page: Option<Mapping>,
    /// Lanes to exports, by the import's name in packets.
    pub(super) arrivals: BTreeMap<u64, Arrival>,
    /// Lanes of imports, by channel.
    pub(super) lanes: BTreeMap<u16, Arc<Lane>>,
}

/// A lane to an export.
#[derive(Debug)]
pub(super) struct Arrival {
    capability: u128,
    rights: Rights,
    number: u64,
    target: Reachable,
}

/// Bytes of a call that waits until the link needs them no more.
#[derive(Debug, Clone, Copy)]
struct Local {
    start: *mut u8,
    len: usize,
}

// SAFETY: a call enters its buffer, and takes it out, under the lock that all access holds, before it returns.
unsafe impl Send for Local {}

impl End {
    fn page(&self) -> Option<&LanePage> {
        // SAFETY: the mapping is page-aligned, a page long (which a `LanePage` fits into), writable and lives as long as
        // `self`; the service made the memory and does not shrink it.
        self.page.as_ref().map(|page| unsafe { LanePage::at(page.as_ptr()) })
    }

    /// The export that packets with this binding mean.
    fn arrival(&self, binding: &Binding) -> Result<&Arrival, Refusal> {
        let arrival = self.arrivals.get(&binding.export).ok_or(Refusal::Revoked)?;
        // All bits are compared whatever they are, so that time does not tell how many were right.
        if arrival.capability ^ binding.capability == 0 {
            Ok(arrival)
        } else {
            Err(Refusal::Revoked)
        }
    }
}

impl Arrival {
    pub(super) fn new(capability: u128, rights: Rights, number: u64, target: Reachable) -> Self {
        Self { capability, rights, number, target }
    }

    /// The first byte of a range that the import may reach with this right.
    fn reach(&self, right: Rights, offset: u64, len: usize) -> Result<*mut u8, Refusal> {
        if !self.rights.contains(right) {
            return Err(Refusal::Rights);
        }
        let offset = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        if offset > self.target.len || len > self.target.len - offset {
            return Err(Refusal::Bounds);
        }
        // SAFETY: `offset` is at most the length of the mapped range.
        Ok(unsafe { self.target.start.add(offset) })
    }
}

impl Here {
    /// A new link.
    pub(super) fn begin(&mut self, number: LinkNumber) {
        self.ends.insert(number, End::default());
    }

    /// Our end of a link.
    pub(super) fn end(&mut self, number: LinkNumber) -> &mut End {
        self.ends.entry(number).or_default()
    }

    /// The link that has this number in packets.
    pub(super) fn number_of(&self, link: u32) -> Option<LinkNumber> {
        self.ends.keys().copied().find(|number| number.on_the_wire() == link)
    }

    /// An export was taken back.
    pub(super) fn withdraw(&mut self, number: u64) {
        for end in self.ends.values_mut() {
            end.arrivals.retain(|_, arrival| arrival.number != number);
        }
    }

    /// An import of one of our exports was given back.
    pub(super) fn withdrawn(&mut self, link: u32, export: u64) {
        if let Some(number) = self.number_of(link) {
            self.end(number).arrivals.remove(&export);
        }
    }

    /// An import was given back; whether its link is still there.
    pub(super) fn forget(&mut self, lane: &Lane) -> bool {
        let end = self.ends.get_mut(&lane.number);
        end.is_some_and(|end| end.lanes.remove(&lane.import.channel()).is_some())
    }

    /// Links that the service has fenced.
    pub(super) fn fenced(&self) -> Vec<LinkNumber> {
        let fenced =
            self.ends.iter().filter(|(_, end)| end.page().is_some_and(LanePage::is_fenced));
        fenced.map(|(number, _)| *number).collect()
    }

    /// The links are no more.
    pub(super) fn end_all(&mut self) {
        for end in std::mem::take(&mut self.ends).into_values() {
            end.lanes.values().for_each(|lane| lane.fail());
        }
    }

    /// Names bytes that a link may read or write until [`Here::take_back`].
    ///
    /// # Safety
    /// The bytes stay where they are, and nobody else uses them against what the link does with them, until then.
    pub(crate) unsafe fn lend(&mut self, start: *mut u8, len: usize) -> Buffer {
        self.last_buffer += 1;
        self.buffers.insert(self.last_buffer, Local { start, len });
        Buffer(self.last_buffer)
    }

    /// No link uses these bytes any more.
    pub(crate) fn take_back(&mut self, Buffer(number): Buffer) {
        self.buffers.remove(&number);
    }

    fn arrival(&self, binding: &Binding) -> Result<&Arrival, Refusal> {
        match self.current.and_then(|number| self.ends.get(&number)) {
            Some(end) if self.entered => end.arrival(binding),
            _ => Err(Refusal::Gone),
        }
    }

    fn local(&self, Buffer(number): Buffer, offset: u64, len: usize) -> Result<*mut u8, Refusal> {
        let local = self.buffers.get(&number).ok_or(Refusal::Gone)?;
        let offset = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        if offset > local.len || len > local.len - offset {
            return Err(Refusal::Bounds);
        }
        // SAFETY: `offset` is at most the length of the buffer.
        Ok(unsafe { local.start.add(offset) })
    }
}

impl Memory for Here {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let arrival = self.arrival(target)?;
        let to = arrival.reach(Rights::WRITE, offset, bytes.len())?;
        // SAFETY: `reach` saw that the range is inside the export, which is mapped as long as it can be reached; `bytes` is memory of its
        // own.
        unsafe {
            match &arrival.target.redirection {
                // `reach` saw that the offset is inside memory of this process.
                Some(redirection) if !redirection.is_idle(bytes.len()) => {
                    redirection.place(arrival.target.start, offset as usize, bytes);
                }
                _ => vmmc_shm::copy(bytes.as_ptr(), to, bytes.len()),
            }
        }
        Ok(())
    }

    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        if !offset.is_multiple_of(8) {
            return Err(Refusal::Unaligned);
        }
        let word = self.arrival(target)?.reach(Rights::WRITE, offset, 8)?;
        // SAFETY: as in `place`; exports are page-aligned and the offset is a multiple of 8.
        unsafe { &*word.cast::<AtomicU64>() }.store(value, Ordering::Release);
        Ok(())
    }

    fn notify(
        &mut self,
        target: &Binding,
        offset: u64,
        len: u64,
        value: u64,
    ) -> Result<(), Refusal> {
        let arrival = self.arrival(target)?;
        let count = usize::try_from(len).map_err(|_| Refusal::Bounds)?;
        arrival.reach(Rights::WRITE, offset, count)?;
        let doorbell = arrival.target.doorbell.as_ref();
        let doorbell = Arc::clone(doorbell.ok_or(Refusal::Bounds)?);
        let sleep = doorbell.deliver(Note { offset, len, last_word: value });
        self.rings.extend(sleep.map(|sleep| (doorbell, sleep)));
        Ok(())
    }

    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let from = self.arrival(target)?.reach(Rights::READ, offset, into.len())?;
        // SAFETY: as in `place`.
        unsafe { vmmc_shm::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn gather(&mut self, buffer: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let from = self.local(buffer, offset, into.len())?;
        // SAFETY: `local` saw that the range is inside bytes that were lent; `into` is memory of its own.
        unsafe { vmmc_shm::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn scatter(&mut self, buffer: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let to = self.local(buffer, offset, bytes.len())?;
        // SAFETY: as in `gather`.
        unsafe { vmmc_shm::copy(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

impl Host for Here {
    fn turn_to(&mut self, link: LinkNumber) {
        self.current = Some(link);
        let page = self.ends.get(&link).and_then(End::page);
        self.entered = page.is_some_and(LanePage::enter);
    }

    fn turn_from(&mut self, link: &Link) {
        let end = self.current.take().and_then(|number| self.ends.get(&number));
        let Some(end) = end else { return };
        if self.entered
            && let Some(page) = end.page()
        {
            for (channel, (generation, reached)) in link.reached().enumerate() {
                page.tell(channel, generation, reached);
            }
            page.leave();
        }
        self.entered = false;
        for (doorbell, sleep) in self.rings.drain(..) {
            doorbell.ring(sleep);
        }
        let packets = link.stats().packets_received;
        end.lanes.values().for_each(|lane| lane.heard(packets));
    }
}
