//! The line between the two processes on which they agree what to do next; never used while time is taken.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::BenchError;

/// Longest message, in bytes.
const LONGEST: usize = 64 * 1024;

/// One end: whole JSON messages, each with at most one descriptor.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Two ends that hear each other.
    pub(crate) fn pair() -> Result<(Control, OwnedFd), BenchError> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .map_err(|cause| BenchError::os("make a pair of sockets", cause))?;
        Ok((Control { socket: ours }, theirs))
    }

    pub(crate) fn from_descriptor(socket: OwnedFd) -> Control {
        Control { socket }
    }

    pub(crate) fn say(&self, message: &impl Serialize) -> Result<(), BenchError> {
        self.transmit(message, None)
    }

    pub(crate) fn say_with(
        &self,
        message: &impl Serialize,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), BenchError> {
        self.transmit(message, Some(descriptor))
    }

    pub(crate) fn hear<T: DeserializeOwned>(&self) -> Result<T, BenchError> {
        Ok(self.receive()?.0)
    }

    pub(crate) fn hear_with<T: DeserializeOwned>(&self) -> Result<(T, OwnedFd), BenchError> {
        match self.receive()? {
            (message, Some(descriptor)) => Ok((message, descriptor)),
            (_, None) => Err(BenchError::OutOfStep("a descriptor is missing".to_owned())),
        }
    }

    /// A message that may or may not come with a descriptor.
    pub(crate) fn hear_either<T: DeserializeOwned>(
        &self,
    ) -> Result<(T, Option<OwnedFd>), BenchError> {
        self.receive()
    }

    fn transmit(
        &self,
        message: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), BenchError> {
        let text = serde_json::to_vec(message)
            .map_err(|cause| BenchError::OutOfStep(cause.to_string()))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let parts = [IoSlice::new(&text)];
        match sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(BenchError::PeerLost),
            Err(cause) => Err(BenchError::os("speak to the second process", cause)),
        }
    }

    fn receive<T: DeserializeOwned>(&self) -> Result<(T, Option<OwnedFd>), BenchError> {
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = loop {
            match recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(BenchError::PeerLost),
                Err(cause) => return Err(BenchError::os("hear the second process", cause)),
                Ok(received) => break received,
            }
        };
        if received.bytes == 0 {
            return Err(BenchError::PeerLost);
        }
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let message = serde_json::from_slice(&text[..received.bytes])
            .map_err(|cause| BenchError::OutOfStep(cause.to_string()))?;
        Ok((message, descriptor))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (ours, theirs) = Control::pair().unwrap();
        let theirs = Control::from_descriptor(theirs);
        ours.say_with(&vec![1, 2, 3], ours.as_fd()).unwrap();
        ours.say(&"next").unwrap();
        let (numbers, passed): (Vec<u32>, OwnedFd) = theirs.hear_with().unwrap();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(theirs.hear::<String>().unwrap(), "next");
        Control::from_descriptor(passed).say(&7).unwrap();
        assert_eq!(theirs.hear::<u32>().unwrap(), 7);
    }

    #[test]
    fn a_lost_peer_and_a_stranger_are_told_apart() {
        let (ours, theirs) = Control::pair().unwrap();
        let theirs = Control::from_descriptor(theirs);
        theirs.say(&"text").unwrap();
        assert!(matches!(ours.hear::<u32>(), Err(BenchError::OutOfStep(_))));
        drop(theirs);
        assert!(matches!(ours.hear::<u32>(), Err(BenchError::PeerLost)));
        assert!(matches!(ours.say(&1), Err(BenchError::PeerLost)));
    }
}
