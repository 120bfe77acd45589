//! The status table as its writer sees it: which words are taken.

use std::sync::atomic::Ordering;

use vmmc_os::{
    Access, Descriptor, LIFE_LOST, Mapping, OsError, announce_life, create_memory, reopen_read_only,
};
use vmmc_shm::table::{ExportState, MAIL_SLOTS, Networks, STATE_SLOTS, StatusTable, state_word};

/// The word of one export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) index: u32,
    generation: u64,
}

impl Slot {
    /// What the word holds while the export is live.
    pub(crate) fn live(self) -> u64 {
        state_word(self.generation, ExportState::Live)
    }
}

/// The table and the free words of it.
#[derive(Debug)]
pub(crate) struct Slots {
    mapping: Mapping,
    /// Read-only, for clients.
    pub(crate) table: Descriptor,
    free_states: Vec<u32>,
    next_state: u32,
    free_mail: Vec<u32>,
    next_mail: u32,
}

impl Slots {
    /// Makes a new table and ties its life word to this thread.
    pub(crate) fn new() -> Result<Self, OsError> {
        let memory = create_memory(StatusTable::LEN)?;
        let table = reopen_read_only(&memory)?;
        let mapping = Mapping::new(&memory, 0, StatusTable::LEN, Access::ReadWrite)?;
        let slots = Self {
            mapping,
            table,
            free_states: Vec::new(),
            next_state: 0,
            free_mail: Vec::new(),
            next_mail: 0,
        };
        // SAFETY: the mapping lives until the service's end, which is this thread's: `release` forgets it.
        unsafe { announce_life(slots.view().life()) }?;
        slots.view().open();
        Ok(slots)
    }

    /// Keeps the table mapped until the process ends, so that the kernel can mark the life word. Where the service is `still` already, and writes nothing
    /// into anybody's socket any more, it is marked now: before the clients lose their connections, and have to know whether they may write themselves.
    pub(crate) fn release(self, still: bool) {
        if still {
            self.view().life().fetch_or(LIFE_LOST, Ordering::Release);
        }
        std::mem::forget(self.mapping);
    }

    /// Tells every process which networks there are.
    pub(crate) fn tell_networks(&self, networks: Networks) {
        self.view().set_networks(networks);
    }

    /// A word for a new export, live now; `None` when all are taken.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        let index = match self.free_states.pop() {
            Some(index) => index,
            None if (self.next_state as usize) < STATE_SLOTS => {
                self.next_state += 1;
                self.next_state - 1
            }
            None => return None,
        };
        let word = self.view().state(index)?;
        let slot = Slot { index, generation: (word.load(Ordering::Relaxed) >> 2) + 1 };
        word.store(slot.live(), Ordering::Release);
        Some(slot)
    }

    /// Tells every importer.
    pub(crate) fn mark(&self, slot: Slot, state: ExportState) {
        if let Some(word) = self.view().state(slot.index) {
            word.store(state_word(slot.generation, state), Ordering::Release);
        }
    }

    /// The word may serve another export.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.free_states.push(slot.index);
    }

    /// A mail word for a new process, zero now; `None` when all are taken.
    pub(crate) fn take_mail(&mut self) -> Option<u32> {
        let slot = match self.free_mail.pop() {
            Some(slot) => slot,
            None if (self.next_mail as usize) < MAIL_SLOTS => {
                self.next_mail += 1;
                self.next_mail - 1
            }
            None => return None,
        };
        self.view().mail(slot)?.store(0, Ordering::Release);
        Some(slot)
    }

    /// The process with this mail word was sent one more mail message.
    pub(crate) fn count_mail(&self, slot: u32) {
        if let Some(word) = self.view().mail(slot) {
            word.fetch_add(1, Ordering::Release);
        }
    }

    /// The word may serve another process.
    pub(crate) fn give_back_mail(&mut self, slot: u32) {
        self.free_mail.push(slot);
    }

    fn view(&self) -> &StatusTable {
        // SAFETY: the mapping is page-aligned, `LEN` bytes long, lives as long as `self`, and is changed only here.
        unsafe { StatusTable::at(self.mapping.as_ptr()) }
    }
}
