//! What the ledger and the arena cost and how well they fill; run with `cargo bench -p tidegate-core`.
//!
//! Flow: prints one JSON object a line; `make bench` keeps them in bench/results.
//! Memory: up to 600 MiB for the arena figures.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints its measurements")]

fn main() {}
