//! The named accounts of the budget: what bytes are used for.
//!
//! Flow: a name given with every request; read back in reports.
//! Memory: holds none.

use std::fmt;

macro_rules! accounts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// What bytes of the budget are used for; the list is closed, so that every report adds
        /// up.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Account { $($(#[$doc])* $variant),* }

        impl Account {
            /// Every account, in the order of reports.
            pub const ALL: &'static [Account] = &[$(Account::$variant),*];

            /// The name in reports and errors.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Account::$variant => $name),* }
            }
        }
    };
}

accounts! {
    /// Encoded bytes between the disk and the decoder.
    Staging = "staging",
    /// Encoded bytes that a user keeps.
    Raw = "raw",
    /// Decoded samples and row groups that wait for their turn.
    Decoded = "decoded",
    /// Cached samples and files, page cache included.
    CacheMemory = "cache.memory",
    /// Cached samples in compressed form.
    CacheCompressed = "cache.compressed",
    /// Batches, being filled, ready, or with the consumer.
    Batch = "batch",
    /// Page-locked staging towards a device.
    Pinned = "pinned",
    /// Windows of the side-car index.
    Index = "index",
    /// Working memory of decoders and resizers for one sample.
    Scratch = "scratch",
    /// Upper bounds of allocations inside libraries.
    Library = "library",
    /// Rings, histories and stacks of threads of Tidegate.
    Telemetry = "telemetry",
    /// Tensors that the user tracks.
    User = "user",
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
