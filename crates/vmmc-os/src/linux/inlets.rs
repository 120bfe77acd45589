//! Who may have an [`Inlet`], and the program that fills them: at the devices of this host's addresses, before the kernel's own network layers.
//!
//! It looks at what is addressed to this host: a whole UDP datagram, of IPv4 without options or IPv6 without extension headers, small enough, for an address
//! and port that were admitted, whose ring has room. Everything else goes its way as if it were not there.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::bpf::{Attributes, Command, Instruction, change, make};
use super::inlet::{Inlet, MOST, RECORD, RING};
use crate::{Descriptor, OsError};

/// Sockets of one host that have an inlet at a time.
const MOST_INLETS: u32 = 4096;
/// Address and port, as [`key`] writes them.
const KEY: usize = 20;
/// Where a program runs that looks at what comes in through a device, by its number for the kernel (`BPF_TCX_INGRESS`).
const INGRESS: u32 = 46;

/// Why small datagrams have no short way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum InletError {
    /// the service may not have the kernel run a program at a network device ({0}): start it as root, or with CAP_BPF and CAP_NET_ADMIN
    NotAllowed(OsError),
    /// the kernel does not take the program ({0}): Linux 6.6 or later with CONFIG_BPF_SYSCALL is needed
    Unsupported(OsError),
    /// no Ethernet device has the address {0}: write the host's own address in node.toml
    NoDevice(IpAddr),
}

impl From<OsError> for InletError {
    fn from(error: OsError) -> Self {
        match error {
            OsError::PERM | OsError::ACCESS => Self::NotAllowed(error),
            error => Self::Unsupported(error),
        }
    }
}

/// All inlets of this host that one service gives out. Without it they are never filled.
#[derive(Debug)]
pub struct Inlets {
    /// Rings by address and port.
    rings: Descriptor,
    program: Descriptor,
    /// Devices where the program runs.
    devices: Vec<(u32, Descriptor)>,
}

impl Inlets {
    /// Loads the program, which runs nowhere yet.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn open() -> Result<Self, InletError> {
        let rings = map_of_rings()?;
        let program = load(&rings)?;
        Ok(Self { rings, program, devices: Vec::new() })
    }

    /// A ring for what comes to a UDP socket that is bound to this address; for [`Inlet::over`]. As long as it is not dismissed the socket must stay open, lest
    /// somebody else's take its place.
    ///
    /// # Errors
    /// When no device has the address, or the system has no more memory.
    pub fn admit(&mut self, address: SocketAddr) -> Result<Descriptor, InletError> {
        self.watch(address.ip())?;
        let ring = new_ring()?;
        // Closed until its reader opens it.
        drop(Inlet::over(&ring)?);
        let (key, value) = (key(address), ring.as_raw_fd());
        let attributes = Attributes::new()
            .descriptor(0, self.rings.as_fd())
            .address(8, &key)
            .address(16, &value);
        // SAFETY: key and value are as long as the map was told, and live until the call is over.
        unsafe { change(Command::UpdateElement, &attributes) }?;
        Ok(ring)
    }

    /// What comes to this address goes to its socket from now on.
    pub fn dismiss(&mut self, address: SocketAddr) {
        let key = key(address);
        let attributes = Attributes::new().descriptor(0, self.rings.as_fd()).address(8, &key);
        // SAFETY: the key is as long as the map was told, and lives until the call is over. One that is not there is dismissed already.
        let _ = unsafe { change(Command::DeleteElement, &attributes) };
    }

    /// Has the program run at the device that has an address.
    fn watch(&mut self, address: IpAddr) -> Result<(), InletError> {
        let device = device_of(address).ok_or(InletError::NoDevice(address))?;
        if self.devices.iter().any(|(watched, _)| *watched == device) {
            return Ok(());
        }
        let attributes =
            Attributes::new().descriptor(0, self.program.as_fd()).word(4, device).word(8, INGRESS);
        // SAFETY: there are no addresses.
        let link = unsafe { make(Command::CreateLink, &attributes) }?;
        self.devices.push((device, link));
        Ok(())
    }
}

/// How the program names an address: 16 bytes, those of IPv4 as IPv6 maps them, and the port, in the network's order.
fn key(address: SocketAddr) -> [u8; KEY] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut key = [0; KEY];
    key[..16].copy_from_slice(&ip.octets());
    key[16..18].copy_from_slice(&address.port().to_be_bytes());
    key
}

