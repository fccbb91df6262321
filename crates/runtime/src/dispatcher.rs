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
    /// Tokens that were run from recordings.
    pub recorded_tokens: u64,
    /// Tokens that the recordings were made for beyond those. What they cost depends on the device.
    pub padding_tokens: u64,
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
    /// The captured size to run at, as a place in [`Dispatcher::capture_sizes`]; a larger one where that is not there.
    pub size: usize,
    /// Why.
    pub reason: &'static str,
}

/// Why a recording is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It was not made yet.
    NotYet,
    /// It could not be made.
    Failed,
}

/// What is there for a way to run a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the step can run that way: at its own capture size, or at a larger one.
    pub runs: bool,
    /// Why a recording at its own size is not there, if one is not.
    pub lack: Option<Lack>,
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

    /// Chooses for a batch of `tokens`: FULL where the mode has it and its recordings are there, else PIECEWISE, else launches.
    /// `standing` says of a way to run, at the capture size of a place, what is there for it.
    pub fn choose(
        &self,
        uniform_decode: bool,
        tokens: usize,
        standing: impl Fn(RuntimeMode, usize) -> Standing,
    ) -> Decision {
        let wanted = if uniform_decode { self.mode.decode() } else { self.mode.mixed() };
        let size = match (wanted, self.size_for(tokens)) {
            (RuntimeMode::None, _) if self.mode == GraphMode::None => return none("graphs are off"),
            (RuntimeMode::None, _) => return none("the graph mode launches mixed batches one by one"),
            (RuntimeMode::Piecewise, _) if !self.has_pieces => {
                return none("every launch is of a splitting operation, so no piece is recorded");
            }
            (_, None) => return none("the batch is larger than the largest captured size"),
            (_, Some(size)) => size,
        };
        let has_pieces = self.has_pieces && self.mode.mixed() == RuntimeMode::Piecewise;
        let weaker = (wanted == RuntimeMode::Full && has_pieces).then_some(RuntimeMode::Piecewise);
        let mut lack = None;
        for mode in [wanted].into_iter().chain(weaker) {
            let standing = standing(mode, size);
            lack = lack.or(standing.lack);
            if standing.runs {
                let reason = match lack {
                    None if uniform_decode => "uniform decode batch",
                    None => "mixed or prefill batch",
                    Some(Lack::NotYet) => "the next best, as its recording is not there yet",
                    Some(Lack::Failed) => "the next best, as its recording failed",
                };
                return Decision { mode, size, reason };
            }
        }
        none(match lack {
            Some(Lack::Failed) => "its recording failed",
            Some(Lack::NotYet) | None => "its recording is not there yet",
        })
    }

    /// Counts a step of so many tokens that runs as was chosen.
    pub fn count(&mut self, decision: Decision, tokens: usize) {
        if decision.mode != RuntimeMode::None {
            let size = self.capture_sizes.get(decision.size).copied().unwrap_or(tokens);
            self.counts.recorded_tokens += tokens as u64;
            self.counts.padding_tokens += size.saturating_sub(tokens) as u64;
        }
        *self.counts.steps.entry((label(decision.mode), decision.reason)).or_default() += 1;
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

    /// Decides with all recordings there.
    fn decide(dispatcher: &mut Dispatcher, uniform: bool, tokens: usize) -> Decision {
        let decision = dispatcher.choose(uniform, tokens, |_, _| Standing { runs: true, lack: None });
        dispatcher.count(decision, tokens);
        decision
    }

    #[test]
    fn what_is_not_there_is_replaced_by_the_next_best_and_counted_with_its_reason() {
        let dispatcher = Dispatcher::new(GraphMode::FullAndPiecewise, vec![4]);
        let choose = |full: Standing, pieces: Standing| {
            let decision = dispatcher.choose(true, 2, |mode, _| if mode == RuntimeMode::Full { full } else { pieces });
            (decision.mode, decision.reason)
        };
        let there = Standing { runs: true, lack: None };
        let larger = Standing { runs: true, lack: Some(Lack::NotYet) };
        let not_yet = Standing { runs: false, lack: Some(Lack::NotYet) };
        let failed = Standing { runs: false, lack: Some(Lack::Failed) };
        assert_eq!(choose(larger, there), (RuntimeMode::Full, "the next best, as its recording is not there yet"));
        assert_eq!(choose(failed, there), (RuntimeMode::Piecewise, "the next best, as its recording failed"));
        assert_eq!(choose(not_yet, not_yet), (RuntimeMode::None, "its recording is not there yet"));
        assert_eq!(choose(failed, not_yet), (RuntimeMode::None, "its recording failed"));
        // Where the mode has no pieces, there is no next best.
        let whole = Dispatcher::new(GraphMode::FullDecodeOnly, vec![4]);
        assert_eq!(whole.choose(true, 2, |_, _| failed).mode, RuntimeMode::None);
    }

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
            assert_eq!(decide(&mut dispatcher, true, 3).mode, decode, "{mode:?}");
            assert_eq!(decide(&mut dispatcher, false, 3).mode, mixed, "{mode:?}");
            assert_eq!(decide(&mut dispatcher, true, 9).mode, None, "{mode:?}: above the largest size");
            assert_eq!(dispatcher.counts().steps.values().sum::<u64>(), 3);
        }
    }

    #[test]
    fn without_pieces_nothing_is_called_piecewise() {
        let mut dispatcher = Dispatcher::new(GraphMode::FullAndPiecewise, vec![8]).with_pieces(false);
        assert_eq!(decide(&mut dispatcher, true, 3).mode, RuntimeMode::Full);
        let decision = decide(&mut dispatcher, false, 3);
        assert_eq!(decision.mode, RuntimeMode::None);
        assert!(decision.reason.contains("splitting operation"), "{}", decision.reason);
    }

    #[test]
    fn batches_run_at_the_next_captured_size() {
        let mut dispatcher = Dispatcher::new(GraphMode::Full, vec![1, 2, 4, 8]);
        for (tokens, size) in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)] {
            let decision = decide(&mut dispatcher, true, tokens);
            assert_eq!(dispatcher.capture_sizes()[decision.size], size);
        }
        decide(&mut dispatcher, true, 9);
        let counts = dispatcher.counts();
        assert_eq!((counts.recorded_tokens, counts.padding_tokens), (1 + 2 + 3 + 4 + 5 + 8, 1 + 3));
    }
}
