//! Text for HTML and SVG pages: escaping and appending.
//!
//! Flow: text -> text that is safe in a page; called by `cli` and the pages of `dataset`.
//! Memory: the text.

/// Escapes text for use inside HTML, attribute values included.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
