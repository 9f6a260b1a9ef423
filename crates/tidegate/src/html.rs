//! Escapes and appends the text of HTML and SVG pages.
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
