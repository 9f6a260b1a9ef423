//! The loader: epochs one after another, over one source, under one budget, with a state.
//!
//! Flow: source + options -> [`Loader`] -> [`Epoch`] (an iterator of batches) -> the next epoch.
//! Memory: none between epochs; an epoch's is planned and reserved by `tidegate_data::pipeline`.

mod builder;
mod cache_curve;
mod epoch;
mod options;
pub mod ranks;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use tidegate_core::memory::Budget;
use tidegate_core::memory::size::Size;
use tidegate_data::batch::Layout;
use tidegate_data::cache::{Records, disk, node};
use tidegate_data::pipeline::observer::Observer;
use tidegate_data::pipeline::plan::{Facts, Held, Plan};
use tidegate_data::pipeline::{self, BatchMap, Keep, Past, Pipeline, Retained};
use tidegate_data::{Error, Result};
use tidegate_order::fed::Fed;
use tidegate_order::given::{Given, Ids};
use tidegate_order::quality::Quality;
use tidegate_order::{Order, Shuffle, order, split::Split};
use tidegate_source::{Access, Source};

use self::epoch::{Progress, Running, between_batches, failed_of, lock};
use crate::dataset::profile::Collector;
use crate::dataset::scan::{Failed, no_patches};
use crate::{Profile, Report};

pub use self::builder::Builder;
pub use self::cache_curve::{Curve, MemoryPoint, WhatIf};
pub use self::epoch::Epoch;
pub use self::options::Options;
pub use self::state::State;

/// See the head of this file.
#[derive(Debug)]
pub struct Loader {
    source: Arc<dyn Source>,
    options: Options,
    budget: Budget,
    layout: Arc<Layout>,
    order: Arc<dyn Order>,
    map: Option<Arc<dyn BatchMap>>,
    progress: Arc<Mutex<Progress>>,
    kept: Retained,
    /// Tiers behind the memory, which other processes may share.
    stores: Vec<Arc<Records>>,
    collector: Option<Arc<Collector>>,
    /// Who looks on besides; in place of the collector.
    observer: Option<Arc<dyn Observer>>,
    /// See [`pipeline::Config::partial`].
    partial: bool,
    /// The epoch that was begun last.
    running: Weak<Mutex<Running>>,
    /// What the order costs in randomness, once somebody asked.
    mixing: OnceLock<Option<[Quality; 2]>>,
}

/// Checks that a sampler gives the ids again that came before a state was saved.
fn check_print(ids: &dyn tidegate_order::Epoch, epoch: u64, print: Option<(u64, u64)>) -> Result<()> {
    let Some((count, _)) = print.filter(|(count, _)| *count > 0) else { return Ok(()) };
    let _it_came_too = ids.id(count - 1)?;
    if ids.print(count) != print {
        return Err(Error::State(format!(
            "the first {count} ids that the sampler gives for epoch {epoch} are others than when it was saved: give it a set_epoch \
             that seeds it, or give the ids as an array or a function of the epoch"
        )));
    }
    Ok(())
}

impl Loader {
    /// A loader over what lies at `url`, to be configured.
    #[must_use]
    pub fn builder(url: &str) -> Builder {
        Builder::new(url)
    }

    /// A loader over an open source.
    ///
    /// # Errors
    /// Options that make no sense, by name; a shuffle that the source cannot do, with the fix.
    pub fn new(source: Arc<dyn Source>, options: Options, budget: Budget) -> Result<Self> {
        Self::in_order(source, options, budget, None)
    }

    /// A loader that gives samples in the order of `ids`: the same on every rank, each of which takes its part.
    ///
    /// # Errors
    /// As [`Loader::new`]; ids together with a shuffle, which would have no say.
    pub fn with_sampler(
        source: Arc<dyn Source>,
        options: Options,
        budget: Budget,
        ids: Arc<dyn Ids>,
    ) -> Result<Self> {
        let order = Given::new(ids, source.len(), source.runs().len() as u64, &budget)?;
        Self::with_order(source, options, budget, Arc::new(order))
    }

