//! Two ports over UDP on this host, through a wire that behaves and through one that does not.
#![cfg(not(loom))]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vmmc_link::{
    Binding, Buffer, Config, Event, ImportId, Keys, Memory, Refusal, Secret, Ticket, Time,
};
use vmmc_ni::fabric::{Fabric, Sent, UdpFabric};
use vmmc_ni::port::{Host, LinkNumber, Port};

const LEN: usize = 1 << 20;
const BINDING: Binding = Binding { export: 3, capability: 0x1234_5678_9abc_def0 };

/// One exported memory, and one local buffer.
struct Bytes {
    exported: Vec<u8>,
    local: Vec<u8>,
    notes: Vec<(u64, u64, u64)>,
}

impl Bytes {
    fn new(fill: u8) -> Self {
        Self { exported: vec![0; LEN], local: vec![fill; LEN], notes: Vec::new() }
    }

    fn range(&mut self, target: &Binding, offset: u64, len: usize) -> Result<&mut [u8], Refusal> {
        if *target != BINDING {
            return Err(Refusal::Revoked);
        }
        let start = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        let end = start.checked_add(len).ok_or(Refusal::Bounds)?;
        self.exported.get_mut(start..end).ok_or(Refusal::Bounds)
    }
}

impl Memory for Bytes {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.range(target, offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        self.place(target, offset, &value.to_le_bytes())
    }
    fn notify(&mut self, _: &Binding, offset: u64, len: u64, value: u64) -> Result<(), Refusal> {
        self.notes.push((offset, len, value));
        Ok(())
    }
    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.copy_from_slice(self.range(target, offset, into.len())?);
        Ok(())
    }
    fn gather(&mut self, _: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        into.copy_from_slice(&self.local[offset as usize..][..into.len()]);
        Ok(())
    }
    fn scatter(&mut self, _: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.local[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Host for Bytes {
    fn turn_to(&mut self, _: LinkNumber) {}
}

/// A wire that loses, repeats, swaps and damages a twentieth of its datagrams each, and is full now and then.
struct Faulty {
    wire: UdpFabric,
    random: u64,
    late: Option<(SocketAddr, Vec<u8>)>,
}

impl Faulty {
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % limit
    }
}

impl Fabric for Faulty {
    fn batch(&self, segment: usize) -> usize {
        self.wire.batch(segment)
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        if self.below(50) == 0 {
            return Sent::Full;
        }
        for datagram in bytes.chunks(segment) {
            let mut datagram = datagram.to_vec();
            match self.below(20) {
                0 => continue,
                1 => drop(self.wire.send(to, &datagram, segment)),
                2 => {
                    let at = self.below(datagram.len() as u64) as usize;
                    datagram[at] ^= 0x10;
                }
                3 => {
                    if let Some((to, late)) = self.late.replace((to, datagram)) {
                        self.wire.send(to, &late, segment);
                    }
                    continue;
                }
                _ => {}
            }
            self.wire.send(to, &datagram, segment);
        }
        Sent::Gone
    }

    fn receive(&mut self, take: impl FnMut(&mut [u8])) -> usize {
        self.wire.receive(take)
    }
}

/// A host whose queues are full every other time.
struct Narrow {
    wire: UdpFabric,
    full: bool,
    allowed: u64,
}

impl Fabric for Narrow {
    fn batch(&self, segment: usize) -> usize {
        self.wire.batch(segment)
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        self.full = !self.full;
        if self.full { Sent::Full } else { self.wire.send(to, bytes, segment) }
    }

    fn allow(&mut self, bytes: u64) -> bool {
        std::mem::replace(&mut self.allowed, bytes) < bytes
    }

    fn receive(&mut self, take: impl FnMut(&mut [u8])) -> usize {
        self.wire.receive(take)
    }
}

/// Two ports with a link between them, both polled by the test.
struct Pair<F> {
    ports: [Port<F>; 2],
    links: [LinkNumber; 2],
    hosts: [Bytes; 2],
    start: Instant,
}

impl<F: Fabric> Pair<F> {
    /// With `fabrics` on each side, which `wrap` makes of bare ones.
    fn new(address: &str, rails: usize, mut wrap: impl FnMut(UdpFabric) -> F) -> Self {
        let mut side = || {
            let bare = (0..rails).map(|_| UdpFabric::bind(address.parse().unwrap()).unwrap());
            let bare: Vec<_> = bare.collect();
            let addresses: Vec<_> = bare.iter().map(|bare| bare.address().unwrap()).collect();
            (Port::new(bare.into_iter().map(&mut wrap).collect()), addresses)
        };
        let ((mut first, first_at), (mut second, second_at)) = (side(), side());
        let links = [first.reserve().unwrap(), second.reserve().unwrap()];
        let secrets = [Secret([1; 32]), Secret([2; 32])];
        for (port, side, peer_at) in [(&mut first, 0, second_at), (&mut second, 1, first_at)] {
            let config = Config { remote_link: links[1 - side].on_the_wire(), ..Config::default() };
            let keys =
                Keys::Encrypted { send: secrets[side].clone(), receive: secrets[1 - side].clone() };
            port.open(links[side], config, &keys, peer_at, Time::ZERO).unwrap();
        }
        let hosts = [Bytes::new(0), Bytes::new(0)];
        Self { ports: [first, second], links, hosts, start: Instant::now() }
    }

    fn import(&mut self) -> ImportId {
        self.ports[0].link(self.links[0]).unwrap().import(BINDING).unwrap()
    }

    /// Polls both until the first side's link tells an event that is wanted.
    fn until(&mut self, mut wanted: impl FnMut(Event) -> bool) {
        loop {
            assert!(self.start.elapsed() < Duration::from_secs(60), "it does not come");
            let now = Time::from_nanos(self.start.elapsed().as_nanos() as u64);
            for (port, host) in self.ports.iter_mut().zip(&mut self.hosts) {
                port.poll(now, host);
            }
            while self.ports[1].poll_event().is_some() {}
            while let Some((_, event)) = self.ports[0].poll_event() {
                if wanted(event) {
                    return;
                }
            }
        }
    }

    fn complete(&mut self, ticket: Ticket) {
        self.until(|event| match event {
            Event::Completed { through, .. } => through >= ticket,
            Event::Refused { reason, .. } => panic!("{reason}"),
            _ => false,
        });
    }

    /// A megabyte there, a word, a notification, and the megabyte back.
    fn carry_everything(&mut self) {
        let sent: Vec<u8> = (0..LEN).map(|at| (at * 7 + at / 251) as u8).collect();
        self.hosts[0].local.copy_from_slice(&sent);
        let import = self.import();
        let link = self.ports[0].link(self.links[0]).unwrap();
        link.send(import, 0, Buffer(0), 0, LEN as u64).unwrap();
        let word = link.signal(import, 64, 0x0123_4567_89ab_cdef).unwrap();
        let note = link.notify(import, 5, 6, 7).unwrap();
        assert!(word < note);
        self.complete(note);
        let mut expected = sent;
        expected[64..72].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_le_bytes());
        assert!(self.hosts[1].exported == expected);
        assert_eq!(std::mem::take(&mut self.hosts[1].notes), [(5, 6, 7)]);

        self.hosts[0].local.fill(0);
        let link = self.ports[0].link(self.links[0]).unwrap();
        let fetched = link.fetch(import, 0, Buffer(0), 0, LEN as u64).unwrap();
        self.complete(fetched);
        assert!(self.hosts[0].local == expected);
    }
}

