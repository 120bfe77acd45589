//! Mappings added later.

use std::sync::Mutex;

use vmmc_os::Mapping;

use crate::process::lock;

/// Why memory cannot be mapped once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum ExtendError {
    /// the length is zero, or more than the memory has
    Length,
    /// no address space or map entries left: raise vm.max_map_count
    Exhausted,
}

/// Why memory cannot be given back to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
#[non_exhaustive]
pub enum DiscardError {
    /// the range is not page-aligned, or reaches past the end of the memory
    Range,
    /// the import is not mapped, or has no right to write
    Rights,
    /// the system refused ({0})
    System(vmmc_os::OsError),
}

/// Further mappings of the same memory; they live as long as the export or import.
#[derive(Debug)]
pub(crate) struct Extensions {
    /// Bytes of the memory.
    pub(crate) capacity: usize,
    mappings: Mutex<Vec<Mapping>>,
}

impl Extensions {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, mappings: Mutex::new(Vec::new()) }
    }

    pub(crate) fn add(&self, mapping: &Mapping, len: usize) -> Result<*mut u8, ExtendError> {
        if len == 0 || len > self.capacity {
            return Err(ExtendError::Length);
        }
        let more = mapping.duplicate(len).map_err(|_| ExtendError::Exhausted)?;
        let start = more.as_ptr();
        lock(&self.mappings).push(more);
        Ok(start)
    }
}
