//! One seed: a random network, random commands, and every promise checked.

use std::time::Duration;

use super::memory::{Executed, Export, Exports};
use super::network::{Burst, Network, Queue, Wire};
use super::random::Random;
use super::stalls::{Stalled, Stalls};
use super::world::{Clock, Side, World};
use crate::config::{Config, Recovery};
use crate::event::{Event, ImportId, LinkError, Ticket};
use crate::link::Link;
use crate::memory::{Buffer, Refusal};
use crate::protect::{KeyError, Keys, Secret};
use crate::time::Time;
use crate::wire::Binding;

/// An export: bytes for sends that overlap, words for signals, a stamp for each ordered command, bytes that never change.
const DATA: u64 = 24 << 10;
const WORDS: u64 = 64;
const STAMPS: u64 = DATA + WORDS;
const MOST_COMMANDS: u64 = 64;
const CONSTANT: u64 = STAMPS + 8 * MOST_COMMANDS;
const CONSTANT_LEN: u64 = 48 << 10;
const SIZE: u64 = CONSTANT + CONSTANT_LEN;

/// Virtual time in which everything has to be over. Cuts, dead paths and their discovery are in it.
const LIMIT: Duration = Duration::from_secs(120);
/// What the clocks of both sides show in the beginning.
const CLOCK: Duration = Duration::from_secs(100);
const MOST_STEPS: u64 = 2_000_000;

