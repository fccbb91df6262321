//! The scheduler: which sequences run in the next step, with how many tokens, and in which KV blocks.
//!
//! There are no phases of prefill and decode: every sequence has tokens whose keys and values are in the cache and tokens that
//! are to be run, and a step hands out tokens of its budget. Running sequences go first, in order; what is left of the budget
//! admits waiting ones, each only when there are blocks for all its tokens. The beginning of a waiting sequence that the cache
//! still holds is not run again. When blocks run out, the last of the running sequences (or, by priority, the least
//! urgent) gives its blocks back and is computed again later, which changes no bit of its answer. The rules are those of vLLM's
//! scheduler.

mod sequence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(crate) use sequence::{NewSequence, Sequence, SequenceId};

use crate::block_pool::{BlockPool, BlockPoolError};

/// A running sequence and the number of its next tokens to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// Place in [`Scheduler::running`].
    pub(crate) place: usize,
    pub(crate) tokens: usize,
    /// Rows of logits that they take beyond the one that every running sequence has.
    more_rows: usize,
}

/// What bounds a step, and how sequences compete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerLimits {
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    /// Rows of logits that a step may want; at least `max_num_seqs`.
    pub(crate) logit_rows: usize,
    /// Tokens in a KV block.
    pub(crate) block_size: usize,
    /// Whether blocks are shared by what they hold.
    pub(crate) prefix_caching: bool,
    /// Whether a prompt may be run over several steps.
    pub(crate) chunked_prefill: bool,
    /// The most tokens of one sequence in a step that has others; 0 is no bound.
    pub(crate) long_prefill: usize,
    /// Whether urgent sequences go first; else all are served in the order in which they came.
    pub(crate) by_priority: bool,
}

/// What has happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SchedulerCounts {
    /// How often a sequence had to give its blocks back.
    pub(crate) preemptions: u64,
    /// Tokens that were looked for in the prefix cache, at admission.
    pub(crate) cache_queries: u64,
    /// Those of them that were there.
    pub(crate) cache_hits: u64,
}

/// The order of waiting sequences: the most urgent first, and among equals the first to come.
type Rank = (i64, SequenceId);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: SchedulerLimits,
    pool: BlockPool,
    waiting: BTreeMap<Rank, Sequence>,
    running: Vec<Sequence>,
    counts: SchedulerCounts,
    /// Waiting sequences that ran before.
    preempted: usize,
    /// The first of the waiting sequences when it last found no blocks, and the state of the pool then.
    refused: Option<(SequenceId, u64)>,
}

impl Scheduler {
    pub(crate) fn new(limits: SchedulerLimits, pool: BlockPool) -> Self {
        let counts = SchedulerCounts::default();
        Scheduler { limits, pool, waiting: BTreeMap::new(), running: Vec::new(), counts, preempted: 0, refused: None }
    }

    /// Queues a sequence. Its tokens and all that it will generate must fit into the pool's blocks.
    pub(crate) fn add(&mut self, id: SequenceId, new: NewSequence) {
        let sequence = Sequence::new(id, new);
        self.waiting.insert(self.rank(&sequence), sequence);
    }

    fn rank(&self, sequence: &Sequence) -> Rank {
        (if self.limits.by_priority { sequence.priority } else { 0 }, sequence.id)
    }

    /// The sequences that hold KV blocks, in the order in which they were admitted.
    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// What has happened since the start.
    pub(crate) fn counts(&self) -> SchedulerCounts {
        self.counts
    }

    /// Blocks that sequences hold, and all that there are.
    pub(crate) fn blocks(&self) -> (usize, usize) {
        (self.pool.total() - self.pool.available(), self.pool.total())
    }

    /// Sequences that gave their blocks back and wait to be computed again.
    pub(crate) fn preempted(&self) -> usize {
        self.preempted
    }

    /// Forgets what the cache holds: while nothing runs, or where a step failed whose blocks were named already.
    pub(crate) fn forget_cache(&mut self) {
        self.pool.forget_all();
    }

