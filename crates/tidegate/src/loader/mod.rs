//! The loader: one epoch after another over one source, under one budget, with a state.
//!
//! Flow: source + [`Options`] -> [`Loader`] -> [`Epoch`] (an iterator of batches) -> the next
//! epoch.
//! Memory: none between epochs; `tidegate_data::pipeline` plans and reserves the memory of an
//! epoch.
//! Not here: profiles. The loader knows `EpochObserver`; `dataset::profile` implements it, and
//! the constructors (`crate::builder`) pass what makes it.

mod cache_curve;
mod epoch;
mod observer;
mod options;
#[cfg(feature = "zarr")]
mod patch_sampler;
pub mod ranks;
mod sampler_spec;
mod state;

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use tidegate_core::memory::Budget;
use tidegate_core::memory::size::Size;
use tidegate_core::sync::lock;
use tidegate_data::batch::{FieldSpec, Layout, names_field};
use tidegate_data::cache::{SegmentTier, disk, node};
use tidegate_data::pipeline::plan::{Facts, Held, Plan};
use tidegate_data::pipeline::{self, BatchTransform, Keep, Past, Pipeline, Retained};
use tidegate_data::{Error, Result};
use tidegate_decode::Field;
use tidegate_order::quality::Quality;
use tidegate_order::{FeedbackOrder, Order, Shuffle, order, partition::RankPartition};
use tidegate_source::{Access, Source};

use self::epoch::{Progress, Running, lock_between_batches};
pub(crate) use self::observer::{EpochObserver, FailedSamples, MakeObserver, append_failures};
use crate::Report;

pub use self::cache_curve::{CacheCurve, CacheQuery, MemoryPoint};
pub use self::epoch::Epoch;
pub use self::observer::FailedSample;
pub use self::options::Options;
#[cfg(feature = "zarr")]
pub use self::patch_sampler::{PatchBoxes, PatchSampler};
pub use self::sampler_spec::{
    ClassShares, CurriculumPace, FeedbackRule, MixtureEnd, NumberOrWord, SampleData, SamplerSpec,
};
pub use self::state::State;

/// Loads batches from one source, epoch after epoch, under one memory budget.
#[derive(Debug)]
pub struct Loader {
    source: Arc<dyn Source>,
    options: Options,
    budget: Budget,
    layout: Arc<Layout>,
    order: Arc<dyn Order>,
    map: Option<Arc<dyn BatchTransform>>,
    progress: Arc<Mutex<Progress>>,
    kept: Retained,
    /// The cache tiers behind the private memory cache. Other processes may share them.
    stores: Vec<Arc<SegmentTier>>,
    /// See [`Loader::unnamed`].
    unnamed: Vec<(String, u64)>,
    observer: Option<Arc<dyn EpochObserver>>,
    /// See [`pipeline::Config::partial`].
    partial: bool,
    /// The epoch that was begun last.
    running: Weak<Mutex<Running>>,
    /// How well batches of a windowed order mix; computed by the first report.
    mixing: OnceLock<Option<[Quality; 2]>>,
}

/// The columns of a batch, and the fields that are left out: where the options name some fields,
/// others are delivered only if every sample has them.
fn layout(source: &dyn Source, options: &Options) -> Result<(Layout, Vec<(String, u64)>)> {
    let schema = source.schema();
    let named = |field: &Field| options.fields.iter().any(|(name, _)| names_field(name, &field.name));
    let missing = schema.iter().zip(source.missing()).filter(|(field, count)| **count > 0 && !named(field));
    let unnamed: Vec<_> = missing.map(|(field, count)| (field.name.clone(), *count)).collect();
    if options.only || options.fields.is_empty() || unnamed.is_empty() {
        return Ok((Layout::new(schema, &options.fields, options.only)?, Vec::new()));
    }
    let everywhere =
        schema.iter().filter(|field| !named(field) && !unnamed.iter().any(|(name, _)| *name == field.name));
    let inferred = everywhere.map(|field| (field.name.clone(), FieldSpec::inferred(&field.kind)));
    let fields: Vec<_> = options.fields.iter().cloned().chain(inferred).collect();
    Ok((Layout::new(schema, &fields, true)?, unnamed))
}

