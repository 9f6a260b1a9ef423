//! A report as text, section by section.
//!
//! Flow: [`Report`] -> lines for people.
//! Memory: holds none.

use std::fmt;

use tidegate_core::memory::size::counted;

use super::{Report, memory, stages};

/// The most failures that the text shows.
const MAX_FAILURES: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.stages;
        let per_second = s.samples as f64 / self.elapsed_s.max(1e-9);
        writeln!(f, "{}", self.limit)?;
        writeln!(f, "{} in {:.1} s ({per_second:.0}/s)", counted(s.samples, "sample"), self.elapsed_s)?;
        stages::write_reads(s, f)?;
        stages::write_memory_cache(s, f)?;
        self.write_mixing(f)?;
        stages::write_cache_forms(s, f)?;
        for note in &self.cache_notes {
            writeln!(f, "{note}")?;
        }
        self.write_feedback(f)?;
        if s.filled > 0 {
            writeln!(f, "{}, filled with gray", counted(s.filled, "truncated JPEG"))?;
        }
        memory::write(self, f)?;
        for failure in self.failures.iter().take(MAX_FAILURES) {
            writeln!(f, "failed: {failure}")?;
        }
        Ok(())
    }
}

impl Report {
    fn write_mixing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some([window, without]) = &self.mixing else { return Ok(()) };
        writeln!(
            f,
            "nearby patches follow one another: batches are {:.2} times as far from the whole volume as \
             random \
             ones, and {:.2} times without a window",
            window.ratio(),
            without.ratio()
        )
    }

    fn write_feedback(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(about) = &self.feedback else { return Ok(()) };
        let how = match (about.drawn, about.known) {
            (true, _) => "samples are drawn by them",
            (false, 0) => "so each sample comes once",
            (false, _) => "each sample comes once, since drawing by them would gain too little",
        };
        writeln!(f, "losses of {} samples were known when epoch {} began: {how}", about.known, about.epoch)?;
        writeln!(
            f,
            "drawing by them acts as batches {:.2} times as large, and the effective sample size is \
             {:.0} % of \
             the samples; the cache plans to the end of this epoch, because feedback decides the next one",
            about.gain,
            about.effective * 100.0
        )
    }
}
