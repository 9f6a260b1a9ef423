//! Formats of lines of text: JSON Lines, CSV and TSV, LIBSVM.
//!
//! Flow: lines -> their common schema; a line -> values that borrow from it; text -> numbers in a
//! row.
//! Memory: a few words a field while a line is parsed.

pub mod delimited;
pub mod json;
pub mod libsvm;
