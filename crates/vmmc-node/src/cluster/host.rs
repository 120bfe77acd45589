//! This node's memory, as its links see it: exports that were granted to their peers, and payload of the processes here.

use vmmc_link::wire::Binding;
use vmmc_link::{Buffer, Memory, Refusal};
use vmmc_ni::port::{Host, LinkNumber};

use super::grants::Grants;
use super::payload::Payloads;
use crate::exports::Exports;

/// Borrowed for the time of one poll.
pub(super) struct Here<'s> {
    pub(super) exports: &'s mut Exports,
    pub(super) grants: &'s Grants,
    pub(super) payloads: &'s Payloads,
    pub(super) link: Option<LinkNumber>,
}

impl Here<'_> {
    fn granted(&self, target: &Binding) -> Result<u64, Refusal> {
        self.grants.check(self.link.ok_or(Refusal::Revoked)?, target)
    }
}

impl Memory for Here<'_> {
    fn place(&mut self, target: &Binding, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let handle = self.granted(target)?;
        self.exports.send(handle, offset, bytes, None, None).map_err(refusal)
    }

    fn signal(&mut self, target: &Binding, offset: u64, value: u64) -> Result<(), Refusal> {
        let handle = self.granted(target)?;
        if !offset.is_multiple_of(8) {
            return Err(Refusal::Unaligned);
        }
        self.exports.send(handle, 0, &[], Some((offset, value)), None).map_err(refusal)
    }

    fn notify(
        &mut self,
        target: &Binding,
        offset: u64,
        len: u64,
        value: u64,
    ) -> Result<(), Refusal> {
        let handle = self.granted(target)?;
        self.exports.notify(handle, offset, len, value).map_err(refusal)
    }

    fn read(&mut self, target: &Binding, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let handle = self.granted(target)?;
        self.exports.fetch(handle, offset, into).map_err(refusal)
    }

    fn gather(&mut self, buffer: Buffer, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.payloads.read(buffer, offset, into).ok_or(Refusal::Gone)
    }

    fn scatter(&mut self, buffer: Buffer, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.payloads.write(buffer, offset, bytes).ok_or(Refusal::Gone)
    }
}

impl Host for Here<'_> {
    fn turn_to(&mut self, link: LinkNumber) {
        self.link = Some(link);
    }
}

fn refusal(refusal: vmmc_proto::Refusal) -> Refusal {
    use vmmc_proto::Refusal as Why;
    match refusal {
        Why::Rights => Refusal::Rights,
        Why::Range => Refusal::Bounds,
        _ => Refusal::Gone,
    }
}
