//! The command queues of the processes: each in memory that its process may spoil.

use std::collections::VecDeque;

use vmmc_ni::engine::Engine;
use vmmc_os::{Access, Descriptor, Mapping, memory_len, memory_seals, read_memory, reserve_memory};
use vmmc_proto::Refusal;
use vmmc_shm::command::{Command, CommandQueue, Direction, MEMORY, Outcome, PAYLOAD, PIECE, SLOTS};

use crate::clients::ClientKey;
use crate::service::Service;

/// Commands of one process executed before it is the next one's turn.
const BUDGET: usize = 16;

/// One process's queue. Only the commands are mapped; payload is read into the service's own buffer.
#[derive(Debug)]
pub(crate) struct Queue {
    memory: Descriptor,
    mapping: Mapping,
    engine: Engine,
    /// It has a place in the round.
    active: bool,
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Round {
    turns: VecDeque<ClientKey>,
    buffer: Vec<u8>,
}

impl Round {
    /// Nobody has commands.
    pub(crate) fn is_idle(&self) -> bool {
        self.turns.is_empty()
    }
}

impl Queue {
    /// Checks what a process shows as its queue.
    pub(crate) fn new(memory: Descriptor) -> Result<Self, Refusal> {
        let fixed = memory_seals(&memory).is_ok_and(|seals| seals.fixed_size)
            && memory_len(&memory).is_ok_and(|len| len >= MEMORY as u64);
        if !fixed {
            return Err(Refusal::Invalid);
        }
        // The pages must exist before the first store: a store that finds no memory would end the service.
        reserve_memory(&memory, 0, PAYLOAD as u64).map_err(|_| Refusal::Memory)?;
        let mapping =
            Mapping::new(&memory, 0, PAYLOAD, Access::ReadWrite).map_err(|_| Refusal::Exhausted)?;
        Ok(Self { memory, mapping, engine: Engine::default(), active: false })
    }
}

impl Service {
    /// A process shows its queue.
    pub(crate) fn attach(
        &mut self,
        key: ClientKey,
        descriptors: Vec<Descriptor>,
    ) -> Result<(), Refusal> {
        let memory = descriptors.into_iter().next().ok_or(Refusal::Invalid)?;
        let client = self.clients.get_mut(key).ok_or(Refusal::Invalid)?;
        if client.queue.is_some() {
            return Err(Refusal::Invalid);
        }
        client.queue = Some(Queue::new(memory)?);
        Ok(())
    }

    /// Something came from a process: its queue gets a turn.
    pub(crate) fn rung(&mut self, key: ClientKey) {
        let Some(queue) = self.clients.get_mut(key).and_then(|client| client.queue.as_mut()) else {
            return;
        };
        if !queue.active {
            queue.active = true;
            self.round.turns.push_back(key);
        }
    }

    /// One turn for each queue that may have commands.
    pub(crate) fn take_turns(&mut self) {
        for _ in 0..self.round.turns.len() {
            let Some(key) = self.round.turns.pop_front() else { return };
            let more = self.execute(key, BUDGET);
            if more {
                self.round.turns.push_back(key);
            }
        }
    }

    /// The process has ended: what it had posted is done all the same.
    pub(crate) fn take_last_turn(&mut self, key: ClientKey) {
        self.execute(key, SLOTS);
    }

    /// Executes commands of one process; whether it needs another turn. If not, it will ring.
    fn execute(&mut self, key: ClientKey, budget: usize) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let Some(queue) = &mut client.queue else { return false };
        let (imports, exports, buffer) =
            (&client.imports, &mut self.exports, &mut self.round.buffer);
        // SAFETY: the mapping is page-aligned, `PAYLOAD` bytes long, which is no less than a queue, writable, and outlives this
        // call; the memory cannot shrink (checked when it was shown).
        let commands = unsafe { CommandQueue::at(queue.mapping.as_ptr()) };
        let more = queue.engine.poll(commands, budget, |slot, command: &Command| {
            let len = usize::try_from(command.len).unwrap_or(usize::MAX);
            if command.direction != Direction::Send || !imports.contains(&command.handle) {
                return Outcome::Unknown;
            }
            if len > PIECE {
                return Outcome::Range;
            }
            buffer.resize(PIECE, 0);
            let payload = &mut buffer[..len];
            if !read_fully(&queue.memory, (PAYLOAD + slot * PIECE) as u64, payload) {
                return Outcome::Memory;
            }
            let Command { handle, offset, signal, notify, .. } = *command;
            outcome(exports.send(handle, offset, payload, signal, notify))
        });
        if more || !queue.engine.sleep(commands) {
            return true;
        }
        queue.active = false;
        false
    }
}

/// A copy that its owner can no longer change.
fn read_fully(memory: &Descriptor, offset: u64, bytes: &mut [u8]) -> bool {
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

fn outcome(result: Result<(), Refusal>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(Refusal::Rights) => Outcome::Rights,
        Err(Refusal::Range) => Outcome::Range,
        Err(Refusal::Gone) => Outcome::Gone,
        Err(Refusal::Invalid) => Outcome::Unknown,
        Err(_) => Outcome::Memory,
    }
}
