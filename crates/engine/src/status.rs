//! What an engine is doing, for those outside its thread: counters that any thread may read at any time.

use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::loaded::Statistics;

/// Whether an engine takes requests and runs steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// It takes requests.
    Running,
    /// It finishes those that it has.
    Draining,
    /// It has stopped as asked.
    Stopped,
    /// Its device failed or its thread ended; the reason is for the log, not for clients.
    Dead(String),
}

impl EngineState {
    /// How near the end it is.
    fn rank(&self) -> u8 {
        match self {
            EngineState::Running => 0,
            EngineState::Draining => 1,
            EngineState::Stopped => 2,
            EngineState::Dead(_) => 3,
        }
    }
}

/// Upper bounds of the classes in which steps are counted by their tokens.
pub const STEP_TOKEN_BOUNDS: [u64; 15] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Counters of an engine. All are monotonic but those that say otherwise.
#[derive(Debug)]
pub struct EngineStatus {
    started: Instant,
    state: Mutex<EngineState>,
    statistics: Mutex<Option<Statistics>>,
    waiting: AtomicUsize,
    waiting_tokens: AtomicUsize,
    running: AtomicUsize,
    preempted: AtomicUsize,
    departures: AtomicU64,
    rejections: AtomicU64,
    steps: AtomicU64,
    /// Milliseconds after `started`.
    last_step: AtomicU64,
    step_tokens: AtomicU64,
    step_sizes: [AtomicU64; STEP_TOKEN_BOUNDS.len() + 1],
    used_blocks: AtomicUsize,
    total_blocks: AtomicUsize,
}

impl EngineStatus {
    pub(crate) fn new() -> Self {
        EngineStatus {
            started: Instant::now(),
            state: Mutex::new(EngineState::Running),
            statistics: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            waiting_tokens: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            preempted: AtomicUsize::new(0),
            departures: AtomicU64::new(0),
            rejections: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            last_step: AtomicU64::new(0),
            step_tokens: AtomicU64::new(0),
            step_sizes: [const { AtomicU64::new(0) }; STEP_TOKEN_BOUNDS.len() + 1],
            used_blocks: AtomicUsize::new(0),
            total_blocks: AtomicUsize::new(0),
        }
    }

    /// Whether it takes requests.
    pub fn state(&self) -> EngineState {
        lock(&self.state).clone()
    }

    /// Goes on to a state; never back.
    pub fn set_state(&self, state: EngineState) {
        let mut current = lock(&self.state);
        if state.rank() > current.rank() {
            *current = state;
        }
    }

    /// Requests that came and have not been run yet, and the tokens of their prompts. A gauge.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting.load(Relaxed), self.waiting_tokens.load(Relaxed))
    }

    /// Requests that ran, gave their blocks back, and wait to go on. A gauge.
    pub fn preempted(&self) -> usize {
        self.preempted.load(Relaxed)
    }

    /// Readers that are gone, whether their requests had ended or not.
    pub(crate) fn departures(&self) -> u64 {
        // Pairs with the count after a reader has closed its channel: who sees the count sees the channel closed.
        self.departures.load(Acquire)
    }

    pub(crate) fn count_departure(&self) {
        self.departures.fetch_add(1, Release);
    }

    pub(crate) fn set_preempted(&self, preempted: usize) {
        self.preempted.store(preempted, Relaxed);
    }

    /// Requests that hold blocks of the KV cache. A gauge.
    pub fn running(&self) -> usize {
        self.running.load(Relaxed)
    }

    /// Requests that were refused because too many waited.
    pub fn rejections(&self) -> u64 {
        self.rejections.load(Relaxed)
    }

    /// Steps that were run.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// How many steps had at most so many tokens as each of [`STEP_TOKEN_BOUNDS`] and more than the one before it, at last how
    /// many had more than all; and the tokens of all.
    pub fn step_sizes(&self) -> (Vec<u64>, u64) {
        let sizes = self.step_sizes.iter().map(|count| count.load(Relaxed)).collect();
        (sizes, self.step_tokens.load(Relaxed))
    }

    /// Time since the last step ended, or since the start.
    pub fn since_last_step(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last_step.load(Relaxed)))
    }

    /// Blocks of the KV cache that requests hold, and all that there are. A gauge.
    pub fn blocks(&self) -> (usize, usize) {
        (self.used_blocks.load(Relaxed), self.total_blocks.load(Relaxed))
    }

    /// The counters of the model as of some moment within the last second while steps run; `None` before the first.
    pub fn statistics(&self) -> Option<Statistics> {
        lock(&self.statistics).clone()
    }

    /// Says that a request came with so many tokens; it waits now.
    pub fn came(&self, tokens: usize) {
        self.waiting.fetch_add(1, Relaxed);
        self.waiting_tokens.fetch_add(tokens, Relaxed);
    }

    /// Says that a request that came waits no longer: it runs, or it is gone.
    pub fn left(&self, tokens: usize) {
        self.waiting.fetch_sub(1, Relaxed);
        self.waiting_tokens.fetch_sub(tokens, Relaxed);
    }

    pub(crate) fn count_rejection(&self) {
        self.rejections.fetch_add(1, Relaxed);
    }

    /// Says that a step of so many tokens ended, or with none that there is nothing to run.
    pub fn stepped(&self, running: usize, used_blocks: usize, total_blocks: usize, tokens: usize) {
        self.running.store(running, Relaxed);
        self.used_blocks.store(used_blocks, Relaxed);
        self.total_blocks.store(total_blocks, Relaxed);
        if tokens > 0 {
            self.steps.fetch_add(1, Relaxed);
            self.step_tokens.fetch_add(tokens as u64, Relaxed);
            let bucket = STEP_TOKEN_BOUNDS.iter().position(|bound| tokens as u64 <= *bound);
            self.step_sizes[bucket.unwrap_or(STEP_TOKEN_BOUNDS.len())].fetch_add(1, Relaxed);
        }
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_step.store(now, Relaxed);
    }

    pub(crate) fn set_statistics(&self, statistics: Statistics) {
        *lock(&self.statistics) = Some(statistics);
    }
}

/// A lock whose holder panicked holds whole values all the same: each is replaced in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_never_goes_back() {
        let status = EngineStatus::new();
        let dead = EngineState::Dead("why".into());
        for (state, after) in [
            (EngineState::Draining, EngineState::Draining),
            (EngineState::Running, EngineState::Draining),
            (EngineState::Stopped, EngineState::Stopped),
            (EngineState::Draining, EngineState::Stopped),
            (dead.clone(), dead.clone()),
            (EngineState::Stopped, dead),
        ] {
            status.set_state(state);
            assert_eq!(status.state(), after);
        }
    }

    #[test]
    fn steps_are_counted_by_their_size() {
        let status = EngineStatus::new();
        [1, 2, 3, 16_384, 16_385, 0].into_iter().for_each(|tokens| status.stepped(1, 2, 3, tokens));
        let (sizes, tokens) = status.step_sizes();
        assert_eq!(
            (sizes[0], sizes[1], sizes[2], sizes[14], sizes[15], tokens),
            (1, 1, 1, 1, 1, 1 + 2 + 3 + 16_384 + 16_385)
        );
        assert_eq!((status.steps(), status.running(), status.blocks()), (5, 1, (2, 3)));
    }
}
