//! `policy.toml`: what may be lifted.
//!
//! ```toml
//! # /etc/vmmc/policy.toml: the host's. ~/.config/vmmc/policy.toml: one user's, whose lines go before the host's.
//! lift = true                        # false: programs run plainly
//! programs = ["redis-server"]        # only these are lifted: names, or whole paths
//! not_programs = ["/usr/bin/ssh"]    # these are not
//! ports = [6379, "8000-8999"]        # only connections with such a port at either end
//! not_ports = [22]
//! spin = 50                          # how long a waiting call looks before it sleeps, microseconds
//! lift_after = 4                     # calls with data before a connection is lifted
//! park_after = 10                    # seconds after which an idle one gives its memory back; 0: never
//! ring = "2M"                        # the largest ring a direction may get: "3.5K", "64K" or "2M"
//!
//! # In the host's file only: which users may be lifted to each other. Without it none are.
//! [[between]]
//! users = ["www-data", 1001]         # each with each; "*" is everybody
//! ports = [6379]                     # absent: all
//!
//! # In the host's file only: what one user (other than root) may take of the host's service.
//! [limits]
//! processes = 1024
//! ```

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Everything that a file may say; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Whether programs are lifted at all.
    pub lift: Option<bool>,
    /// Only these programs are lifted.
    pub programs: Option<Vec<String>>,
    /// These programs are not lifted.
    pub not_programs: Option<Vec<String>>,
    /// Only connections with such a port at either end are lifted.
    pub ports: Option<Vec<Ports>>,
    /// Connections with such a port are not lifted.
    pub not_ports: Option<Vec<Ports>>,
    /// How long a waiting call looks before it sleeps, microseconds.
    pub spin: Option<u32>,
    /// Calls with data before a connection is lifted.
    pub lift_after: Option<u32>,
    /// Seconds after which an idle lifted connection gives its memory back, until it is used again; 0: never.
    pub park_after: Option<u32>,
    /// The largest ring that a direction may get.
    pub ring: Option<RingSize>,
    /// Which users may be lifted to each other; the host's file only.
    #[serde(default)]
    pub between: Vec<Between>,
    /// What one user may take of the host's service; the host's file only.
    #[serde(default)]
    pub limits: Limits,
}

/// One port, or several in a row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PortsText")]
pub struct Ports(pub RangeInclusive<u16>);

/// Bytes of the largest ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum RingSize {
    /// 3.5 KiB.
    #[serde(rename = "3.5K")]
    Small,
    /// 64 KiB.
    #[serde(rename = "64K")]
    Middle,
    /// 2 MiB, in memory of 4 MiB.
    #[serde(rename = "2M")]
    Large,
}

/// Users that may be lifted to each other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Between {
    /// Each with each.
    pub users: Vec<User>,
    /// Only connections with such a port at either end; `None`: all.
    pub ports: Option<Vec<Ports>>,
}

/// A user by id, or everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "UserText")]
pub enum User {
    /// This one.
    Id(u32),
    /// Everybody.
    Any,
}

/// What all processes of one user together may have in the host's service; root's may have as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connected processes.
    pub processes: u32,
    /// Exports.
    pub exports: u32,
    /// Imports.
    pub imports: u32,
    /// Ends of lifted connections.
    pub pairs: u32,
    /// Ends of connections that wait for their other end.
    pub offers: u32,
    /// Bytes that the service keeps for the user: messages it does not read, and bytes on their way back to TCP.
    pub unread_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 1024,
            exports: 16 * 1024,
            imports: 64 * 1024,
            pairs: 32 * 1024,
            offers: 16 * 1024,
            unread_bytes: 64 << 20,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortsText {
    One(u16),
    Row(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UserText {
    Id(u32),
    Name(String),
}

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum PolicyError {
    /// cannot read the policy {path:?} ({cause}): make it readable, or remove it
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// {path:?}, line {line}: {cause}; docs/users.md lists what a policy may say
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where it is wrong; 1 is the first line.
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// {0:?}: the tables between and limits count in the host's /etc/vmmc/policy.toml only: move them there
    NotHere(PathBuf),
    /// others than root and the service's user can write the policy {0:?}: run chmod go-w on it, and chown root
    Open(PathBuf),
}

impl TryFrom<PortsText> for Ports {
    type Error = String;

    fn try_from(text: PortsText) -> Result<Self, String> {
        let row = match text {
            PortsText::One(port) => return Ok(Self(port..=port)),
            PortsText::Row(row) => row,
        };
        let (first, last) = row.split_once('-').unwrap_or((&row, &row));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!("{row:?} is no port: write 6379, or \"8000-8999\"")),
        }
    }
}

