//! Makes loaders: the constructors, and a builder that takes option by option.
//!
//! Flow: a path or a source, options -> [`Builder`], [`Loader::new`] -> [`Loader`].
//! Memory: holds none.
//!
//! The constructors are here because they give the loader the observer that `Options::profile`
//! asks for. So `loader` does not depend on `dataset`.

use std::sync::Arc;

use tidegate_core::memory::Budget;
use tidegate_core::memory::size::Size;
use tidegate_data::batch::FieldSpec;
use tidegate_data::{Error, Result};
use tidegate_order::explicit::{ExplicitOrder, Ids};
use tidegate_order::{Order, Shuffle};
use tidegate_source::{Source, open};

use crate::dataset::profile::observe;
use crate::loader::MakeObserver;
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
    fn new(url: &str) -> Self {
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

impl Loader {
    /// Begins to configure a loader over the data at `url`.
    #[must_use]
    pub fn builder(url: &str) -> Builder {
        Builder::new(url)
    }

    /// Makes a loader over an open source.
    ///
    /// # Errors
    /// An option that is invalid, by name; a shuffle that the source cannot do, with the fix; a
    /// budget that cannot hold an epoch.
    pub fn new(source: Arc<dyn Source>, options: Options, budget: Budget) -> Result<Self> {
        let observe = options.profile.then_some(observe as MakeObserver);
        Self::assemble(source, options, budget, None, observe)
    }

    /// Makes a loader that delivers samples in the order of `ids`.
    ///
    /// `ids` must be the same on every rank; each rank takes its part of them.
    ///
    /// # Errors
    /// As [`Loader::new`]; a shuffle in `options`, because the ids are the order.
    pub fn with_sampler(
        source: Arc<dyn Source>,
        options: Options,
        budget: Budget,
        ids: Arc<dyn Ids>,
    ) -> Result<Self> {
        let order = ExplicitOrder::new(ids, source.len(), source.shard_lengths().len() as u64, &budget)?;
        Self::with_order(source, options, budget, Arc::new(order))
    }

    /// Makes a loader with an order that is not a shuffle, such as a weighted draw.
    ///
    /// Each rank takes its part of the order.
    ///
    /// # Errors
    /// As [`Loader::with_sampler`].
    pub fn with_order(
        source: Arc<dyn Source>,
        mut options: Options,
        budget: Budget,
        order: Arc<dyn Order>,
    ) -> Result<Self> {
        if options.shuffle != Shuffle::None {
            return Err(Error::Config("give either a shuffle or a sampler: a sampler is an order".into()));
        }
        options.shuffle = Shuffle::Sampler { positions: order.len() };
        let observe = options.profile.then_some(observe as MakeObserver);
        Self::assemble(source, options, budget, Some(order), observe)
    }
}
