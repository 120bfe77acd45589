//! Bounds that both sides keep, so that no peer can make the other allocate without end.

/// Largest packet, bytes.
pub const MAX_MESSAGE: usize = 40 * 1024;
/// Most bytes of payload carried inside one packet (lowered bytes); more goes in pieces or in a memfd.
pub const MAX_INLINE: usize = 32 * 1024;
/// Longest name of a process or export, bytes.
pub const MAX_NAME: usize = 255;
/// Most entries in one list answer; lists are fetched page by page.
pub const MAX_ENTRIES: usize = 64;
/// Most descriptors beside one packet.
pub const MAX_DESCRIPTORS: usize = 4;
/// Longest export, bytes (1 TiB).
pub const MAX_EXPORT_LEN: u64 = 1 << 40;
/// Exports are whole pages of this size, bytes.
pub const PAGE_SIZE: usize = 4096;
