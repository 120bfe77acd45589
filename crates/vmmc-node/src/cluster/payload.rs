//! Payload of command queues, which links read and write until their commands are complete, also when the process has ended meanwhile.

use std::collections::HashMap;

use vmmc_link::Buffer;
use vmmc_os::{Access, Descriptor, Mapping, OsError, reserve_memory};
use vmmc_shm::command::{PAYLOAD, PIECE, SLOTS};

use crate::clients::ClientKey;

const LEN: usize = SLOTS * PIECE;

/// The payload of every process that commands something elsewhere.
#[derive(Debug, Default)]
pub(super) struct Payloads(HashMap<ClientKey, Payload>);

#[derive(Debug)]
struct Payload {
    mapping: Mapping,
    /// Commands that are not complete.
    in_flight: usize,
    /// The process has ended.
    left: bool,
}

impl Payloads {
    /// One more command of a process is under way, whose payload lies in `slot` of this queue's memory.
    pub(super) fn begin(
        &mut self,
        client: ClientKey,
        memory: &Descriptor,
        slot: usize,
    ) -> Result<Buffer, OsError> {
        let payload = match self.0.entry(client) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                // Its pages must exist before the first access: one that finds no memory would end the service.
                reserve_memory(memory, PAYLOAD as u64, LEN as u64)?;
                let mapping = Mapping::new(memory, PAYLOAD as u64, LEN, Access::ReadWrite)?;
                entry.insert(Payload { mapping, in_flight: 0, left: false })
            }
        };
        payload.in_flight += 1;
        Ok(Buffer(client.0 * SLOTS as u64 + slot as u64))
    }

    /// A command of a process is complete, or given up.
    pub(super) fn end(&mut self, client: ClientKey) {
        if let Some(payload) = self.0.get_mut(&client) {
            payload.in_flight -= 1;
            if payload.left && payload.in_flight == 0 {
                self.0.remove(&client);
            }
        }
    }

    /// A process has ended; what it had commanded goes on.
    pub(super) fn leave(&mut self, client: ClientKey) {
        if let Some(payload) = self.0.get_mut(&client) {
            payload.left = true;
            if payload.in_flight == 0 {
                self.0.remove(&client);
            }
        }
    }

    /// Whether commands of processes that have ended are under way.
    pub(super) fn is_finishing(&self) -> bool {
        self.0.values().any(|payload| payload.left)
    }

    /// Copies out of a payload.
    pub(super) fn read(&self, buffer: Buffer, offset: u64, into: &mut [u8]) -> Option<()> {
        let from = self.place(buffer, offset, into.len())?;
        // SAFETY: `place` saw that the range is mapped; `into` is memory of our own. The process may write there, which `copy` allows.
        unsafe { vmmc_shm::copy(from, into.as_mut_ptr(), into.len()) };
        Some(())
    }

    /// Copies into a payload.
    pub(super) fn write(&self, buffer: Buffer, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.place(buffer, offset, bytes.len())?;
        // SAFETY: as in `read`; the mapping is writable.
        unsafe { vmmc_shm::copy(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    fn place(&self, Buffer(number): Buffer, offset: u64, len: usize) -> Option<*mut u8> {
        let payload = self.0.get(&ClientKey(number / SLOTS as u64))?;
        let slot = usize::try_from(number % SLOTS as u64).ok()?;
        let offset = usize::try_from(offset).ok().filter(|offset| *offset <= PIECE)?;
        if len > PIECE - offset {
            return None;
        }
        // SAFETY: below `SLOTS * PIECE`, the mapping's length, by the checks above.
        Some(unsafe { payload.mapping.as_ptr().add(slot * PIECE + offset) })
    }
}
