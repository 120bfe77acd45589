//! What is written down about a testbed that is complete.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::options::Options;

/// Written when everything is there, removed before anything is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) options: Options,
}

impl Record {
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    pub(crate) fn text(&self) -> String {
        // Numbers only: nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