impl TryFrom<UserText> for User {
    type Error = String;

    fn try_from(text: UserText) -> Result<Self, String> {
        match text {
            UserText::Id(id) => Ok(Self::Id(id)),
            UserText::Name(name) if name == "*" => Ok(Self::Any),
            UserText::Name(name) => vmmc_os::user_by_name(&name).map(Self::Id).ok_or_else(|| {
                format!("there is no user {name:?}: write another name, or a user id")
            }),
        }
    }
}

impl Policy {
    /// Where the host's policy is: `$VMMC_SYSTEM_POLICY`, else `/etc/vmmc/policy.toml`.
    pub fn host_path() -> PathBuf {
        let named = std::env::var_os("VMMC_SYSTEM_POLICY").filter(|path| !path.is_empty());
        named.map_or_else(|| "/etc/vmmc/policy.toml".into(), Into::into)
    }

    /// Where this user's policy is: `$VMMC_POLICY`, else `vmmc/policy.toml` in `$XDG_CONFIG_HOME`, else in `~/.config`.
    pub fn user_path() -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|path| !path.is_empty());
        if let Some(path) = variable("VMMC_POLICY") {
            return Some(path.into());
        }
        let config = variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let config = config.or_else(|| Some(Path::new(&variable("HOME")?).join(".config")))?;
        Some(config.join("vmmc/policy.toml"))
    }

    /// The host's policy, for its service; the default, which lets no user be lifted to another, where there is none. The file has to be
    /// root's or this user's, and nobody else's to write.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn of_host() -> Result<Self, PolicyError> {
        let path = Self::host_path();
        let Some(policy) = Self::read(&path)? else { return Ok(Self::default()) };
        if !vmmc_os::is_ours_to_write(&path) {
            return Err(PolicyError::Open(path));
        }
        Ok(policy)
    }

    /// What counts for programs of this user: the user's policy, and the host's where that says nothing.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn of_programs() -> Result<Self, PolicyError> {
        let host = Self::read(&Self::host_path())?.unwrap_or_default();
        let Some(path) = Self::user_path() else { return Ok(host) };
        let Some(own) = Self::read(&path)? else { return Ok(host) };
        if !own.between.is_empty() || own.limits != Limits::default() {
            return Err(PolicyError::NotHere(path));
        }
        Ok(Self {
            lift: own.lift.or(host.lift),
            programs: own.programs.or(host.programs),
            not_programs: own.not_programs.or(host.not_programs),
            ports: own.ports.or(host.ports),
            not_ports: own.not_ports.or(host.not_ports),
            spin: own.spin.or(host.spin),
            lift_after: own.lift_after.or(host.lift_after),
            park_after: own.park_after.or(host.park_after),
            ring: own.ring.or(host.ring),
            between: host.between,
            limits: host.limits,
        })
    }

    /// Reads a file; `None` where there is none.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn read(path: &Path) -> Result<Option<Self>, PolicyError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                return Err(PolicyError::Read { path: path.into(), cause: cause.to_string() });
            }
        };
        toml::from_str(&text).map(Some).map_err(|cause| PolicyError::Syntax {
            path: path.into(),
            line: 1 + cause
                .span()
                .map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count()),
            cause: cause.message().trim_end().replace('\n', " "),
        })
    }

    /// Whether connections with these ports at their ends may be lifted between two users.
    pub fn lets_meet(&self, users: [u32; 2], ports: [u16; 2]) -> bool {
        self.between.iter().any(|rule| {
            let named = |user| rule.users.iter().any(|known| known.is(user));
            let port = |port| {
                rule.ports.as_ref().is_none_or(|all| all.iter().any(|row| row.0.contains(&port)))
            };
            users.into_iter().all(named) && ports.into_iter().any(port)
        })
    }

    /// What the preloaded library is told in the environment: names and values of variables, for all that the policy says.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let row = |ports: &Vec<Ports>| {
            let each = ports.iter().map(|Ports(row)| format!("{}-{}", row.start(), row.end()));
            each.collect::<Vec<_>>().join(",")
        };
        let number = |number: u32| number.to_string();
        let all = [
            ("VMMC_PROGRAMS", self.programs.as_ref().map(|names| names.join(":"))),
            ("VMMC_NOT_PROGRAMS", self.not_programs.as_ref().map(|names| names.join(":"))),
            ("VMMC_PORTS", self.ports.as_ref().map(row)),
            ("VMMC_NOT_PORTS", self.not_ports.as_ref().map(row)),
            ("VMMC_SPIN", self.spin.map(number)),
            ("VMMC_LIFT_AFTER", self.lift_after.map(number)),
            ("VMMC_PARK_AFTER", self.park_after.map(number)),
            ("VMMC_RING", self.ring.map(|ring| ring.to_string())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// In a few words, for a person.
    pub fn summary(&self) -> String {
        let mut text = match self.lift {
            Some(false) => "nothing is lifted".to_owned(),
            _ => "programs are lifted".to_owned(),
        };
        for (name, value) in self.environment() {
            let _ = write!(text, ", {name}={value}");
        }
        text
    }
}

impl User {
    fn is(self, id: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Id(own) => own == id,
        }
    }
}

