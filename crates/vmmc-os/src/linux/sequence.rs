//! Where TCP connections stand, by the numbers that their segments carry.
//!
//! The two ends of a connection agree in numbers of 32 bits, drawn at random when it was made, that nobody else knows: what one
//! has received up to is what the other has sent up to. The kernel tells nobody these numbers but a program of its own
//! virtual machine (`bpf(2)`): ours walks over the sockets that were shown to it and reads three words of each. It is no
//! filter: it never sees a byte or a segment, runs only when [`SequenceReader::read`] is called, and the sockets and whoever
//! uses them notice nothing of it. The sockets' descriptors are not kept; what is closed is no longer read.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use super::bpf::{Attributes, Command, Instruction, KernelTypes, change, make};
use crate::{Descriptor, OsError};

/// Where one end of a connection stands. All three were true a moment ago, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The socket, as [`crate::ConnectionIdentity::cookie`].
    pub cookie: u64,
    /// Everything before this number has arrived here (`rcv_nxt`).
    pub received: u32,
    /// Everything before this number has arrived at the other end, as far as is known here (`snd_una`).
    pub acknowledged: u32,
    /// Everything before this number was sent (`snd_nxt`).
    pub sent: u32,
}

/// Why sequence numbers cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum SequenceError {
    /// the service may not load a program into the kernel ({0}): start it as root on the host, or with CAP_BPF and CAP_PERFMON
    NotAllowed(OsError),
    /// the kernel does not describe its types (/sys/kernel/btf/vmlinux): use one with CONFIG_DEBUG_INFO_BTF, and let the service see /sys
    NoTypes,
    /// the kernel does not take the program ({0}): Linux 5.14 or later with CONFIG_BPF_SYSCALL is needed
    Unsupported(OsError),
}

/// Reads the sequence numbers of the sockets that it was shown.
#[derive(Debug)]
pub struct SequenceReader {
    /// A word of memory for each socket that was shown, kept by the kernel with the socket.
    shown: Descriptor,
    /// The program, tied to that map.
    link: Descriptor,
}

/// What the kernel keeps with a socket for us.
#[derive(Debug)]
#[repr(C)]
struct Shown {
    cookie: u64,
    /// Nanoseconds of the monotonic clock, after which it is no longer read.
    until: u64,
}

impl SequenceReader {
    /// Loads the program.
    ///
    /// # Errors
    /// When the system does not allow it, or not let us know enough.
    pub fn open() -> Result<Self, SequenceError> {
        let refused = |error| match error {
            OsError::PERM => SequenceError::NotAllowed(error),
            error => SequenceError::Unsupported(error),
        };
        let shown = create_map().map_err(refused)?;
        let types = KernelTypes::read().ok_or(SequenceError::NoTypes)?;
        let program = Program::for_kernel(&types, &shown).ok_or(SequenceError::NoTypes)?;
        let program = program.load().map_err(refused)?;
        let link = tie(&program, &shown).map_err(refused)?;
        Ok(Self { shown, link })
    }