fn new_ring() -> Result<Descriptor, OsError> {
    const RING_BUFFER: u32 = 27;
    let attributes = Attributes::new().word(0, RING_BUFFER).word(12, RING as u32);
    // SAFETY: there are no addresses.
    unsafe { make(Command::CreateMap, &attributes) }
}

fn map_of_rings() -> Result<Descriptor, OsError> {
    const HASH_OF_MAPS: u32 = 13;
    let pattern = new_ring()?;
    let attributes = Attributes::new()
        .word(0, HASH_OF_MAPS)
        .word(4, KEY as u32)
        .word(8, size_of::<libc::c_int>() as u32)
        .word(12, MOST_INLETS)
        .descriptor(20, pattern.as_fd());
    // SAFETY: there are no addresses.
    unsafe { make(Command::CreateMap, &attributes) }
}

fn load(rings: &Descriptor) -> Result<Descriptor, OsError> {
    const CLASSIFIER: u32 = 3;
    const LICENSE: &CStr = c"Dual MIT/GPL";
    let program = program(rings).ok_or(OsError::TOOBIG)?;
    let attributes = Attributes::new()
        .word(0, CLASSIFIER)
        .word(4, u32::try_from(program.len()).unwrap_or(0))
        .address(8, program.as_slice())
        .address(16, LICENSE);
    // SAFETY: the instructions are as many as said, the license ends with a zero, and both live until the call is over.
    unsafe { make(Command::LoadProgram, &attributes) }
}

/// `None` if it were too long.
fn program(rings: &Descriptor) -> Option<Vec<Instruction>> {
    use Instruction as I;
    // The kernel's functions.
    const LOOK_UP: i32 = 1;
    const LOAD_BYTES: i32 = 26;
    const RESERVE: i32 = 131;
    const SUBMIT: i32 = 132;
    const DISCARD: i32 = 133;
    const WITHOUT_WAKING: i32 = 1;
    // What becomes of a packet.
    const NEXT: i32 = -1;
    const TAKEN: i32 = 2;
    // What the program is told of it (`struct __sk_buff`).
    const KIND: i16 = 4;
    const PROTOCOL: i16 = 16;
    const HAS_VLAN: i16 = 20;
    const DATA: i16 = 76;
    const DATA_END: i16 = 80;
    const SEGMENT: i16 = 176;
    const TO_THIS_HOST: i32 = 0;
    const UDP: i32 = 17;
    // Where headers of Ethernet, then IPv4 or IPv6, and UDP end.
    const V4_HEADERS: i32 = 14 + 20 + 8;
    const V6_HEADERS: i32 = 14 + 40 + 8;
    const PLACE: i16 = -24;
    let network = |value: u16| i32::from(value.to_be());
    let (packet, len, record, headers) = (6, 7, 8, 9);
    let (data, end) = (2, 3);

    let enough = |bytes| [I::copy(4, data), I::add(4, bytes), I::end_if_beyond(4, end)];
    let mut v4 = enough(V4_HEADERS).to_vec();
    v4.extend([
        I::load8(1, data, 14),
        I::end_unless(1, 0x45),
        // Fragments.
        I::load16(1, data, 20),
        I::and(1, network(0x3fff)),
        I::end_unless(1, 0),
        I::load8(1, data, 23),
        I::end_unless(1, UDP),
        I::set(1, 0),
        I::store32(10, PLACE, 1),
        I::store32(10, PLACE + 4, 1),
        I::set(1, i32::from_ne_bytes([0, 0, 0xff, 0xff])),
        I::store32(10, PLACE + 8, 1),
        I::load32(1, data, 30),
        I::store32(10, PLACE + 12, 1),
        I::load16(1, data, 36),
        I::load16(len, data, 38),
        I::set(headers, V4_HEADERS),
    ]);
    let mut v6 = vec![I::end_unless(1, network(0x86dd))];
    v6.extend(enough(V6_HEADERS));
    v6.extend([I::load8(1, data, 20), I::end_unless(1, UDP)]);
    for word in (0..16).step_by(4) {
        v6.extend([I::load32(1, data, 38 + word), I::store32(10, PLACE + word, 1)]);
    }
    v6.extend([I::load16(1, data, 56), I::load16(len, data, 58), I::set(headers, V6_HEADERS)]);
    v4.push(I::skip(v6.len() as i16));

    let mut all = vec![I::copy(packet, 1)];
    // Several datagrams together, or what a VLAN of this device gets, is not for us.
    for (field, value) in [(KIND, TO_THIS_HOST), (HAS_VLAN, 0), (SEGMENT, 0)] {
        all.extend([I::load32(1, packet, field), I::end_unless(1, value)]);
    }
    all.extend([
        I::load32(data, packet, DATA),
        I::load32(end, packet, DATA_END),
        I::set(1, 0),
        I::store32(10, PLACE + 16, 1),
        I::load32(1, packet, PROTOCOL),
        I::skip_if(1, network(0x0800), 1),
        I::skip(v4.len() as i16),
    ]);
    all.extend(v4);
    all.extend(v6);
    all.extend([
        I::store16(10, PLACE + 16, 1),
        I::from_network_16(len),
        I::add(len, -8),
        I::end_if_zero(len),
        I::end_if_above(len, MOST as i32),
    ]);
    all.extend(I::map(1, rings));
    all.extend([
        I::copy(2, 10),
        I::add(2, PLACE.into()),
        I::call(LOOK_UP),
        I::end_if_zero(0),
        I::copy(1, 0),
        I::set(2, RECORD as i32),
        I::set(3, 0),
        I::call(RESERVE),
        I::end_if_zero(0),
        I::copy(record, 0),
        I::store32(record, 0, len),
        I::copy(1, packet),
        I::copy(2, headers),
        I::copy(3, record),
        I::add(3, 8),
        I::copy(4, len),
        I::call(LOAD_BYTES),
        I::copy(1, record),
        I::set(2, WITHOUT_WAKING),
    ]);
    // Shorter than its header says: it is not ours to judge.
    let refuse = [I::call(DISCARD), I::end()];
    all.push(I::skip_if(0, 0, refuse.len() as i16));
    all.extend(refuse);
    all.extend([I::call(SUBMIT), I::set(0, TAKEN), I::exit()]);
    I::finish(all, NEXT)
}

