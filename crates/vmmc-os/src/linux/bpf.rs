//! The part of `bpf(2)` that our programs need, and the names of kernel structures' fields that one of them goes by.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{Descriptor, OsError};

/// One instruction of a program; `imm`, `off` and registers as the kernel's `struct bpf_insn` has them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    off: i16,
    imm: i32,
}

/// A register; 10 points to the end of the stack, 0 has results, 1 to 5 have arguments, 6 to 9 survive calls.
pub(crate) type Register = u8;

impl Instruction {
    /// Stands for the way to the end while that is not known.
    const TO_END: i16 = i16::MAX;

    fn new(code: u8, to: Register, from: Register, off: i16, imm: i32) -> Self {
        let registers =
            if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        Self { code, registers, off, imm }
    }

    /// `to = from`
    pub(crate) fn copy(to: Register, from: Register) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    /// `to = value`
    pub(crate) fn set(to: Register, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    /// `to += value`
    pub(crate) fn add(to: Register, value: i32) -> Self {
        Self::new(0x07, to, 0, 0, value)
    }

    /// `to = *(u64 *)(from + off)`
    pub(crate) fn load64(to: Register, from: Register, off: i16) -> Self {
        Self::new(0x79, to, from, off, 0)
    }

    /// `to = *(u32 *)(from + off)`
    pub(crate) fn load32(to: Register, from: Register, off: i16) -> Self {
        Self::new(0x61, to, from, off, 0)
    }

    /// `to = *(u16 *)(from + off)`
    pub(crate) fn load16(to: Register, from: Register, off: i16) -> Self {
        Self::new(0x69, to, from, off, 0)
    }

    /// `to = *(u8 *)(from + off)`
    pub(crate) fn load8(to: Register, from: Register, off: i16) -> Self {
        Self::new(0x71, to, from, off, 0)
    }

    /// `*(u64 *)(to + off) = from`
    pub(crate) fn store64(to: Register, off: i16, from: Register) -> Self {
        Self::new(0x7b, to, from, off, 0)
    }

    /// `*(u32 *)(to + off) = from`
    pub(crate) fn store32(to: Register, off: i16, from: Register) -> Self {
        Self::new(0x63, to, from, off, 0)
    }

    /// `*(u16 *)(to + off) = from`
    pub(crate) fn store16(to: Register, off: i16, from: Register) -> Self {
        Self::new(0x6b, to, from, off, 0)
    }

    /// `to &= value`
    pub(crate) fn and(to: Register, value: i32) -> Self {
        Self::new(0x57, to, 0, 0, value)
    }

    /// The 16 bits of `register` from the network's order to the host's.
    pub(crate) fn from_network_16(register: Register) -> Self {
        Self::new(0xdc, register, 0, 0, 16)
    }

    /// Goes on `skip` instructions further on.
    pub(crate) fn skip(skip: i16) -> Self {
        Self::new(0x05, 0, 0, skip, 0)
    }

    /// The same if `register == value`.
    pub(crate) fn skip_if(register: Register, value: i32, skip: i16) -> Self {
        Self::new(0x15, register, 0, skip, value)
    }

    /// Goes to where [`Self::finish`] ends the program.
    pub(crate) fn end() -> Self {
        Self::skip(Self::TO_END)
    }

    /// The same if `register != value`.
    pub(crate) fn end_unless(register: Register, value: i32) -> Self {
        Self::new(0x55, register, 0, Self::TO_END, value)
    }

    /// The same if `register > value`, unsigned.
    pub(crate) fn end_if_above(register: Register, value: i32) -> Self {
        Self::new(0x25, register, 0, Self::TO_END, value)
    }

    /// The same if `a > b`, unsigned.
    pub(crate) fn end_if_beyond(a: Register, b: Register) -> Self {
        Self::new(0x2d, a, b, Self::TO_END, 0)
    }

    /// Goes to where [`Self::finish`] ends the program if `register` is zero.
    pub(crate) fn end_if_zero(register: Register) -> Self {
        Self::new(0x15, register, 0, Self::TO_END, 0)
    }

    /// Goes on `skip` instructions further on if `a <= b`, unsigned.
    pub(crate) fn skip_if_at_most(a: Register, b: Register, skip: i16) -> Self {
        Self::new(0xbd, a, b, skip, 0)
    }

    /// Calls a function of the kernel by its number.
    pub(crate) fn call(function: i32) -> Self {
        Self::new(0x85, 0, 0, 0, function)
    }

    /// `to = map`, two instructions long.
    pub(crate) fn map(to: Register, map: &Descriptor) -> [Self; 2] {
        const DESCRIPTOR: Register = 1;
        [Self::new(0x18, to, DESCRIPTOR, 0, map.as_raw_fd()), Self::new(0, 0, 0, 0, 0)]
    }

    /// A whole program: `instructions`, then an end with `result`; `None` if it is too long.
    pub(crate) fn finish(mut instructions: Vec<Self>, result: i32) -> Option<Vec<Self>> {
        let end = instructions.len();
        for (index, instruction) in instructions.iter_mut().enumerate() {
            if instruction.off == Self::TO_END {
                instruction.off = i16::try_from(end - index - 1).ok()?;
            }
        }
        instructions.extend([Self::set(0, result), Self::exit()]);
        Some(instructions)
    }

    /// Ends the program; register 0 is its result.
    pub(crate) fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// What `bpf(2)` is asked to do.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(crate) enum Command {
    CreateMap = 0,
    UpdateElement = 2,
    DeleteElement = 3,
    LoadProgram = 5,
    LoadTypes = 18,
    CreateLink = 28,
    CreateIterator = 33,
}

/// The attributes of a command: words of 32 bits at the places that `union bpf_attr` gives them.
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct Attributes([u32; 32]);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self([0; 32])
    }

    /// Sets the 32 bits at byte `at`.
    pub(crate) fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at / 4] = value;
        self
    }

    /// Sets the 32 bits at byte `at` to a descriptor.
    pub(crate) fn descriptor(self, at: usize, descriptor: BorrowedFd<'_>) -> Self {
        self.word(at, descriptor.as_raw_fd().cast_unsigned())
    }

    /// Sets the 64 bits at byte `at` to the address of `memory`, which has to live until the call.
    pub(crate) fn address<T: ?Sized>(mut self, at: usize, memory: &T) -> Self {
        let address = (&raw const *memory).cast::<u8>().addr() as u64;
        let bytes = address.to_ne_bytes();
        for (word, half) in self.0[at / 4..].iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
        }
        self
    }
}

