//! Virtual memory-mapped communication: export, import, send, fetch, notify.
//!
//! A process *exports* a buffer of its memory; another *imports* it, if the node service finds that it may; from then on it writes
//! and reads that buffer by plain copies. Setting up goes through the service once; **transfer makes no system call, takes no
//! lock, allocates nothing**, and the exporter takes no part in it.
//!
//! ```no_run
//! use vmmc::{ImportSource, Process};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One process:
//! let process = Process::open()?; // starts the node service if none runs
//! let board = process.export(4096).name("board").create()?;
//!
//! // Another:
//! let other = Process::open()?;
//! let import = other.import(ImportSource::Name("board".into())).open()?;
//! import.send(0, b"hello")?;
//! import.signal(4088, 1)?; // an aligned word, visible after everything sent before
//!
//! // The first again:
//! while board.load_signal(4088)? == 0 {
//!     std::hint::spin_loop();
//! }
//! let mut text = [0; 5];
//! board.read(0, &mut text)?;
//! assert_eq!(&text, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! This page is the book in short: [the model](#the-model), [what is visible when](#what-is-visible-when), [in which
//! order](#in-which-order), [on which thread](#on-which-thread), [deaths](#when-something-dies), [hostile
//! neighbours](#what-other-processes-can-do-to-this-one), [costs](#what-it-costs), [programs to start from](#programs-to-start-from). The
//! items tell the rest.
//!
//! # The model
//!
//! **Processes.** [`Process::open`] makes this address space known to the node service, one for each user and runtime directory. It has
//! a [`ProcessId`], and sees the others by [`Process::processes`].
//!
//! **Exports.** [`Process::export`] makes new memory, sealed and nameless, or exports existing pages
//! [in place](ExportOptions::create_in_place). The exporter says who may import ([`Allow`]) and what for ([`Rights`]).
//! [`Export::unexport`] takes it back at once: whatever an importer still writes reaches nobody.
//!
//! **Imports.** [`Process::import`] finds an export by id or name. [`Import::send`] writes, [`Import::fetch`] reads,
//! [`Import::signal`] writes a word that becomes visible only after all earlier sends. An import for writing only cannot be a mapping:
//! the service writes for it ([`Path::Engine`]). [`Import::state`] tells by a look at shared memory whether the export is live,
//! revoked or dead, and every transfer looks first.
//!
//! **Asynchronous transfers.** [`Import::send_async`], [`Import::fetch_async`] and their kin take a buffer, return a [`Transfer`] at once, and
//! give the buffer back with its end, by polling, waiting or `.await`. Small ones are done at the call; large ones are copied by a thread of
//! the library. Those of one import take effect in the order in which they were posted, and [`Import::flush`] waits for all of them;
//! synchronous calls do not. Dropping a [`Transfer`] is safe at any moment, and cancels it.
//!
//! ```no_run
//! # async fn example(import: vmmc::Import) -> Result<(), vmmc::TransferError> {
//! let large = import.send_async(0, vec![7; 1 << 20]);
//! let word = import.signal_async(1 << 20, 1); // visible after the bytes
//! let finished = large.await;
//! finished.result?;
//! let _again: Vec<u8> = finished.buffer;
//! word.await.result
//! # }
//! ```
//!
//! **Notifications.** An export created with [`Notify`] can be told of a send: [`Import::send_notify`] runs a handler in the
//! exporter, wakes a thread in [`Export::wait`] or a future of [`Export::notified`], and makes [`Export::event_fd`] readable for `epoll`
//! or an async runtime. It says which export, where, how many bytes and the last word of them. The sender makes a system call only if the
//! exporter announced that it sleeps. What comes when 64 are not yet taken is counted ([`Notification::lost`]); none is lost silently.
//!
//! **Redirection.** A receiver that learns late where bytes are to go [posts](Export::post) that memory for a range of an export
//! that is [redirectable](ExportOptions::redirectable). What arrives from then on goes there directly, and the sender does not know. Memory of the
//! export's [pool](Export::redirect_buffer) is reached without a second copy; any other is copied to once. [`Export::finish`]
//! tells exactly which bytes came directly and copies the rest. A signal or notification after a send says that its bytes are where
//! `finish` finds them; signal words themselves and fetches use the default buffer. A sender that stops half-way
//! is waited for about a millisecond; then its pages are replaced, and its bytes do not count as arrived.
//!
//! **Pairs.** Two processes that show the two ends of one TCP connection get an export and an import of each other, and can go back
//! to TCP at any moment: [`Process::pair_offer`] and what follows it.
//!
//! **Streams.** Two memories that lie opposite each other, as those of a pair do, carry a byte stream in each direction: [`stream`] lays them
//! out, so that either side polls only memory of its own and trusts nothing in it.
//!
//! # What is visible when
//!
//! Bytes become visible in the exporter's memory while a send runs, in no particular order and perhaps half a word at a time. What *says* that
//! they are all there is one of these:
//!
//! | seen | then visible |
//! |---|---|
//! | a new value of a signal word ([`Export::load_signal`], [`Import::load_signal`]) | the send that it came with, and everything that the same thread sent before on this import |
//! | a [`Notification`] | the same |
//! | [`Import::send`] has returned | its bytes are in the exporter's memory: a fetch after it, by any import, gets them |
//! | a [`Transfer`] is over with `Ok` | the same for its bytes |
//! | [`Import::flush`] has returned | the same for all asynchronous operations posted before it on this import, but those that failed or were cancelled |
//! | [`Export::finish`] has returned | every byte that was signalled before, in the posted buffer |
//! | [`Export::unexport`] has returned | nothing more: what an importer still writes reaches nobody |
//!
//! A signal word is aligned, 8 bytes, never seen by halves. Plain loads of the memory see no order: use [`Export::read`] after one of the
//! above, and remember that an importer that keeps to no rules may change it at any time.
//!
//! # In which order
//!
//! - **Synchronous calls of one thread on one import** take effect in their order, as far as signal words and notifications tell.
//! - **Asynchronous operations of one import** take effect in the order in which they were posted. One that overlaps an earlier one
//!   overwrites it.
//! - **A synchronous call does not wait for asynchronous operations.** Flush between them, or use the asynchronous form of both.
//! - **Vectors** are written piece by piece in their order, after all were checked.
//! - **Notifications of one importer** come in the order of its sends; those that found the mailbox full come as one count after them.
//! - **Between imports, and between threads**, there is no order, unless the program makes one.
//! - **Revoking** is before everything that returns [`TransferError::Revoked`]. A send at the same moment may succeed and reach nobody.
//!
//! The path makes no difference: a mapping, the service's engine and an engine over the link keep all of this, and one suite of tests
//! runs over each.
//!
//! # On which thread
//!
//! | what | where |
//! |---|---|
//! | [`Import::send`], `signal`, `fetch` | the caller's thread; by the engine ([`Path::Engine`]) it waits for the engine of the service or of this process |
//! | asynchronous operations up to 256 KiB on a mapping, with nothing pending before them | the caller's thread, at the call |
//! | other asynchronous operations | the library's thread `vmmc-copies`, or `vmmc-commands` for the engine path; both start with the first of them |
//! | wakers of transfers, and the drop of a buffer whose [`Transfer`] was dropped | that thread: they must not wait for another transfer |
//! | handlers of [`Notify::Handler`] | the thread `vmmc-notifier`, one for the process; they may unexport, send and import |
//! | wakers of [`Export::notified`] | the same |
//! | [`Export::wait`], [`Process::import`] and all that speaks with the service | the caller's thread, which may sleep |
//! | finding a new service | the thread `vmmc-watcher`, or in polled mode whoever calls [`Process::reconnect`] |
//!
//! Every type here may be used from several threads at once, and dropped on any. A forked child has none of the threads: it may go on using mapped
//! memory, and opens VMMC anew ([`Process::reopen_after_fork`]).
//!
//! # When something dies
//!
//! A killed exporter's imports turn [`ExportState::Dead`] at once. A killed importer leaves nothing. When the *service* is killed, memory
//! goes on working; a thread of the library ([`OpenOptions::watcher`]) starts another, announces the exports again and checks the imports.
//! In polled mode the owner does it ([`Process::reconnect`]).
//!
//! # What other processes can do to this one
//!
//! What lies in an export may be changed by any importer at any time, honest or not: read it by [`Export::read`], then check the copy. An
//! importer can write nonsense into the export and its mailbox, nowhere else; it can neither shorten the memory nor make a call here wait.
//! A notifier writes to an event that exporter and importers share. Each of them can clear it, and so delay a wake-up. One of the same user can make it
//! block, fill it at the very moment between a notifier's look and its write, and so make the notifier wait until the exporter clears it, as it could
//! stop or kill it. One of another user cannot: the event of such an exporter is rung by a call that never waits ([`bell`]).
//!
//! # What it costs
//!
//! A send or fetch over a mapping is one range check, one load of the export's state and a copy; a signal word is one store. A notification adds a
//! note in the mailbox, and two system calls if the exporter announced that it sleeps. By the engine a send costs a note in the
//! command queue, three copies, and the wake-up of whoever sleeps; asynchronous ones share the wake-up. Setting up costs some tens of microseconds.
//! `docs/hot-path.md` of the project has the budget of each path, `vmmc bench` the figures of a machine.
//!
//! # Programs to start from
//!
//! Each runs with `cargo run -p vmmc --example NAME`, and as a test.
//!
//! | example | shows |
//! |---|---|
//! | `export`, then `send` | two processes: a page, bytes, a signal word |
//! | `asynchronous` | buffers that are handed over, vectors, order, flush, cancelling |
//! | `notification` | a handler, a waiting thread, overflow |
//! | `redirection` | bytes that arrive where the receiver wants them |
//! | `rights` | keys, an import for writing only, revoking |
//! | `pinning` | the translation table under a limit |
//!
//! # Limits
//!
//! An export is at most 1 TiB, a process has at most 65536 exports and as many imports. Linux 5.14 or later.

