//! Traces of translations: which pages were looked up, in which order. Written by a program that has `VMMC_UTLB_TRACE` set, read by
//! `vmmc utlb replay`.
//!
//! # The format, version 1
//!
//! All numbers little-endian. 32 bytes of header, then records.
//!
//! ```text
//! header   0  "VMMCUTLB"
//!          8  u16 version: 1
//!         10  u16 page size as a power of two
//!         12  u32 process number
//!         16  16 bytes: the program's name, filled up with zeros
//! record   varint  zigzag(first page - first page of the record before, 0 at first) << 3 | many << 2 | kind
//!          varint  pages - 2, if `many`; else it is one page
//! kind     1 lookup for reading, 2 lookup for writing, 3 forget
//! ```
//!
//! A varint has 7 bits a byte, the lowest first; all bytes but its last have the top bit set. No record begins with a zero byte: zero
//! bytes between records mean nothing. The file grows by pieces of 1 MiB that are mapped into the program, which
//! writes by plain stores; so what was recorded is there however the program ends, and no descriptor stays open.

use std::fs::OpenOptions;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmmc_os::{Access as MapAccess, Mapping, page_size, process_id};

use super::memory::Access;

/// The variable that names the file. A second process that finds the file there already, and a forked child, write to the name with
/// their process number behind it: `NAME.PID`.
pub const VARIABLE: &str = "VMMC_UTLB_TRACE";

const MAGIC: &[u8; 8] = b"VMMCUTLB";
const VERSION: u16 = 1;
const HEADER: usize = 32;
const PIECE: usize = 1 << 20;
/// More than the longest record.
const RECORD: usize = 24;
/// Page numbers that no process has.
const MAX_PAGE: u64 = 1 << 52;

/// What was done to pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A lookup.
    Lookup(Access),
    /// They were unpinned because their memory would go.
    Forget,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What.
    pub kind: Kind,
    /// Page numbers, at least one.
    pub pages: Range<u64>,
}

/// Writes a trace. All threads may use it at once; each record costs a lock.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    writer: Mutex<Option<Writer>>,
}

impl Recorder {
    /// Will write to `path`. Nothing is written, not even the file, before the first record; if it cannot be written, nothing is recorded.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writer: Mutex::new(None) }
    }

    /// The recorder that the environment asks for; it asks once.
    pub fn of_environment() -> Option<&'static Arc<Self>> {
        static RECORDER: OnceLock<Option<Arc<Recorder>>> = OnceLock::new();
        let asked = || std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        RECORDER.get_or_init(|| asked().map(|path| Arc::new(Self::new(path)))).as_ref()
    }

    /// Notes that the bytes at `start` were looked up, or forgotten.
    pub fn record(&self, kind: Kind, start: usize, len: usize) {
        if len == 0 {
            return;
        }
        let shift = page_size().trailing_zeros();
        let first = (start >> shift) as u64;
        let pages = first..(start.saturating_add(len - 1) >> shift) as u64 + 1;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.as_ref().is_none_or(|writer| writer.pid != process_id()) {
            *writer = Some(Writer::create(&self.path));
        }
        if let Some(writer) = &mut *writer {
            writer.write(kind, &pages);
        }
    }
}

#[derive(Debug)]
struct Writer {
    /// Whose trace it is: a forked child begins another.
    pid: u32,
    path: PathBuf,
    /// The piece that is being filled; `None` when the file cannot be written any more.
    piece: Option<Mapping>,
    /// Bytes of the file before the piece.
    before: usize,
    /// Bytes of the piece that are filled.
    filled: usize,
    last: u64,
}

impl Writer {
    fn create(path: &Path) -> Self {
        let pid = process_id();
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let mut path = path.to_path_buf();
        if create(&path).is_err() {
            path.as_mut_os_string().push(format!(".{pid}"));
            // Left by an earlier process of this number.
            let _ = std::fs::remove_file(&path);
            let _ = create(&path);
        }
        let mut writer = Self { pid, path, piece: None, before: 0, filled: 0, last: 0 };
        writer.next_piece(0);
        let name = std::fs::read("/proc/self/comm").unwrap_or_default();
        let name = name.strip_suffix(b"\n").unwrap_or(&name);
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10] = u8::try_from(page_size().trailing_zeros()).unwrap_or(0);
        header[12..16].copy_from_slice(&pid.to_le_bytes());
        let len = name.len().min(16);
        header[16..16 + len].copy_from_slice(&name[..len]);
        writer.append(&header);
        writer
    }

    fn write(&mut self, kind: Kind, pages: &Range<u64>) {
        let mut bytes = [0; RECORD];
        let len = encode(&mut bytes, self.last, kind, pages);
        self.last = pages.start;
        self.append(&bytes[..len]);
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.filled + bytes.len() > PIECE {
            self.next_piece(self.before + PIECE);
        }
        let Some(piece) = &self.piece else { return };
        let target = piece.as_ptr().wrapping_add(self.filled);
        // SAFETY: `filled + bytes.len()` is at most `PIECE`, the length of the mapping, which nobody else writes; whoever
        // truncates the file meanwhile ends the recording program.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        self.filled += bytes.len();
    }

    fn next_piece(&mut self, before: usize) {
        self.piece = map_piece(&self.path, before);
        (self.before, self.filled) = (before, 0);
    }
}

fn map_piece(path: &Path, before: usize) -> Option<Mapping> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    file.set_len((before + PIECE) as u64).ok()?;
    Mapping::new(&file, before as u64, PIECE, MapAccess::ReadWrite).ok()
}

