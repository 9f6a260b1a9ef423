//! The classes of all errors: one list for every crate.
//!
//! Flow: each error type has a `kind()` -> the class of the Python exception.
//! Memory: holds none.

/// What class an error is of: one list for every crate, and for the exceptions of the Python
/// package.
///
/// Each error type has a `kind()` that follows from its variant, so that no code has to read an
/// error's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Options, arguments or a request that make no sense; the user changes them.
    Config,
    /// A patch of a volume with more voxels than its array.
    PatchTooLarge,
    /// The memory budget cannot hold what is asked for.
    Budget,
    /// The consumer holds every batch slot and nothing is in flight.
    Held,
    /// A saved state does not belong to this loader or source.
    State,
    /// A file, store or index is damaged, missing or in an unknown format.
    Data,
    /// One sample cannot be read or decoded.
    Sample,
    /// Nothing has moved for longer than allowed.
    Stalled,
    /// The user's sampler failed.
    Sampler,
    /// The user interrupted the wait, for example by a signal.
    Interrupted,
    /// A defect of Tidegate itself.
    Internal,
}
