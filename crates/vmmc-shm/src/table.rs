//! The status table: what the node service tells every process without a message.
//!
//! The service writes it, processes map it read-only and look with plain loads:
//!
//! ```text
//! page 0        magic, life word (set by the kernel when the service dies), networks
//! then          one mail line for each process slot: how many mail messages the service has sent to that process
//! then          one state word for each export slot: generation << 2 | state
//! ```
//!
//! A slot may be used again for another export; its generation tells. An importer compares the whole word with the
//! one it was given, so that "live" costs one load and one comparison.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots for processes.
pub const MAIL_SLOTS: usize = 16 * 1024;
/// Slots for exports.
pub const STATE_SLOTS: usize = 256 * 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"vmmcstat");

/// State of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportState {
    /// Can be used.
    Live,
    /// The exporter took it back.
    Revoked,
    /// The exporter's process is gone.
    Dead,
}

/// The network namespaces of the processes that a service serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Networks {
    /// All are in one.
    One = 0,
    /// There are several, and the service recognises the ends of connections between them.
    Several = 1,
    /// There are several, between which the service recognises nobody.
    Separate = 2,
}

/// The table as it lies in shared memory; all zero is a table that the service has not opened yet.
#[repr(C, align(4096))]
pub struct StatusTable {
    magic: AtomicU64,
    life: AtomicU32,
    networks: AtomicU32,
    _header: [u8; 4096 - 16],
    mail: [MailLine; MAIL_SLOTS],
    states: [AtomicU64; STATE_SLOTS],
}

/// A line of its own for each process, so that mail for one does not slow down the others' looks.
#[repr(C, align(64))]
struct MailLine {
    sent: AtomicU64,
    _rest: [u8; 56],
}

impl StatusTable {
    /// Bytes of the table, whole pages.
    pub const LEN: usize = size_of::<Self>();

    /// Looks at mapped memory as a table.
    ///
    /// # Safety
    /// `start` is page-aligned, points to at least [`Self::LEN`] mapped bytes that stay mapped for `'a`, and this
    /// process changes them only through the result.
    pub unsafe fn at<'a>(start: *const u8) -> &'a Self {
        // SAFETY: alignment and length are the caller's promise; every field that is ever looked at is an atomic,
        // for which any bytes are valid and which others may change.
        unsafe { &*start.cast::<Self>() }
    }

    /// Marks the table as one (service).
    pub fn open(&self) {
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// Whether the service has opened it.
    pub fn is_open(&self) -> bool {
        self.magic.load(Ordering::Acquire) == MAGIC
    }

    /// The word that the kernel marks when the service dies.
    #[inline]
    pub fn life(&self) -> &AtomicU32 {
        &self.life
    }

    /// Tells which networks there are (service).
    pub fn set_networks(&self, networks: Networks) {
        self.networks.store(networks as u32, Ordering::Release);
    }

    /// Which networks there are.
    pub fn networks(&self) -> Networks {
        match self.networks.load(Ordering::Acquire) {
            1 => Networks::Several,
            2 => Networks::Separate,
            _ => Networks::One,
        }
    }

    /// The count of mail messages sent to the process with this slot; `None` for a slot that does not exist.
    #[inline]
    pub fn mail(&self, slot: u32) -> Option<&AtomicU64> {
        self.mail.get(slot as usize).map(|line| &line.sent)
    }

    /// The state word of an export slot; `None` for a slot that does not exist.
    #[inline]
    pub fn state(&self, slot: u32) -> Option<&AtomicU64> {
        self.states.get(slot as usize)
    }
}

impl fmt::Debug for StatusTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusTable").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

/// The state word of `generation` in `state`.
pub fn state_word(generation: u64, state: ExportState) -> u64 {
    let bits = match state {
        ExportState::Live => 1,
        ExportState::Revoked => 2,
        ExportState::Dead => 3,
    };
    generation << 2 | bits
}

/// What `found` says about the export whose live word is `live`. A slot that serves another export now means that
/// this one is gone: revoked.
#[inline]
pub fn state_of(live: u64, found: u64) -> ExportState {
    if found == live {
        return ExportState::Live;
    }
    if found >> 2 == live >> 2 && found & 3 == 3 { ExportState::Dead } else { ExportState::Revoked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_state_and_generation() {
        let live = state_word(7, ExportState::Live);
        assert_eq!(state_of(live, live), ExportState::Live);
        assert_eq!(state_of(live, state_word(7, ExportState::Dead)), ExportState::Dead);
        assert_eq!(state_of(live, state_word(7, ExportState::Revoked)), ExportState::Revoked);
        assert_eq!(state_of(live, state_word(8, ExportState::Live)), ExportState::Revoked);
        assert_eq!(state_of(live, state_word(8, ExportState::Dead)), ExportState::Revoked);
        assert_eq!(state_of(live, 0), ExportState::Revoked);
    }

    #[test]
    fn the_table_is_whole_pages() {
        assert_eq!(StatusTable::LEN % 4096, 0);
    }
}
