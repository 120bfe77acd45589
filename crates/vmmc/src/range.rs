//! Mappings added later.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use vmmc_os::Mapping;

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

/// Further mappings of the same memory; they live as long as the export or import. Without a lock: the process may fork while another thread
/// adds one, and the child add its own.
#[derive(Debug)]
pub(crate) struct Extensions {
    /// Bytes of the memory.
    pub(crate) capacity: usize,
    last: AtomicPtr<Extension>,
}

#[derive(Debug)]
struct Extension {
    _mapping: Mapping,
    before: *mut Extension,
}

impl Extensions {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, last: AtomicPtr::new(null_mut()) }
    }

    pub(crate) fn add(&self, mapping: &Mapping, len: usize) -> Result<*mut u8, ExtendError> {
        if len == 0 || len > self.capacity {
            return Err(ExtendError::Length);
        }
        let more = mapping.duplicate(len).map_err(|_| ExtendError::Exhausted)?;
        let start = more.as_ptr();
        let before = self.last.load(Ordering::Relaxed);
        let added = Box::into_raw(Box::new(Extension { _mapping: more, before }));
        let mut last = before;
        while let Err(other) =
            self.last.compare_exchange(last, added, Ordering::AcqRel, Ordering::Relaxed)
        {
            // SAFETY: nobody else knows of it yet.
            unsafe { (*added).before = other };
            last = other;
        }
        Ok(start)
    }
}

impl Drop for Extensions {
    fn drop(&mut self) {
        let mut last = std::mem::replace(self.last.get_mut(), null_mut());
        while !last.is_null() {
            // SAFETY: it came from a box, and stands in no other list.
            last = unsafe { Box::from_raw(last) }.before;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use vmmc_os::{Access, create_memory};

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "maps shared memory")]
    fn mappings_that_threads_add_at_the_same_time_all_stay() {
        let memory = create_memory(4096).unwrap();
        let mapping = Mapping::new(&memory, 0, 4096, Access::ReadWrite).unwrap();
        let extensions = Extensions::new(4096);
        let add = || {
            let added = (0..100).map(|_| extensions.add(&mapping, 4096).unwrap() as usize);
            added.collect::<Vec<_>>()
        };
        let starts = std::thread::scope(|scope| {
            let adding: Vec<_> = (0..4).map(|_| scope.spawn(add)).collect();
            adding.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        // SAFETY: all are mapped as long as `extensions` lives, and nothing else uses the memory.
        let byte = |start: usize| unsafe { &*(start as *const AtomicU8) };
        byte(starts[0]).store(7, Ordering::Relaxed);
        assert!(starts.iter().all(|start| byte(*start).load(Ordering::Relaxed) == 7));
        assert_eq!(extensions.add(&mapping, 4097), Err(ExtendError::Length));
    }
}
