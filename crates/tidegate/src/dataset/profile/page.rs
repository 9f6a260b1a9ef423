//! A profile as text, and as one HTML page with a section and histograms for each field.
//!
//! Flow: [`Profile`] -> text, or HTML without outside resources.
//! Memory: the page, about ten KiB a field.

use std::fmt;

use super::Profile;
use super::advice::Advice;
use super::column_note::{Histogram, ValueKind};
use super::field::Field;
use super::measure::{Measure, Summary};
use crate::Result;
use crate::html::{append, escape};

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;max-width:1100px;color:#222}h2{margin:1.6em 0 .2em;\
    border-top:1px solid #ddd;padding-top:.8em}table{border-collapse:collapse;margin:.4em 0}td,th{padding:2px 12px 2px 0;\
    text-align:right;font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}.kind{color:#777;\
    font-weight:normal;font-size:12px}.plots{display:flex;flex-wrap:wrap;gap:18px}figure{margin:.4em 0}figcaption{font-size:12px;\
    color:#555}svg{background:#f7f7f7}ul{margin:.3em 0;padding-left:1.2em}";
/// Width and height of a plot.
const PLOT: (f64, f64) = (300.0, 90.0);
/// The most values that a field's table shows.
const MAX_VALUES: usize = 12;

fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e9 {
        return format!("{value:.0}");
    }
    if (1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{value:.3e}")
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), number)
}

fn bars(heights: &[f64], caption: &str, color: &str) -> String {
    let (width, height) = PLOT;
    let most = heights.iter().copied().fold(0.0, f64::max);
    let wide = width / heights.len().max(1) as f64;
    let mut plot = format!("<figure><svg width='{width}' height='{height}'>");
    for (i, bar) in heights.iter().enumerate().filter(|(_, bar)| **bar > 0.0) {
        let tall = bar / most * (height - 4.0);
        let (x, y) = (i as f64 * wide, height - tall);
        append(
            &mut plot,
            format_args!(
                "<rect x='{x:.1}' y='{y:.1}' width='{:.1}' height='{tall:.1}' fill='{color}'/>",
                (wide - 0.5).max(0.8)
            ),
        );
    }
    append(&mut plot, format_args!("</svg><figcaption>{}</figcaption></figure>", escape(caption)));
    plot
}

fn measure_plot(name: &str, summary: &Summary) -> String {
    if summary.bars.is_empty() {
        return String::new();
    }
    let ends = format!("{name}: {} to {}", optional(summary.min), optional(summary.max));
    bars(&summary.bars, &ends, "#4a7fb5")
}

fn levels(field: &Field, table: &Histogram, i: usize) -> String {
    let heights: Vec<f64> = table.iter().map(|&n| n as f64).collect();
    let (name, color) = match (field.value_kind, i) {
        (ValueKind::Image, 0) => ("red: 0 to 255", "#c0504d"),
        (ValueKind::Image, 1) => ("green: 0 to 255", "#5a9a58"),
        (ValueKind::Image, _) => ("blue: 0 to 255", "#4a6fb5"),
        _ => ("bytes: 0 to 255", "#888"),
    };
    bars(&heights, name, color)
}

fn row(page: &mut String, name: &str, summary: &Summary) {
    let quantile = |rank: f64| {
        let found = summary.quantiles.iter().find(|(known, _)| *known == rank);
        optional(found.map(|&(_, value)| value))
    };
    let cells = [
        summary.count.to_string(),
        optional(summary.mean),
        optional(summary.std),
        optional(summary.min),
        quantile(0.05),
        quantile(0.5),
        quantile(0.95),
        quantile(0.999),
        optional(summary.max),
        (summary.nan + summary.infinite).to_string(),
    ];
    append(page, format_args!("<tr><td>{}</td><td>{}</td></tr>", escape(name), cells.join("</td><td>")));
}

