//! A checkpoint's graph on the CPU device, for tasks that look at single steps.

use std::sync::Arc;
use std::time::Instant;

use allotrope_config::{GraphCapture, GraphMode};
use allotrope_cpu_runtime::{CpuDevice, Isa, available_threads};
use allotrope_graph::partition::SplittingOps;
use allotrope_graph::{Graph, Sizes};
use allotrope_model::Checkpoint;
use allotrope_runtime::{CacheLayout, Executor, ExecutorOptions, StartupLedger};

use crate::error::TaskError;

/// Tokens in a KV block.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Makes a graph ready to run batches of one sequence of at most `tokens` tokens, with recordings of single decodes if the
/// mode has any.
///
/// # Errors
/// If the device can't have it.
pub(crate) fn executor(
    checkpoint: &Arc<Checkpoint>,
    graph: &Graph,
    tokens: usize,
    (graph_mode, repack_weights): (GraphMode, bool),
) -> Result<Executor<CpuDevice>, TaskError> {
    let failed = |error: &dyn std::fmt::Display| TaskError::Message(error.to_string());
    let blocks = tokens.div_ceil(BLOCK_SIZE);
    let options = ExecutorOptions {
        limits: Sizes { tokens, sequences: 1, logit_rows: tokens, blocks },
        cache: CacheLayout { blocks, block_size: BLOCK_SIZE },
        vocabulary: checkpoint.config().vocab_size,
        repack_weights,
        persistent_decode: false,
        graph_mode,
        explicit_graph_mode: true,
        capture: GraphCapture::Startup,
        capture_sizes: if graph_mode == GraphMode::None { Vec::new() } else { vec![1] },
        splitting_ops: SplittingOps::default(),
        require_graphs: false,
        tuning: None,
    };
    let device = CpuDevice::new(available_threads(), Isa::detect()).map_err(|error| failed(&error))?;
    let mut ledger = StartupLedger::since(Instant::now());
    Executor::build(device, graph.clone(), checkpoint.clone(), options, &mut ledger).map_err(|error| failed(&error))
}

/// So many token ids, spread over a vocabulary.
pub(crate) fn prompt(tokens: u32, vocabulary: u32) -> Vec<u32> {
    let spread = |index: u32| (u64::from(index) * 7919 + 13) % u64::from(vocabulary.max(1));
    (0..tokens).filter_map(|index| u32::try_from(spread(index)).ok()).collect()
}

/// Prompt number `number` of several, no two of which begin alike, so that no cache of prefixes helps.
pub(crate) fn numbered_prompt(number: u32, tokens: u32, vocabulary: u32) -> Vec<u32> {
    prompt(number.saturating_add(tokens), vocabulary).split_off(number as usize)
}

/// Prompts as `allotrope generate --prompts` reads them: a JSON object on each line.
pub(crate) fn prompt_lines(prompts: &[Vec<u32>]) -> String {
    prompts.iter().map(|tokens| format!("{}\n", serde_json::json!({ "tokens": tokens }))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_stay_inside_the_vocabulary() {
        for vocabulary in [1, 2, 512, 128_256, u32::MAX] {
            let tokens = prompt(100, vocabulary);
            assert_eq!(tokens.len(), 100);
            assert!(tokens.iter().all(|token| *token < vocabulary));
        }
    }

    #[test]
    fn numbered_prompts_begin_differently_and_are_a_line_each() {
        let prompts = [0, 1, 2].map(|number| numbered_prompt(number, 5, 512));
        assert!(prompts.iter().all(|prompt| prompt.len() == 5));
        assert!(prompts[0][0] != prompts[1][0] && prompts[1][0] != prompts[2][0] && prompts[0][0] != prompts[2][0]);
        assert_eq!(prompt_lines(&[vec![1, 2], vec![3]]), "{\"tokens\":[1,2]}\n{\"tokens\":[3]}\n");
    }
}