impl std::fmt::Display for RingSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Small => "3.5K",
            Self::Middle => "64K",
            Self::Large => "2M",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, PolicyError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, text).unwrap();
        Policy::read(&path).map(Option::unwrap)
    }

    #[test]
    fn a_policy_says_what_may_be_lifted() {
        let policy = read(
            "programs = ['redis-server', '/usr/bin/curl']\nports = [6379, '8000-8999']\nspin = 7\nring = '64K'\n\
             [[between]]\nusers = ['root', 1001]\nports = [6379]\n[limits]\nprocesses = 3\n",
        )
        .unwrap();
        let environment = policy.environment();
        assert!(environment.contains(&("VMMC_PROGRAMS", "redis-server:/usr/bin/curl".into())));
        assert!(environment.contains(&("VMMC_PORTS", "6379-6379,8000-8999".into())));
        assert!(environment.contains(&("VMMC_RING", "64K".into())));
        assert!(environment.contains(&("VMMC_SPIN", "7".into())));
        assert_eq!(environment.len(), 4);
        assert_eq!((policy.limits.processes, policy.limits.exports), (3, 16 * 1024));
    }

    #[test]
    fn users_meet_only_where_a_rule_names_both_and_the_port() {
        let policy = read(
            "[[between]]\nusers = [1, 2]\n[[between]]\nusers = [2, 3]\nports = [80]\n[[between]]\nusers = ['*']\nports = ['443']\n",
        )
        .unwrap();
        assert!(policy.lets_meet([1, 2], [9, 40_000]));
        assert!(policy.lets_meet([3, 2], [80, 40_000]) && policy.lets_meet([3, 2], [40_000, 80]));
        assert!(!policy.lets_meet([3, 2], [81, 40_000]));
        assert!(!policy.lets_meet([1, 3], [80, 40_000]));
        assert!(policy.lets_meet([1, 3], [443, 40_000]));
        assert!(!Policy::default().lets_meet([1, 2], [80, 80]), "nobody by default");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let line = |text: &str| match read(text).unwrap_err() {
            PolicyError::Syntax { line, cause, .. } => (line, cause),
            other => panic!("{other}"),
        };
        let (at, cause) = line("spin = 1\nports = ['http']\n");
        assert!(at == 2 && cause.contains("8000-8999"), "{at} {cause}");
        let (at, cause) = line("\n\nrings = '2M'\n");
        assert!(at == 3 && cause.contains("rings"), "{at} {cause}");
        let (at, cause) = line("[[between]]\nusers = ['nobody-of-this-name']\n");
        assert!(at == 2 && cause.contains("nobody-of-this-name"), "{at} {cause}");
        assert_eq!(line("spin = -1\n").0, 1);
        assert_eq!(line("ring = '1M'\n").0, 1);
        assert_eq!(line("x").0, 1);
    }
}
