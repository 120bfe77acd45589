//! The command queues of the processes: each in memory that its process may spoil.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vmmc_ni::engine::Engine;
use vmmc_os::{Access, Descriptor, Mapping, memory_len, memory_seals, reserve_memory};
use vmmc_proto::Refusal;
use vmmc_shm::command::{Command, CommandQueue, Direction, MEMORY, Outcome, PAYLOAD, PIECE, SLOTS};

use crate::clients::ClientKey;
use crate::exports::{Exports, read_fully};
use crate::service::Service;

/// Commands of one process executed before it is the next one's turn.
const BUDGET: usize = 16;
/// How long after a command for another node a queue is still looked at.
const LINGER: Duration = Duration::from_micros(50);

/// One process's queue. Only the commands are mapped; payload is read into the service's own buffer.
#[derive(Debug)]
pub(crate) struct Queue {
    memory: Descriptor,
    mapping: Mapping,
    engine: Engine,
    /// It has a place in the round.
    active: bool,
    /// It keeps that place until then, because it works with other nodes: answers that it waits for come soon, and then it commands again.
    until: Option<Instant>,
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
        Ok(Self { memory, mapping, engine: Engine::default(), active: false, until: None })
    }

    /// The queue itself.
    pub(crate) fn commands(&self) -> &CommandQueue {
        // SAFETY: the mapping is page-aligned, `PAYLOAD` bytes long, which is no less than a queue, writable, and lives as long as `self`;
        // the memory cannot shrink (checked when it was shown).
        unsafe { CommandQueue::at(self.mapping.as_ptr()) }
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
        let (memory, cluster) = (&queue.memory, &mut self.cluster);
        // SAFETY: as in `Queue::commands`, whose borrow would cover the engine too; the mapping outlives this call.
        let commands = unsafe { CommandQueue::at(queue.mapping.as_ptr()) };
        let mut elsewhere = false;
        let more = queue.engine.poll_deferring(commands, budget, |slot, command, deferred| {
            if !imports.contains(&command.handle) {
                return Some(Outcome::Unknown);
            }
            if let Some(cluster) = cluster.as_mut().filter(|all| all.reaches(command.handle)) {
                elsewhere = true;
                return cluster.execute(memory, slot, command, deferred);
            }
            Some(write(exports, memory, buffer, slot, command))
        });
        if elsewhere {
            queue.until = Some(Instant::now() + LINGER);
        }
        let lingers = queue.until.is_some_and(|until| Instant::now() < until);
        if more || lingers || !queue.engine.sleep(commands) {
            return true;
        }
        queue.until = None;
        queue.active = false;
        false
    }
}

/// Writes into an export of this node.
fn write(
    exports: &mut Exports,
    memory: &Descriptor,
    buffer: &mut Vec<u8>,
    slot: usize,
    command: &Command,
) -> Outcome {
    let len = usize::try_from(command.len).unwrap_or(usize::MAX);
    if command.direction != Direction::Send {
        return Outcome::Unknown;
    }
    if len > PIECE {
        return Outcome::Range;
    }
    buffer.resize(PIECE, 0);
    let payload = &mut buffer[..len];
    if !read_fully(memory, (PAYLOAD + slot * PIECE) as u64, payload) {
        return Outcome::Memory;
    }
    let Command { handle, offset, signal, notify, .. } = *command;
    outcome(exports.send(handle, offset, payload, signal, notify))
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