    /// Chooses the next step; empty when nothing is left to run.
    ///
    /// # Errors
    /// If the pool's books are wrong: a bug.
    pub(crate) fn schedule(&mut self) -> Result<Vec<Scheduled>, BlockPoolError> {
        let limits = self.limits;
        let mut step = Step::new(&limits, self.running.len());
        let preemptions = self.counts.preemptions;
        let mut place = 0;
        while place < self.running.len() && step.budget > 0 {
            let has_company = self.running.len() + self.waiting.len() > 1;
            let waiting = self.waiting.len().min(limits.max_num_seqs - self.running.len());
            let rows = step.rows_for(1, waiting);
            let tokens = step.share(&self.running[place], self.running[place].remaining(), rows, has_company);
            if self.grow_or_preempt(&mut place, tokens, &mut step)? {
                step.schedule(place, tokens, self.running[place].rows(tokens) - 1);
                place += 1;
            }
        }
        // Only now is it certain which of them run, and a block may be found only if its tokens do.
        for scheduled in &step.scheduled {
            self.running[scheduled.place].name_blocks(scheduled.tokens, &mut self.pool, &self.limits)?;
        }
        if self.counts.preemptions == preemptions {
            self.admit(&mut step)?;
        }
        Ok(step.scheduled)
    }

    /// Admits waiting sequences, in order, while there is room for them: one that finds none holds up those behind it, so that
    /// none waits for ever.
    fn admit(&mut self, step: &mut Step<'_>) -> Result<(), BlockPoolError> {
        let limits = self.limits;
        while step.budget > 0 && step.rows > 0 && self.running.len() < limits.max_num_seqs {
            let waiting = self.waiting.len().saturating_sub(1).min(limits.max_num_seqs - self.running.len() - 1);
            let Some(mut first) = self.waiting.first_entry() else { break };
            let sequence = first.get_mut();
            let standing = (sequence.id, self.pool.changes());
            // Looking a long prompt up again, where nothing has changed, is work for nothing.
            if self.refused == Some(standing) {
                break;
            }
            let found = sequence.find(&self.pool, &limits);
            let length = sequence.tokens.len();
            let remaining = length - found.len() * limits.block_size;
            let tokens = step.share(sequence, remaining, step.rows_for(0, waiting), !self.running.is_empty());
            if tokens < remaining && !limits.chunked_prefill && !sequence.wants_prompt_rows() {
                break;
            }
            let wanted = length.div_ceil(limits.block_size) - found.len();
            let Some(blocks) = self.pool.take(&found, wanted) else {
                self.refused = Some(standing);
                break;
            };
            let mut sequence = first.remove();
            sequence.admit(blocks, found.len(), limits.block_size);
            if sequence.resumed {
                self.preempted -= 1;
            } else if limits.prefix_caching && !sequence.wants_prompt_rows() {
                sequence.cached = sequence.computed;
                self.counts.cache_queries += length as u64;
                self.counts.cache_hits += sequence.cached as u64;
            }
            sequence.name_blocks(tokens, &mut self.pool, &limits)?;
            step.rows -= 1;
            step.schedule(self.running.len(), tokens, sequence.rows(tokens) - 1);
            self.running.push(sequence);
        }
        Ok(())
    }

    /// Gives the sequence at `place` blocks for its next `tokens`, taking them from the least entitled where the pool is
    /// empty. False if that was itself. `place` follows the sequence where others before it leave.
    fn grow_or_preempt(
        &mut self,
        place: &mut usize,
        tokens: usize,
        step: &mut Step<'_>,
    ) -> Result<bool, BlockPoolError> {
        loop {
            let sequence = &mut self.running[*place];
            let needed = (sequence.computed + tokens).div_ceil(self.limits.block_size);
            if let Some(blocks) = self.pool.take(&[], needed.saturating_sub(sequence.blocks.len())) {
                sequence.blocks.extend(blocks);
                return Ok(true);
            }
            let victim = self.victim();
            let mut preempted = self.running.remove(victim);
            self.pool.release(&preempted.blocks)?;
            preempted.evict();
            step.give_back(victim);
            self.waiting.insert(self.rank(&preempted), preempted);
            self.counts.preemptions += 1;
            self.preempted += 1;
            if victim == *place {
                return Ok(false);
            }
            if victim < *place {
                *place -= 1;
            }
        }
    }

