//! The stage sections of a report: reading, caches, and volumes.
//!
//! Flow: [`StageStats`] -> lines of text; called by `text`.
//! Memory: holds none.

use std::fmt::{Formatter, Result};

use tidegate_core::memory::size::mib;
use tidegate_data::cache::Policy;
use tidegate_data::pipeline::StageStats;
use tidegate_source::ReadMode;

pub(super) fn write_reads(s: &StageStats, f: &mut Formatter<'_>) -> Result {
    if let Some(mode) = s.mode.filter(|_| s.reads > 0) {
        let how = match mode {
            ReadMode::Direct => "past the page cache (O_DIRECT)",
            ReadMode::Drop => "through the page cache, dropped behind",
            ReadMode::Plain => "through the page cache, kept and charged",
        };
        writeln!(f, "{} reads {how}, {} of them in groups (io_uring)", s.reads, s.together)?;
    }
    if s.remote {
        writeln!(
            f,
            "{} reads of objects over the network, {} MiB, up to {} at once, since a request takes {} ms",
            s.reads,
            mib(s.read_bytes),
            s.readers,
            s.latency_us.unwrap_or_default() / 1000
        )?;
    }
    if s.amplification_percent > 105 {
        writeln!(
            f,
            "{:.2} times the bytes of these samples were read (gaps, and groups that are read more than \
             once)",
            s.amplification_percent as f64 / 100.0
        )?;
    }
    if s.checkpoints > 0 {
        writeln!(f, "{} samples with JPEG checkpoints", s.checkpoints)?;
    }
    Ok(())
}

pub(super) fn write_memory_cache(s: &StageStats, f: &mut Formatter<'_>) -> Result {
    if s.cache_limit_bytes > 0 {
        let what = match s.wanted_chunks {
            0 => format!("samples of {}", s.samples),
            wanted => format!("chunks of {wanted}"),
        };
        writeln!(
            f,
            "{} {what} from memory ({} MiB; {}); the cache has {} of {} MiB",
            s.hits,
            mib(s.hit_bytes),
            possible_hits(s),
            mib(s.cache_held_bytes),
            mib(s.cache_limit_bytes)
        )?;
    }
    if s.wanted_chunks > 0 {
        let per_patch = s.wanted_chunks as f64 / s.samples.max(1) as f64;
        writeln!(f, "{} chunks were decoded; a patch needs {per_patch:.1}", s.decoded_chunks)?;
        if s.absent_chunks > 0 {
            writeln!(f, "{} of them are not stored, and have the fill value", s.absent_chunks)?;
        }
    }
    Ok(())
}

/// What the cache could have hit at best, and by which rule it keeps samples.
fn possible_hits(s: &StageStats) -> String {
    let best = mib(s.could_hit_bytes);
    match s.cache_rule {
        Some(Policy::Adaptive) if s.could_hit_bytes == 0 => {
            "frequently used samples are kept, since the order is not known ahead".into()
        }
        Some(Policy::Adaptive) => format!(
            "frequently used samples are kept, since the order is not known ahead; {best} MiB would be \
             possible \
             if it were"
        ),
        Some(Policy::Min) => {
            format!("at most {best} MiB were possible so far: what comes next soonest is kept")
        }
        _ => format!("at most {best} MiB are possible in this epoch"),
    }
}

pub(super) fn write_cache_forms(s: &StageStats, f: &mut Formatter<'_>) -> Result {
    if s.cache_decoded {
        writeln!(f, "samples are kept decoded: from memory they need no decoding")?;
    }
    if let Some(codec) = s.cache_codec {
        let gain = s.cache_gain_percent as f64 / 100.0;
        writeln!(f, "compressed by {codec}, the cache keeps {gain:.1} times as many samples")?;
    }
    if s.disk_limit_bytes > 0 {
        writeln!(
            f,
            "{} samples of {} from the disk cache ({} MiB), which takes {} of {} MiB",
            s.disk_hits,
            s.samples,
            mib(s.disk_hit_bytes),
            mib(s.disk_held_bytes),
            mib(s.disk_limit_bytes)
        )?;
    }
    Ok(())
}
