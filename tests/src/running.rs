//! One program: started in a process group of its own, its output kept, waiting bounded, ended with its owner.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long a program may take to leave after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A started program. Dropping it kills its whole process group and collects it.
///
/// It also dies when the thread that started it ends, so start it on the thread that uses it.
#[derive(Debug)]
pub struct Running {
    name: String,
    pid: Pid,
    pidfd: rustix::fd::OwnedFd,
    stdout: Option<File>,
    stderr: Option<File>,
    finished: Option<Finished>,
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Everything that it wrote to standard output; empty if the command sent it elsewhere.
    pub stdout: String,
    /// Everything that it wrote to standard error; empty if the command sent it elsewhere.
    pub stderr: String,
    /// Processor time, user and system, of the program and of the children that it waited for.
    pub cpu: Duration,
}

/// Why a program could not be run to its end.
#[derive(Debug, thiserror::Error, displaydoc::Display)]
pub enum RunningError {
    /// cannot start {name}: {cause}; is it installed and executable?
    Start {
        /// The command line.
        name: String,
        /// What the operating system said.
        cause: io::Error,
    },
    /// {name} was still running after {after:?} and was killed; its output ends: {tail}
    TimedOut {
        /// The command line.
        name: String,
        /// How long it was given.
        after: Duration,
        /// The end of its output.
        tail: String,
    },
    /// {name} ended with {status}; its output ends: {tail}
    Failed {
        /// The command line.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        tail: String,
    },
}

impl Running {
    /// Starts `command` with standard input empty and both outputs kept.
    pub fn start(command: &mut Command) -> Result<Self, RunningError> {
        Self::start_with_input(command, Stdio::null())
    }

    /// Starts `command` with `input` as its standard input and both outputs kept.
    pub fn start_with_input(
        command: &mut Command,
        input: impl Into<Stdio>,
    ) -> Result<Self, RunningError> {
        let name = command_line(command);
        let keep = || {
            tempfile::tempfile().map_err(|cause| RunningError::Start { name: name.clone(), cause })
        };
        let (stdout, stderr) = (keep()?, keep()?);
        let share = |file: &File| {
            file.try_clone().map_err(|cause| RunningError::Start { name: name.clone(), cause })
        };
        command.stdin(input).stdout(share(&stdout)?).stderr(share(&stderr)?);
        let mut running = Self::start_as_is(command)?;
        (running.stdout, running.stderr) = (Some(stdout), Some(stderr));
        Ok(running)
    }

    /// Starts `command` with the standard input and outputs that it was given.
    pub fn start_as_is(command: &mut Command) -> Result<Self, RunningError> {
        let name = command_line(command);
        let error = |cause| RunningError::Start { name: name.clone(), cause };
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec; prctl is async-signal-safe and nothing is allocated.
        unsafe { command.pre_exec(die_with_parent) };
        let child = command.spawn().map_err(error)?;
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| error(errno.into()))?;
        Ok(Running { name, pid, pidfd, stdout: None, stderr: None, finished: None })
    }

    /// The process id. The group has the same.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.finished.is_none() && !self.ends_within(Duration::ZERO)
    }

    /// Waits until the program ends by itself, for at most `limit`; after that it is killed and the wait is an error.
    pub fn wait(&mut self, limit: Duration) -> Result<Finished, RunningError> {
        if self.finished.is_none() && !self.ends_within(limit) {
            self.signal(Signal::KILL);
            self.collect();
            return Err(RunningError::TimedOut {
                name: self.name.clone(),
                after: limit,
                tail: self.tail(),
            });
        }
        Ok(self.collect())
    }

    /// Like [`Running::wait`], and demands exit status 0.
    pub fn succeed(&mut self, limit: Duration) -> Result<Finished, RunningError> {
        let finished = self.wait(limit)?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(RunningError::Failed {
            name: self.name.clone(),
            status: finished.status,
            tail: self.tail(),
        })
    }

    /// Asks the program to leave with SIGTERM, and kills it if it does not within a few seconds.
    pub fn stop(&mut self) -> Finished {
        self.signal(Signal::TERM);
        if !self.ends_within(GRACE) {
            self.signal(Signal::KILL);
        }
        self.collect()
    }

    /// Kills the program and everything in its process group.
    pub fn kill(&mut self) -> Finished {
        self.signal(Signal::KILL);
        self.collect()
    }

    /// What it has written to standard output so far.
    pub fn output_so_far(&self) -> String {
        read_all(self.stdout.as_ref())
    }

    /// The last line, complete or not, that it has written to standard error so far.
    pub fn last_error_line(&self) -> String {
        let Some(file) = &self.stderr else { return String::new() };
        let mut end = [0; 512];
        let from = file.metadata().map_or(0, |data| data.len()).saturating_sub(end.len() as u64);
        let got = file.read_at(&mut end, from).unwrap_or_default();
        let end = String::from_utf8_lossy(&end[..got]);
        end.trim_end().rsplit('\n').next().unwrap_or_default().to_owned()
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(
                &mut [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)],
                Some(&left),
            ) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true, // the descriptor is ours and valid: only reachable if the process is gone
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if self.finished.is_none() {
            // An error means that the group is already gone, which is what was wanted.
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Collects the program; blocks until it has ended.
    fn collect(&mut self) -> Finished {
        if let Some(finished) = &self.finished {
            return finished.clone();
        }
        let (status, cpu) = wait4(self.pid);
        // What the program left running in its group ends with it.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        let finished = Finished {
            status,
            stdout: read_all(self.stdout.as_ref()),
            stderr: read_all(self.stderr.as_ref()),
            cpu,
        };
        self.finished = Some(finished.clone());
        finished
    }

    fn tail(&self) -> String {
        let text = read_all(self.stdout.as_ref()) + &read_all(self.stderr.as_ref());
        let text = text.trim_end();
        let from = text.char_indices().rev().nth(800).map_or(0, |(at, _)| at);
        text[from..].to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid())
    }
}

fn die_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

fn wait4(pid: Pid) -> (ExitStatus, Duration) {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage, which holds only integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live local variables of the types that wait4 fills in.
        let waited =
            unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, &raw mut usage) };
        if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs())
            + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    (ExitStatus::from_raw(status), time(usage.ru_utime) + time(usage.ru_stime))
}

fn read_all(file: Option<&File>) -> String {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    // Positioned reads: the program shares the file offset and may still be writing.
    while let Some(file) = file
        && let Ok(got @ 1..) = file.read_at(&mut buffer, bytes.len() as u64)
    {
        bytes.extend_from_slice(&buffer[..got]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
