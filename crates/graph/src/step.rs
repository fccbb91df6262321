//! The inputs of one step: which tokens to run, where their keys and values go, and whose logits are wanted.

use crate::op::Input;
use crate::types::Sizes;

/// One batch, as the graph's inputs want it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// `[T]`: token ids.
    pub token_ids: Vec<i32>,
    /// `[T]`: positions; −1 marks padding.
    pub positions: Vec<i32>,
    /// `[T]`: KV slots; −1 writes nothing.
    pub slots: Vec<i32>,
    /// `[T]`: rows of `block_tables`.
    pub token_sequences: Vec<i32>,
    /// `[S, B]`, row-major: the KV blocks of each sequence.
    pub block_tables: Vec<i32>,
    /// `B`: blocks in a row of `block_tables`.
    pub blocks: usize,
    /// `[R]`: tokens whose logits are wanted.
    pub logit_rows: Vec<i32>,
}

/// A batch that contradicts itself or the limits it must keep to: a bug in the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid step inputs: {0}")]
pub struct StepError(pub String);

impl StepInputs {
    /// One pass over a whole sequence, all of whose logits are wanted. Its KV cache is the first
    /// `tokens / block_size` blocks, rounded up.
    pub fn one_sequence(tokens: &[u32], block_size: usize) -> Self {
        let places: Vec<i32> = (0..tokens.len() as i32).collect();
        let blocks = tokens.len().div_ceil(block_size);
        StepInputs {
            token_ids: tokens.iter().map(|token| token.cast_signed()).collect(),
            positions: places.clone(),
            slots: places.clone(),
            token_sequences: vec![0; tokens.len()],
            block_tables: (0..blocks as i32).collect(),
            blocks,
            logit_rows: places,
        }
    }

    /// The symbolic sizes of this batch.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            tokens: self.token_ids.len(),
            sequences: self.block_tables.len().checked_div(self.blocks).unwrap_or(0),
            logit_rows: self.logit_rows.len(),
            blocks: self.blocks,
        }
    }

    /// The elements of one input.
    pub fn get(&self, input: Input) -> &[i32] {
        match input {
            Input::TokenIds => &self.token_ids,
            Input::Positions => &self.positions,
            Input::Slots => &self.slots,
            Input::TokenSequences => &self.token_sequences,
            Input::BlockTables => &self.block_tables,
            Input::LogitRows => &self.logit_rows,
        }
    }

    /// True if every sequence of the batch runs one token and asks for its logits, in order: a decode step.
    pub fn is_uniform_decode(&self) -> bool {
        let in_order =
            |list: &[i32]| list.iter().enumerate().all(|(index, value)| usize::try_from(*value) == Ok(index));
        let tokens = self.token_ids.len();
        self.logit_rows.len() == tokens && in_order(&self.logit_rows) && in_order(&self.token_sequences)
    }

    /// Checks every index that a kernel will follow, so that kernels need not: token ids against `vocabulary`,
    /// positions against the blocks that a sequence has, slots and blocks against a cache of `kv_blocks` blocks of
    /// `block_size` tokens.
    ///
    /// # Errors
    /// Names the first input that is wrong.
    pub fn validate(&self, vocabulary: usize, kv_blocks: usize, block_size: usize) -> Result<(), StepError> {
        let sizes = self.sizes();
        let fail = |text: String| Err(StepError(text));
        if [self.positions.len(), self.slots.len(), self.token_sequences.len()].iter().any(|len| *len != sizes.tokens) {
            return fail("token_ids, positions, slots and token_sequences must be equally long".into());
        }
        if sizes.sequences * self.blocks != self.block_tables.len() {
            return fail("block_tables must hold whole rows".into());
        }
        let within = |value: i32, bound: usize| usize::try_from(value).is_ok_and(|value| value < bound);
        if let Some(id) = self.token_ids.iter().find(|id| !within(**id, vocabulary)) {
            return fail(format!("token id {id} is not in the vocabulary of {vocabulary} entries"));
        }
        for (token, slot) in self.slots.iter().enumerate() {
            if *slot != -1 && !within(*slot, kv_blocks.saturating_mul(block_size)) {
                return fail(format!("token {token} has slot {slot}, beyond {kv_blocks} blocks of {block_size}"));
            }
        }
        for (token, (position, sequence)) in self.positions.iter().zip(&self.token_sequences).enumerate() {
            if *position == -1 {
                continue;
            }
            if !within(*sequence, sizes.sequences) {
                return fail(format!("token {token} belongs to sequence {sequence} of {}", sizes.sequences));
            }
            if !within(*position, self.blocks.saturating_mul(block_size)) {
                return fail(format!(
                    "token {token} is at position {position}, beyond {} blocks of {block_size}",
                    self.blocks
                ));
            }
            let row = *sequence as usize * self.blocks;
            let used = &self.block_tables[row..=row + *position as usize / block_size];
            if let Some(block) = used.iter().find(|block| !within(**block, kv_blocks)) {
                return fail(format!("sequence {sequence} uses block {block}, but the cache has {kv_blocks}"));
            }
        }
        match self.logit_rows.iter().find(|row| !within(**row, sizes.tokens)) {
            Some(row) => fail(format!("logits are wanted of token {row}, but the batch has {}", sizes.tokens)),
            None => Ok(()),
        }
    }
}
