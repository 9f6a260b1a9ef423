//! What the subcommands share: sizes parsed from text, and progress on a terminal.
//!
//! Flow: an argument -> bytes; (done, total) -> a bar on standard error.
//! Memory: holds none.
#![expect(clippy::print_stderr, reason = "a command line prints")]

use std::io::{IsTerminal, Write};

use tidegate_core::memory::size::Size;
use tidegate_data::Result;

/// Parses a size, such as 64MiB, as bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64> {
    Ok(text.parse::<Size>().and_then(|s| s.bytes())?)
}

/// Parses the size of a budget: within what this process may have.
pub(super) fn parse_budget(text: &str) -> Result<u64> {
    Ok(text.parse::<Size>().and_then(|s| s.budget_bytes())?)
}

/// Shows progress on a terminal.
pub(super) fn show_progress(what: &str, done: u64, total: u64) {
    if std::io::stderr().is_terminal() && (done.is_multiple_of(16) || done == total) {
        let filled = (done * 30 / total.max(1)) as usize;
        eprint!("\r{what} [{}{}] {done}/{total}", "#".repeat(filled), " ".repeat(30 - filled.min(30)));
        if done >= total {
            eprintln!();
        }
        // Progress is not needed if the terminal is gone.
        std::io::stderr().flush().ok();
    }
}
