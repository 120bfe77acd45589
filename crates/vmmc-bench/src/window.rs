//! Asynchronous operations under way, each with a buffer of its own.

use std::collections::VecDeque;

use vmmc::Transfer;

use crate::BenchError;
use crate::buffer::Buffer;
use crate::memory::slot_count;
use crate::vmmc_memory::failed;

/// The most operations under way.
const MOST: usize = 64;

pub(crate) struct Window {
    size: usize,
    most: usize,
    under_way: VecDeque<Transfer<Buffer>>,
    spare: Vec<Buffer>,
}

impl Window {
    /// For messages of `size` bytes: no more than there are slots.
    pub(crate) fn new(size: usize) -> Window {
        let most = slot_count(size).min(MOST);
        Window { size, most, under_way: VecDeque::with_capacity(most), spare: Vec::new() }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.under_way.len() < self.most
    }

    /// A buffer that no operation has.
    pub(crate) fn buffer(&mut self) -> Buffer {
        self.spare.pop().unwrap_or_else(|| Buffer::filled(0x5a, self.size))
    }

    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        self.spare.push(buffer);
    }

    /// Adds the youngest.
    pub(crate) fn push(&mut self, transfer: Transfer<Buffer>) {
        self.under_way.push_back(transfer);
    }

    /// Waits for the oldest.
    pub(crate) fn oldest(&mut self) -> Result<Option<Buffer>, BenchError> {
        let Some(oldest) = self.under_way.pop_front() else { return Ok(None) };
        let finished = oldest.wait();
        finished.result.map_err(failed)?;
        Ok(Some(finished.buffer))
    }
}
