//! Logits and greedy continuations agree with Hugging Face transformers: of the engine at the levels that differ most,
//! and of the reference evaluator that defines every operation.
//!
//! How the tolerances come about is in this package's README.
#![allow(clippy::unwrap_used)]

use allotrope_cpu_runtime::Isa;
use allotrope_engine::OptimizationLevel;
use allotrope_graph::evaluate::{ReferenceCache, evaluate};
use allotrope_graph::{Definition, KvCacheType, StepInputs};
use allotrope_model::Checkpoint;
use allotrope_tests::{BatchRunner, Reference, assert_close, checkpoint, on_the_cpu};

/// How many times the largest error that transformers shows in the stored type is allowed: other orders of summation flip
/// other roundings, and the largest of many errors varies.
const LARGEST: f64 = 3.0;

/// The same for the root of the mean square, which varies less; the evaluator is at 0.5 to 1.3.
const ROOT_MEAN_SQUARE: f64 = 2.0;

/// The engine's logits at every position of prompt and continuation, and its own continuation.
fn check_engine(name: &str, level: OptimizationLevel) {
    let reference = Reference::load(name);
    let mut llm = on_the_cpu(checkpoint(name)).optimization_level(level).build().unwrap();
    for (index, prompt) in reference.prompts.iter().enumerate() {
        let context = format!("{name} at {level}, prompt {index}");
        let forced = llm.logits(&prompt.forced(), 0).unwrap();
        assert_eq!(forced.vocabulary, reference.vocabulary, "{context}");
        check(&format!("{context}, whole pass"), &reference, &forced.prompt, &prompt.expected(reference.vocabulary));
        let decoded = llm.logits(&prompt.prompt, prompt.tokens.len()).unwrap();
        check(&format!("{context}, prompt"), &reference, &decoded.prompt, &prompt.logits);
        if reference.is_decisive() {
            assert_eq!(decoded.tokens, prompt.tokens, "{context}: another continuation");
            check(&format!("{context}, decoding"), &reference, &decoded.steps, &prompt.step_logits);
        }
    }
}

/// The logits of one pass over prompt and continuation with the kernels of every instruction set that this machine has.
fn check_instruction_sets(name: &str) {
    let reference = Reference::load(name);
    for isa in Isa::available() {
        for (index, prompt) in reference.prompts.iter().enumerate() {
            let forced = prompt.forced();
            let limits = [1, forced.len()];
            let mut runner = BatchRunner::new(&checkpoint(name), OptimizationLevel::O2, limits, 2, isa);
            let logits = runner.step(&[&forced]).remove(0);
            let context = format!("{name} with {isa}, prompt {index}");
            check(&context, &reference, &logits, &prompt.expected(reference.vocabulary));
        }
    }
}

/// The logits of the evaluator on the graph as it is built, in one pass over prompt and continuation.
fn check_evaluator(name: &str) {
    const BLOCK_SIZE: usize = 16;
    let reference = Reference::load(name);
    let model = Checkpoint::open(&checkpoint(name)).unwrap();
    let graph = model.graph().unwrap();
    let states: Vec<KvCacheType> = graph
        .values()
        .iter()
        .filter(|value| matches!(value.definition, Definition::State { .. }))
        .map(|value| *value.ty.kv_cache().unwrap())
        .collect();
    for (index, prompt) in reference.prompts.iter().enumerate() {
        let inputs = StepInputs::one_sequence(&prompt.forced(), BLOCK_SIZE);
        let slots = inputs.blocks * BLOCK_SIZE;
        let mut caches: Vec<_> = states.iter().map(|ty| ReferenceCache::new(ty, slots)).collect();
        let evaluation = evaluate(&graph, &model, &inputs, &mut caches, BLOCK_SIZE).unwrap();
        let logits = evaluation.tensor(graph.outputs()[0]).unwrap();
        let context = format!("{name} by the evaluator, prompt {index}");
        check(&context, &reference, logits, &prompt.expected(reference.vocabulary));
    }
}

/// Compares the last positions of `actual` with those that the reference has.
fn check(context: &str, reference: &Reference, actual: &[f32], expected: &[f32]) {
    let last = &actual[actual.len() - expected.len()..];
    assert_close(
        context,
        last,
        expected,
        LARGEST * reference.numeric_error,
        ROOT_MEAN_SQUARE * reference.numeric_error_rms,
    );
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {$(
        mod $test {
            use super::*;

            #[test]
            fn engine_at_o0() {
                check_engine($name, OptimizationLevel::O0);
            }

            #[test]
            fn engine_at_o2() {
                check_engine($name, OptimizationLevel::O2);
            }

            #[test]
            fn every_instruction_set() {
                check_instruction_sets($name);
            }

            #[test]
            fn evaluator() {
                check_evaluator($name);
            }
        }
    )*};
}

allotrope_tests::for_every_checkpoint!(checkpoints);