    /// The place of the running sequence that gives way first.
    fn victim(&self) -> usize {
        let ranked = self.running.iter().enumerate();
        let last = ranked.max_by_key(|(place, sequence)| match self.limits.by_priority {
            true => (sequence.priority, sequence.id, *place),
            false => (0, SequenceId(0), *place),
        });
        last.map_or(0, |(place, _)| place)
    }

    /// Says that a step has run: its tokens are in the cache.
    pub(crate) fn advance(&mut self, step: &[Scheduled]) {
        for scheduled in step {
            self.running[scheduled.place].computed += scheduled.tokens;
        }
    }

    /// Appends a token to a running sequence.
    pub(crate) fn append(&mut self, place: usize, token: u32) {
        self.running[place].append(token);
    }

    /// Takes a sequence out, running or waiting, and gives its blocks back. `priority` is what it was added with.
    ///
    /// # Errors
    /// If the pool's books are wrong: a bug.
    pub(crate) fn remove(&mut self, id: SequenceId, priority: i64) -> Result<(), BlockPoolError> {
        let rank = (if self.limits.by_priority { priority } else { 0 }, id);
        if let Some(sequence) = self.waiting.remove(&rank) {
            self.preempted -= usize::from(sequence.resumed);
            return Ok(());
        }
        if let Some(place) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(place);
            self.pool.release(&sequence.blocks)?;
        }
        Ok(())
    }
}

/// A step while it is put together.
struct Step<'a> {
    limits: &'a SchedulerLimits,
    scheduled: Vec<Scheduled>,
    /// Tokens that may still be handed out.
    budget: usize,
    /// Rows of logits beyond the one that is kept for each running sequence.
    rows: usize,
}

impl<'a> Step<'a> {
    fn new(limits: &'a SchedulerLimits, running: usize) -> Self {
        let rows = limits.logit_rows.saturating_sub(running);
        Step { limits, scheduled: Vec::with_capacity(running), budget: limits.max_num_batched_tokens, rows }
    }

    /// The rows that one sequence may take, of which `kept` are kept for it already: some are left for those that wait, so that a long
    /// prompt whose probabilities are wanted does not keep them out.
    fn rows_for(&self, kept: usize, waiting: usize) -> usize {
        (self.rows - waiting.min(self.rows.div_ceil(2)) + kept).max(1)
    }

    /// How many of the `remaining` tokens of a sequence may run; at least one while the budget and the rows last.
    fn share(&self, sequence: &Sequence, remaining: usize, rows: usize, has_company: bool) -> usize {
        let mut tokens = remaining.min(self.budget);
        if self.limits.long_prefill > 0 && self.limits.chunked_prefill && has_company {
            tokens = tokens.min(self.limits.long_prefill);
        }
        if sequence.wants_prompt_rows() { tokens.min(rows) } else { tokens }
    }

    fn schedule(&mut self, place: usize, tokens: usize, more_rows: usize) {
        self.budget -= tokens;
        self.rows -= more_rows;
        self.scheduled.push(Scheduled { place, tokens, more_rows });
    }

    /// Takes the sequence that was at `place`, and is no longer among the running ones, out again.
    fn give_back(&mut self, place: usize) {
        if let Some(index) = self.scheduled.iter().position(|scheduled| scheduled.place == place) {
            let scheduled = self.scheduled.remove(index);
            self.budget += scheduled.tokens;
            self.rows += scheduled.more_rows;
        }
        self.scheduled
            .iter_mut()
            .filter(|scheduled| scheduled.place > place)
            .for_each(|scheduled| scheduled.place -= 1);
        self.rows += 1;
    }
}
