//! What was found beside the samples and is not one of them.
//!
//! Flow: files that are listed, members that are indexed -> kinds of things, each with a count and
//! an example -> the account of a dataset.
//! Memory: some lines of text.

use serde::{Deserialize, Serialize};

/// Things of one kind that are not samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What it is and why, in the plural, such as "images that are not read (.bmp)".
    pub what: String,
    /// How many there are.
    pub count: u64,
    /// The first one.
    pub example: String,
    /// Whether a user may take them for samples.
    pub warn: bool,
}

impl LeftOut {
    /// Adds to a list, where things of one kind are counted together.
    pub(crate) fn count_in(self, list: &mut Vec<Self>) {
        match list.iter_mut().find(|known| known.what == self.what) {
            Some(known) => known.count += self.count,
            None => list.push(self),
        }
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}, such as {}", self.count, self.what, self.example)
    }
}
