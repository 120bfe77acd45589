//! Asking a running service for its status, or to leave.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmmc_os::{
    Descriptor, OsError, RuntimeDirError, ServicePlace, connect_packets, peer_credentials, receive,
    send, wait_readable,
};
use vmmc_proto::{
    Answer, Hello, MAX_MESSAGE, NodeStatus, Request, VERSION, decode_answer, encode_request,
};

/// Why a service cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ControlError {
    /// {0}
    Directory(RuntimeDirError),
    /// cannot reach the service at {path:?} ({cause}): see `vmmc doctor`
    Connect {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        cause: OsError,
    },
    /// the service at {path:?} belongs to user {uid}, who must not serve there: remove its socket
    Foreign {
        /// Its socket.
        path: PathBuf,
        /// The service's user.
        uid: u32,
    },
    /// only root and the service's own user may do this: try it with sudo
    NotAllowed,
    /// the service does not answer: it is stopped or overloaded; end it with kill if need be
    Unresponsive,
    /// the service speaks another version: end it with kill and start the one that belongs to this command
    Version,
}

/// What a service says about itself; `None` when none runs in the directory.
///
/// # Errors
/// When the directory is not safe, or a service is there but does not answer within `limit`.
pub fn status(place: &ServicePlace, limit: Duration) -> Result<Option<NodeStatus>, ControlError> {
    let Some(control) = Control::connect(place, limit)? else { return Ok(None) };
    match control.ask(&Request::Status { seq: 1 })? {
        Some(Answer::Status { status, .. }) => {
            // It may be in another process namespace, where its number is another one.
            let pid = peer_credentials(&control.socket).map_or(0, |service| service.pid);
            Ok(Some(NodeStatus { pid, ..status }))
        }
        Some(_) => Err(ControlError::Version),
        None => Ok(None),
    }
}

/// Asks the service to leave and waits until it has; `false` when none runs.
///
/// # Errors
/// As [`status`].
pub fn stop(place: &ServicePlace, limit: Duration) -> Result<bool, ControlError> {
    let Some(control) = Control::connect(place, limit)? else { return Ok(false) };
    let ended = vmmc_os::peer_process(&control.socket);
    if let Some(Answer::Refused { .. }) = control.ask(&Request::Stop { seq: 1 })? {
        return Err(ControlError::NotAllowed);
    }
    if let Ok(ended) = ended {
        let left = control.deadline.saturating_duration_since(Instant::now());
        if !matches!(wait_readable(&[ended.as_fd()], Some(left)), Ok(1)) {
            return Err(ControlError::Unresponsive);
        }
    }
    Ok(true)
}

/// A connection of a tool.
struct Control {
    socket: Descriptor,
    deadline: Instant,
}

impl Control {
    fn connect(place: &ServicePlace, limit: Duration) -> Result<Option<Self>, ControlError> {
        let owner = match place.check(false) {
            Ok(owner) => owner,
            Err(RuntimeDirError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(ControlError::Directory(error)),
        };
        let path = place.socket();
        let socket = match connect_packets(&path) {
            Ok(socket) => socket,
            Err(OsError::NOENT | OsError::CONNREFUSED) => return Ok(None),
            Err(OsError::AGAIN) => return Err(ControlError::Unresponsive),
            Err(cause) => return Err(ControlError::Connect { path, cause }),
        };
        match peer_credentials(&socket) {
            Ok(service) if service.uid == owner || service.uid == 0 => {}
            Ok(service) => return Err(ControlError::Foreign { path, uid: service.uid }),
            Err(cause) => return Err(ControlError::Connect { path, cause }),
        }
        let control = Self { socket, deadline: Instant::now() + limit };
        let hello = Hello {
            version: VERSION,
            name: String::new(),
            resume: None,
            control: true,
            pairing_only: false,
            hosts_lanes: false,
            heir: None,
        };
        match control.ask(&Request::Hello(hello)) {
            Ok(Some(Answer::Welcome(_))) => Ok(Some(control)),
            Ok(Some(_)) => Err(ControlError::Version),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The answer; `None` when the service leaves or dies meanwhile.
    fn ask(&self, request: &Request) -> Result<Option<Answer>, ControlError> {
        let packet = encode_request(request).map_err(|_| ControlError::Version)?;
        match send(&self.socket, &packet, &[]) {
            Ok(()) => {}
            Err(OsError::PIPE | OsError::CONNRESET) => return Ok(None),
            Err(_) => return Err(ControlError::Unresponsive),
        }
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let ready = wait_readable(&[self.socket.as_fd()], Some(left));
            match receive(&self.socket, &mut buffer) {
                Ok(received) if received.len > 0 => {
                    return decode_answer(&buffer[..received.len])
                        .map(Some)
                        .map_err(|_| ControlError::Version);
                }
                Err(OsError::AGAIN) if ready == Ok(0) && left.is_zero() => {
                    return Err(ControlError::Unresponsive);
                }
                Err(OsError::AGAIN) => {}
                Ok(_) | Err(OsError::CONNRESET) => return Ok(None),
                Err(_) => return Err(ControlError::Unresponsive),
            }
        }
    }
}