const HEAD: &str = "<tr><th></th><th>values</th><th>mean</th><th>std</th><th>least</th><th>5 %</th><th>median</th><th>95 %</th>\
    <th>99.9 %</th><th>greatest</th><th>NaN, infinite</th></tr>";

fn values(page: &mut String, field: &Field, classes: &[String]) {
    if field.tally.overflowed || field.tally.counts.is_empty() {
        return;
    }
    let mut counts: Vec<_> = field.tally.counts.iter().collect();
    counts.sort_by_key(|(label, n)| (std::cmp::Reverse(**n), (*label).clone()));
    let total = field.tally.total() as f64;
    page.push_str("<table>");
    for (label, n) in counts.iter().take(MAX_VALUES) {
        let name = match label {
            super::Label::Int(i) => usize::try_from(*i).ok().and_then(|i| classes.get(i)),
            super::Label::Text(_) => None,
        };
        let name = name.map_or(String::new(), |name| format!(" {name}"));
        let share = **n as f64 / total;
        append(
            page,
            format_args!(
                "<tr><td>{}{}</td><td>{n}</td><td>{:.1} %</td><td><svg width='160' height='10'><rect width='{:.0}' height='10' fill='#4a7fb5'/></svg></td></tr>",
                escape(&label.to_string()),
                escape(&name),
                share * 100.0,
                share * 160.0
            ),
        );
    }
    page.push_str("</table>");
    if counts.len() > MAX_VALUES {
        append(page, format_args!("<p>and {} others</p>", counts.len() - MAX_VALUES));
    }
}

fn list(values: &[f64]) -> String {
    values.iter().map(|&x| number(x)).collect::<Vec<_>>().join(", ")
}

/// The advice as lines of text.
pub(super) fn advice_lines(advice: &Advice) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(mean), Some(std)) = (&advice.mean, &advice.std) {
        lines.push(format!("normalize by mean {} and std {}", list(mean), list(std)));
    }
    if let Some(weights) = advice.class_weights.as_ref().filter(|weights| weights.len() > 1) {
        let ends = weights.values().fold((f64::MAX, 0f64), |(low, high), &w| (low.min(w), high.max(w)));
        lines.push(format!(
            "{} classes, weights from {} to {}",
            weights.len(),
            number(ends.0),
            number(ends.1)
        ));
    }
    if let Some(dtype) = advice.dtype {
        lines.push(format!("{dtype} holds all values"));
    }
    if let Some(q) = advice.quantized {
        let (scale, zero, noise) = (number(q.scale), number(q.zero), q.signal_to_noise_db);
        lines.push(format!("8 bits: scale {scale}, zero {zero}, signal to noise {noise:.0} dB"));
    }
    if let Some((codec, gain)) = &advice.codec {
        lines.push(format!("{codec} makes it {gain:.1} times smaller"));
    }
    if let Some((dtype, shape)) = &advice.array {
        lines.push(format!("all are {dtype} of shape {shape:?}"));
    }
    if let Some(padding) = &advice.padding {
        lines.push(format!(
            "batches of 32 are {:.0} % padding; {:.0} % with buckets up to {}",
            padding.waste * 100.0,
            padding.waste_in_buckets * 100.0,
            list(&padding.edges)
        ));
    }
    lines
}

impl Profile {
    /// The profile as an HTML page.
    ///
    /// # Errors
    /// Never in practice: the sketches are ours.
    pub fn to_html(&self) -> Result<String> {
        let title = escape(&self.name);
        let mut page = format!(
            "<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{} of {} samples, {} failed",
            self.samples, self.total, self.failed
        );
        for failed in &self.failures {
            append(&mut page, format_args!("<br>{}: {}", escape(&failed.place), escape(&failed.what)));
        }
        append(&mut page, format_args!("</p><table>{HEAD}"));
        row(&mut page, "bytes of a sample", &self.bytes.summary());
        page.push_str("</table>");
        if self.fields.len() > 1 {
            let link = |field: &Field| {
                format!("<a href=\"#{0}\">{0}</a> {1}", escape(&field.name), escape(&field.stored_kind))
            };
            let links: Vec<_> = self.fields.iter().map(link).collect();
            append(&mut page, format_args!("<p>Fields: {}</p>", links.join(", ")));
        }
        for field in &self.fields {
            self.section(&mut page, field)?;
        }
        Ok(page)
    }

