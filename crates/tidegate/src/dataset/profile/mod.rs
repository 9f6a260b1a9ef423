//! What a dataset holds: one scan over all fields, or what training saw of them.
//!
//! Flow: decoded samples -> notes, on the workers (`column_note`) -> `collector`, in sample order
//! -> [`Profile`] -> `advice`, `diff`, `page`.
//! Memory: reserved before the scan (account `telemetry`): about 300 KiB a field, and the tally of
//! its values.
//!
//! One thread adds notes in sample order, and a note depends on its sample alone. So a profile is
//! the same bit for bit whatever the workers and the budget, except for KLL and REQ sketches,
//! whose library draws random bits of its own.

mod advice;
mod collector;
mod column_note;
mod diff;
mod encoding;
mod field;
mod measure;
mod page;
mod stored;

use std::sync::Arc;

use serde_json::json;
use tidegate_core::memory::Budget;
use tidegate_source::Source;

pub use self::advice::{Advice, Padding, Quantized, padding};
pub(crate) use self::collector::observe;
use self::column_note::WatchedColumn;
pub use self::column_note::{Exact, Histogram, Label, ValueKind};
pub use self::diff::{Diff, Drift, Shared};
pub use self::field::{Field, Tally};
pub use self::measure::{Measure, Summary};
pub use self::stored::default_path;
use super::scan::{self, Progress};
use crate::loader::{FailedSample, append_failures};
use crate::{Error, Options, Result};

/// The profile of a dataset.
#[derive(Debug)]
pub struct Profile {
    /// The path or pattern that opened the data.
    pub name: String,
    /// The fingerprint of the data.
    pub fingerprint: u64,
    /// The version of the files: it changes when a file changes.
    pub edition: u64,
    /// The names of classes, where labels are folders.
    pub classes: Vec<String>,
    /// The samples that were profiled.
    pub samples: u64,
    /// All samples of the data.
    pub total: u64,
    /// The samples that could not be decoded.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<FailedSample>,
    /// The stored bytes of a sample.
    pub bytes: Measure,
    /// One for each field that was delivered.
    pub fields: Vec<Field>,
}

impl Profile {
    fn empty(source: &dyn Source, edition: u64, watched: &[WatchedColumn]) -> Result<Self> {
        let field = |one: &WatchedColumn| {
            let same_kind = watched.iter().filter(|other| other.value_kind == one.value_kind).count();
            Field::new(one, same_kind)
        };
        Ok(Self {
            name: source.name().to_owned(),
            fingerprint: source.fingerprint(),
            edition,
            classes: source.classes().to_vec(),
            samples: 0,
            total: source.len(),
            failed: 0,
            failures: Vec::new(),
            bytes: Measure::new()?,
            fields: watched.iter().map(field).collect::<Result<_>>()?,
        })
    }

    /// Profiles a dataset in one scan. Samples that cannot be decoded are skipped and named.
    ///
    /// `options` say which fields and how many workers, and may set the batch size. `progress` is
    /// called with (samples done, samples in all); its error ends the scan.
    ///
    /// # Errors
    /// As [`crate::Loader::new`] and its epochs; the error of `progress`.
    pub fn scan(
        source: Arc<dyn Source>,
        options: Options,
        budget: &Budget,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let mut loader = scan::loader(&source, &options, budget, Some(observe))?;
        // The collector has the failures too.
        scan::run(&mut loader, progress)?;
        loader.into_profile()
    }

    /// Adds the profile of other data with the same fields: another part of a dataset, or what
    /// another rank saw of it.
    ///
    /// # Errors
    /// [`Error::Config`] if the fields differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let names = |profile: &Self| {
            let fields = profile.fields.iter();
            fields.map(|f| format!("{} ({})", f.name, f.value_kind.name())).collect::<Vec<_>>()
        };
        if names(self) != names(other) {
            return Err(Error::Config(format!(
                "profiles of other fields cannot be merged: {:?} and {:?}",
                names(self),
                names(other)
            )));
        }
        for (one, other) in self.fields.iter_mut().zip(&other.fields) {
            one.merge(other)?;
        }
        self.bytes.merge(&other.bytes)?;
        // Parts of one dataset have no more samples together than the dataset.
        let parts = self.fingerprint == other.fingerprint
            && self.samples + self.failed + other.samples + other.failed <= self.total;
        if !parts {
            self.total += other.total;
            self.name = format!("{} and {}", self.name, other.name);
            self.fingerprint ^= other.fingerprint.rotate_left(1);
        }
        if self.classes != other.classes {
            self.classes.clear();
        }
        self.samples += other.samples;
        self.failed += other.failed;
        append_failures(&mut self.failures, &other.failures);
        Ok(())
    }

    /// The field of this name.
    ///
    /// # Errors
    /// [`Error::Config`] with the names of the fields that there are.
    pub fn field(&self, name: &str) -> Result<&Field> {
        self.fields.iter().find(|field| field.name == name).ok_or_else(|| {
            let names: Vec<_> = self.fields.iter().map(|field| field.name.as_str()).collect();
            Error::Config(format!("this profile has no field {name:?}; it has {}", names.join(", ")))
        })
    }

    /// The figures for people, as JSON.
    ///
    /// # Errors
    /// Never in practice: the sketches are ours.
    pub fn summary(&self) -> Result<serde_json::Value> {
        let mut fields = serde_json::Map::new();
        for field in &self.fields {
            let distinct = field.distinct_values()?;
            let measures: serde_json::Map<_, _> = field
                .value_kind
                .measures()
                .iter()
                .zip(&field.measures)
                .map(|(name, measure)| ((*name).to_owned(), json!(measure.summary())))
                .collect();
            let values: serde_json::Map<_, _> =
                field.tally.counts.iter().map(|(label, n)| (label.to_string(), json!(n))).collect();
            let figures = json!({
                "kind": field.stored_kind,
                "sort": field.value_kind,
                "measures": measures,
                "distinct": {"estimate": distinct.value, "low": distinct.low, "high": distinct.high},
                "missing": field.missing,
                "values": Some(values).filter(|values| !field.tally.overflowed && !values.is_empty()),
                "entropy_bits": field.entropies(),
                "channels": field.channels.iter().map(Measure::summary).collect::<Vec<_>>(),
                "advice": Advice::new(field),
            });
            fields.insert(field.name.clone(), figures);
        }
        Ok(json!({
            "name": self.name,
            "samples": self.samples,
            "of": self.total,
            "failed": self.failed,
            "failures": self.failures,
            "bytes": self.bytes.summary(),
            "fields": fields,
        }))
    }
}
