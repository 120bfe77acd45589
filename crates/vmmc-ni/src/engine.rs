//! The engine: executes the commands of a process's queue. It has no thread of its own: whoever has time polls it.

use vmmc_os::futex_wake;
use vmmc_shm::command::{Command, CommandQueue, Outcome, Taker};

/// An engine at one queue.
#[derive(Debug, Default)]
pub struct Engine {
    taker: Taker,
}

impl Engine {
    /// Executes at most `budget` commands in their order, and wakes posters that wait. `execute` gets the slot and the command, which a
    /// stranger wrote: check it. A command of no known kind never gets there. Whether anything may be left.
    pub fn poll(
        &mut self,
        queue: &CommandQueue,
        budget: usize,
        mut execute: impl FnMut(usize, &Command) -> Outcome,
    ) -> bool {
        let mut done = 0;
        while done < budget {
            let Some((slot, command)) = queue.take(&self.taker) else { break };
            let outcome = command.map_or(Outcome::Unknown, |command| execute(slot, &command));
            queue.complete(&mut self.taker, outcome);
            done += 1;
        }
        if done > 0 && queue.announce_completions() {
            futex_wake(queue.completed(), u32::MAX >> 1);
        }
        done == budget
    }

    /// Says that nobody will poll before the next ring; `false`, and it did not say so, when there is a command.
    #[must_use = "poll again if there is a command"]
    pub fn sleep(&self, queue: &CommandQueue) -> bool {
        queue.announce_sleep(&self.taker)
    }
}

#[cfg(test)]
mod tests {
    use vmmc_shm::command::Direction;

    use super::*;

    #[test]
    fn a_turn_is_bounded_and_sleep_is_refused_over_a_command() {
        let (queue, mut engine) = (CommandQueue::new(), Engine::default());
        let command = |handle| Command {
            direction: Direction::Send,
            handle,
            offset: 0,
            len: 0,
            local: 0,
            signal: None,
            notify: None,
        };
        for handle in 0..5 {
            assert!(!queue.post(queue.claim().unwrap(), &command(handle)));
        }
        let mut seen = Vec::new();
        let mut execute = |_slot: usize, command: &Command| {
            seen.push(command.handle);
            Outcome::Done
        };
        assert!(engine.poll(&queue, 3, &mut execute));
        assert!(!engine.sleep(&queue));
        assert!(!engine.poll(&queue, 3, &mut execute));
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(engine.sleep(&queue));
        assert!(queue.post(queue.claim().unwrap(), &command(9)), "the engine has to be rung");
    }
}
