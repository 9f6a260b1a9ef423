//! The memory section of a report: the budget, the processes that share it, and accounts.
//!
//! Flow: the budget -> [`AccountLine`]s and [`NodeLine`] -> lines of text.
//! Memory: holds none.

use std::fmt::{Formatter, Result};

use serde::Serialize;
use tidegate_core::memory::size::mib;
use tidegate_core::memory::{Account, Budget, Node};

use super::Report;

/// One account of the budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountLine {
    /// The name of the account.
    pub account: &'static str,
    /// Bytes held now.
    pub held_bytes: u64,
    /// The most bytes ever held.
    pub peak_bytes: u64,
}

/// A budget that the processes of a node share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeLine {
    /// The size of the budget of all processes together.
    pub budget_bytes: u64,
    /// Bytes charged now, by all processes and for their common cache.
    pub charged_bytes: u64,
    /// The most bytes ever charged.
    pub peak_bytes: u64,
    /// Bytes of the common cache.
    pub common_bytes: u64,
    /// (process id, bytes held) of each process.
    pub processes: Vec<(u32, u64)>,
}

impl NodeLine {
    pub(super) fn new(node: &Node) -> Self {
        let all = node.usage();
        Self {
            budget_bytes: all.cap_bytes,
            charged_bytes: all.charged_bytes,
            peak_bytes: all.peak_bytes,
            common_bytes: node.segments_held_bytes(),
            processes: node.held_by_process(),
        }
    }
}

/// The accounts that ever held bytes.
pub(super) fn account_lines(budget: &Budget) -> Vec<AccountLine> {
    let lines = Account::ALL.iter().map(|&a| {
        let used = budget.account(a);
        AccountLine { account: a.name(), held_bytes: used.held_bytes, peak_bytes: used.peak_bytes }
    });
    lines.filter(|line| line.peak_bytes > 0).collect()
}

pub(super) fn write(report: &Report, f: &mut Formatter<'_>) -> Result {
    writeln!(
        f,
        "budget {} MiB, peak {} MiB; the process may have {} MiB ({})",
        mib(report.budget_bytes),
        mib(report.peak_bytes),
        mib(report.limit_bytes),
        report.limit_source
    )?;
    if let Some(node) = &report.node {
        writeln!(
            f,
            "budget of the node {} MiB, peak {} MiB; now {} MiB by {} processes, and {} MiB for their \
             common cache",
            mib(node.budget_bytes),
            mib(node.peak_bytes),
            mib(node.charged_bytes.saturating_sub(node.common_bytes)),
            node.processes.len(),
            mib(node.common_bytes)
        )?;
    }
    for line in &report.accounts {
        writeln!(
            f,
            "  {:<18} {:>8} MiB now {:>8} MiB peak",
            line.account,
            mib(line.held_bytes),
            mib(line.peak_bytes)
        )?;
    }
    Ok(())
}
