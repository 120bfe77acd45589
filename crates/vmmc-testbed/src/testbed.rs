//! Making, using and removing a testbed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cluster;
use crate::delay::DelayError;
use crate::namespace::{NamespaceError, enter_network, show_devices};
use crate::occupants::Namespaces;
use crate::options::{MAX_NODES, MAX_RAILS, Options};
use crate::place::{Place, PlaceError};
use crate::record::Record;
use crate::tool::ToolError;
use crate::wiring;

/// Why a testbed does not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum TestbedError {
    /// {0}
    Place(PlaceError),
    /// {0}
    Tool(ToolError),
    /// {0}; making namespaces needs root, or user namespaces for everybody
    Rights(ToolError),
    /// {0}
    Delay(DelayError),
    /// {0}
    Namespace(NamespaceError),
    /// a testbed has 1 to 64 nodes, 1 to 8 rails and an MTU of at least 1280 bytes
    Options,
    /// the testbed is up already: use it, or remove it with `vmmc testbed down`
    Up,
    /// no testbed is up: make one with `vmmc testbed up`
    NotUp,
    /// the testbed has {nodes} nodes and {rails} rails, counted from 1
    NoSuch {
        /// How many nodes there are.
        nodes: u8,
        /// How many rails there are.
        rails: u8,
    },
    /// this runs in the testbed itself, which would take it along: run it outside
    Inside,
}

/// What a testbed is like now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// As it was made.
    pub options: Options,
    /// In their order.
    pub nodes: Vec<Node>,
}

/// One host of a testbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Counted from 1.
    pub node: u8,
    /// Its network namespace.
    pub namespace: String,
    /// What `VMMC_RUNTIME_DIR` is there.
    pub runtime_dir: PathBuf,
    /// Its cables.
    pub rails: Vec<Rail>,
}

/// One cable of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rail {
    /// Counted from 1; the device is called `railN`.
    pub rail: u8,
    /// IPv4 and IPv6.
    pub addresses: [String; 2],
    /// Not cut.
    pub plugged: bool,
}

/// Makes a testbed. What is left of one that lost a part is cleared away first, and what was made is cleared away on an error.
///
/// Like all functions here it may move this process, which must have one thread only, into other namespaces.
///
/// # Errors
/// See [`TestbedError`].
pub fn up(name: &str, options: &Options) -> Result<(), TestbedError> {
    let sizes =
        (1..=MAX_NODES).contains(&options.nodes) && (1..=MAX_RAILS).contains(&options.rails);
    if !sizes || options.mtu < 1280 {
        return Err(TestbedError::Options);
    }
    let place = Place::new(name)?;
    let _lock = place.lock()?;
    if is_whole(&place)? {
        return Err(TestbedError::Up);
    }
    clear(&place)?;
    place.make()?;
    let made = make(&place, options);
    if made.is_err() {
        // The first error is the one to be told.
        let _ = clear(&place);
    }
    made
}

fn make(place: &Place, options: &Options) -> Result<(), TestbedError> {
    wiring::build(&place.name, options).map_err(|error| match error {
        TestbedError::Tool(ToolError::Failed { ref command, .. })
            if command.starts_with("ip netns add") =>
        {
            let TestbedError::Tool(error) = error else { return error };
            TestbedError::Rights(error)
        }
        error => error,
    })?;
    place.make_nodes()?;
    let key = cluster::random_key();
    for node in 1..=options.nodes {
        let dir = place.node_dir(node);
        place.make_dir(&dir)?;
        place.write(&dir.join("cluster.key"), &key)?;
        place.write(&dir.join("node.toml"), &cluster::config(node, options))?;
    }
    Ok(place.write(&place.record(), &Record { options: *options }.text())?)
}

/// Removes a testbed, and everything that runs in it; `false` when there was none.
///
/// # Errors
/// See [`TestbedError`].
pub fn down(name: &str) -> Result<bool, TestbedError> {
    let place = Place::new(name)?;
    let lock = place.lock()?;
    let was_there = clear(&place)?;
    lock.remove();
    Ok(was_there)
}

/// Takes away whatever there is of a testbed; whether there was anything.
fn clear(place: &Place) -> Result<bool, TestbedError> {
    let recorded = place.record().exists();
    let found = match place.is_kept() {
        // With the keeper and all others in its user namespace everything else goes.
        Some(kept) => {
            place.dissolve();
            kept
        }
        None => clear_names(&place.name)?,
    };
    place.remove_files();
    Ok(found || recorded)
}

