//! The memory of a simulated side: one export for each of the peer's imports, and a log of what was executed in order.

use crate::memory::{Buffer, Memory, Refusal};
use crate::wire::Binding;

/// What was executed, with the import's number and the word that it brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Executed {
    Signal { export: u64, offset: u64, value: u64 },
    Notify { export: u64, value: u64 },
}

#[derive(Debug, Default)]
pub(super) struct Exports {
    pub(super) exports: Vec<Export>,
    /// Buffers that local commands name.
    pub(super) buffers: Vec<Vec<u8>>,
    pub(super) executed: Vec<Executed>,
    /// Whether bytes are kept; a measurement only counts them.
    pub(super) counting: bool,
    pub(super) placed: u64,
    /// A stamp that was not there when its signal was executed.
    pub(super) violation: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Export {
    pub(super) capability: u128,
    pub(super) revoked: bool,
    pub(super) bytes: Vec<u8>,
    /// The signal of each value has to find its stamp here: the value itself, in front of the words.
    pub(super) stamps: usize,
}

impl Exports {
    fn reach(&mut self, target: &Binding, offset: u64, len: usize) -> Result<&mut [u8], Refusal> {
        let export = self.exports.get_mut(target.export as usize).ok_or(Refusal::Revoked)?;
        if export.revoked || export.capability != target.capability {
            return Err(Refusal::Revoked);
        }
        let start = usize::try_from(offset).map_err(|_| Refusal::Bounds)?;
        let end = start.checked_add(len).ok_or(Refusal::Bounds)?;
        export.bytes.get_mut(start..end).ok_or(Refusal::Bounds)
    }

    /// The bytes sent right before command `value` have to be here by now.
    fn check_stamp(&mut self, export: u64, value: u64) {
        let stamps = self.exports[export as usize].stamps;
        let at = stamps + 8 * value as usize;
        let found = self.exports[export as usize].bytes.get(at..at + 8);
        if found != Some(&(value + 1).to_le_bytes()[..]) {
            self.violation =
                Some(format!("command {value} of export {export} came before its bytes"));
        }
    }
}

impl Memory for Exports {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.placed += bytes.len() as u64;
        if self.counting {
            return Ok(());
        }
        self.reach(target, offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        self.reach(target, offset, 8)?.copy_from_slice(&value.to_le_bytes());
        self.executed.push(Executed::Signal { export: target.export, offset, value });
        self.check_stamp(target.export, value);
        Ok(())
    }

    fn notify(
        &mut self,
        target: &Binding,
        offset: u64,
        len: u64,
        value: u64,
    ) -> Result<(), Refusal> {
        self.reach(target, offset, usize::try_from(len).map_err(|_| Refusal::Bounds)?)?;
        self.executed.push(Executed::Notify { export: target.export, value });
        self.check_stamp(target.export, value);
        Ok(())
    }

    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        if self.counting {
            return Ok(());
        }
        into.copy_from_slice(self.reach(target, offset, into.len())?);
        Ok(())
    }

    fn gather(&mut self, buffer: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        if self.counting {
            return Ok(());
        }
        let bytes = self.buffers.get(buffer.0 as usize).ok_or(Refusal::Gone)?;
        into.copy_from_slice(&bytes[offset as usize..offset as usize + into.len()]);
        Ok(())
    }

    fn scatter(&mut self, buffer: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.placed += bytes.len() as u64;
        if self.counting {
            return Ok(());
        }
        let buffer = self.buffers.get_mut(buffer.0 as usize).ok_or(Refusal::Gone)?;
        buffer[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}
