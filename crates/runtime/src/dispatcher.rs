//! The dispatcher: how each step runs (one whole recording, recorded pieces, or launch by launch), and why.

use std::collections::BTreeMap;

use allotrope_config::{GraphMode, RuntimeMode};

/// Chooses how a batch runs.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    mode: GraphMode,
    capture_sizes: Vec<usize>,
    has_pieces: bool,
    counts: DispatchCounts,
}

/// How often each outcome was chosen, by its reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DispatchCounts {
    /// Steps by how they ran and why.
    pub steps: BTreeMap<(&'static str, &'static str), u64>,
}

impl DispatchCounts {
    /// Steps that ran in the given way, whatever the reason.
    pub fn total(&self, mode: RuntimeMode) -> u64 {
        self.steps.iter().filter(|((name, _), _)| *name == label(mode)).map(|(_, count)| count).sum()
    }
}

/// What was chosen for one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How the step runs.
    pub mode: RuntimeMode,
    /// The captured size to run at, as a place in [`Dispatcher::capture_sizes`].
    pub size: usize,
    /// Why.
    pub reason: &'static str,
}

impl Dispatcher {
    /// A dispatcher for a graph mode and the sizes, ascending, at which it captures.
    pub fn new(mode: GraphMode, capture_sizes: Vec<usize>) -> Self {
        Dispatcher { mode, capture_sizes, has_pieces: true, counts: DispatchCounts::default() }
    }

    /// Says whether steps have pieces that can be recorded: not where every launch is of a splitting operation.
    #[must_use]
    pub fn with_pieces(self, has_pieces: bool) -> Self {
        Dispatcher { has_pieces, ..self }
    }

    /// The sizes that are captured, ascending.
    pub fn capture_sizes(&self) -> &[usize] {
        &self.capture_sizes
    }

    /// The graph mode.
    pub fn mode(&self) -> GraphMode {
        self.mode
    }

    /// What happened so far.
    pub fn counts(&self) -> &DispatchCounts {
        &self.counts
    }

    /// The place of the smallest captured size that holds `rows`, if there is one.
    pub fn size_for(&self, rows: usize) -> Option<usize> {
        let place = self.capture_sizes.partition_point(|size| *size < rows);
        (place < self.capture_sizes.len()).then_some(place)
    }

    /// Chooses for a batch of `tokens`: FULL where the mode has it, else PIECEWISE, else launches.
    pub fn decide(&mut self, uniform_decode: bool, tokens: usize) -> Decision {
        let wanted = if uniform_decode { self.mode.decode() } else { self.mode.mixed() };
        let decision = match (wanted, self.size_for(tokens)) {
            (RuntimeMode::None, _) if self.mode == GraphMode::None => none("graphs are off"),
            (RuntimeMode::None, _) => none("the graph mode launches mixed batches one by one"),
            (RuntimeMode::Piecewise, _) if !self.has_pieces => {
                none("every launch is of a splitting operation, so no piece is recorded")
            }
            (_, None) => none("the batch is larger than the largest captured size"),
            (mode, Some(size)) => {
                let reason = if uniform_decode { "uniform decode batch" } else { "mixed or prefill batch" };
                Decision { mode, size, reason }
            }
        };
        *self.counts.steps.entry((label(decision.mode), decision.reason)).or_default() += 1;
        decision
    }
}

fn none(reason: &'static str) -> Decision {
    Decision { mode: RuntimeMode::None, size: 0, reason }
}

/// The name of a runtime mode in metrics.
fn label(mode: RuntimeMode) -> &'static str {
    match mode {
        RuntimeMode::None => "none",
        RuntimeMode::Piecewise => "piecewise",
        RuntimeMode::Full => "full",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_runs_decode_and_mixed_batches_as_the_table_says() {
        use RuntimeMode::{Full, None, Piecewise};
        let table = [
            (GraphMode::None, None, None),
            (GraphMode::Piecewise, Piecewise, Piecewise),
            (GraphMode::Full, Full, Full),
            (GraphMode::FullDecodeOnly, Full, None),
            (GraphMode::FullAndPiecewise, Full, Piecewise),
        ];
        for (mode, decode, mixed) in table {
            let mut dispatcher = Dispatcher::new(mode, vec![1, 2, 4, 8]);
            assert_eq!(dispatcher.decide(true, 3).mode, decode, "{mode:?}");
            assert_eq!(dispatcher.decide(false, 3).mode, mixed, "{mode:?}");
            assert_eq!(dispatcher.decide(true, 9).mode, None, "{mode:?}: above the largest size");
            assert_eq!(dispatcher.counts().steps.values().sum::<u64>(), 3);
        }
    }

    #[test]
    fn without_pieces_nothing_is_called_piecewise() {
        let mut dispatcher = Dispatcher::new(GraphMode::FullAndPiecewise, vec![8]).with_pieces(false);
        assert_eq!(dispatcher.decide(true, 3).mode, RuntimeMode::Full);
        let decision = dispatcher.decide(false, 3);
        assert_eq!(decision.mode, RuntimeMode::None);
        assert!(decision.reason.contains("splitting operation"), "{}", decision.reason);
    }

    #[test]
    fn batches_run_at_the_next_captured_size() {
        let mut dispatcher = Dispatcher::new(GraphMode::Full, vec![1, 2, 4, 8]);
        for (tokens, size) in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)] {
            let decision = dispatcher.decide(true, tokens);
            assert_eq!(dispatcher.capture_sizes()[decision.size], size);
        }
    }
}