    /// From now on, for so long and as long as it is open, a TCP socket is read.
    ///
    /// # Errors
    /// When the kernel has no memory.
    pub fn show(
        &self,
        socket: BorrowedFd<'_>,
        cookie: u64,
        during: Duration,
    ) -> Result<(), OsError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now =
            Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0));
        let until = u64::try_from((now + during).as_nanos()).unwrap_or(u64::MAX);
        let (key, value) = (socket.as_raw_fd(), Shown { cookie, until });
        let attributes = Attributes::new()
            .descriptor(0, self.shown.as_fd())
            .address(8, &key)
            .address(16, &value);
        // SAFETY: key and value are as long as the map was told, and live until the call is over.
        unsafe { change(Command::UpdateElement, &attributes) }
    }

    /// All sockets that were shown and are open, one after the other.
    ///
    /// # Errors
    /// When descriptors or memory are exhausted.
    pub fn read(&self) -> Result<Vec<Sequence>, OsError> {
        let attributes = Attributes::new().descriptor(0, self.link.as_fd());
        // SAFETY: there are no addresses.
        let walk = unsafe { make(Command::CreateIterator, &attributes) }?;
        let mut found = Vec::new();
        let mut buffer = [0u8; 128 * RECORD];
        loop {
            match rustix::io::read(&walk, &mut buffer) {
                Ok(0) => return Ok(found),
                Ok(len) => found.extend(buffer[..len].chunks_exact(RECORD).filter_map(sequence)),
                Err(OsError::INTR | OsError::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Bytes that the program writes for a socket: the cookie, the three numbers, and four of nothing.
const RECORD: usize = 24;

fn sequence(record: &[u8]) -> Option<Sequence> {
    let number = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    Some(Sequence {
        cookie: u64::from_ne_bytes(record.get(..8)?.try_into().ok()?),
        received: number(8)?,
        acknowledged: number(12)?,
        sent: number(16)?,
    })
}

/// A map from sockets to [`Shown`]. The kernel wants its types described: key and value are integers, the latter of 128 bits.
fn create_map() -> Result<Descriptor, OsError> {
    const SOCKET_STORAGE: u32 = 24;
    const NO_PREALLOCATION: u32 = 1;
    const HEADER: u32 = 24;
    const INTEGER: u32 = 1 << 24;
    const NAMES: &[u8; 8] = b"\0key\0of\0";
    let value = size_of::<Shown>() as u32;
    // Two types of name, kind, size and bits; then their names.
    let types = [1, INTEGER, 4, 32, 5, INTEGER, value, 8 * value];
    let (types_len, names_len) = (size_of_val(&types) as u32, NAMES.len() as u32);
    let mut description = Vec::new();
    description.extend(0xeb9f_u16.to_ne_bytes());
    description.extend([1, 0]);
    for word in [HEADER, 0, types_len, types_len, names_len].into_iter().chain(types) {
        description.extend(word.to_ne_bytes());
    }
    description.extend(NAMES);
    let attributes = Attributes::new()
        .address(0, description.as_slice())
        .word(16, u32::try_from(description.len()).unwrap_or(0));
    // SAFETY: `description` is as long as said and lives until the call is over.
    let described = unsafe { make(Command::LoadTypes, &attributes) }?;
    let attributes = Attributes::new()
        .word(0, SOCKET_STORAGE)
        .word(4, size_of::<libc::c_int>() as u32)
        .word(8, value)
        .word(16, NO_PREALLOCATION)
        .descriptor(48, described.as_fd())
        .word(52, 1)
        .word(56, 2);
    // SAFETY: there are no addresses.
    unsafe { make(Command::CreateMap, &attributes) }
}

/// The program, and the kernel's function that it stands in for.
#[derive(Debug)]
struct Program {
    instructions: Vec<Instruction>,
    function: u32,
}

const WALK: u32 = 28;

impl Program {
    /// For each socket of the map it writes a [`RECORD`]; a socket whose time is over it takes out of the map.
    fn for_kernel(types: &KernelTypes, shown: &Descriptor) -> Option<Self> {
        use Instruction as I;
        // The kernel's functions.
        const CLOCK: i32 = 5;
        const DELETE: i32 = 108;
        const WRITE: i32 = 127;
        const AS_TCP: i32 = 137;
        // What the program is called with, and where the record lies on its stack.
        const META: i16 = 0;
        const SOCKET: i16 = 16;
        const VALUE: i16 = 24;
        const UNTIL: i16 = 8;
        const STACK: i16 = -(RECORD as i16);
        let (arguments, socket, value, tcp) = (6, 7, 8, 9);

        let mut all = vec![
            I::copy(arguments, 1),
            I::load64(socket, arguments, SOCKET),
            I::end_if_zero(socket),
            I::load64(value, arguments, VALUE),
            I::end_if_zero(value),
            I::call(CLOCK),
            I::load64(1, value, UNTIL),
        ];
        let [map, map_too] = I::map(1, shown);
        let delete = [map, map_too, I::copy(2, socket), I::call(DELETE), I::set(0, 0), I::exit()];
        all.push(I::skip_if_at_most(0, 1, delete.len() as i16));
        all.extend(delete);
        all.extend([
            I::copy(1, socket),
            I::call(AS_TCP),
            I::copy(tcp, 0),
            I::end_if_zero(tcp),
            I::load64(1, value, 0),
            I::store64(10, STACK, 1),
        ]);
        for (place, member) in [(8, "rcv_nxt"), (12, "snd_una"), (16, "snd_nxt")] {
            let offset = types.offset("tcp_sock", member)?;
            all.extend([I::load32(1, tcp, offset), I::store32(10, STACK + place, 1)]);
        }
        all.extend([
            I::set(1, 0),
            I::store32(10, STACK + 20, 1),
            I::load64(1, arguments, META),
            // The meta data begins with the file that is being read.
            I::load64(1, 1, 0),
            I::copy(2, 10),
            I::add(2, STACK.into()),
            I::set(3, RECORD as i32),
            I::call(WRITE),
        ]);
        let function = types.function("bpf_iter_bpf_sk_storage_map")?;
        Some(Self { instructions: I::finish(all, 0)?, function })
    }

    fn load(&self) -> Result<Descriptor, OsError> {
        const TRACING: u32 = 26;
        // The kernel asks for this for the function that writes to the walk's file.
        const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";
        let attributes = Attributes::new()
            .word(0, TRACING)
            .word(4, u32::try_from(self.instructions.len()).unwrap_or(0))
            .address(8, self.instructions.as_slice())
            .address(16, LICENSE)
            .word(68, WALK)
            .word(108, self.function);
        // SAFETY: the instructions are as many as said, the license ends with a zero, and both live until the call is over.
        unsafe { make(Command::LoadProgram, &attributes) }
    }
}

/// Lets `program` walk over `map`.
fn tie(program: &Descriptor, map: &Descriptor) -> Result<Descriptor, OsError> {
    let which = map.as_raw_fd();
    let attributes = Attributes::new()
        .descriptor(0, program.as_fd())
        .word(8, WALK)
        .address(16, &which)
        .word(24, size_of_val(&which) as u32);
    // SAFETY: `which` is as long as said and lives until the call is over.
    unsafe { make(Command::CreateLink, &attributes) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::connection_identity;

    fn connection(host: &str) -> [TcpStream; 2] {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [client, listener.accept().unwrap().0]
    }

    fn show(reader: &SequenceReader, socket: &TcpStream, during: Duration) -> u64 {
        let cookie = connection_identity(socket.as_fd()).unwrap().cookie;
        reader.show(socket.as_fd(), cookie, during).unwrap();
        cookie
    }

    /// `None`, and a line that says so, where the system does not allow it.
    fn reader(test: &str) -> Option<SequenceReader> {
        match SequenceReader::open() {
            Ok(reader) => Some(reader),
            Err(SequenceError::Unsupported(error)) => panic!("the program was refused: {error}"),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {error}");
                None
            }
        }
    }

    #[test]
    fn the_ends_of_a_connection_agree() {
        let Some(reader) = reader("the_ends_of_a_connection_agree") else { return };
        for host in ["127.0.0.1", "::1"] {
            let [mut a, mut b] = connection(host);
            let cookies = [&a, &b].map(|end| show(&reader, end, Duration::from_secs(60)));
            a.write_all(&[1; 1000]).unwrap();
            b.read_exact(&mut [0; 1000]).unwrap();
            b.write_all(&[1; 10]).unwrap();
            a.read_exact(&mut [0; 10]).unwrap();
            let read = reader.read().unwrap();
            let [a, b] = cookies.map(|cookie| read.iter().find(|s| s.cookie == cookie).unwrap());
            assert_eq!((a.received, b.received), (b.sent, a.sent), "{host}");
        }
    }

    #[test]
    fn what_is_closed_or_over_is_no_longer_read() {
        let Some(reader) = reader("what_is_closed_or_over_is_no_longer_read") else { return };
        let [a, b] = connection("127.0.0.1");
        let over = show(&reader, &a, Duration::ZERO);
        let open = show(&reader, &b, Duration::from_secs(60));
        let cookies = || reader.read().unwrap().iter().map(|s| s.cookie).collect::<Vec<_>>();
        assert_eq!(cookies(), [open], "{over}");
        assert_eq!(cookies(), [open]);
        drop((a, b));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !cookies().is_empty() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn many_are_read() {
        let Some(reader) = reader("many_are_read") else { return };
        let ends: Vec<_> = (0..300).flat_map(|_| connection("127.0.0.1")).collect();
        for end in &ends {
            show(&reader, end, Duration::from_secs(60));
        }
        assert_eq!(reader.read().unwrap().len(), ends.len());
    }

    #[test]
    fn descriptions_that_are_cut_or_damaged_are_refused() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        for len in [0, 1, 7, 24, bytes.len() / 2] {
            assert!(KernelTypes::parse(&bytes[..len]).is_none(), "{len}");
        }
        let mut damaged = bytes;
        let cut = 24 + 4096;
        damaged[cut..cut + 4096].fill(0xff);
        let types = KernelTypes::parse(&damaged).unwrap();
        assert_eq!(types.offset("tcp_sock", "rcv_nxt"), None);
    }
}
