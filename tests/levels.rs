//! A level changes the speed, never the answer: every level gives the same bits in every logit, for a sequence alone and
//! in a batch, in one pass and in parts, with one thread and with several, on every instruction set of this machine.
#![allow(clippy::unwrap_used)]

use allotrope_cpu_runtime::Isa;
use allotrope_engine::{OptimizationLevel, TokenLogits};
use allotrope_tests::{BatchRunner, Reference, assert_same_bits, checkpoint, on_the_cpu};

const NEW_TOKENS: usize = 8;

/// What each prompt gives alone.
fn alone(name: &str, level: OptimizationLevel, prompts: &[Vec<u32>]) -> Vec<TokenLogits> {
    let mut llm = on_the_cpu(checkpoint(name)).optimization_level(level).build().unwrap();
    prompts.iter().map(|prompt| llm.logits(prompt, NEW_TOKENS).unwrap()).collect()
}

/// What each prompt of a batch gives: the logits of its positions and of its continuation.
type Batched = Vec<[Vec<f32>; 2]>;

/// Runs the prompts as one batch: all of them in one step, then the given continuations token by token.
fn together(
    name: &str,
    level: OptimizationLevel,
    (threads, isa): (usize, Isa),
    prompts: &[Vec<u32>],
    alone: &[TokenLogits],
) -> Batched {
    let tokens = prompts.iter().map(Vec::len).sum();
    let mut runner = BatchRunner::new(&checkpoint(name), level, [prompts.len(), tokens], threads, isa);
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

fn assert_same(context: &str, found: &Batched, expected: &Batched) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_same_bits(&format!("{context}, prompt {index}, positions"), &found[0], &expected[0]);
        assert_same_bits(&format!("{context}, prompt {index}, continuation"), &found[1], &expected[1]);
    }
}

fn check(name: &str) {
    let prompts: Vec<Vec<u32>> = Reference::load(name).prompts.into_iter().map(|prompt| prompt.prompt).collect();
    let at_o0 = alone(name, OptimizationLevel::O0, &prompts);
    let bits = |all: &[TokenLogits]| all.iter().map(|one| [one.prompt.clone(), one.steps.clone()]).collect::<Batched>();
    for level in OptimizationLevel::ALL {
        let found = alone(name, level, &prompts);
        assert_same(&format!("{name} at {level}, alone"), &bits(&found), &bits(&at_o0));
    }
    for isa in Isa::available() {
        // Each instruction set sums in its own order, so each has its own bits; those of the best are the engine's.
        let expected = match isa == Isa::detect() {
            true => bits(&at_o0),
            false => together(name, OptimizationLevel::O0, (1, isa), &prompts, &at_o0),
        };
        for level in OptimizationLevel::ALL {
            for threads in [1, 2, 3] {
                let found = together(name, level, (threads, isa), &prompts, &at_o0);
                assert_same(&format!("{name} at {level}, {isa}, {threads} threads, in a batch"), &found, &expected);
            }
        }
    }
}

#[test]
fn keys_and_values_in_fp8_give_other_bits_but_the_same_at_every_level() {
    let prompts: Vec<Vec<u32>> = Reference::load("tiny-chat").prompts.into_iter().map(|prompt| prompt.prompt).collect();
    let logits = |level: OptimizationLevel, stored: &str| {
        let builder = on_the_cpu(checkpoint("tiny-chat")).optimization_level(level);
        let mut llm = builder.set("cache.kv_cache_dtype", stored).unwrap().build().unwrap();
        prompts.iter().map(|prompt| llm.logits(prompt, NEW_TOKENS).unwrap()).collect::<Vec<_>>()
    };
    let (exact, rounded) = (logits(OptimizationLevel::O0, "auto"), logits(OptimizationLevel::O0, "fp8"));
    for level in OptimizationLevel::ALL {
        for (found, expected) in logits(level, "fp8").iter().zip(&rounded) {
            assert_same_bits(&format!("{level}, prompt"), &found.prompt, &expected.prompt);
            assert_same_bits(&format!("{level}, continuation"), &found.steps, &expected.steps);
        }
    }
    // E4M3 has four significant bits, so scores and sums move by some percent of themselves; the distribution hardly does.
    let (mut changed, mut squares, mut errors) = (0, 0.0, 0.0);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        for (exact, rounded) in exact.prompt.iter().zip(&rounded.prompt) {
            assert!(rounded.is_finite());
            changed += usize::from(exact.to_bits() != rounded.to_bits());
            squares += f64::from(*exact) * f64::from(*exact);
            errors += f64::from(exact - rounded) * f64::from(exact - rounded);
        }
    }
    assert!(changed > 0, "nothing was rounded");
    assert!(errors < 0.01 * squares, "the error's square is {} of the logits'", errors / squares);
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

allotrope_tests::for_every_checkpoint!(checkpoints);