fn encode(bytes: &mut [u8; RECORD], last: u64, kind: Kind, pages: &Range<u64>) -> usize {
    let code = match kind {
        Kind::Lookup(Access::Read) => 1,
        Kind::Lookup(Access::Write) => 2,
        Kind::Forget => 3,
    };
    let count = pages.end - pages.start;
    let step = pages.start.wrapping_sub(last).cast_signed();
    let zigzag = (step << 1 ^ step >> 63).cast_unsigned();
    let many = u64::from(count > 1) << 2;
    let mut len = put_varint(bytes, 0, zigzag << 3 | many | code);
    if count > 1 {
        len = put_varint(bytes, len, count - 2);
    }
    len
}

fn put_varint(bytes: &mut [u8; RECORD], mut at: usize, mut value: u64) -> usize {
    loop {
        #[allow(clippy::cast_possible_truncation)]
        let low = value as u8 & 0x7f;
        value >>= 7;
        bytes[at] = if value == 0 { low } else { low | 0x80 };
        at += 1;
        if value == 0 {
            return at;
        }
    }
}

/// A trace that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The program's name.
    pub program: String,
    /// Its process number.
    pub pid: u32,
    /// Bytes of a page where it ran.
    pub page_size: u64,
    /// What it did, in order.
    pub records: Vec<Record>,
}

/// Why a file cannot be read as a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum TraceError {
    /// cannot read the trace ({0}): check its name
    Read(String),
    /// this is not a trace of translations: record one with `vmmc utlb record`
    NotATrace,
    /// the trace has version {0}, this program reads version 1: record it again, or use the program that recorded it
    Version(u16),
    /// the trace is damaged at byte {0}: record it again
    Damaged(usize),
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let bytes = std::fs::read(path).map_err(|cause| TraceError::Read(cause.to_string()))?;
        Self::parse(&bytes)
    }

    /// Reads the contents of a file. It may come from anywhere: whatever it holds, the answer is a trace or an error.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let header = bytes.get(..HEADER).filter(|header| header.starts_with(MAGIC));
        let header = header.ok_or(TraceError::NotATrace)?;
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        let shift = u16::from_le_bytes([header[10], header[11]]);
        if !(12..=24).contains(&shift) {
            return Err(TraceError::Damaged(10));
        }
        let name = header[16..].split(|byte| *byte == 0).next().unwrap_or_default();
        let mut trace = Self {
            program: String::from_utf8_lossy(name).into_owned(),
            pid: u32::from_le_bytes([header[12], header[13], header[14], header[15]]),
            page_size: 1 << shift,
            records: Vec::new(),
        };
        let (mut at, mut last) = (HEADER, 0);
        while at < bytes.len() {
            if bytes[at] == 0 {
                at += 1;
                continue;
            }
            let damaged = TraceError::Damaged(at);
            let record = decode(bytes, &mut at, last).ok_or(damaged)?;
            last = record.pages.start;
            trace.records.push(record);
        }
        Ok(trace)
    }
}

fn decode(bytes: &[u8], at: &mut usize, last: u64) -> Option<Record> {
    let head = take_varint(bytes, at)?;
    let kind = match head & 3 {
        1 => Kind::Lookup(Access::Read),
        2 => Kind::Lookup(Access::Write),
        3 => Kind::Forget,
        _ => return None,
    };
    let zigzag = head >> 3;
    let step = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
    let first = last.checked_add_signed(step)?;
    let count = if head & 4 == 0 { 1 } else { take_varint(bytes, at)?.checked_add(2)? };
    let end = first.checked_add(count).filter(|end| *end <= MAX_PAGE)?;
    Some(Record { kind, pages: first..end })
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let kind = prop_oneof![
            Just(Kind::Lookup(Access::Read)),
            Just(Kind::Lookup(Access::Write)),
            Just(Kind::Forget)
        ];
        let page = prop_oneof![0..64u64, 0..1u64 << 47];
        (kind, page, prop_oneof![3 => Just(1u64), 1 => 1..5000u64])
            .prop_map(|(kind, first, count)| Record { kind, pages: first..first + count })
    }

    fn header() -> Vec<u8> {
        let mut header = b"VMMCUTLB\x01\x00\x0c\x00\x07\x00\x00\x00fft".to_vec();
        header.resize(HEADER, 0);
        header
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(records in prop::collection::vec((record(), 0..3usize), 0..50)) {
            let (mut bytes, mut last) = (header(), 0);
            for (record, zeros) in &records {
                let mut room = [0; RECORD];
                let len = encode(&mut room, last, record.kind, &record.pages);
                last = record.pages.start;
                bytes.extend(&room[..len]);
                bytes.extend(vec![0; *zeros]);
            }
            let trace = Trace::parse(&bytes).unwrap();
            prop_assert_eq!((trace.program.as_str(), trace.pid, trace.page_size), ("fft", 7, 4096));
            let expected: Vec<Record> = records.into_iter().map(|(record, _)| record).collect();
            prop_assert_eq!(trace.records, expected);
        }

        #[test]
        fn noise_is_a_trace_or_an_error(noise in prop::collection::vec(any::<u8>(), 0..200), with_header: bool) {
            let bytes = if with_header { [header(), noise].concat() } else { noise };
            if let Ok(trace) = Trace::parse(&bytes) {
                prop_assert!(trace.records.iter().all(|record| !record.pages.is_empty()));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "opens a file")]
    fn other_files_are_told_apart() {
        assert_eq!(Trace::parse(b"#!/bin/sh"), Err(TraceError::NotATrace));
        let mut newer = header();
        newer[8] = 2;
        assert_eq!(Trace::parse(&newer), Err(TraceError::Version(2)));
        let cut = [header(), vec![0x81]].concat();
        assert_eq!(Trace::parse(&cut), Err(TraceError::Damaged(HEADER)));
        assert!(matches!(Trace::read("/no/such/file"), Err(TraceError::Read(_))));
    }
}
