//! What a process tells of its lanes: an export of one page, which others of its user read ([`crate::paths`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmmc_link::Time;
use vmmc_os::{Access, Mapping, OsError, create_memory, seal_read_only, start_thread};
use vmmc_proto::{Allow, ExportDeclaration, PAGE_SIZE, Request, Rights};
use vmmc_shm::paths::{PathBoard, PathInfo};

use super::{Lanes, State};
use crate::export::Announced;
use crate::paths;
use crate::process::{Inner, lock};

/// How often it tells while there is something to do.
const TOLD: Duration = Duration::from_millis(50);

impl Lanes {
    /// Has the board announced, by a thread of its own: nothing waits for the service here.
    pub(super) fn announce_board(self: &Arc<Self>) {
        let Some(home) = self.home.get().cloned() else { return };
        let lanes = Arc::clone(self);
        let _ = start_thread("vmmc-board", move || {
            if let Some(inner) = home.upgrade()
                && let Ok(board) = announce(&inner)
            {
                let _ = lanes.board.set(board);
            }
        });
    }

    /// Tells how the paths are, if it is time.
    pub(super) fn tell_in_turn(&self, state: &State, now: Time) {
        let told = Time::from_nanos(self.told.load(Ordering::Relaxed));
        if now - told > TOLD {
            self.tell(state, now);
        }
    }

    /// Tells how the paths are now.
    pub(super) fn tell(&self, state: &State, now: Time) {
        if let Some(board) = self.board.get() {
            self.told.store(now.as_nanos(), Ordering::Relaxed);
            // SAFETY: the mapping is page-aligned, a page long, writable, and lives as long as `self`.
            unsafe { PathBoard::at(board.as_ptr()) }.tell(paths_of(state));
        }
    }

    /// The paths of all lanes.
    pub(crate) fn paths(&self) -> Vec<PathInfo> {
        // In a forked child a thread that is not there may have the state.
        if self.is_active() { paths_of(&self.lock()).collect() } else { Vec::new() }
    }
}

fn paths_of(state: &State) -> impl Iterator<Item = PathInfo> {
    let links =
        state.here.ends.keys().filter_map(|number| Some((*number, state.port.look(*number)?)));
    links.flat_map(move |(number, link)| {
        (0..u8::MAX).map_while(move |path| {
            let (found, stats) = (link.path(path)?, link.stats());
            Some(PathInfo {
                peer: state.port.address(number, path)?,
                path,
                up: found.up,
                round_trip: u64::try_from(found.round_trip.as_nanos()).unwrap_or(u64::MAX),
                window: found.window,
                in_flight: found.in_flight,
                mtu: found.mtu,
                packets_sent: stats.packets_sent,
                packets_lost: stats.packets_lost,
            })
        })
    })
}

/// Exports a page for reading. A later service is told of it too.
fn announce(inner: &Inner) -> Result<Mapping, OsError> {
    let memory = create_memory(PAGE_SIZE)?.raise(inner.options.descriptor_floor)?;
    let board = Mapping::new(&memory, 0, PAGE_SIZE, Access::ReadWrite)?;
    seal_read_only(&memory)?;
    let number = inner.fresh_export().number;
    let declaration = ExportDeclaration {
        number,
        len: PAGE_SIZE as u64,
        name: paths::NAME.to_owned(),
        rights: Rights::READ,
        allow: Allow::SameUser,
        notify: false,
        pool: None,
    };
    let announced = Arc::new(Announced::plain(declaration, memory));
    lock(&inner.announced).insert(number, Arc::clone(&announced));
    // One that has no room for it, or is gone: the next one is asked again.
    let _ = inner.request(&announced.descriptors(), |seq| Request::Export {
        seq,
        declaration: announced.declaration.clone(),
    });
    Ok(board)
}
