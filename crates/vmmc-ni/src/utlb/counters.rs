//! What is counted.

/// What has happened in a table, in the words of the paper's tables. Counts are exact once all calls have returned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Lookups.
    pub lookups: u64,
    /// Pages that they asked for.
    pub pages: u64,
    /// Lookups that found a page not pinned, or not for writing: the paper's host misses. The others are hits.
    pub check_misses: u64,
    /// Pages that engines translated, through their cache.
    pub ni_lookups: u64,
    /// Those that were not in the cache.
    pub ni_misses: u64,
    /// Pin operations.
    pub pins: u64,
    /// Pages that they pinned.
    pub pages_pinned: u64,
    /// Unpin operations.
    pub unpins: u64,
    /// Pages that they unpinned.
    pub pages_unpinned: u64,
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// The most there have been.
    pub peak_pinned_bytes: u64,
    /// Of these, bounce buffers.
    pub bounce_bytes: u64,
    /// Lookups that found no room at all.
    pub without_room: u64,
    /// Pages about which the system was asked.
    pub verifications: u64,
    /// Pinned pages whose memory was found unmapped or replaced.
    pub lost_pages: u64,
    /// Time in misses, with [`Options::measure`](super::Options::measure), nanoseconds; the next two included.
    pub miss_ns: u64,
    /// Time in pin operations.
    pub pin_ns: u64,
    /// Time in unpin operations.
    pub unpin_ns: u64,
}

impl Counters {
    /// Lookups that found every page pinned.
    pub fn hits(&self) -> u64 {
        self.lookups.saturating_sub(self.check_misses)
    }
}
