//! Escapes and appends the text of HTML and SVG pages, and chooses the numbers of an axis.
//!
//! Flow: text -> text that is safe in a page; called by `cli` and by the pages of `dataset`.
//! Memory: the text.

use std::fmt::{Arguments, Write as _};

/// Escapes text for HTML, also inside attribute values.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Appends formatted text. Writing to a string cannot fail.
pub(crate) fn append(text: &mut String, what: Arguments<'_>) {
    text.write_fmt(what).ok();
}

/// The numbers of an axis from 0 to `most`: about five, each a round one.
pub(crate) fn ticks(most: f64) -> Vec<f64> {
    let fifth = (most / 5.0).max(1e-9);
    let power = 10f64.powf(fifth.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= fifth * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let round = |at: f64| (at * 1e9).round() / 1e9;
    (0..).map(|i| round(f64::from(i) * step)).take_while(|at| *at <= most * 1.000_001).collect()
}

#[cfg(test)]
mod tests {
    use super::ticks;

    #[test]
    fn an_axis_has_round_numbers() {
        assert_eq!(ticks(64.0), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(ticks(5.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(ticks(0.0), [0.0]);
        assert_eq!(ticks(0.012).len(), 3);
    }
}
