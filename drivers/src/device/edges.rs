//! Watching a line's edges, for whoever makes something of them: debounced, lost ones counted.

use std::time::Duration;

use crate::bus::gpio::{Debounce, InputLine};
use crate::error::DeviceError;
use crate::monotonic_ns;

/// A line and what its edges came to so far.
pub(super) struct EdgeWatch {
    line: Box<dyn InputLine>,
    filter: Debounce,
    last_number: Option<u32>,
    lost: u64,
}

impl EdgeWatch {
    /// Begins with the line as it is.
    pub(super) fn new(mut line: Box<dyn InputLine>, debounce: Duration) -> Result<Self, DeviceError> {
        let level = line.is_active()?;
        Ok(Self { line, filter: Debounce::new(debounce, level), last_number: None, lost: 0 })
    }

    /// The level that counts.
    pub(super) fn level(&self) -> bool {
        self.filter.level()
    }

    /// Edges that the kernel dropped because we were too slow.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Waits for the next edge, at most `timeout`, and takes what is there: `changed(level, at_ns)` for each change
    /// that counts.
    pub(super) fn wait(
        &mut self,
        timeout: Duration,
        mut changed: impl FnMut(bool, u64),
    ) -> Result<(), DeviceError> {
        let due =
            self.filter.due_ns().map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
        let mut patience = due.map_or(timeout, |due| due.min(timeout));
        for _ in 0..EDGES_AT_ONCE {
            let Some(edge) = self.line.next_edge(patience)? else { break };
            patience = Duration::ZERO;
            let gap = self.last_number.map_or(0, |last| edge.number.wrapping_sub(last).wrapping_sub(1));
            self.last_number = Some(edge.number);
            self.lost += u64::from(gap);
            if let Some((level, at_ns)) = self.filter.edge(edge.is_active, edge.at_ns) {
                changed(level, at_ns);
            }
        }
        if let Some((level, at_ns)) = self.filter.settle(monotonic_ns()) {
            changed(level, at_ns);
        }
        Ok(())
    }
}

/// A line that rings without end must not keep its thread from stopping.
const EDGES_AT_ONCE: usize = 1024;
