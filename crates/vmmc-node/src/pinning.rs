//! The account of pinned bytes: how many each process may have pinned, and that all together stay below the node's limit.
//!
//! The service pins nothing itself. A process asks in large steps before it pins, and what it had returns when it ends.

use std::collections::HashMap;

use crate::clients::ClientKey;

/// The account.
#[derive(Debug)]
pub(crate) struct Pinning {
    limit: u64,
    reserved: u64,
    by_client: HashMap<ClientKey, u64>,
}

impl Pinning {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, reserved: 0, by_client: HashMap::new() }
    }

    /// The process wants `bytes` in all from now on; what it gets: fewer when the others leave fewer, but never fewer than it had if
    /// it asks for more.
    pub(crate) fn reserve(&mut self, client: ClientKey, bytes: u64) -> u64 {
        let others = self.reserved - self.release(client);
        let granted = bytes.min(self.limit - others);
        if granted > 0 {
            self.by_client.insert(client, granted);
        }
        self.reserved = others + granted;
        granted
    }

    /// The process is gone.
    pub(crate) fn end(&mut self, client: ClientKey) {
        self.reserved -= self.release(client);
    }

    /// Bytes of all processes together.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn release(&mut self, client: ClientKey) -> u64 {
        self.by_client.remove(&client).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_they_stay_below_the_limit_and_the_dead_give_back() {
        let (first, second) = (ClientKey(1), ClientKey(2));
        let mut pinning = Pinning::new(100);
        assert_eq!(pinning.reserve(first, 60), 60);
        assert_eq!(pinning.reserve(second, u64::MAX), 40);
        assert_eq!(pinning.reserve(first, 61), 60);
        assert_eq!(pinning.reserve(first, 10), 10);
        assert_eq!(pinning.reserve(second, u64::MAX), 90);
        assert_eq!(pinning.reserved(), 100);
        pinning.end(second);
        pinning.end(second);
        assert_eq!(pinning.reserved(), 10);
        assert_eq!(pinning.reserve(first, 0), 0);
        assert!(pinning.by_client.is_empty());
    }
}
