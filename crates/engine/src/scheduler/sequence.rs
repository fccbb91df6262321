//! One sequence as the scheduler sees it.

use std::sync::Arc;

use super::SchedulerLimits;
use crate::block_pool::{BlockHash, BlockPool, BlockPoolError};

/// Names a sequence of the scheduler. Later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// What a sequence begins with.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewSequence {
    pub(crate) prompt: Vec<u32>,
    /// Lower is more urgent.
    pub(crate) priority: i64,
    /// Sequences of different salts share no blocks.
    pub(crate) salt: Option<Arc<str>>,
    /// Whether the logits after each token of the prompt are wanted, and not only after the last.
    pub(crate) wants_prompt_rows: bool,
}

/// A sequence as the scheduler sees it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) priority: i64,
    /// Prompt and answer so far.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// KV blocks, in order of position.
    pub(crate) blocks: Vec<u32>,
    /// Tokens that the prefix cache had when the sequence was first admitted.
    pub(crate) cached: usize,
    /// Whether it had to give its blocks back before.
    pub(super) resumed: bool,
    /// Tokens of the prompt while a row of logits is wanted for each; 0 if not, and once the first token is there.
    prompt_rows: usize,
    salt: Option<Arc<str>>,
    /// Names of its full blocks, as far as they were worked out.
    names: Vec<BlockHash>,
    /// Blocks that bear their name in the pool.
    named: usize,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, new: NewSequence) -> Self {
        let NewSequence { prompt, priority, salt, wants_prompt_rows } = new;
        Sequence {
            id,
            priority,
            prompt_rows: if wants_prompt_rows { prompt.len() } else { 0 },
            tokens: prompt,
            computed: 0,
            blocks: Vec::new(),
            cached: 0,
            resumed: false,
            salt,
            names: Vec::new(),
            named: 0,
        }
    }

    /// Tokens that are still to be run: one while decoding.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether each token of the prompt takes a row of logits.
    pub(crate) fn wants_prompt_rows(&self) -> bool {
        self.prompt_rows > 0
    }

    /// Rows of logits that the next `tokens` take.
    pub(super) fn rows(&self, tokens: usize) -> usize {
        if self.wants_prompt_rows() { tokens } else { 1 }
    }

    /// Appends a token of the answer.
    pub(super) fn append(&mut self, token: u32) {
        self.tokens.push(token);
        self.prompt_rows = 0;
    }

    /// Gives all blocks up, to be computed again.
    pub(super) fn evict(&mut self) {
        self.blocks.clear();
        (self.computed, self.named) = (0, 0);
        self.resumed = true;
    }

    /// The blocks of its beginning that the pool still has. The last token is always run, as its logits are wanted, and so is a
    /// prompt of which all are.
    pub(super) fn find(&mut self, pool: &BlockPool, limits: &SchedulerLimits) -> Vec<u32> {
        if !limits.prefix_caching || self.wants_prompt_rows() {
            return Vec::new();
        }
        let most = (self.tokens.len() - 1) / limits.block_size;
        self.work_out_names(most, limits.block_size);
        pool.find(&self.names[..most])
    }

    /// Takes the blocks that it is admitted with, `found` of which hold its beginning.
    pub(super) fn admit(&mut self, blocks: Vec<u32>, found: usize, block_size: usize) {
        self.blocks = blocks;
        self.computed = found * block_size;
        self.named = found;
    }

    /// Names the blocks that are full once the next `tokens` have run.
    pub(super) fn name_blocks(
        &mut self,
        tokens: usize,
        pool: &mut BlockPool,
        limits: &SchedulerLimits,
    ) -> Result<(), BlockPoolError> {
        if !limits.prefix_caching {
            return Ok(());
        }
        let full = (self.computed + tokens) / limits.block_size;
        self.work_out_names(full, limits.block_size);
        for place in self.named..full {
            pool.name(self.blocks[place], self.names[place])?;
        }
        self.named = self.named.max(full);
        Ok(())
    }

    fn work_out_names(&mut self, blocks: usize, block_size: usize) {
        while self.names.len() < blocks {
            let start = self.names.len() * block_size;
            let before = self.names.last().copied().unwrap_or_else(|| BlockHash::root(self.salt.as_deref()));
            self.names.push(before.then(&self.tokens[start..start + block_size]));
        }
    }
}