    fn section(&self, page: &mut String, field: &Field) -> Result<()> {
        let distinct = field.distinct_values()?;
        append(
            page,
            format_args!(
                "<h2 id=\"{0}\">{0} <span class=kind>{1}, {2} distinct values in {3}",
                escape(&field.name),
                escape(&field.stored_kind),
                number(distinct.value.round().min(self.samples as f64)),
                self.samples
            ),
        );
        let entropies: Vec<_> = field.entropies().iter().map(|bits| format!("{bits:.2}")).collect();
        let of = match field.value_kind {
            ValueKind::Image => "a red, a green and a blue value",
            ValueKind::Int => "a value",
            _ => "a byte",
        };
        if !entropies.is_empty() {
            append(page, format_args!(", entropy of {of}: {} bits", entropies.join(", ")));
        }
        if field.missing > 0 {
            append(page, format_args!(", {} lack it", field.missing));
        }
        let summaries: Vec<_> =
            field.value_kind.measures().iter().zip(field.measures.iter().map(Measure::summary)).collect();
        append(page, format_args!("</span></h2><table>{HEAD}"));
        summaries.iter().for_each(|(name, summary)| row(page, name, summary));
        page.push_str("</table><div class=plots>");
        summaries.iter().for_each(|(name, summary)| page.push_str(&measure_plot(name, summary)));
        if field.value_kind == ValueKind::Image {
            page.push_str("<p>`tidegate inspect DATASET --html PAGE` shows some of the images.</p>");
        }
        for (i, table) in field.histograms.iter().enumerate() {
            page.push_str(&levels(field, table, i));
        }
        page.push_str("</div>");
        values(page, field, &self.classes);
        page.push_str("<ul>");
        for line in advice_lines(&Advice::new(field)) {
            append(page, format_args!("<li>{}</li>", escape(&line)));
        }
        page.push_str("</ul>");
        Ok(())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let all = self.bytes.summary();
        let bytes = all.mean.unwrap_or(0.0) * all.count as f64;
        writeln!(
            f,
            "{}: {} of {} samples, {:.1} MiB, {} failed",
            self.name,
            self.samples,
            self.total,
            mib(bytes),
            self.failed
        )?;
        for failed in &self.failures {
            writeln!(f, "  {}: {}", failed.place, failed.what)?;
        }
        if self.failed > self.failures.len() as u64 {
            writeln!(f, "  and {} more", self.failed - self.failures.len() as u64)?;
        }
        for field in &self.fields {
            let distinct = field.distinct_values().map_err(|_| fmt::Error)?;
            let about = if distinct.low < distinct.high { "about " } else { "" };
            write!(f, "{} ({}): {about}{:.0} distinct", field.name, field.stored_kind, distinct.value)?;
            let missing =
                if field.missing > 0 { format!(", {} lack it", field.missing) } else { String::new() };
            writeln!(f, "{missing}")?;
            for (name, measure) in field.value_kind.measures().iter().zip(&field.measures) {
                let s = measure.summary();
                let middle = s.quantiles.iter().find(|(rank, _)| *rank == 0.5).map(|&(_, value)| value);
                let [mean, std, min, middle, max] = [s.mean, s.std, s.min, middle, s.max].map(optional);
                write!(f, "  {name:<12} mean {mean}, std {std}, from {min} to {max}, median {middle}")?;
                let odd = [("NaN", s.nan), ("infinite", s.infinite)].into_iter().filter(|(_, n)| *n > 0);
                odd.clone().try_for_each(|(what, n)| write!(f, ", {n} {what}"))?;
                writeln!(f)?;
            }
            for line in advice_lines(&Advice::new(field)) {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
