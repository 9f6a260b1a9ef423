//! Knobs turned in mid-epoch: the same batches in order, only jobs in flight made by threads that
//! are to park, nothing leaked.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tidegate::{Batch, Budget, Knobs, Loader, Options, Shuffle, Source, open};
use tidegate_core::sync::lock;
use tidegate_data::pipeline::{BatchTransform, Delivered};
use tidegate_order::random::{Purpose, Stream};
use tidegate_source::Synthetic;

use super::{images, rows};
use tidegate::dataset::synth::Form;

/// Counts the batches that each worker completes, and passes their rows on.
#[derive(Debug, Default)]
struct Completed(Mutex<BTreeMap<usize, u64>>);

impl BatchTransform for Completed {
    fn map(&self, batch: Batch) -> tidegate::Result<Box<dyn Any + Send>> {
        let thread = std::thread::current();
        let number = thread.name().and_then(|name| name.strip_prefix("tg-work-")?.parse().ok());
        *lock(&self.0).entry(number.unwrap()).or_default() += 1;
        Ok(Box::new((batch.number, rows(&batch))))
    }
}

type Rows = Vec<(u64, Vec<u8>)>;

fn loader(source: &Arc<dyn Source>, budget: &Budget, workers: usize) -> (Loader, Arc<Completed>) {
    let options = Options {
        global_batch_size: Some(8),
        shuffle: Shuffle::Full,
        seed: 3,
        workers: Some(workers),
        prefetch: 2,
        ..super::options(8)
    };
    let known: Vec<_> = source.schema().iter().map(|f| f.name.clone()).collect();
    let fields = options.fields.iter().filter(|(n, _)| known.contains(n)).cloned().collect();
    let mut loader = Loader::new(Arc::clone(source), Options { fields, ..options }, budget.clone()).unwrap();
    let completed = Arc::new(Completed::default());
    loader.set_map(Arc::clone(&completed) as Arc<dyn BatchTransform>);
    (loader, completed)
}

/// The rows of an epoch in order; `turn` may change the knobs before each batch.
fn epoch(loader: &mut Loader, mut turn: impl FnMut(u64, Knobs) -> Option<Knobs>) -> Rows {
    let mut epoch = loader.epoch().unwrap();
    let mut all = Vec::new();
    for expected in 0.. {
        if let Some(knobs) = epoch.knobs().and_then(|knobs| turn(expected, knobs)) {
            epoch.set_knobs(knobs).unwrap();
            assert_eq!(epoch.knobs(), Some(knobs));
        }
        let Some(delivered) = epoch.next_with(&|| Ok(())).unwrap() else { break };
        let Delivered::Mapped(made) = delivered else { unreachable!("the loader has a batch map") };
        let (index, rows) = *made.downcast::<(u64, Rows)>().unwrap();
        assert_eq!(index, expected, "batches come in order");
        all.extend(rows);
    }
    all
}

#[test]
fn a_thousand_turns_change_nothing() {
    let source: Arc<dyn Source> = Arc::new(Synthetic::new(8 * 1000, 200));
    let budget = Budget::new(64 << 20);
    let expected = epoch(&mut loader(&source, &budget, 2).0, |_, _| None);
    let before = budget.usage().charged_bytes - budget.arena().hole_bytes;
    let mut draw = Stream::new(7, 0, 0, 0, Purpose::Draw);
    let (mut turned, completed) = loader(&source, &budget, 1);
    let rows = epoch(&mut turned, |_, knobs| {
        let workers = [1, 4, 2][draw.below(3) as usize];
        let slots = [knobs.slots * 2, knobs.slots / 2][draw.below(2) as usize].clamp(2, 32);
        let readers = 1 + draw.below(3) as usize;
        Some(Knobs { workers, readers, read_depth: 1 + draw.below(16) as usize, slots })
    });
    assert_eq!(rows.len(), 8000);
    assert!(rows == expected, "the same epoch");
    assert!(lock(&completed.0).len() > 1, "more than one worker ran");
    drop(turned);
    assert_eq!(budget.usage().charged_bytes - budget.arena().hole_bytes, before, "nothing is leaked");
}

#[test]
fn threads_that_are_to_park_finish_what_they_have_and_no_more() {
    let source = open(images("knobs", 400, Form::Tar).to_str().unwrap(), false).unwrap();
    let budget = Budget::new(64 << 20);
    let expected = epoch(&mut loader(&source, &budget, 2).0, |_, _| None);
    let (mut turned, completed) = loader(&source, &budget, 1);
    let mut at_change = None;
    let rows = epoch(&mut turned, |batch, knobs| {
        if batch == 21 {
            // After the turn: a job that was in flight may still complete one batch.
            at_change = Some(lock(&completed.0).clone());
        }
        match batch {
            // Few slots, so that most of the epoch is still to come at the second turn.
            2 => Some(Knobs { workers: 4, slots: 4, ..knobs }),
            20 => Some(Knobs { workers: 2, ..knobs }),
            _ => None,
        }
    });
    let at_change = at_change.unwrap();
    assert!(rows == expected, "the same epoch");
    for (worker, batches) in &*lock(&completed.0) {
        let more = batches - at_change.get(worker).copied().unwrap_or(0);
        assert!(*worker < 2 || more <= 1, "worker {worker} completed {more} batches after it was to park");
    }
}

#[test]
fn knobs_below_their_least_values_are_refused() {
    let source: Arc<dyn Source> = Arc::new(Synthetic::new(100, 20));
    let (mut loader, _) = loader(&source, &Budget::new(16 << 20), 2);
    let epoch = loader.epoch().unwrap();
    let knobs = epoch.knobs().unwrap();
    for wrong in [
        Knobs { workers: 0, ..knobs },
        Knobs { readers: 0, ..knobs },
        Knobs { read_depth: 0, ..knobs },
        Knobs { slots: 1, ..knobs },
        Knobs { workers: 10_000, ..knobs },
        Knobs { slots: 1 << 40, ..knobs },
    ] {
        assert!(epoch.set_knobs(wrong).is_err(), "{wrong:?}");
        assert_eq!(epoch.knobs(), Some(knobs), "nothing was turned");
    }
}
