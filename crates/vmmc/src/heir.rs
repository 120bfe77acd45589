//! What a process leaves to a child that it is about to fork.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use vmmc_os::{Descriptor, OsError, packet_pair_above, random_u64, send};
use vmmc_proto::{HeirId, PairId, Request, encode_request_into};

use crate::Process;
use crate::pairing::{PairError, pair_error};

/// A child of fork as its parent has announced it: every end that the parent holds is held for the child too, whatever becomes of the
/// parent, and without the child having run yet. It ends when nobody has its descriptor any more: the parent drops this after the
/// fork, and the child keeps its copy, until it opens VMMC by it ([`OpenOptions::heir`](crate::OpenOptions::heir)). May be used by any thread.
#[derive(Debug)]
pub struct Heir {
    id: HeirId,
    socket: Descriptor,
}

impl Process {
    /// Announces the child of a fork to come.
    ///
    /// # Errors
    /// See [`PairError`]. A service that admits no more processes makes no error of it: the child has to hold each end itself then, by
    /// [`Process::pair_hold`].
    pub fn pair_heir(&self) -> Result<Heir, PairError> {
        let floor = self.inner.options.descriptor_floor;
        let (socket, theirs) = packet_pair_above(floor).map_err(PairError::Exhausted)?;
        let socket = socket.raise(floor).map_err(PairError::Exhausted)?;
        let id = HeirId(random_u64());
        self.tell(&Request::PairHeir { heir: id }, &[theirs.as_fd()])?;
        Ok(Heir { id, socket })
    }

    /// Whether this process has the ends that were kept for it as an [`Heir`]: not, if the service has been another's since.
    pub fn has_inherited(&self) -> bool {
        self.inner.connection().welcome.inherited
    }
}

impl Heir {
    /// As [`Process::pair_drop`] or, with `linger`, [`Process::pair_linger`], for a child that has not opened VMMC. Takes no memory and waits for
    /// nothing.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_drop(&self, pair: PairId, linger: bool) -> Result<(), PairError> {
        self.post(&Request::PairDrop { pair, linger })
    }

    /// As [`Process::pair_settle`], in the same way.
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn pair_settle(&self, pair: PairId) -> Result<(), PairError> {
        self.post(&Request::PairSettle { pair })
    }

    fn post(&self, request: &Request) -> Result<(), PairError> {
        let mut room = [0; 64];
        let packet = encode_request_into(request, &mut room)
            .map_err(|_| PairError::Exhausted(OsError::MSGSIZE))?;
        send(&self.socket, packet, &[]).map_err(pair_error)
    }

    /// Its descriptor, so that a program that closes everything can spare it.
    pub fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn id(&self) -> HeirId {
        self.id
    }
}
