//! Values in lines of text: JSON, CSV and TSV, LIBSVM.
//!
//! Flow: lines -> the schema that they have in common; a line -> values, borrowed from it; text -> numbers in a row.
//! Memory: a few words a field while a line is parsed.

pub mod delimited;
pub mod json;
pub mod libsvm;
pub mod quoted;