#[test]
fn bytes_words_notes_and_fetches_go_over_udp() {
    Pair::new("127.0.0.1:0", 1, |bare| bare).carry_everything();
}

#[test]
fn the_same_over_ipv6() {
    Pair::new("[::1]:0", 1, |bare| bare).carry_everything();
}

#[test]
fn two_rails_carry_one_link() {
    Pair::new("127.0.0.1:0", 2, |bare| bare).carry_everything();
}

#[test]
fn a_wire_that_loses_repeats_swaps_and_damages_harms_nothing() {
    for seed in 1..=4 {
        Pair::new("127.0.0.1:0", 1, |wire| Faulty { wire, random: seed, late: None })
            .carry_everything();
    }
}

/// What takes the path 640 us may lie in the queues of the host that sends.
#[test]
fn a_full_host_is_told_how_much_it_may_hold() {
    let mut pair = Pair::new("127.0.0.1:0", 1, |wire| Narrow { wire, full: false, allowed: 0 });
    // A rate is known when something got through for some milliseconds.
    let (mut carried, mut allowed) = (0, 0);
    while allowed == 0 {
        pair.carry_everything();
        carried += LEN as u64;
        allowed = pair.ports[0].fabrics()[0].allowed;
    }
    let capacity = pair.ports[0].look(pair.links[0]).unwrap().path(0).unwrap().capacity;
    assert!(allowed <= capacity / 1000, "{allowed} bytes at {capacity} a second");
    assert!(capacity / 100 <= 2 * carried, "{capacity} a second, {carried} in all");
}

#[test]
fn a_stranger_on_the_wire_is_counted_and_ignored() {
    let mut pair = Pair::new("127.0.0.1:0", 1, |bare| bare);
    let mut stranger = UdpFabric::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = pair.ports[1].fabrics()[0].address().unwrap();
    for len in 0..100 {
        stranger.send(at, &vec![0x10; len], 1200);
    }
    pair.carry_everything();
    assert!(pair.ports[1].strays() >= 90);
}

#[test]
fn a_refused_send_is_told_and_the_link_goes_on() {
    let mut pair = Pair::new("127.0.0.1:0", 1, |bare| bare);
    let import = pair.import();
    let link = pair.ports[0].link(pair.links[0]).unwrap();
    link.send(import, LEN as u64 - 1, Buffer(0), 0, 2).unwrap();
    pair.until(|event| matches!(event, Event::Refused { reason, .. } if reason == Refusal::Bounds));
    pair.carry_everything();
}

#[test]
fn numbers_of_closed_links_are_not_used_again_at_once() {
    let mut pair = Pair::new("127.0.0.1:0", 1, |bare| bare);
    let [first, _] = pair.links;
    pair.ports[0].close(first);
    assert!(pair.ports[0].link(first).is_none());
    let next = pair.ports[0].reserve().unwrap();
    assert_ne!(next, first);
    assert_eq!(next.on_the_wire() & 0xffff, first.on_the_wire() & 0xffff);
}
