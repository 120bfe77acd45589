//! The engine's side of the table.

use std::sync::Arc;

use super::{Shared, Span, Utlb, sync::Ordering};

/// A page as an engine uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Address of its first byte in the process.
    pub address: usize,
    /// What the fabric calls it; see [`super::Memory::pin`].
    pub key: u64,
}

/// the memory was unmapped or replaced after the transfer was posted: post it again
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub struct Stale;

/// An engine's view of a table. One engine uses a table at a time.
#[derive(Debug)]
pub struct Translator {
    shared: Arc<Shared>,
}

impl Utlb {
    /// The engine's view; `None` while another engine has it.
    pub fn translator(&self) -> Option<Translator> {
        let taken = self.shared.translator.swap(1, Ordering::Acquire) != 0;
        (!taken).then(|| Translator { shared: Arc::clone(&self.shared) })
    }
}

impl Translator {
    /// Appends the translations of all pages of a command to `pages`. They are true as long as the command's hold exists.
    /// Takes no lock, makes no system call.
    ///
    /// # Errors
    /// [`Stale`] when one of the pages was lost since the lookup; `pages` is as before then.
    pub fn translate(&mut self, span: Span, pages: &mut Vec<Translation>) -> Result<(), Stale> {
        let (shared, before) = (&self.shared, pages.len());
        let mut found = true;
        for page in span.numbers() {
            let key = shared.ni.find(page).or_else(|| {
                let entry = shared.table.entry(page)?;
                let generation = entry.generation();
                let key = entry.key.load(Ordering::Acquire);
                // A held page may be hidden for a moment, by somebody who has not seen the hold; its generation stays.
                shared.ni.fill(page, key, || entry.generation() == generation).then_some(key)
            });
            found &= key.is_some();
            pages.extend(key.map(|key| Translation { address: page << shared.table.shift, key }));
        }
        // What was found is worth nothing if a page was lost before it was found.
        if found && span.is_current(&shared.table) {
            return Ok(());
        }
        pages.truncate(before);
        Err(Stale)
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.shared.translator.store(0, Ordering::Release);
    }
}
