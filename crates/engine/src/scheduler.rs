//! The scheduler: which sequences run in the next step, with how many tokens, and in which KV blocks.
//!
//! First come, first served. Running sequences go first; what is left of the token budget admits waiting ones, each
//! only when the blocks for all its tokens are free; a prompt longer than the budget is prefilled in chunks. When
//! blocks run out, the sequence that came last gives its blocks back and is computed again later, which changes no
//! bit of its answer.

use std::collections::VecDeque;

use crate::block_pool::{BlockPool, BlockPoolError};

/// Names a sequence of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// A sequence as the scheduler sees it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// Prompt and answer so far.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// KV blocks, in order of position.
    pub(crate) blocks: Vec<u32>,
}

impl Sequence {
    /// Tokens that are still to be run: one while decoding.
    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

/// A running sequence and the number of its next tokens to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// Place in [`Scheduler::running`].
    pub(crate) place: usize,
    pub(crate) tokens: usize,
}

/// What bounds a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerLimits {
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    /// Tokens in a KV block.
    pub(crate) block_size: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: SchedulerLimits,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    preemptions: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: SchedulerLimits, pool: BlockPool) -> Self {
        Scheduler { limits, pool, waiting: VecDeque::new(), running: Vec::new(), preemptions: 0 }
    }

    /// Queues a sequence. Its tokens and all that it will generate must fit into the pool's blocks.
    pub(crate) fn add(&mut self, id: SequenceId, tokens: Vec<u32>) {
        self.waiting.push_back(Sequence { id, tokens, computed: 0, blocks: Vec::new() });
    }

    /// The sequences that hold KV blocks, in order of arrival.
    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// How often a sequence had to give its blocks back.
    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Chooses the next step; empty when nothing is left to run.
    ///
    /// # Errors
    /// If the pool's books are wrong: a bug.
    pub(crate) fn schedule(&mut self) -> Result<Vec<Scheduled>, BlockPoolError> {
        let mut budget = self.limits.max_num_batched_tokens;
        let mut step = Vec::new();
        let mut place = 0;
        while place < self.running.len() && budget > 0 {
            let tokens = self.running[place].remaining().min(budget);
            if self.grow_or_preempt(place, tokens)? {
                budget -= tokens;
                step.push(Scheduled { place, tokens });
                place += 1;
            }
        }
        while budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(first) = self.waiting.front() else { break };
            let needed = first.tokens.len().div_ceil(self.limits.block_size);
            let Some(blocks) = self.pool.allocate(needed) else { break };
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.blocks = blocks;
            let tokens = sequence.remaining().min(budget);
            budget -= tokens;
            step.push(Scheduled { place: self.running.len(), tokens });
            self.running.push(sequence);
        }
        Ok(step)
    }

    /// Gives the sequence at `place` blocks for its next `tokens`, taking them from the last to come where the pool is
    /// empty. False if it was itself the last and had to give way.
    fn grow_or_preempt(&mut self, place: usize, tokens: usize) -> Result<bool, BlockPoolError> {
        loop {
            let sequence = &mut self.running[place];
            let needed = (sequence.computed + tokens).div_ceil(self.limits.block_size);
            match self.pool.allocate(needed.saturating_sub(sequence.blocks.len())) {
                Some(blocks) => {
                    sequence.blocks.extend(blocks);
                    return Ok(true);
                }
                None => {
                    let Some(mut last) = self.running.pop() else { return Ok(false) };
                    self.pool.free(std::mem::take(&mut last.blocks))?;
                    last.computed = 0;
                    self.waiting.push_front(last);
                    self.preemptions += 1;
                    if place >= self.running.len() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Says that a step has run: its tokens are in the cache.
    pub(crate) fn advance(&mut self, step: &[Scheduled]) {
        for scheduled in step {
            self.running[scheduled.place].computed += scheduled.tokens;
        }
    }

    /// Appends a token to a running sequence.
    pub(crate) fn append(&mut self, place: usize, token: u32) {
        self.running[place].tokens.push(token);
    }

    /// Takes a sequence out, running or waiting, and gives its blocks back.
    ///
    /// # Errors
    /// If the pool's books are wrong: a bug.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Result<(), BlockPoolError> {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(place) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(place);
            self.pool.free(sequence.blocks)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn scheduler(max_num_seqs: usize, budget: usize, blocks: u32) -> Scheduler {
        let limits = SchedulerLimits { max_num_seqs, max_num_batched_tokens: budget, block_size: 4 };
        Scheduler::new(limits, BlockPool::new(blocks))
    }

    fn run(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
        let step = scheduler.schedule().unwrap();
        let named = step.iter().map(|s| (scheduler.running()[s.place].id.0, s.tokens)).collect();
        scheduler.advance(&step);
        let complete = |s: &&Scheduled| scheduler.running[s.place].remaining() == 0;
        for place in step.iter().filter(complete).map(|s| s.place).collect::<Vec<_>>() {
            scheduler.append(place, 0);
        }
        named
    }

    #[test]
    fn long_prompts_are_prefilled_in_chunks_beside_running_ones() {
        let mut scheduler = scheduler(4, 8, 100);
        scheduler.add(SequenceId(1), vec![0; 3]);
        scheduler.add(SequenceId(2), vec![0; 10]);
        assert_eq!(run(&mut scheduler), [(1, 3), (2, 5)]);
        assert_eq!(run(&mut scheduler), [(1, 1), (2, 5)]);
        assert_eq!(run(&mut scheduler), [(1, 1), (2, 1)]);
    }

    #[test]
    fn no_more_sequences_run_than_allowed() {
        let mut scheduler = scheduler(2, 100, 100);
        (0..3).for_each(|id| scheduler.add(SequenceId(id), vec![0; 2]));
        assert_eq!(run(&mut scheduler), [(0, 2), (1, 2)]);
        scheduler.remove(SequenceId(0)).unwrap();
        assert_eq!(run(&mut scheduler), [(1, 1), (2, 2)]);
    }

    #[test]
    fn the_last_to_come_gives_way_and_is_computed_again() {
        let mut scheduler = scheduler(4, 100, 4);
        scheduler.add(SequenceId(1), vec![0; 8]);
        scheduler.add(SequenceId(2), vec![0; 8]);
        assert_eq!(run(&mut scheduler), [(1, 8), (2, 8)]);
        // Both need a fifth and sixth block; there are four.
        assert_eq!(run(&mut scheduler), [(1, 1)]);
        assert_eq!(scheduler.preemptions(), 1);
        scheduler.remove(SequenceId(1)).unwrap();
        assert_eq!(run(&mut scheduler), [(2, 9)]);
    }

    #[test]
    fn every_sequence_ends_and_every_block_comes_back() {
        let mut scheduler = scheduler(3, 7, 9);
        let wanted: Vec<usize> = (0..20).map(|id| 1 + (id * 7) % 13).collect();
        for (id, length) in wanted.iter().enumerate() {
            scheduler.add(SequenceId(id as u64), vec![0; *length]);
        }
        for _ in 0..10_000 {
            if run(&mut scheduler).is_empty() {
                break;
            }
            let done = |s: &&Sequence| s.tokens.len() >= wanted[s.id.0 as usize] + 10;
            for id in scheduler.running.iter().filter(done).map(|s| s.id).collect::<Vec<_>>() {
                scheduler.remove(id).unwrap();
            }
        }
        assert!(scheduler.running.is_empty() && scheduler.waiting.is_empty());
        assert_eq!(scheduler.pool.available(), 9);
    }
}
