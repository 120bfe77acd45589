//! The engine: executes the commands of a process's queue. It has no thread of its own: whoever has time polls it.

use vmmc_os::futex_wake;
use vmmc_shm::command::{Command, CommandQueue, Deferred, Outcome, Taker};

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
        self.poll_deferring(queue, budget, |slot, command, _| Some(execute(slot, command)))
    }

    /// As [`Engine::poll`], but `execute` may keep a command (`None`), and say later with [`Engine::complete`] what became of it.
    pub fn poll_deferring(
        &mut self,
        queue: &CommandQueue,
        budget: usize,
        mut execute: impl FnMut(usize, &Command, Deferred) -> Option<Outcome>,
    ) -> bool {
        let (mut done, mut completed) = (0, false);
        while done < budget {
            let Some((slot, command)) = queue.take(&self.taker) else { break };
            let outcome = match command {
                Some(command) => execute(slot, &command, self.taker.deferred()),
                None => Some(Outcome::Unknown),
            };
            match outcome {
                Some(outcome) => {
                    queue.complete(&mut self.taker, outcome);
                    completed = true;
                }
                None => self.taker.skip(),
            }
            done += 1;
        }
        if completed {
            wake(queue);
        }
        done == budget
    }

    /// Says what became of commands that were kept, and wakes posters that wait.
    pub fn complete(queue: &CommandQueue, commands: impl IntoIterator<Item = (Deferred, Outcome)>) {
        commands
            .into_iter()
            .for_each(|(command, outcome)| queue.complete_deferred(command, outcome));
        wake(queue);
    }

    /// Says that nobody will poll before the next ring; `false`, and it did not say so, when there is a command.
    #[must_use = "poll again if there is a command"]
    pub fn sleep(&self, queue: &CommandQueue) -> bool {
        queue.announce_sleep(&self.taker)
    }
}

fn wake(queue: &CommandQueue) {
    if queue.announce_completions() {
        futex_wake(queue.completed(), u32::MAX >> 1);
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

    #[test]
    fn kept_commands_are_completed_in_any_order() {
        let (queue, mut engine) = (CommandQueue::new(), Engine::default());
        let command = Command {
            direction: Direction::Fetch,
            handle: 1,
            offset: 0,
            len: 8,
            local: 0,
            signal: None,
            notify: None,
        };
        let slots: Vec<_> = (0..3)
            .map(|_| {
                let claim = queue.claim().unwrap();
                let slot = claim.slot();
                assert!(!queue.post(claim, &command));
                slot
            })
            .collect();
        let mut kept = Vec::new();
        engine.poll_deferring(&queue, 8, |slot, _, deferred| {
            kept.push(deferred);
            (slot == slots[1]).then_some(Outcome::Range)
        });
        let done = |slot: usize| queue.reap(slot, |outcome| outcome);
        assert_eq!(
            slots.iter().map(|slot| done(*slot)).collect::<Vec<_>>(),
            [None, Some(Outcome::Range), None]
        );
        Engine::complete(&queue, [(kept[2], Outcome::Done)]);
        assert_eq!((done(slots[0]), done(slots[2])), (None, Some(Outcome::Done)));
        Engine::complete(&queue, [(kept[0], Outcome::Gone)]);
        assert_eq!(done(slots[0]), Some(Outcome::Gone));
    }
}