/// The number of the Ethernet device (or the one to oneself) that has an address.
fn device_of(address: IpAddr) -> Option<u32> {
    let mut all = ptr::null_mut();
    // SAFETY: the call sets `all` to a list that lives until it is freed, below.
    if unsafe { libc::getifaddrs(&raw mut all) } != 0 {
        return None;
    }
    let mut entries = Vec::new();
    let mut next = all;
    // SAFETY: each entry of the list is valid until it is freed, and so are its name, and its address if it has one.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: as above.
        unsafe {
            entries.push((CStr::from_ptr(entry.ifa_name).to_owned(), Entry::read(entry.ifa_addr)))
        };
    }
    // SAFETY: the list is the kernel's answer from above, and nothing points into it any more.
    unsafe { libc::freeifaddrs(all) };
    let has_it = |entry: &Entry| matches!(entry, Entry::Address(own) if *own == address);
    let (name, _) = entries.iter().find(|(_, entry)| has_it(entry))?;
    entries.iter().find_map(|(other, entry)| match entry {
        Entry::Device(number) if other == name => Some(*number),
        _ => None,
    })
}

/// What the system says of a device.
enum Entry {
    Address(IpAddr),
    Device(u32),
    Other,
}

impl Entry {
    /// # Safety
    /// `address` is null, or valid for its family.
    unsafe fn read(address: *const libc::sockaddr) -> Self {
        // SAFETY: the caller's promise; each family has the structure that is read.
        unsafe {
            match address.as_ref().map(|any| i32::from(any.sa_family)) {
                Some(libc::AF_INET) => {
                    let bits = (*address.cast::<libc::sockaddr_in>()).sin_addr.s_addr;
                    Self::Address(IpAddr::from(bits.to_ne_bytes()))
                }
                Some(libc::AF_INET6) => Self::Address(IpAddr::from(
                    (*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr,
                )),
                Some(libc::AF_PACKET) => {
                    let device = *address.cast::<libc::sockaddr_ll>();
                    match device.sll_hatype {
                        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => {
                            u32::try_from(device.sll_ifindex).map_or(Self::Other, Self::Device)
                        }
                        _ => Self::Other,
                    }
                }
                _ => Self::Other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;

    /// A socket with its inlet, and one that sends to it; `None`, and a line that says so, where the system does not allow it.
    fn pair(test: &str, host: &str) -> Option<(Inlets, UdpSocket, Inlet, UdpSocket)> {
        let mut inlets = match Inlets::open() {
            Ok(inlets) => inlets,
            Err(InletError::Unsupported(error)) => panic!("the program was refused: {error}"),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {error}");
                return None;
            }
        };
        let to = UdpSocket::bind((host, 0)).unwrap();
        to.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let address = to.local_addr().unwrap();
        let ring = match inlets.admit(address) {
            Ok(ring) => ring,
            Err(error) => {
                // A kernel before 6.6.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {error}");
                return None;
            }
        };
        let from = UdpSocket::bind((host, 0)).unwrap();
        from.connect(address).unwrap();
        Some((inlets, to, Inlet::over(&ring).unwrap(), from))
    }

    fn take(inlet: &mut Inlet, wanted: usize) -> Vec<Vec<u8>> {
        let limit = Instant::now() + Duration::from_secs(60);
        let mut found = Vec::new();
        while found.len() < wanted {
            assert!(Instant::now() < limit, "{} of {wanted} datagrams came", found.len());
            inlet.take(|datagram| found.push(datagram.to_vec()));
        }
        found
    }

    fn from_socket(socket: &UdpSocket) -> Vec<u8> {
        let mut bytes = [0; 2048];
        let len = socket.recv(&mut bytes).unwrap();
        bytes[..len].to_vec()
    }

    #[test]
    fn small_datagrams_come_by_an_inlet_while_it_is_open_and_all_others_by_the_socket() {
        for host in ["127.0.0.1", "::1"] {
            if UdpSocket::bind((host, 0)).is_err() {
                continue;
            }
            let Some((mut inlets, to, mut inlet, from)) = pair("small_datagrams", host) else {
                return;
            };
            from.send(b"closed").unwrap();
            assert_eq!(from_socket(&to), b"closed");
            inlet.open();
            for len in [1, 7, MOST] {
                from.send(&vec![len as u8; len]).unwrap();
                assert_eq!(take(&mut inlet, 1), [vec![len as u8; len]]);
            }
            for bytes in [vec![], vec![1; MOST + 1], vec![2; 1400]] {
                from.send(&bytes).unwrap();
                assert_eq!(from_socket(&to), bytes);
            }
            from.send(b"before").unwrap();
            inlet.close();
            from.send(b"behind").unwrap();
            assert_eq!(take(&mut inlet, 1), [b"before"]);
            assert_eq!(from_socket(&to), b"behind");
            inlet.open();
            from.send(b"again").unwrap();
            assert_eq!(take(&mut inlet, 1), [b"again"]);
            inlets.dismiss(to.local_addr().unwrap());
            from.send(b"dismissed").unwrap();
            assert_eq!(from_socket(&to), b"dismissed");
        }
    }

    #[test]
    fn what_an_inlet_has_no_room_for_goes_to_the_socket_and_rings_are_used_again() {
        let Some((_inlets, to, mut inlet, from)) = pair("what_an_inlet", "127.0.0.1") else {
            return;
        };
        for round in 0_u32..5 {
            inlet.open();
            let sent: Vec<_> =
                (0..300).map(|number| (round * 300 + number).to_ne_bytes()).collect();
            for bytes in &sent {
                from.send(bytes).unwrap();
            }
            // One less than fit: a full ring looks empty.
            let room = RING / (8 + RECORD) - 1;
            assert_eq!(take(&mut inlet, room), sent[..room]);
            assert!(!inlet.has_some());
            for bytes in &sent[room..] {
                assert_eq!(from_socket(&to), bytes);
            }
            inlet.close();
        }
    }

    #[test]
    fn others_are_left_alone() {
        let Some((_inlets, _to, mut inlet, _from)) = pair("others_are_left_alone", "127.0.0.1")
        else {
            return;
        };
        inlet.open();
        let (one, other) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        other.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        one.send_to(b"not for it", other.local_addr().unwrap()).unwrap();
        assert_eq!(from_socket(&other), b"not for it");
        assert!(!inlet.has_some());
    }
}