/// Checks that a sampler gives the same ids again as before the state was saved.
fn check_delivered(ids: &dyn tidegate_order::Epoch, epoch: u64, delivered: Option<(u64, u64)>) -> Result<()> {
    let Some((count, _)) = delivered.filter(|(count, _)| *count > 0) else { return Ok(()) };
    // A sampler is asked in order, so that this id comes after all those before it.
    ids.id(count - 1)?;
    if ids.digest(count) != delivered {
        return Err(Error::State(format!(
            "the first {count} ids that the sampler gives for epoch {epoch} are others than when it was \
             saved: give it a set_epoch that seeds it, or give the ids as an array or a function of the epoch"
        )));
    }
    Ok(())
}

impl Loader {
    /// Makes a loader: the constructors of `crate::builder` call this.
    ///
    /// `order` replaces the shuffle of the options. `observe` makes what observes the epochs, once
    /// the budget and the options are checked.
    pub(crate) fn assemble(
        source: Arc<dyn Source>,
        options: Options,
        budget: Budget,
        order: Option<Arc<dyn Order>>,
        observe: Option<MakeObserver>,
    ) -> Result<Self> {
        let (layout, unnamed) = layout(&*source, &options)?;
        if budget.shared_by().is_some_and(|node| !node.here()) {
            return Err(Error::Config(
                "this budget of a node was made before a fork: make it in each process that uses it, \
                 with the same size, processes and name"
                    .into(),
            ));
        }
        if let (Access::Sequential { why }, true) = (source.access(), options.shuffle != Shuffle::None) {
            return Err(Error::Config(why));
        }
        let order: Arc<dyn Order> = match order {
            Some(order) => order,
            None => self::order(options.shuffle, options.seed, &source.shard_lengths())?.into(),
        };
        let progress = Progress { start_is_set: true, ..Progress::default() };
        let layout = Arc::new(layout);
        let kept = Retained::new(&*source, &layout, &budget, order.lookahead(), options.keep)?;
        let stores = open_stores(&*source, &options, &budget)?;
        let observer = observe.map(|observe| observe(&source, &layout, &budget)).transpose()?;
        let loader = Self {
            observer,
            source,
            options,
            budget,
            layout,
            unnamed,
            order,
            map: None,
            partial: false,
            progress: Arc::new(Mutex::new(progress)),
            kept,
            stores,
            running: Weak::new(),
            mixing: OnceLock::new(),
        };
        loader.split(0)?.check()?;
        // Plan now as well, so that a budget that is too small is an error before the first epoch.
        loader.plan_alone(loader.budget.cap_bytes())?;
        Ok(loader)
    }

    /// Turns each batch into something else on a worker thread.
    pub fn set_map(&mut self, map: Arc<dyn BatchTransform>) {
        self.map = Some(map);
    }

    /// Observes epochs with this instead of the observer that the options asked for.
    pub(crate) fn set_observer(&mut self, observer: Arc<dyn EpochObserver>) {
        self.observer = Some(observer);
    }

    /// The observer, if it is a `T`.
    pub(crate) fn observer_as<T: EpochObserver>(&self) -> Option<&T> {
        let observer: &dyn Any = &**self.observer.as_ref()?;
        observer.downcast_ref()
    }

    /// Leaves a field that a sample lacks empty instead of failing the sample.
    pub(crate) fn allow_partial(&mut self) {
        self.partial = true;
    }

    /// The samples that failed in the current epoch.
    pub(crate) fn failed(&self) -> FailedSamples {
        FailedSamples::new(&self.progress().failures)
    }

    /// All samples that failed in the current epoch, by id.
    pub(crate) fn failures(&self) -> Vec<FailedSample> {
        let mut failures = self.progress().failures.clone();
        failures.sort_by_key(|failure| failure.place.id);
        failures.iter().map(FailedSample::from).collect()
    }

    /// The consumer's global position in the epoch.
    pub(crate) fn position(&self) -> u64 {
        self.progress().position
    }

    pub(crate) fn split(&self, start: u64) -> Result<RankPartition> {
        Ok(RankPartition {
            len: self.order.len(),
            start,
            global_batch: self.options.global_batch()?,
            remainder: self.options.remainder,
            rank: self.options.rank,
            world: self.options.world_size,
            canonical_nodes: self.order.canonical_nodes(),
        })
    }

