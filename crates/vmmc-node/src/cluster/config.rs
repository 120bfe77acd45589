//! `node.toml`: what this node is called, where it listens, and whom it knows.
//!
//! ```toml
//! name = "ada"
//! addresses = ["192.0.2.1:7411"]     # one for each path; path n of one node leads to path n of the other
//! key_file = "cluster.key"           # 64 hexadecimal digits; the same on all nodes, and nobody else's to read
//!
//! [[node]]
//! name = "grace"
//! addresses = ["192.0.2.2:7411"]
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vmmc_link::Recovery;

/// Longest name of a node, bytes.
const MAX_NAME: usize = 63;

/// What this node is called, where it listens, and whom it knows.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Names this node to others.
    pub name: String,
    /// Where it listens, UDP and TCP alike; one for each path, 1 to 64.
    pub addresses: Vec<SocketAddr>,
    /// Proves that a node belongs here.
    pub key: ClusterKey,
    /// Packets are encrypted; `plaintext = true` is for a network that nobody else can reach.
    pub encrypted: bool,
    /// Bytes of an IP packet that the network carries at most, 1280 to 65,535.
    pub mtu: u16,
    /// How this node sends lost packets again; `recovery = "go-back-n"` is for comparison.
    pub recovery: Recovery,
    /// The others.
    pub nodes: Vec<KnownNode>,
}

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownNode {
    /// Its name.
    pub name: String,
    /// Where it listens; one of them is enough, it tells the others.
    pub addresses: Vec<SocketAddr>,
}

/// What all nodes of a cluster know and nobody else.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

/// Why `node.toml` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ConfigError {
    /// cannot read {path:?} ({cause})
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// {path:?} cannot be understood: {cause}
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        cause: String,
    },
    /// {1:?}: {0:?} is no name for a node: use 1 to 63 letters, digits, dots and dashes
    Name(String, PathBuf),
    /// two nodes are called {0:?}: give each its own name
    SameName(String),
    /// node {0:?} has no address, or more than 64: write addresses = ["192.0.2.1:7411"]
    Addresses(String),
    /// the mtu is not between 1280 and 65535
    Mtu,
    /// {0:?} is no cluster key: it must hold 64 hexadecimal digits, as `vmmc node key` prints them
    Key(PathBuf),
    /// others can read the cluster key {0:?}: run chmod 600 on it
    OpenKey(PathBuf),
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    addresses: Vec<SocketAddr>,
    key_file: PathBuf,
    #[serde(default)]
    plaintext: bool,
    #[serde(default = "ethernet")]
    mtu: u16,
    #[serde(default)]
    recovery: RecoveryName,
    #[serde(default)]
    node: Vec<KnownNode>,
}

/// As it stands in the file.
#[derive(Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RecoveryName {
    #[default]
    Selective,
    GoBackN,
}

impl From<RecoveryName> for Recovery {
    fn from(name: RecoveryName) -> Recovery {
        match name {
            RecoveryName::Selective => Recovery::Selective,
            RecoveryName::GoBackN => Recovery::GoBackN,
        }
    }
}

fn ethernet() -> u16 {
    1500
}

impl ClusterConfig {
    /// Reads a `node.toml`; a relative `key_file` lies beside it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let file: File = toml::from_str(&text).map_err(|cause| ConfigError::Syntax {
            path: path.into(),
            cause: cause.to_string().trim_end().replace('\n', " "),
        })?;
        let key = ClusterKey::read(&path.parent().unwrap_or(Path::new("")).join(file.key_file))?;
        let own = KnownNode { name: file.name, addresses: file.addresses };
        for (index, node) in std::iter::once(&own).chain(&file.node).enumerate() {
            if !is_name(&node.name) {
                return Err(ConfigError::Name(node.name.clone(), path.into()));
            }
            if !(1..=64).contains(&node.addresses.len()) {
                return Err(ConfigError::Addresses(node.name.clone()));
            }
            if file.node[index..].iter().any(|other| other.name == node.name) {
                return Err(ConfigError::SameName(node.name.clone()));
            }
        }
        if file.mtu < 1280 {
            return Err(ConfigError::Mtu);
        }
        Ok(Self {
            name: own.name,
            addresses: own.addresses,
            key,
            encrypted: !file.plaintext,
            mtu: file.mtu,
            recovery: file.recovery.into(),
            nodes: file.node,
        })
    }
}