/// What a seed that passed has shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// Commands that completed.
    pub completed: u64,
    /// Packets sent by both sides.
    pub packets: u64,
    /// Packets that they believed lost.
    pub lost: u64,
    /// Virtual time that it took.
    pub time: Duration,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Failure {
    /// memory differs: {0}
    Memory(String),
    /// order or count of signals and notifications differs: {0}
    Order(String),
    /// nothing happens any more, or too much: {0}
    Hang(String),
    /// an event that should not have been: {0}
    Event(String),
    /// a command was not accepted: {0}
    Command(#[from] crate::event::CommandError),
    /// {0}
    Key(#[from] KeyError),
}

/// One command of the plan, with what is needed to check it.
struct Planned {
    at: Time,
    action: Action,
    ticket: Option<Ticket>,
}

enum Action {
    Send { offset: u64, buffer: usize },
    Signal { offset: u64, value: u64 },
    Notify { value: u64 },
    Fetch { offset: u64, buffer: usize, expected: Vec<u8> },
}

struct Import {
    side: usize,
    export: usize,
    id: ImportId,
    plan: Vec<Planned>,
    next: usize,
    completed: u64,
    /// What the export holds in the end.
    expected: Vec<u8>,
    executed: Vec<Executed>,
    abort_at: Option<Time>,
    aborted: bool,
    refused: bool,
    closed: bool,
}

/// What befalls the world besides faults of the wires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Nothing,
    Revoked,
    /// All wires are cut for good.
    Apart,
}

/// Runs a seed.
///
/// # Errors
///
/// [`Failure`] tells the first promise that was found broken.
pub fn check(seed: u64) -> Result<Passed, Failure> {
    let mut random = Random::new(seed);
    let fate = match random.below(12) {
        0 => Fate::Revoked,
        1 => Fate::Apart,
        _ => Fate::Nothing,
    };
    let paths = 1 + random.below(3) as u8;
    let span = Duration::from_micros(100 + random.below(20_000));
    let network = random_network(&mut random, paths, span, fate);
    let mut world = random_world(&mut random, network, paths, span)?;
    let mut imports = Vec::new();
    for side in 0..2 {
        for export in 0..1 + random.below(3) as usize {
            imports.push(plan(&mut random, &mut world, side, export, span)?);
        }
    }
    let revoke_at = Time::ZERO + Duration::from_nanos(random.below(2 * span.as_nanos() as u64));
    let mut steps = 0;
    let limit = Time::ZERO + LIMIT;
    loop {
        submit(&mut world, &mut imports)?;
        if fate == Fate::Revoked && world.now >= revoke_at {
            world.sides[1].memory.exports[0].revoked = true;
        }
        world.transmit(0);
        world.transmit(1);
        take_events(&mut world, &mut imports, fate)?;
        let over = |import: &Import, world: &World| {
            import.closed || import.refused || world.sides[import.side].link.ended().is_some()
        };
        if imports.iter().all(|import| over(import, &world)) {
            break;
        }
        let next =
            imports.iter().filter(|import| !over(import, &world)).filter_map(next_action).min();
        if !world.step(next.unwrap_or(limit).min(limit)) {
            match next {
                Some(next) if next <= limit => world.now = world.now.max(next),
                _ => return Err(Failure::Hang(open_imports(&imports, &world))),
            }
        }
        steps += 1;
        if steps > MOST_STEPS {
            return Err(Failure::Hang(format!(
                "{MOST_STEPS} steps; {}",
                open_imports(&imports, &world)
            )));
        }
    }
    let time = world.now - Time::ZERO;
    // Whatever is still on its way must change nothing.
    let rest = world.now + Duration::from_secs(20);
    while world.step(rest) {
        steps += 1;
        if steps > MOST_STEPS {
            return Err(Failure::Hang("after everything was complete".to_owned()));
        }
    }
    take_events(&mut world, &mut imports, fate)?;
    judge(&world, &imports, fate)?;
    let stats = [world.sides[0].link.stats(), world.sides[1].link.stats()];
    Ok(Passed {
        completed: imports.iter().map(|import| import.completed).sum(),
        packets: stats.iter().map(|stats| stats.packets_sent).sum(),
        lost: stats.iter().map(|stats| stats.packets_lost).sum(),
        time,
    })
}

fn random_network(random: &mut Random, paths: u8, span: Duration, fate: Fate) -> Network {
    let mut network = Network::default();
    let apart_at = Time::ZERO + Duration::from_nanos(random.below(span.as_nanos() as u64));
    let kind = random.below(4);
    for path in 0..paths {
        // A path of several may die for good.
        let dead = paths > 1 && path > 0 && random.chance(0.2);
        let hole = random.chance(0.05).then(|| (apart_at, 1200 + random.below(300) as usize));
        for _ in 0..2 {
            let rate = 1e6 * 10_f64.powf(random.below(300) as f64 / 100.0);
            network.queues.push(Queue::new(rate, 8_000 + random.below(500_000)));
            let delay = Duration::from_micros(2 + random.below(if kind == 0 { 5000 } else { 200 }));
            let mut wire = Wire::new(network.queues.len() - 1, delay);
            if kind > 0 {
                wire.loss = [0.0, 0.01, 0.05, 0.2][random.below(4) as usize];
                wire.jitter = [Duration::ZERO, delay / 4, delay * 10][random.below(3) as usize];
                wire.duplicate = [0.0, 0.02, 0.2][random.below(3) as usize];
                wire.corrupt = [0.0, 0.01, 0.1][random.below(3) as usize];
                wire.burst =
                    random.chance(0.2).then_some(Burst { begin: 0.01, end: 0.1, loss: 0.8 });
                wire.mtu = 1200 + random.below(400) as usize;
            }
            wire.black_hole = hole;
            if random.chance(0.2) {
                let from = Time::ZERO + Duration::from_nanos(random.below(span.as_nanos() as u64));
                let long = Duration::from_micros(random.below(3_000_000));
                wire.cuts.push((from, from + long));
            }
            if dead || fate == Fate::Apart {
                wire.cuts.push((apart_at, Time::from_nanos(u64::MAX)));
            }
            network.wires.push(wire);
        }
    }
    network
}

fn random_world(
    random: &mut Random,
    network: Network,
    paths: u8,
    span: Duration,
) -> Result<World, Failure> {
    let encrypted = random.chance(0.7);
    let mut secret = || {
        let mut bytes = [0; 32];
        bytes.fill_with(|| random.word() as u8);
        Secret(bytes)
    };
    let (one, other) = (secret(), secret());
    let keys = |send: &Secret, receive: &Secret| match encrypted {
        true => Keys::Encrypted { send: send.clone(), receive: receive.clone() },
        false => Keys::Plaintext,
    };
    let recovery = if random.chance(0.1) { Recovery::GoBackN } else { Recovery::Selective };
    let packets_per_key = [5, 50, 1 << 22][random.below(3) as usize];
    let fetch_credit = [20 << 10, 1 << 20][random.below(2) as usize];
    let mut sides = Vec::new();
    for side in 0..2_u32 {
        let config = Config {
            local_link: 70 + side,
            remote_link: 71 - side,
            incarnation: 3 + side,
            peer_incarnation: 4 - side,
            paths,
            recovery,
            packets_per_key,
            fetch_credit,
            keep_alive: random.chance(0.2).then_some(Duration::from_millis(50)),
            // Longer than two cuts one after the other and the furthest jump of a clock.
            unreachable_after: Duration::from_secs(15),
            ..Config::default()
        };
        let keys = if side == 0 { keys(&one, &other) } else { keys(&other, &one) };
        let memory = Exports {
            exports: (0..3)
                .map(|index| Export {
                    capability: u128::from(random.word()) << 64 | index,
                    revoked: false,
                    bytes: initial(),
                    stamps: STAMPS as usize,
                })
                .collect(),
            ..Exports::default()
        };
        sides.push(Side {
            link: Link::new(config, &keys, Time::ZERO + CLOCK)?,
            memory,
            peer: 1 - side as usize,
            wires: (0..usize::from(paths)).map(|path| 2 * path + side as usize).collect(),
            clock: Clock {
                ahead: CLOCK,
                jump: random.chance(0.1).then(|| {
                    let at = Duration::from_nanos(random.below(span.as_nanos() as u64));
                    // Up to a second back and five forward.
                    let by = Duration::from_micros(random.below(6_000_000));
                    (Time::ZERO + at, CLOCK + by - Duration::from_secs(1))
                }),
            },
            stalled: random.chance(0.2).then(|| {
                let every = Duration::from_micros(50 + random.below(20_000));
                let stalls = Stalls { every, long: every / 4 };
                Stalled::new(stalls, Random::new(random.word()))
            }),
        });
    }
    Ok(World::new(network, Random::new(random.word()), sides))
}

/// Zeroes, and behind them bytes that tell their place.
fn initial() -> Vec<u8> {
    (0..SIZE).map(|at| if at < CONSTANT { 0 } else { ((at * 31) >> 3) as u8 }).collect()
}

fn plan(
    random: &mut Random,
    world: &mut World,
    side: usize,
    export: usize,
    span: Duration,
) -> Result<Import, Failure> {
    let capability = world.sides[1 - side].memory.exports[export].capability;
    let buffers = &mut world.sides[side].memory.buffers;
    let mut expected = initial();
    let (mut plan, mut executed, mut at) = (Vec::new(), Vec::new(), Time::ZERO);
    let count = random.below(MOST_COMMANDS);
    for _ in 0..count {
        if random.chance(0.3) {
            at = at + Duration::from_nanos(random.below(2 * span.as_nanos() as u64 / (count + 1)));
        }
        let mut add = |action| plan.push(Planned { at, action, ticket: None });
        let mut send = |offset: u64, bytes: Vec<u8>| {
            expected[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
            buffers.push(bytes);
            add(Action::Send { offset, buffer: buffers.len() - 1 });
        };
        let kind = random.below(10);
        if kind < 5 {
            let most = [9, 200, 3000, 20_000][random.below(4) as usize];
            let len = random.below(most);
            let offset = random.below(DATA - len);
            send(offset, (0..len).map(|_| random.word() as u8).collect());
            continue;
        }
        let value = executed.len() as u64;
        if kind < 9 {
            send(STAMPS + 8 * value, (value + 1).to_le_bytes().to_vec());
        }
        match kind {
            5 | 6 => {
                let offset = DATA + 8 * random.below(WORDS / 8);
                expected[offset as usize..offset as usize + 8]
                    .copy_from_slice(&value.to_le_bytes());
                executed.push(Executed::Signal { export: export as u64, offset, value });
                add(Action::Signal { offset, value });
            }
            7 | 8 => {
                executed.push(Executed::Notify { export: export as u64, value });
                add(Action::Notify { value });
            }
            _ => {
                let (offset, len) = match executed.len() as u64 {
                    done if done > 0 && random.chance(0.5) => (STAMPS, 8 * done),
                    _ => {
                        let len = random.below(CONSTANT_LEN);
                        (CONSTANT + random.below(CONSTANT_LEN - len), len)
                    }
                };
                let expected = expected[offset as usize..(offset + len) as usize].to_vec();
                buffers.push(vec![0xaa; len as usize]);
                add(Action::Fetch { offset, buffer: buffers.len() - 1, expected });
            }
        }
    }
    let abort_at = random
        .chance(0.05)
        .then(|| Time::ZERO + Duration::from_nanos(random.below(span.as_nanos() as u64)));
    let id = world.sides[side].link.import(Binding { export: export as u64, capability })?;
    Ok(Import {
        side,
        export,
        id,
        plan,
        next: 0,
        completed: 0,
        expected,
        executed,
        abort_at,
        aborted: false,
        refused: false,
        closed: false,
    })
}

fn next_action(import: &Import) -> Option<Time> {
    let abort = import.abort_at.filter(|_| !import.aborted);
    import.plan.get(import.next).map(|planned| planned.at).into_iter().chain(abort).min()
}

fn submit(world: &mut World, imports: &mut [Import]) -> Result<(), Failure> {
    let now = world.now;
    for import in imports {
        let side = &mut world.sides[import.side];
        if import.closed || import.refused || side.link.ended().is_some() {
            continue;
        }
        if !import.aborted && import.abort_at.is_some_and(|at| at <= now) {
            import.aborted = true;
            // It may have been closed already, with everything complete.
            let _ = side.link.abort_import(import.id);
            import.next = import.plan.len();
            continue;
        }
        let before = import.next;
        while let Some(planned) =
            import.plan.get_mut(import.next).filter(|planned| planned.at <= now)
        {
            let (link, id) = (&mut side.link, import.id);
            let len = |buffer: usize| side.memory.buffers[buffer].len() as u64;
            planned.ticket = Some(match planned.action {
                Action::Send { offset, buffer } => {
                    link.send(id, offset, Buffer(buffer as u64), 0, len(buffer))
                }
                Action::Signal { offset, value } => link.signal(id, offset, value),
                Action::Notify { value } => link.notify(id, 0, 8, value),
                Action::Fetch { offset, buffer, .. } => {
                    link.fetch(id, offset, Buffer(buffer as u64), 0, len(buffer))
                }
            }?);
            import.next += 1;
        }
        let ended = import.next == import.plan.len();
        if ended && !import.aborted && (import.next > before || before == 0) {
            side.link.flush();
            // The second time it is unknown, because it is complete.
            let _ = side.link.close_import(import.id);
        }
    }
    Ok(())
}

fn take_events(world: &mut World, imports: &mut [Import], fate: Fate) -> Result<(), Failure> {
    for index in 0..2 {
        while let Some(event) = world.event(index) {
            let of =
                |id: ImportId| move |import: &&mut Import| import.side == index && import.id == id;
            match event {
                Event::Completed { import: id, through } => {
                    let import = imports
                        .iter_mut()
                        .find(of(id))
                        .ok_or_else(|| Failure::Event(format!("{event:?}")))?;
                    complete(&mut world.sides[index].memory, import, through)?;
                }
                Event::Closed { import: id } => {
                    if let Some(import) = imports.iter_mut().find(of(id)) {
                        import.closed = true;
                    }
                }
                Event::Refused { import: id, reason } => {
                    let import = imports
                        .iter_mut()
                        .find(of(id))
                        .ok_or_else(|| Failure::Event(format!("{event:?}")))?;
                    import.refused = true;
                    let expected = fate == Fate::Revoked && index == 0 && import.export == 0;
                    if !expected || reason != Refusal::Revoked {
                        return Err(Failure::Event(format!("{event:?}")));
                    }
                }
                Event::Path { .. } => {}
                Event::Ended(LinkError::Unreachable) if fate == Fate::Apart => {}
                Event::Ended(_) => return Err(Failure::Event(format!("{event:?}"))),
            }
        }
    }
    Ok(())
}

fn complete(memory: &mut Exports, import: &mut Import, through: Ticket) -> Result<(), Failure> {
    if through.0 <= import.completed {
        return Err(Failure::Event(format!("completed {} again", through.0)));
    }
    for planned in &import.plan[import.completed as usize..through.0 as usize] {
        match &planned.action {
            // Whoever reads a buffer after its completion sends this.
            Action::Send { buffer, .. } => memory.buffers[*buffer].fill(0xee),
            Action::Fetch { buffer, expected, .. } if memory.buffers[*buffer] != *expected => {
                return Err(Failure::Memory(format!("a fetch of {} bytes", expected.len())));
            }
            Action::Fetch { buffer, .. } => memory.buffers[*buffer].fill(0xdd),
            _ => {}
        }
    }
    import.completed = through.0;
    Ok(())
}

fn judge(world: &World, imports: &[Import], fate: Fate) -> Result<(), Failure> {
    for import in imports {
        let exporter = &world.sides[1 - import.side].memory;
        if let Some(violation) = &exporter.violation {
            return Err(Failure::Order(violation.clone()));
        }
        let export = import.export as u64;
        let executed: Vec<Executed> = exporter
            .executed
            .iter()
            .filter(|executed| match executed {
                Executed::Signal { export: of, .. } | Executed::Notify { export: of, .. } => {
                    *of == export
                }
            })
            .copied()
            .collect();
        let broken_off = import.aborted || import.refused || fate == Fate::Apart;
        let as_planned = match broken_off {
            true => import.executed.starts_with(&executed),
            false => import.executed == executed,
        };
        if !as_planned {
            return Err(Failure::Order(format!(
                "import {export} of side {}: {} planned, {} executed",
                import.side,
                import.executed.len(),
                executed.len()
            )));
        }
        let held = &exporter.exports[import.export].bytes;
        if !broken_off && *held != import.expected {
            let at = held.iter().zip(&import.expected).position(|(one, other)| one != other);
            return Err(Failure::Memory(format!(
                "export {export} of side {}, byte {at:?}",
                1 - import.side
            )));
        }
        // A buffer that was fetched into is not touched after its completion.
        let buffers = &world.sides[import.side].memory.buffers;
        for planned in &import.plan[..import.completed as usize] {
            if let Action::Fetch { buffer, .. } = planned.action
                && buffers[buffer].iter().any(|&byte| byte != 0xdd)
            {
                return Err(Failure::Memory("a fetch wrote after its completion".to_owned()));
            }
        }
    }
    let unbroken = fate == Fate::Nothing && !imports.iter().any(|import| import.aborted);
    for side in &world.sides {
        if unbroken && side.link.remembered() != 0 {
            return Err(Failure::Hang(format!(
                "{} entries are never forgotten",
                side.link.remembered()
            )));
        }
    }
    Ok(())
}

fn open_imports(imports: &[Import], world: &World) -> String {
    let open: Vec<String> = imports
        .iter()
        .filter(|import| !import.closed && !import.refused)
        .map(|import| {
            format!(
                "import {} of side {}: {} of {} complete, {} accepted",
                import.export,
                import.side,
                import.completed,
                import.plan.len(),
                import.next
            )
        })
        .collect();
    let stats: Vec<String> =
        world.sides.iter().map(|side| format!("{:?}", side.link.stats())).collect();
    format!("at {:?}: {}; {}", world.now - Time::ZERO, open.join("; "), stats.join("; "))
}