    fn config(&self, epoch: u64, start: u64) -> Result<pipeline::Config> {
        let options = &self.options;
        Ok(pipeline::Config {
            seed: options.seed,
            epoch,
            split: self.split(start)?,
            past: Past::default(),
            stores: self.stores.clone(),
            workers: options.workers(),
            prefetch: options.prefetch,
            held_batches: options.held_batches,
            map_threads: options.map_threads,
            on_error: options.on_error,
            max_failure_rate: options.max_failure_rate,
            order: Arc::clone(&self.order),
            observer: self.observer_from(start).map(|observer| observer as _),
            partial: self.partial,
            failed: Vec::new(),
            stall: Duration::try_from_secs_f64(options.stall_seconds)
                .map_err(|_| Error::Config("stall_seconds must be a positive number".into()))?,
        })
    }

    /// The plan of an epoch that has `cap_bytes` for itself.
    pub(crate) fn plan_alone(&self, cap_bytes: u64) -> Result<Plan> {
        let observer = self.observer.as_ref().map_or(0, |observer| observer.held_bytes());
        let held_bytes = self.order.held_bytes() + observer + self.kept.index_bytes();
        let cap_bytes = cap_bytes.saturating_sub(held_bytes);
        let facts = Facts::gather(&*self.source, &self.layout, &self.config(0, 0)?);
        Plan::new(&facts, cap_bytes, |_| Held::default()).map_err(|small| small.explain(&*self.source))
    }

    /// The observer of an epoch that begins at position `start`. Only an epoch that begins at 0 is
    /// observed: a profile of a part would look like a profile of the whole.
    fn observer_from(&self, start: u64) -> Option<Arc<dyn EpochObserver>> {
        self.observer.clone().filter(|observer| start == 0 && !observer.is_done())
    }

    /// The number of the epoch that begins next, or that was begun last.
    pub(crate) fn epoch_number(&self) -> u64 {
        self.progress().epoch
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn order(&self) -> &dyn Order {
        &*self.order
    }

    /// Batches in an epoch. It is the same number on every rank.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.split(0).map_or(0, |s| s.batches())
    }

    /// Whether an epoch has no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The source that it reads.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// The budget that all its memory is charged to.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The fields that are left out because some samples lack them and the options do not name
    /// them, with the number of these samples.
    #[must_use]
    pub fn unnamed(&self) -> &[(String, u64)] {
        &self.unnamed
    }

    /// The columns of a batch.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Begins the next epoch, or the one that `set_epoch` or a loaded state names.
    ///
    /// # Errors
    /// When the budget cannot hold the epoch. The message names what holds the budget.
    pub fn epoch(&mut self) -> Result<Epoch> {
        let (epoch, start, failed, delivered) = {
            let mut progress = self.progress();
            if !progress.start_is_set {
                let next = progress.epoch + 1;
                progress.advance_to(next);
            }
            progress.start_is_set = false;
            progress.failures.clear();
            (progress.epoch, progress.position, progress.failed.clone(), progress.delivered_ids)
        };
        let mut config = self.config(epoch, start)?;
        let observer = self.observer_from(start);
        if let Some(observer) = &observer {
            observer.begin()?;
        }
        if self.options.on_error == crate::OnError::Skip {
            config.failed = failed;
        }
        let ids = self.order.begin(epoch).and_then(|()| self.order.epoch(epoch)).map_err(Error::from);
        let ids = ids.and_then(|ids| check_delivered(&*ids, epoch, delivered).map(|()| ids));
        let began = Instant::now();
        let (pipeline, ids) = match ids.and_then(|ids| Ok((self.start(&config, &ids)?, ids))) {
            Ok(started) => started,
            Err(error) => {
                self.progress().start_is_set = true;
                return Err(error);
            }
        };
        let running = Running { pipeline: Some(pipeline), config, ids, stopped: None };
        let running = Arc::new(Mutex::new(running));
        self.running = Arc::downgrade(&running);
        Ok(Epoch { running, progress: Arc::clone(&self.progress), observer, began })
    }

    fn start(&mut self, config: &pipeline::Config, ids: &Arc<dyn tidegate_order::Epoch>) -> Result<Pipeline> {
        let (source, layout) = (Arc::clone(&self.source), Arc::clone(&self.layout));
        let (map, config, ids) = (self.map.clone(), config.clone(), Arc::clone(ids));
        let pipeline = Pipeline::start(source, layout, ids, config, &self.budget, map, &self.kept)?;
        self.kept.slots = pipeline.slots();
        Ok(pipeline)
    }