impl ClusterKey {
    /// A new one.
    pub fn random() -> Self {
        let mut key = [0; 32];
        for word in key.chunks_exact_mut(8) {
            word.copy_from_slice(&vmmc_os::random_u64().to_ne_bytes());
        }
        Self(key)
    }

    /// As it stands in a file.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        if std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0) {
            return Err(ConfigError::OpenKey(path.into()));
        }
        let bad = || ConfigError::Key(path.into());
        let text = text.trim();
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        let mut key = [0; 32];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Read { path: path.into(), cause: cause.to_string() })
}

/// Whether a node may be called so.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = r#"
        name = "ada"
        addresses = ["192.0.2.1:7411", "[2001:db8::1]:7411"]
        key_file = "cluster.key"
        [[node]]
        name = "grace"
        addresses = ["192.0.2.2:7411"]
    "#;

    /// Reads a `node.toml` beside a key file of this text and mode.
    fn read(toml: &str, key: &str, mode: u32) -> Result<ClusterConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let key_path = dir.path().join("cluster.key");
        std::fs::write(&path, toml).unwrap();
        std::fs::write(&key_path, key).unwrap();
        std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(mode)).unwrap();
        ClusterConfig::read(&path)
    }

    #[test]
    fn a_file_is_read_with_its_key() {
        let key = ClusterKey::random();
        let config = read(GOOD, &(key.to_hex() + "\n"), 0o600).unwrap();
        assert_eq!((config.name.as_str(), config.addresses.len()), ("ada", 2));
        assert_eq!(config.nodes[0].name, "grace");
        assert_eq!(config.key.bytes(), key.bytes());
        assert!(config.encrypted);
        assert_eq!((config.mtu, config.recovery), (1500, Recovery::Selective));
        let older =
            read(&format!("recovery = \"go-back-n\"\n{GOOD}"), &key.to_hex(), 0o600).unwrap();
        assert_eq!(older.recovery, Recovery::GoBackN);
        assert!(!format!("{config:?}").contains(&key.to_hex()[..8]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = ClusterKey::random().to_hex();
        let wrong = |toml: &str| read(toml, &key, 0o600).unwrap_err();
        assert!(matches!(read(GOOD, &key, 0o640), Err(ConfigError::OpenKey(_))));
        assert!(matches!(read(GOOD, &key[1..], 0o600), Err(ConfigError::Key(_))));
        assert!(matches!(read(GOOD, &"zz".repeat(32), 0o600), Err(ConfigError::Key(_))));
        assert!(matches!(wrong(&GOOD.replace("grace", "ada")), ConfigError::SameName(_)));
        assert!(matches!(wrong(&GOOD.replace("\"grace\"", "\"gr ace\"")), ConfigError::Name(..)));
        assert!(matches!(
            wrong(&GOOD.replace("\"192.0.2.2:7411\"", "")),
            ConfigError::Addresses(_)
        ));
        assert!(matches!(wrong(&GOOD.replace("7411", "74110")), ConfigError::Syntax { .. }));
        assert!(matches!(wrong(&format!("mtu = 100\n{GOOD}")), ConfigError::Mtu));
        assert!(matches!(wrong(&format!("keyfile = 1\n{GOOD}")), ConfigError::Syntax { .. }));
        assert!(matches!(wrong(&format!("recovery = 1\n{GOOD}")), ConfigError::Syntax { .. }));
        assert!(matches!(
            wrong(&GOOD.replace("cluster.key", "no.key")),
            ConfigError::Read { path, .. } if path.ends_with("no.key")
        ));
    }
}
