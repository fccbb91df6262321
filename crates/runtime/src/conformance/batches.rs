//! Batches for the graphs of the suite.

use allotrope_graph::StepInputs;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Effort;

/// Token ids and positions of plain batches are below this.
pub const VOCABULARY: usize = 50;
/// KV blocks of a cache.
pub const BLOCKS: usize = 64;

/// One token for each id, at positions that go round below [`VOCABULARY`].
pub fn plain_inputs(token_ids: Vec<i32>) -> StepInputs {
    let tokens = token_ids.len();
    StepInputs {
        positions: (0..tokens as i32).map(|position| position % VOCABULARY as i32).collect(),
        slots: (0..tokens as i32).collect(),
        token_sequences: vec![0; tokens],
        block_tables: vec![0; 16],
        blocks: 16,
        logit_rows: (0..tokens as i32).collect(),
        token_ids,
    }
}

/// A random token id.
pub(crate) fn token(random: &mut ChaCha8Rng) -> i32 {
    random.random_range(0..VOCABULARY as i32)
}

/// Random tokens, each at a position of its own; for graphs without attention.
pub fn plain_batch(random: &mut ChaCha8Rng, tokens: usize) -> StepInputs {
    plain_inputs((0..tokens).map(|_| token(random)).collect())
}

/// Tokens of one sequence, whose blocks are in descending order.
pub fn sequence_batch(ids: &[i32], range: std::ops::Range<usize>, block_size: usize) -> StepInputs {
    let table: Vec<i32> = (0..16).map(|block| 40 - block).collect();
    let slot = |position: usize| table[position / block_size] * block_size as i32 + (position % block_size) as i32;
    StepInputs {
        token_ids: ids[range.clone()].to_vec(),
        positions: range.clone().map(|position| position as i32).collect(),
        slots: range.clone().map(slot).collect(),
        token_sequences: vec![0; range.len()],
        logit_rows: (0..range.len() as i32).collect(),
        blocks: table.len(),
        block_tables: table,
    }
}

/// Steps of three sequences in random blocks: prompts of different lengths, then decoding with padding among the tokens, then a
/// mixture of a decode and a chunk of a prompt, then decoding.
pub fn conversation(random: &mut ChaCha8Rng, block_size: usize, effort: Effort) -> Vec<StepInputs> {
    let tables = tables(random);
    let mut lengths = [0usize; 3];
    let [first, second] = effort.pick([5, 7], [12, 20]).map(|most| random.random_range(1..most));
    let rounds = [[first, second, 3], [1, 1, 1], [1, 0, effort.pick(4, 7)], [1, 1, 1]];
    let mut steps = Vec::new();
    for (round, counts) in rounds.into_iter().enumerate() {
        let mut step = StepInputs { blocks: 16, block_tables: tables.concat(), ..StepInputs::default() };
        for (sequence, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let position = lengths[sequence];
                let block = tables[sequence][position / block_size];
                step.token_ids.push(token(random));
                step.positions.push(position as i32);
                step.slots.push(block * block_size as i32 + (position % block_size) as i32);
                step.token_sequences.push(sequence as i32);
                lengths[sequence] += 1;
            }
            if count > 0 {
                step.logit_rows.push(step.token_ids.len() as i32 - 1);
            }
            if round == 1 {
                step.token_ids.push(0);
                step.positions.push(-1);
                step.slots.push(-1);
                step.token_sequences.push(0);
            }
        }
        steps.push(step);
    }
    steps
}

/// The block tables of three sequences: 16 blocks each, no block twice.
fn tables(random: &mut ChaCha8Rng) -> Vec<Vec<i32>> {
    let mut blocks: Vec<i32> = (0..BLOCKS as i32).collect();
    shuffle(random, &mut blocks);
    blocks.chunks(16).map(<[i32]>::to_vec).take(3).collect()
}

/// Puts a list into a random order.
pub(crate) fn shuffle<T>(random: &mut ChaCha8Rng, list: &mut [T]) {
    for index in (1..list.len()).rev() {
        list.swap(index, random.random_range(0..=index));
    }
}
