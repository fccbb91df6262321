//! A level changes the speed, never the answer: every level gives the same bits in every logit, for a sequence alone and
//! in a batch, in one pass and in parts, with one thread and with several.
#![allow(clippy::unwrap_used)]

use allotrope_engine::{Llm, OptimizationLevel, TokenLogits};
use allotrope_tests::{BatchRunner, Reference, assert_same_bits, checkpoint};

const NEW_TOKENS: usize = 8;

/// What each prompt gives alone.
fn alone(name: &str, level: OptimizationLevel, prompts: &[Vec<u32>]) -> Vec<TokenLogits> {
    let mut llm = Llm::builder(checkpoint(name)).optimization_level(level).build().unwrap();
    prompts.iter().map(|prompt| llm.logits(prompt, NEW_TOKENS).unwrap()).collect()
}

/// What the prompts give as one batch: all of them in one step, then the given continuations token by token.
fn together(
    name: &str,
    level: OptimizationLevel,
    threads: usize,
    prompts: &[Vec<u32>],
    alone: &[TokenLogits],
) -> Vec<[Vec<f32>; 2]> {
    let tokens = prompts.iter().map(Vec::len).sum();
    let mut runner = BatchRunner::new(&checkpoint(name), level, prompts.len(), tokens, threads);
    let of_prompts = runner.step(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let last = |(logits, alone): (&Vec<f32>, &TokenLogits)| logits[logits.len() - alone.vocabulary..].to_vec();
    let mut of_steps: Vec<Vec<f32>> = of_prompts.iter().zip(alone).map(last).collect();
    for step in 0..NEW_TOKENS - 1 {
        let next: Vec<&[u32]> = alone.iter().map(|alone| &alone.tokens[step..=step]).collect();
        for (steps, logits) in of_steps.iter_mut().zip(runner.step(&next)) {
            steps.extend(logits);
        }
    }
    of_prompts.into_iter().zip(of_steps).map(|(prompt, steps)| [prompt, steps]).collect()
}

fn check(name: &str) {
    let prompts: Vec<Vec<u32>> = Reference::load(name).prompts.into_iter().map(|prompt| prompt.prompt).collect();
    let expected = alone(name, OptimizationLevel::O0, &prompts);
    for level in OptimizationLevel::ALL {
        for (index, (found, expected)) in alone(name, level, &prompts).iter().zip(&expected).enumerate() {
            let context = format!("{name} at {level}, prompt {index} alone");
            assert_same_bits(&format!("{context}, prompt"), &found.prompt, &expected.prompt);
            assert_same_bits(&format!("{context}, steps"), &found.steps, &expected.steps);
            assert_eq!(found.tokens, expected.tokens, "{context}");
        }
        for threads in [1, 2, 3] {
            let found = together(name, level, threads, &prompts, &expected);
            for (index, ([prompt, steps], expected)) in found.iter().zip(&expected).enumerate() {
                let context = format!("{name} at {level}, prompt {index} in a batch, {threads} threads");
                assert_same_bits(&format!("{context}, prompt"), prompt, &expected.prompt);
                assert_same_bits(&format!("{context}, steps"), steps, &expected.steps);
            }
        }
    }
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

checkpoints! {
    grouped_query_bf16: "gqa-bf16",
    multi_head_untied_bf16: "mha-untied-bf16",
    multi_query_odd_sizes_bf16: "mqa-bf16",
    sharded_untied_bf16: "sharded-bf16",
    biases_bf16: "bias-bf16",
    rope_llama3_bf16: "rope-llama3-bf16",
    grouped_query_f16: "gqa-f16",
    grouped_query_f32: "gqa-f32",
    rope_linear_f32: "rope-linear-f32",
    rope_llama3_f32: "rope-llama3-f32",
    rope_yarn_f32: "rope-yarn-f32",
    grouped_query_fp8: "gqa-fp8",
    trained_bf16: "tiny-chat",
    trained_fp8: "tiny-chat-fp8",
}
