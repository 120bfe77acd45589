//! Which processes have a socket open, as `/proc` shows it: whoever may lift a connection must be alone with it.
//!
//! A descriptor can also be on its way in the queue of a local socket (`SCM_RIGHTS`), which nobody can look into. So whoever sends a
//! socket away marks it before, with a lock of `flock`, and who has received it takes the lock off. The descriptors of all processes are looked at, then
//! the mark, then all again: a socket that one process sends and another receives meanwhile is seen in one of the three places, or
//! in the fourth, the mark once more, if it goes on from there.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{OsError, process_id};

/// Who has a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// The process that asks, and nobody else but this one.
    Alone,
    /// Others have it too, or may: it is marked, or a process cannot be looked into.
    Shared,
}

/// The number that `/proc` shows for an open socket.
///
/// # Errors
/// When the descriptor is not open.
pub fn socket_number(socket: BorrowedFd<'_>) -> Result<u64, OsError> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

/// For each socket (by its number) and the process that asks about it: whether that process is alone with it. This process does not
/// count, and neither do those that cannot be looked into, unless they are `known` or descend from one that is. Takes
/// milliseconds where there are many processes.
pub fn holding(asked: &[(u64, u32)], known: &HashSet<u32>) -> Vec<Holding> {
    let mut found = Found { askers: HashMap::new(), known, others: false };
    for (number, pid) in asked {
        found.askers.insert(*number, Asker { pid: *pid, fd: None, shared: false });
    }
    // Two processes that ask about one socket are two that have it.
    for (number, pid) in asked {
        if let Some(asker) = found.askers.get_mut(number) {
            asker.shared |= asker.pid != *pid;
        }
    }
    for _twice in 0..2 {
        found.others |= found.walk().is_err();
        found.look_for_marks();
    }
    let holding = |(number, _): &(u64, u32)| match found.askers.get(number) {
        Some(asker) if asker.fd.is_some() && !asker.shared && !found.others => Holding::Alone,
        _ => Holding::Shared,
    };
    asked.iter().map(holding).collect()
}

struct Found<'a> {
    /// By the numbers of the sockets.
    askers: HashMap<u64, Asker>,
    known: &'a HashSet<u32>,
    /// Somebody may have any of them.
    others: bool,
}

struct Asker {
    pid: u32,
    /// What it has there under this number.
    fd: Option<OsString>,
    shared: bool,
}

impl Found<'_> {
    fn walk(&mut self) -> io::Result<()> {
        let own = process_id();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = number(entry.file_name().as_bytes()) else { continue };
            let Ok(pid) = u32::try_from(pid) else { continue };
            if pid == own {
                continue;
            }
            match self.look_into(&entry.path(), pid) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.others |= self.descends_from_known(pid);
                }
                // It is gone.
                _ => {}
            }
        }
        Ok(())
    }

    fn look_for_marks(&mut self) {
        for asker in self.askers.values_mut() {
            let Some(fd) = &asker.fd else { continue };
            let path = Path::new("/proc").join(asker.pid.to_string()).join("fdinfo").join(fd);
            // One that cannot be read is not open any more.
            let free = fs::read_to_string(path).is_ok_and(|text| !text.contains("\nlock:"));
            asker.shared |= !free;
        }
    }

    fn descends_from_known(&self, pid: u32) -> bool {
        std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| self.known.contains(&pid))
    }

    fn look_into(&mut self, process: &Path, pid: u32) -> io::Result<()> {
        for entry in fs::read_dir(process.join("fd"))? {
            let entry = entry?;
            let link = match fs::read_link(entry.path()) {
                Ok(link) => link,
                // It was closed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let link = link.as_os_str().as_bytes();
            let Some(socket) = link.strip_prefix(b"socket:[") else { continue };
            let Some(socket) = number(socket.strip_suffix(b"]").unwrap_or_default()) else {
                continue;
            };
            match self.askers.get_mut(&socket) {
                Some(asker) if asker.pid == pid => asker.fd = Some(entry.file_name()),
                Some(asker) => asker.shared = true,
                None => {}
            }
        }
        Ok(())
    }
}

/// The parent of a process, which everybody may know.
fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything but ends with the last bracket; state and parent follow.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn look(asked: &[(u64, u32)]) -> Vec<Holding> {
        holding(asked, &HashSet::new())
    }

    /// Children that other tests start have everything for a moment.
    fn alone(asked: &[(u64, u32)]) {
        let until = Instant::now() + Duration::from_secs(60);
        while look(asked)[0] != Holding::Alone {
            assert!(Instant::now() < until, "never alone");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// A process that has `socket`, and nothing else of this one.
    fn holder(socket: &TcpStream) -> Child {
        let socket = socket.try_clone().unwrap();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(std::os::fd::OwnedFd::from(socket)))
            .spawn()
            .unwrap();
        // It has only what it shall have once it answers.
        child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn one_is_alone_and_two_are_not() {
        let (near, far) = connection();
        let near = socket_number(near.as_fd()).map(|number| (near, number)).unwrap();
        let far_number = socket_number(far.as_fd()).unwrap();
        let mut first = holder(&near.0);
        let asked = [(near.1, first.id()), (far_number, first.id())];
        // Nobody but this process has the second, so that it is not the asker's.
        let found = look(&asked);
        assert_eq!(found[1], Holding::Shared);
        alone(&asked);
        let mut second = holder(&near.0);
        assert_eq!(look(&asked)[0], Holding::Shared);
        second.kill().unwrap();
        second.wait().unwrap();
        alone(&asked);
        first.kill().unwrap();
        first.wait().unwrap();
        assert_eq!(look(&asked)[0], Holding::Shared);
    }

    #[test]
    fn every_process_descends_from_the_first() {
        let known = HashSet::from([1]);
        let found = Found { askers: HashMap::new(), known: &known, others: false };
        assert!(found.descends_from_known(process_id()));
        assert_eq!(parent(process_id()), Some(std::os::unix::process::parent_id()));
        let known = HashSet::from([process_id()]);
        let found = Found { askers: HashMap::new(), known: &known, others: false };
        assert!(!found.descends_from_known(1));
    }

    #[test]
    fn a_mark_may_stand_for_anybody() {
        let (near, _far) = connection();
        let number = socket_number(near.as_fd()).unwrap();
        let mut holds = holder(&near);
        let asked = [(number, holds.id())];
        rustix::fs::flock(&near, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert_eq!(look(&asked), [Holding::Shared]);
        rustix::fs::flock(&near, rustix::fs::FlockOperation::Unlock).unwrap();
        alone(&asked);
        holds.kill().unwrap();
        holds.wait().unwrap();
    }
}
