//! Linux 5.14 and later; 6.5 for process descriptors that cannot be mistaken.

mod barrier;
mod bell;
mod bpf;
mod connection;
mod credentials;
mod datagram;
mod descriptor;
mod event;
mod futex;
mod holders;
mod inlet;
mod inlets;
mod life;
mod lock;
mod mapping;
mod memory;
mod memory_watch;
mod packet;
mod pin;
mod poller;
mod private;
mod process;
mod runtime_dir;
mod sequence;

pub use barrier::{enable_process_barrier, process_barrier};
pub use bell::{ring_stranger, silence, strangers_can_be_rung};
pub use connection::{
    ConnectionIdentity, IdentityError, connection_identity, end_both, end_stream, network_of,
    reset_at_close, send_stream,
};
pub use credentials::{
    Credentials, is_ours_to_write, peer_credentials, peer_process, process_descriptor,
    user_by_name, user_id,
};
pub use datagram::{enlarge_receive_buffer, set_send_buffer};
pub use descriptor::Descriptor;
pub use event::{Event, Signals, is_event, wait_readable, wait_writable};
pub use futex::{futex_wait, futex_wake};
pub use holders::{Holding, holding, socket_number};
pub use inlet::Inlet;
pub use inlets::{InletError, Inlets};
pub use life::{LIFE_LOST, announce_life};
pub use lock::{LockFile, remove_file};
pub use mapping::{Access, Mapping, detach_in_place, share_in_place};
pub use memory::{
    Seals, create_memory, fill_memory, memory_len, memory_seals, read_memory, reopen_read_only,
    reserve_memory, seal_read_only, write_memory,
};
pub use memory_watch::MemoryWatch;
pub use packet::{
    Received, accept_packets, connect_packets, is_packet_socket, listen_packets, packet_pair,
    packet_pair_above, receive, send, waiting_bytes,
};
pub use pin::{PinError, is_pinned, pin, pin_limit, pinned_bytes, total_memory, unpin};
pub use poller::{Poller, Readiness};
pub use private::{ForkMark, PrivateMemory};
pub use process::{
    StartError, close_inherited, detach, find_program, is_alive, page_size, pin_to_cpu, process_id,
    raise_descriptor_limit, random_u64, start_and_wait, start_detached, start_identity,
    start_thread, termination_signals,
};
pub use runtime_dir::{
    RuntimeDirError, ServiceOf, ServicePlace, default_runtime_dir, prepare_runtime_dir,
};
pub use sequence::{Sequence, SequenceError, SequenceReader};

/// An error of the operating system.
pub use rustix::io::Errno as OsError;
