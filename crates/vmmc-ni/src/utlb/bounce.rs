//! Bounce buffers: a little memory pinned from the start, for when nothing else can be pinned.

use std::sync::{Mutex, PoisonError};

use vmmc_os::PrivateMemory;

use super::memory::{Access, Memory};

/// Bytes of one buffer.
const BUFFER: usize = 64 << 10;

/// The buffers of one table.
#[derive(Debug)]
pub(super) struct Pool {
    memory: Option<PrivateMemory>,
    /// Bytes of a buffer.
    size: usize,
    pub(super) pinned: bool,
    free: Mutex<Vec<usize>>,
}

impl Pool {
    /// Buffers of `bytes` in all, pinned if that can be.
    pub(super) fn new(bytes: usize, pinner: &dyn Memory) -> Self {
        let memory = (bytes > 0).then(|| PrivateMemory::new(bytes).ok()).flatten();
        let Some(memory) = memory else {
            return Self { memory: None, size: 0, pinned: false, free: Mutex::default() };
        };
        let size = memory.len().min(BUFFER);
        let page = vmmc_os::page_size();
        let first = memory.as_ptr().addr() / page;
        let pinned = pinner.pin(first..first + memory.len() / page, Access::Write).is_ok();
        let free = (0..memory.len() / size).rev().collect();
        Self { memory: Some(memory), size, pinned, free: Mutex::new(free) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, PrivateMemory::len)
    }

    /// A free buffer: its number, start and size.
    pub(super) fn take(&self) -> Option<(usize, *mut u8, usize)> {
        let memory = self.memory.as_ref()?;
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        // In bounds: numbers are less than `memory.len() / size`.
        Some((number, memory.as_ptr().wrapping_add(number * self.size), self.size))
    }

    pub(super) fn give_back(&self, number: usize) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }
}
