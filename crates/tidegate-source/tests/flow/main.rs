//! Sources as a whole: every format keeps the promises of its trait, and bad lines say what is
//! wrong with them.
#![expect(clippy::unwrap_used, reason = "a test")]

mod conformance;
mod lines;