/// Calls the kernel.
///
/// # Safety
/// Every address in `attributes` points to memory that is alive, and as long as the command reads.
unsafe fn call(command: Command, attributes: &Attributes) -> Result<libc::c_long, OsError> {
    // SAFETY: `attributes` is as long as said, and longer than the kernel wants with all else zero; what its addresses
    // point to is the caller's promise. These commands write to none of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            &raw const *attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn last_error() -> OsError {
    OsError::from_io_error(&std::io::Error::last_os_error()).unwrap_or(OsError::IO)
}

/// A command that makes something: the descriptor of it.
///
/// # Safety
/// As for [`call`].
pub(crate) unsafe fn make(
    command: Command,
    attributes: &Attributes,
) -> Result<Descriptor, OsError> {
    // SAFETY: the caller's promise.
    let made = unsafe { call(command, attributes) }?;
    let raw = i32::try_from(made).map_err(|_| OsError::MFILE)?;
    // SAFETY: the kernel has just made this descriptor for us alone (close-on-exec, as all of this call).
    Ok(Descriptor::from(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// A command that changes something.
///
/// # Safety
/// As for [`call`].
pub(crate) unsafe fn change(command: Command, attributes: &Attributes) -> Result<(), OsError> {
    // SAFETY: the caller's promise.
    unsafe { call(command, attributes) }.map(drop)
}

/// The kernel's own description of its types ("BTF", of `/sys/kernel/btf/vmlinux`).
#[derive(Debug)]
pub(crate) struct KernelTypes {
    types: Vec<u8>,
    names: Vec<u8>,
}

/// One type of it.
#[derive(Debug, Clone, Copy)]
struct Type<'t> {
    name: u32,
    kind: u32,
    /// The members' offsets have their sizes in the upper bits.
    has_bit_fields: bool,
    members: &'t [u8],
}

impl KernelTypes {
    const STRUCT: u32 = 4;
    const FUNCTION: u32 = 12;

    /// Reads it; `None` when the kernel has none, or in a form that is not known here.
    pub(crate) fn read() -> Option<Self> {
        Self::parse(&std::fs::read("/sys/kernel/btf/vmlinux").ok()?)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let start = word(bytes, 4)? as usize;
        let part = |at| -> Option<Vec<u8>> {
            let from = start.checked_add(word(bytes, at)? as usize)?;
            Some(bytes.get(from..from.checked_add(word(bytes, at + 4)? as usize)?)?.to_vec())
        };
        (magic == MAGIC).then_some(())?;
        Some(Self { types: part(8)?, names: part(16)? })
    }

    /// The number of the type of a function of the kernel.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        let found = self.all().find(|(_, t)| t.kind == Self::FUNCTION && self.is(t.name, name))?;
        Some(found.0)
    }

    /// Where the member of a structure lies, in bytes.
    pub(crate) fn offset(&self, structure: &str, member: &str) -> Option<i16> {
        let (_, found) = self.all().find(|(_, t)| {
            t.kind == Self::STRUCT && !t.members.is_empty() && self.is(t.name, structure)
        })?;
        let member = found
            .members
            .chunks_exact(12)
            .find(|m| word(m, 0).is_some_and(|name| self.is(name, member)))?;
        let bits = word(member, 8)? & if found.has_bit_fields { 0xff_ffff } else { u32::MAX };
        i16::try_from(bits / 8).ok().filter(|_| bits % 8 == 0)
    }

    fn is(&self, at: u32, name: &str) -> bool {
        let rest =
            self.names.get(at as usize..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// All types with their numbers, which count from 1; ends early at a kind that is not known here.
    fn all(&self) -> impl Iterator<Item = (u32, Type<'_>)> {
        let mut rest = self.types.as_slice();
        (1..).map_while(move |number| {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            // Integer, variable, tag: a word; array: three; structure, union and wide enumeration: three for each
            // member; enumeration, prototype and section: two, two, and three.
            let more = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            let members = rest.get(12..12 + more)?;
            rest = &rest[12 + more..];
            Some((number, Type { name, kind, has_bit_fields: info >> 31 == 1, members }))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