/// Deletes the namespaces and ends who lives there; whether there were any.
fn clear_names(name: &str) -> Result<bool, TestbedError> {
    let left = wiring::namespaces(name)?;
    let mut namespaces = Namespaces::default();
    left.iter().for_each(|namespace| namespaces.add(&Path::new("/run/netns").join(namespace)));
    if namespaces.hold_us("net") {
        return Err(TestbedError::Inside);
    }
    namespaces.clear("net");
    for namespace in &left {
        wiring::delete(namespace)?;
    }
    Ok(!left.is_empty())
}

/// Moves this process into a node; returns the environment that belongs to it.
///
/// # Errors
/// See [`TestbedError`].
pub fn enter(name: &str, node: u8) -> Result<Vec<(&'static str, OsString)>, TestbedError> {
    let (place, options) = whole(name)?;
    check(&options, node, None)?;
    enter_network(&wiring::node_namespace(name, node)).map_err(TestbedError::Namespace)?;
    // Where that is not allowed the host's devices are seen there, which few programs look at.
    let _ = show_devices();
    Ok(vec![
        ("VMMC_RUNTIME_DIR", place.node_dir(node).into()),
        ("VMMC_TESTBED_NODE", node.to_string().into()),
    ])
}

/// Pulls out a node's cable on one rail, or on all.
///
/// # Errors
/// See [`TestbedError`].
pub fn cut(name: &str, node: u8, rail: Option<u8>) -> Result<(), TestbedError> {
    connect(name, node, rail, false)
}

/// Plugs a node's cable in again on one rail, or on all.
///
/// # Errors
/// See [`TestbedError`].
pub fn heal(name: &str, node: u8, rail: Option<u8>) -> Result<(), TestbedError> {
    connect(name, node, rail, true)
}

fn connect(name: &str, node: u8, rail: Option<u8>, plugged: bool) -> Result<(), TestbedError> {
    let (_, options) = whole(name)?;
    check(&options, node, rail)?;
    for rail in rail.map_or(1..=options.rails, |rail| rail..=rail) {
        wiring::connect(name, &options, node, rail, plugged)?;
    }
    Ok(())
}

/// What a testbed is like now; `None` when none is up.
///
/// # Errors
/// See [`TestbedError`].
pub fn status(name: &str) -> Result<Option<Status>, TestbedError> {
    let (place, options) = match whole(name) {
        Err(TestbedError::NotUp) => return Ok(None),
        found => found?,
    };
    let plugged = wiring::plugged(name)?;
    let rail = |node, rail| Rail {
        rail,
        addresses: wiring::addresses(node, rail),
        plugged: plugged.contains(&wiring::port(node, rail)),
    };
    let node = |node| Node {
        node,
        namespace: wiring::node_namespace(name, node),
        runtime_dir: place.node_dir(node),
        rails: (1..=options.rails).map(|number| rail(node, number)).collect(),
    };
    Ok(Some(Status { options, nodes: (1..=options.nodes).map(node).collect() }))
}

/// A testbed that is up, and where its namespaces are known.
fn whole(name: &str) -> Result<(Place, Options), TestbedError> {
    let place = Place::new(name)?;
    let record = Record::read(&place.record()).ok_or(TestbedError::NotUp)?;
    if !place.enter()? {
        return Err(TestbedError::NotUp);
    }
    Ok((place, record.options))
}

/// Whether a testbed is up with all its parts.
fn is_whole(place: &Place) -> Result<bool, TestbedError> {
    let Some(Record { options }) = Record::read(&place.record()) else { return Ok(false) };
    if place.is_kept() == Some(true) {
        // The keeper holds them all.
        return Ok(true);
    }
    Ok(place.is_kept().is_none()
        && wiring::namespaces(&place.name)?.len() == usize::from(options.nodes) + 1
        && wiring::has_cables(&place.name, &options)?)
}

fn check(options: &Options, node: u8, rail: Option<u8>) -> Result<(), TestbedError> {
    let &Options { nodes, rails, .. } = options;
    if (1..=nodes).contains(&node) && rail.is_none_or(|rail| (1..=rails).contains(&rail)) {
        return Ok(());
    }
    Err(TestbedError::NoSuch { nodes, rails })
}

impl From<PlaceError> for TestbedError {
    fn from(error: PlaceError) -> Self {
        Self::Place(error)
    }
}

impl From<DelayError> for TestbedError {
    fn from(error: DelayError) -> Self {
        Self::Delay(error)
    }
}

impl From<ToolError> for TestbedError {
    fn from(error: ToolError) -> Self {
        Self::Tool(error)
    }
}
