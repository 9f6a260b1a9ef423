//! Configures a loader option by option.
//!
//! Flow: a path, options -> [`Builder`] -> [`Loader`].
//! Memory: holds none.

use tidegate_core::memory::Budget;
use tidegate_core::memory::size::Size;
use tidegate_data::batch::FieldSpec;
use tidegate_data::{Error, Result};
use tidegate_order::Shuffle;
use tidegate_source::open;

use crate::{Loader, Options};

/// Configures a [`Loader`].
#[derive(Debug)]
pub struct Builder {
    url: String,
    options: Options,
    memory: Option<Size>,
    error: Option<Error>,
}

impl Builder {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), options: Options::default(), memory: None, error: None }
    }

    /// Sets the number of samples in a batch of one rank.
    #[must_use]
    pub fn batch_size(mut self, samples: u64) -> Self {
        self.options.batch_size = Some(samples);
        self
    }

    /// Sets the size of the process-wide budget, such as "2GiB", or "0.5" for half of the limit.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        match size.parse() {
            Ok(size) => self.memory = Some(size),
            Err(error) => self.error = Some(tidegate_core::Error::into(error)),
        }
        self
    }

    /// Sets how an epoch is shuffled; by default it is not.
    #[must_use]
    pub fn shuffle(mut self, shuffle: Shuffle) -> Self {
        self.options.shuffle = shuffle;
        self
    }

    /// Sets the seed of order and augmentation; by default 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Sets how a field is delivered; the type of other fields is inferred.
    #[must_use]
    pub fn field(mut self, name: &str, spec: FieldSpec) -> Self {
        self.options.fields.push((name.to_owned(), spec));
        self
    }

    /// Changes any option.
    #[must_use]
    pub fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Opens the source, joins the process-wide budget and makes the loader.
    ///
    /// # Errors
    /// As [`open`], [`Budget::process`] and [`Loader::new`].
    pub fn build(self) -> Result<Loader> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let memory = self.memory.ok_or_else(|| Error::Config("give memory, such as \"2GiB\"".into()))?;
        Loader::new(open(&self.url, false)?, self.options, Budget::process(&memory)?)
    }
}