    /// Changes the size of the budget, also in the middle of an epoch.
    ///
    /// Memory above the new size is returned before this call returns, except for batches that the
    /// consumer holds. The order and the content of later batches do not change.
    ///
    /// Caches are evicted first. If that is not enough, the epoch restarts at its next batch with
    /// less memory, and batches in flight are made again. Another loader of the same budget
    /// returns its excess when its epoch ends.
    ///
    /// # Errors
    /// A size that is invalid, or too small for this loader and the batches that the consumer
    /// holds. The budget is unchanged then.
    pub fn set_memory(&mut self, size: &Size) -> Result<()> {
        let (before, whole) = (self.budget.cap_bytes(), size.budget_bytes()?);
        let whole_before = self.budget.shared_by().map_or(before, |node| node.cap_bytes());
        let bytes = self.budget.shared_by().map_or(whole, |node| node.share_of(whole));
        // An epoch must fit before anything changes.
        self.plan_alone(bytes)?;
        let limit = self.kept.limit_bytes();
        if limit > 0 {
            self.kept.set_limit((limit + bytes).saturating_sub(before));
        }
        self.budget.set_cap(whole);
        let Some(running) = self.running.upgrade() else {
            self.release_free_slots();
            return Ok(());
        };
        if self.budget.usage().charged_bytes > bytes {
            let running = &mut *lock_between_batches(&running)?;
            if let Err(error) = self.restart(running) {
                // The batches that the consumer holds leave too little: restore the old size.
                self.budget.set_cap(whole_before);
                self.restart(running)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the memory of batch slots that are not in use.
    fn release_free_slots(&self) {
        if let Some(slots) = self.kept.slots.upgrade() {
            slots.shrink(0);
        }
    }

    /// Stops the pipeline of an epoch and starts another at the next batch.
    fn restart(&mut self, running: &mut Running) -> Result<()> {
        match running.pipeline.take() {
            Some(pipeline) => running.config.past = pipeline.stop(),
            None if running.stopped.is_none() => {
                self.release_free_slots();
                return Ok(());
            }
            None => running.stopped = None,
        }
        self.release_free_slots();
        match self.start(&running.config, &running.ids) {
            Ok(pipeline) => {
                running.pipeline = Some(pipeline);
                Ok(())
            }
            Err(error) => {
                self.progress().start_is_set = true;
                running.stopped = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Makes `epoch` the next epoch: from its beginning, or from the place in it that a loaded
    /// state or [`Loader::seek`] named.
    pub fn set_epoch(&mut self, epoch: u64) {
        let progress = &mut *self.progress();
        if !(progress.start_is_set && progress.epoch == epoch) {
            *progress = Progress { epoch, start_is_set: true, ..Progress::default() };
        }
    }

    /// Makes batch `batch` of epoch `epoch` the next batch. The number of batches in an epoch
    /// stands for the beginning of the next one.
    ///
    /// # Errors
    /// A batch past the end of an epoch.
    pub fn seek(&mut self, epoch: u64, batch: u64) -> Result<()> {
        let batches = self.len();
        if batch > batches {
            return Err(Error::Config(format!("there is no batch {batch}: an epoch has {batches} batches")));
        }
        let (epoch, batch) = if batch == batches { (epoch + 1, 0) } else { (epoch, batch) };
        let position = batch * self.options.global_batch()?;
        *self.progress() = Progress { epoch, position, start_is_set: true, ..Progress::default() };
        Ok(())
    }

    /// Ranks that have no row of their own in the last batch of an epoch, and get a padded one.
    #[must_use]
    pub fn ranks_without_a_row(&self) -> u64 {
        self.split(0).map_or(0, |split| split.ranks_without_a_row())
    }

    /// Whether no batch of the epoch is left at a position.
    fn at_end(&self, position: u64) -> bool {
        position > 0 && self.split(position).is_ok_and(|split| split.batches() == 0)
    }

    /// The state after the last batch that was delivered. After the last batch of an epoch it is
    /// the beginning of the next one.
    #[must_use]
    pub fn state(&self) -> State {
        let progress = self.progress();
        if self.at_end(progress.position) {
            let (shuffle, next) = (self.options.shuffle, progress.epoch + 1);
            let (source, seed) = (&self.source, self.options.seed);
            let mut state = State::new(source.fingerprint(), source.len(), seed, shuffle, next, 0);
            state.set_ids(None, self.order.digest(next));
            return state;
        }
        let (options, source) = (&self.options, &self.source);
        let (seed, shuffle) = (options.seed, options.shuffle);
        let mut state =
            State::new(source.fingerprint(), source.len(), seed, shuffle, progress.epoch, progress.position);
        let failures = progress.failures.iter().map(|f| f.position);
        state.set_failed(failures.chain(progress.failed.iter().copied()).collect());
        state.set_ids(progress.delivered_ids, self.order.digest(progress.epoch));
        state
    }

    /// Continues from a saved state: the next epoch begins at its position.
    ///
    /// Seed and order are those of the state.
    ///
    /// # Errors
    /// [`Error::State`] for a state of other data or of another sampler, and for a state with a
    /// sampler where the loader has none.
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        state.check(self.source.fingerprint(), self.source.len(), self.source.name())?;
        match (state.shuffle, self.options.shuffle) {
            (Shuffle::Sampler { .. }, _) | (_, Shuffle::Sampler { .. }) => {
                let seeded = (state.seed != self.options.seed).then(|| self.order.reseeded(state.seed));
                let order = seeded.flatten().unwrap_or_else(|| Arc::clone(&self.order));
                state.check_order(self.options.shuffle, order.digest(state.epoch))?;
                self.order = order;
            }
            (shuffle, _) => self.order = order(shuffle, state.seed, &self.source.shard_lengths())?.into(),
        }
        (self.options.seed, self.options.shuffle) = (state.seed, state.shuffle);
        let next = Progress { epoch: state.epoch + 1, start_is_set: true, ..Progress::default() };
        // States of earlier versions name the end of an epoch.
        let loaded = if self.at_end(state.position) {
            next
        } else {
            Progress {
                epoch: state.epoch,
                position: state.position,
                start_is_set: true,
                delivered_ids: state.delivered_ids(),
                failed: state.failed(),
                ..Progress::default()
            }
        };
        *self.progress() = loaded;
        Ok(())
    }

    /// Tells the order the losses of samples, one for each id. They count from the next epoch on.
    ///
    /// Every rank must pass the same losses.
    ///
    /// # Errors
    /// An order that takes no feedback; an id outside the data; a loss that is negative, infinite
    /// or NaN.
    pub fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()> {
        Ok(self.order.require_feedback()?.feedback(ids, losses)?)
    }

    /// All feedback so far, so that another loader can continue from a state of this one.
    #[must_use]
    pub fn feedback_state(&self) -> Option<Vec<u8>> {
        self.order.feedback_order().map(FeedbackOrder::export)
    }

    /// Takes the feedback of another loader. Call it before [`Loader::load_state`].
    ///
    /// # Errors
    /// An order that takes no feedback; feedback for another number of samples.
    pub fn load_feedback(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.order.require_feedback()?.import(bytes)?)
    }

    /// What limits the flow, and where every byte is.
    #[must_use]
    pub fn report(&self) -> Report {
        let batch = self.options.global_batch().unwrap_or(1);
        let mixing = *self.mixing.get_or_init(|| self.order.mixing(batch).ok().flatten());
        let progress = self.progress();
        let mut report =
            Report::new(&self.budget, progress.stats, progress.elapsed, &progress.failures, &self.stores);
        report.feedback = self.order.feedback_order().and_then(FeedbackOrder::stats);
        report.mixing = mixing;
        report
    }
}

/// The caches that the options and a shared budget ask for: the one of a node, then the disk's.
fn open_stores(source: &dyn Source, options: &Options, budget: &Budget) -> Result<Vec<Arc<SegmentTier>>> {
    let disk = options.disk.as_ref().map(|disk| disk::open(source, disk)).transpose()?;
    let node = budget.shared_by().map(|others| node::open(source, others)).transpose()?.flatten();
    if node.is_some() && options.keep == Keep::Decoded {
        return Err(Error::Config(
            "cache=\"decoded\" is not possible with a budget that the ranks of a node share: their common \
             cache keeps samples as they are stored. Leave keep out"
                .into(),
        ));
    }
    Ok(node.into_iter().chain(disk).map(Arc::new).collect())
}