mod asynchronous;
pub mod bell;
mod by_engine;
mod commands;
mod connection;
pub mod descriptor;
mod export;
mod heir;
mod import;
mod lane;
mod lanes;
mod local_engine;
mod mail;
mod notification;
mod notified;
mod notifier;
mod open;
mod operation;
mod pair_bell;
mod pairing;
mod parcel;
pub mod paths;
mod process;
mod range;
mod redirection;
mod route;
mod standing;
mod transfer;
pub mod utlb;
mod watcher;

pub use export::{AccessError, Export, ExportError, ExportOptions, UnexportError};
pub use heir::Heir;
pub use import::{Import, ImportError, ImportOptions, ImportSource, Path};
pub use notification::{Notification, Notify, WaitError};
pub use notified::Notified;
pub use open::{OpenError, OpenOptions};
pub use operation::{Finished, Transfer};
pub use pair_bell::PairBell;
pub use pairing::{PairError, PairMemory, PairingEvent};
pub use process::{ExportInfo, LayerInfo, Process, ProcessInfo, QueryError};
pub use range::{DiscardError, ExtendError};
pub use redirection::{
    NotPosted, PostedBuffer, Posting, RedirectBuffer, RedirectError, Redirected,
};
pub use transfer::TransferError;
#[cfg(chaos)]
#[doc(hidden)]
pub use vmmc_os::chaos;
pub use vmmc_os::{
    OsError, RuntimeDirError, ServiceOf, ServicePlace, StartError, default_runtime_dir,
};
pub use vmmc_proto::{
    Allow, BrokenReason, ExportId, NodeId, OfferId, PairId, ParseIdError, ProcessId, Refusal,
    Rights,
};
pub use vmmc_shm::table::Networks;
pub use vmmc_shm::{clock, marks, stream, table::ExportState};

/// The examples of the project's first page, so that they are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod first_page {}
