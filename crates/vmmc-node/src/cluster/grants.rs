//! What other nodes may reach here: each grant is one import of this node's register, with the number that proves it.

use std::collections::HashMap;

use vmmc_link::Refusal;
use vmmc_link::wire::Binding;
use vmmc_ni::port::LinkNumber;
use vmmc_proto::ExportId;

/// All grants, by the import's handle.
#[derive(Debug, Default)]
pub(super) struct Grants(HashMap<u64, Grant>);

#[derive(Debug, Clone, Copy)]
struct Grant {
    link: LinkNumber,
    capability: u128,
    export: ExportId,
}

impl Grants {
    /// Enters a grant; the capability for it.
    pub(super) fn add(&mut self, handle: u64, link: LinkNumber, export: ExportId) -> u128 {
        let random = || u128::from(vmmc_os::random_u64());
        let capability = random() << 64 | random();
        self.0.insert(handle, Grant { link, capability, export });
        capability
    }

    /// The handle that a packet of a link means, if it was granted to that link.
    pub(super) fn check(&self, link: LinkNumber, binding: &Binding) -> Result<u64, Refusal> {
        let granted = self.0.get(&binding.export).is_some_and(|grant| {
            // All bits are compared whatever they are, so that time does not tell how many were right.
            grant.link == link && grant.capability ^ binding.capability == 0
        });
        if granted { Ok(binding.export) } else { Err(Refusal::Revoked) }
    }

    /// The export that a handle means, if it was granted to that link.
    pub(super) fn export_of(&self, link: LinkNumber, handle: u64) -> Option<ExportId> {
        self.0.get(&handle).filter(|grant| grant.link == link).map(|grant| grant.export)
    }

    /// Takes a grant of a link out; `false` if it had none of that handle.
    pub(super) fn remove(&mut self, link: LinkNumber, handle: u64) -> bool {
        let held = self.0.get(&handle).is_some_and(|grant| grant.link == link);
        held && self.0.remove(&handle).is_some()
    }

    /// Takes all grants of a link out; their handles.
    pub(super) fn remove_all(&mut self, link: LinkNumber) -> Vec<u64> {
        let handles =
            self.0.iter().filter(|(_, grant)| grant.link == link).map(|(handle, _)| *handle);
        let handles: Vec<_> = handles.collect();
        self.0.retain(|_, grant| grant.link != link);
        handles
    }

    /// Who was granted an export, and by which handle.
    pub(super) fn of_export(&self, export: ExportId) -> Vec<(LinkNumber, u64)> {
        let of_it = self.0.iter().filter(|(_, grant)| grant.export == export);
        of_it.map(|(handle, grant)| (grant.link, *handle)).collect()
    }

    /// How many there are of a link.
    pub(super) fn count(&self, link: LinkNumber) -> usize {
        self.0.values().filter(|grant| grant.link == link).count()
    }
}
