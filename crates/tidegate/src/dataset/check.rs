//! Checks a dataset: every sample is read and decoded once, and all that is wrong is listed.
//!
//! Flow: source -> [`check`] -> [`Findings`], as text or JSON.
//! Memory: that of the scan's loader, and the failures, which are a few hundred bytes each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tidegate_core::memory::Budget;
use tidegate_source::Source;

use super::scan::{self, Progress};
use crate::loader::FailedSample;
use crate::{Options, Result};

/// What was found in a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The path or URL that opened it.
    pub dataset: String,
    /// Samples.
    pub samples: u64,
    /// Samples that cannot be delivered, in id order.
    pub failures: Vec<FailedSample>,
    /// Files and members that may be taken for samples and are none, in words.
    pub left_out: Vec<String>,
    /// Fields whose type is uncertain, in words.
    pub uncertain: Vec<String>,
    /// How many samples lack a field. This is nothing wrong: the loader's specs can say what such
    /// samples get.
    pub missing: BTreeMap<String, u64>,
}

impl Findings {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.failures.is_empty() && self.left_out.is_empty() && self.uncertain.is_empty()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FailedSample { place, what } in &self.failures {
            writeln!(f, "{place}: {what}")?;
        }
        self.left_out.iter().try_for_each(|what| writeln!(f, "left out: {what}"))?;
        self.uncertain.iter().try_for_each(|what| writeln!(f, "uncertain: {what}"))?;
        for (field, count) in &self.missing {
            writeln!(f, "missing: {count} of {} samples lack {field:?}", self.samples)?;
        }
        write!(f, "{}: {} of {} samples fail", self.dataset, self.failures.len(), self.samples)
    }
}

/// Reads and decodes every sample of a dataset once.
///
/// # Errors
/// A budget that is too small, and an array field of which no sample shows the type. What is wrong
/// with samples is no error.
pub fn check(
    source: &Arc<dyn Source>,
    options: &Options,
    budget: &Budget,
    progress: Progress<'_>,
) -> Result<Findings> {
    let mut loader = scan::loader(source, options, budget, None)?;
    scan::visit(&mut loader, progress)?;
    let lacking = source.schema().iter().zip(source.missing()).filter(|(_, count)| **count > 0);
    Ok(Findings {
        dataset: source.name().to_owned(),
        samples: source.len(),
        failures: loader.failures(),
        left_out: source.left_out().iter().filter(|found| found.warn).map(ToString::to_string).collect(),
        uncertain: source.uncertain().to_vec(),
        missing: lacking.map(|(field, count)| (field.name.clone(), *count)).collect(),
    })
}