    /// A loader that gives samples in an order that is no shuffle, such as those of `tidegate_order::{drawn, quotas}`; each rank takes its part.
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
        options.shuffle = Shuffle::Given { positions: order.len() };
        Self::in_order(source, options, budget, Some(order))
    }

    fn in_order(
        source: Arc<dyn Source>,
        options: Options,
        budget: Budget,
        given: Option<Arc<dyn Order>>,
    ) -> Result<Self> {
        let layout = Arc::new(Layout::new(source.schema(), &options.fields, options.only)?);
        if budget.shared_by().is_some_and(|node| !node.here()) {
            return Err(Error::Config(
                "this budget of a node was made before a fork: make it in each process that uses it, with the same size, \
                 processes and name"
                    .into(),
            ));
        }
        if let (Access::Sequential { why }, true) = (source.access(), options.shuffle != Shuffle::None) {
            return Err(Error::Config(why));
        }
        let order: Arc<dyn Order> = match given {
            Some(order) => order,
            None => order(options.shuffle, options.seed, &source.runs())?.into(),
        };
        let progress = Arc::new(Mutex::new(Progress { placed: true, ..Progress::default() }));
        let kept = Retained::new(&*source, &layout, &budget, order.foresight(), options.keep)?;
        let disk = options.disk.as_ref().map(|disk| disk::open(&*source, disk)).transpose()?;
        let common = budget.shared_by().map(|others| node::open(&*source, others)).transpose()?.flatten();
        if common.is_some() && options.keep == Keep::Decoded {
            return Err(Error::Config(
                "keep=\"decoded\", but the ranks of a node keep samples in common as they are stored: leave keep out".into(),
            ));
        }
        let stores = common.into_iter().chain(disk).map(Arc::new).collect();
        if options.profile {
            no_patches(&*source)?;
        }
        let profiled =
            options.profile.then(|| Collector::new(Arc::clone(&source), &layout, &budget)).transpose()?;
        let loader = Self {
            collector: profiled.map(Arc::new),
            source,
            options,
            budget,
            layout,
            order,
            map: None,
            observer: None,
            partial: false,
            progress,
            kept,
            stores,
            running: Weak::new(),
            mixing: OnceLock::new(),
        };
        loader.split(0)?.check()?;
        // Planned here as well, so that a budget that is too small is told before the first epoch.
        let _it_fits = loader.plan_alone(loader.budget.cap_bytes())?;
        Ok(loader)
    }

    /// Turns each batch into something else on a worker thread.
    pub fn set_map(&mut self, map: Arc<dyn BatchMap>) {
        self.map = Some(map);
    }

    /// Has somebody look on while samples are made.
    pub(crate) fn set_observer(&mut self, observer: Arc<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Fields that a sample lacks stay empty.
    pub(crate) fn allow_partial(&mut self) {
        self.partial = true;
    }

    /// How many samples failed in the epoch, and the first of them.
    pub(crate) fn failed(&self) -> (u64, Vec<Failed>) {
        failed_of(&self.progress())
    }

    /// The position of the consumer.
    pub(crate) fn position(&self) -> u64 {
        self.progress().position
    }

    pub(crate) fn split(&self, start: u64) -> Result<Split> {
        Ok(Split {
            len: self.order.len(),
            start,
            global_batch: self.options.global_batch()?,
            remainder: self.options.remainder(),
            rank: self.options.rank,
            world: self.options.world_size,
            places: self.order.places(),
        })
    }

    pub(crate) fn config(&self, epoch: u64, start: u64) -> Result<pipeline::Config> {
        let options = &self.options;
        Ok(pipeline::Config {
            seed: options.seed,
            epoch,
            split: self.split(start)?,
            past: Past::default(),
            stores: self.stores.clone(),
            workers: options.workers(),
            prefetch: options.prefetch,
            map_threads: options.map_threads,
            on_error: options.on_error,
            max_failure_rate: options.max_failure_rate,
            order: Arc::clone(&self.order),
            observer: self
                .observer
                .clone()
                .or_else(|| self.collecting(start).map(|collector| collector as _)),
            partial: self.partial,
            failed: Vec::new(),
            stall: Duration::try_from_secs_f64(options.stall_seconds)
                .map_err(|_| Error::Config("stall_seconds must be a positive number".into()))?,
        })
    }

    /// The plan of an epoch that has `cap_bytes` for itself.
    pub(crate) fn plan_alone(&self, cap_bytes: u64) -> Result<Plan> {
        let collected = self.collector.as_ref().map_or(0, |collector| collector.held_bytes());
        let cap_bytes =
            cap_bytes.saturating_sub(self.order.held_bytes() + collected + self.kept.index_bytes());
        let facts = Facts::gather(&*self.source, &self.layout, &self.config(0, 0)?);
        Plan::new(&facts, cap_bytes, |_| Held::default()).map_err(|small| small.explain(&*self.source))
    }

    /// Who profiles an epoch that begins here, unless one was profiled to its end: a part of one would pass for the whole.
    fn collecting(&self, start: u64) -> Option<Arc<Collector>> {
        self.collector.clone().filter(|collector| start == 0 && !collector.finished())
    }

    /// The epoch that is begun next, or was last.
    pub(crate) fn epoch_number(&self) -> u64 {
        self.progress().epoch
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn order(&self) -> &dyn Order {
        &*self.order
    }

    /// Batches in an epoch: the same on every rank.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.split(0).map_or(0, |s| s.batches())
    }

    /// Whether an epoch has no batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The source.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// The budget.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The columns of a batch.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Begins the next epoch, or the one that a loaded state or `set_epoch` names.
    ///
    /// # Errors
    /// When the budget cannot hold the epoch, naming who holds it.
    pub fn epoch(&mut self) -> Result<Epoch> {
        let (epoch, start, failed, print) = {
            let mut progress = self.progress();
            if !progress.placed {
                (progress.epoch, progress.position) = (progress.epoch + 1, 0);
                progress.failed.clear();
                progress.print = None;
            }
            progress.placed = false;
            progress.failures.clear();
            (progress.epoch, progress.position, progress.failed.clone(), progress.print)
        };
        let mut config = self.config(epoch, start)?;
        let collector = self.collecting(start);
        if let Some(collector) = &collector {
            collector.begin()?;
        }
        if self.options.on_error == crate::OnError::Skip {
            config.failed = failed;
        }
        let ids = self.order.begin(epoch).and_then(|()| self.order.epoch(epoch)).map_err(Error::from);
        let ids = ids.and_then(|ids| check_print(&*ids, epoch, print).map(|()| ids));
        let pipeline = match ids.and_then(|ids| Ok((self.start(&config, &ids)?, ids))) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                self.progress().placed = true;
                return Err(error);
            }
        };
        let (pipeline, ids) = pipeline;
        let running = Running { pipeline: Some(pipeline), config, ids, stopped: None };
        let running = Arc::new(Mutex::new(running));
        self.running = Arc::downgrade(&running);
        Ok(Epoch { running, progress: Arc::clone(&self.progress), collector, began: Instant::now() })
    }

    fn start(&mut self, config: &pipeline::Config, ids: &Arc<dyn tidegate_order::Epoch>) -> Result<Pipeline> {
        let (source, layout) = (Arc::clone(&self.source), Arc::clone(&self.layout));
        let (map, config, ids) = (self.map.clone(), config.clone(), Arc::clone(ids));
        let pipeline = Pipeline::start(source, layout, ids, config, &self.budget, map, &self.kept)?;
        self.kept.slots = pipeline.slots();
        Ok(pipeline)
    }

    /// Changes the budget, in the middle of an epoch too: pages beyond it are returned before this does, but those of batches
    /// that the consumer holds. What comes next, and what it holds, stay the same.
    ///
    /// Caches give way first. If that is not enough, the epoch begins again at the next batch with less memory: what was being
    /// made is made anew. Other loaders of the budget give back what they hold beyond it when their epoch ends.
    ///
    /// # Errors
    /// A size that makes no sense, or too small for this loader and the batches that the consumer holds, which changes nothing.
    pub fn set_memory(&mut self, size: &Size) -> Result<()> {
        let (before, whole) = (self.budget.cap_bytes(), size.bytes()?);
        let whole_before = self.budget.shared_by().map_or(before, |node| node.cap_bytes());
        let bytes = self.budget.shared_by().map_or(whole, |node| node.share_of(whole));
        let _it_fits = self.plan_alone(bytes)?;
        let limit = self.kept.limit_bytes();
        if limit > 0 {
            self.kept.set_limit((limit + bytes).saturating_sub(before));
        }
        self.budget.set_cap(whole);
        let Some(running) = self.running.upgrade() else {
            self.let_go_of_slots();
            return Ok(());
        };
        if self.budget.usage().charged_bytes > bytes {
            let running = &mut *between_batches(&running)?;
            if let Err(error) = self.begin_again(running) {
                // What the consumer holds leaves too little: as before, then.
                self.budget.set_cap(whole_before);
                self.begin_again(running)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back the slots that nobody holds.
    fn let_go_of_slots(&self) {
        if let Some(slots) = self.kept.slots.upgrade() {
            slots.shrink(0);
        }
    }

    /// Lets go of all that an epoch has, and goes on with it.
    fn begin_again(&mut self, running: &mut Running) -> Result<()> {
        match running.pipeline.take() {
            Some(pipeline) => running.config.past = pipeline.stop(),
            None if running.stopped.is_none() => {
                self.let_go_of_slots();
                return Ok(());
            }
            None => running.stopped = None,
        }
        self.let_go_of_slots();
        match self.start(&running.config, &running.ids) {
            Ok(pipeline) => {
                running.pipeline = Some(pipeline);
                Ok(())
            }
            Err(error) => {
                self.progress().placed = true;
                running.stopped = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// The next epoch will be this one, from its beginning.
    pub fn set_epoch(&mut self, epoch: u64) {
        let mut progress = self.progress();
        *progress = Progress { epoch, placed: true, ..Progress::default() };
    }

    /// The state after the last batch that was delivered.
    #[must_use]
    pub fn state(&self) -> State {
        let progress = self.progress();
        let (options, source) = (&self.options, &self.source);
        let (seed, shuffle) = (options.seed, options.shuffle);
        let mut state =
            State::new(source.fingerprint(), source.len(), seed, shuffle, progress.epoch, progress.position);
        let failures = progress.failures.iter().map(|f| f.position);
        state.set_failed(failures.chain(progress.failed.iter().copied()).collect());
        state.set_ids(progress.print, self.order.print(progress.epoch));
        state
    }

    /// Goes on where a state was saved: the next epoch begins at its position. Seed and order are the state's.
    ///
    /// # Errors
    /// [`Error::State`] for a state of other data, of another sampler, or of one where there is none.
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        state.check(self.source.fingerprint(), self.source.len(), self.source.name())?;
        match (state.shuffle, self.options.shuffle) {
            (Shuffle::Given { .. }, _) | (_, Shuffle::Given { .. }) => {
                let seeded = (state.seed != self.options.seed).then(|| self.order.reseeded(state.seed));
                let order = seeded.flatten().unwrap_or_else(|| Arc::clone(&self.order));
                state.check_order(self.options.shuffle, order.print(state.epoch))?;
                self.order = order;
            }
            (shuffle, _) => self.order = order(shuffle, state.seed, &self.source.runs())?.into(),
        }
        (self.options.seed, self.options.shuffle) = (state.seed, state.shuffle);
        let (epoch, position, failed) = (state.epoch, state.position, state.failed());
        let print = state.came();
        *self.progress() = Progress { epoch, position, placed: true, print, failed, ..Progress::default() };
        Ok(())
    }

    /// What training says of samples: a loss for each id. It counts from the next epoch on, and must be the same on every rank.
    ///
    /// # Errors
    /// An order that takes no feedback; ids that there are not; losses that are negative, infinite or no numbers.
    pub fn feedback(&self, ids: &[u64], losses: &[f32]) -> Result<()> {
        Ok(self.order.feedback(ids, losses)?)
    }

    /// All that was fed back, for another loader to go on with a state of this one.
    #[must_use]
    pub fn feedback_state(&self) -> Option<Vec<u8>> {
        self.order.fed().map(Fed::export)
    }

    /// Takes what was fed back to another loader; before its state.
    ///
    /// # Errors
    /// An order that takes no feedback; bytes of another number of samples.
    pub fn load_feedback(&self, bytes: &[u8]) -> Result<()> {
        match self.order.fed() {
            Some(order) => Ok(order.import(bytes)?),
            None => Ok(self.order.feedback(&[], &[])?),
        }
    }

    /// The profile itself, where nobody else asks for it again.
    pub(crate) fn take_profile(self) -> Option<Result<Profile>> {
        self.collector.as_ref().map(|collector| collector.take_away())
    }

    /// What was seen of the first epoch, so far or to its end, if [`Options::profile`] asked for it.
    #[must_use]
    pub fn profile(&self) -> Option<Result<Profile>> {
        let collector = self.collector.as_ref()?;
        if !collector.finished() {
            collector.note_failed(self.failed());
        }
        Some(collector.copy())
    }

    /// What limits the flow, and where every byte is.
    #[must_use]
    pub fn report(&self) -> Report {
        let batch = self.options.global_batch().unwrap_or(1);
        let mixing = *self.mixing.get_or_init(|| self.order.mixing(batch).ok().flatten());
        let progress = self.progress();
        let mut report =
            Report::new(&self.budget, progress.stats, progress.elapsed, &progress.failures, &self.stores);
        report.feedback = self.order.fed().and_then(Fed::about);
        report.mixing = mixing;
        report
    }
}
