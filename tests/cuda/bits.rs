//! Levels and graph modes change the speed, never the answer: the same bits in every logit, alone and in a batch, in one pass,
//! in chunks and token by token; near what the CPU and transformers compute; and the same tokens.

use allotrope_config::{GraphMode, RuntimeMode};
use allotrope_engine::{LlmBuilder, OptimizationLevel, TokenLogits};
use allotrope_tests::{
    BatchRunner, Reference, assert_close, assert_same_bits, checkpoint, on_cuda, on_the_cpu, show, with_cuda,
    without_weights,
};

/// Tokens of each continuation.
const NEW_TOKENS: usize = 5;

/// Tokens of a sequence in one step of a prefill in chunks.
const CHUNK: usize = 5;

/// The sizes that are recorded: a batch of three is padded to four, and prefills of chunks to twenty.
const CAPTURE_SIZES: [usize; 4] = [1, 2, 4, BUDGET];

/// The most tokens of a step.
const BUDGET: usize = 20;

/// As in `reference.rs`: how many times the error that transformers shows in the stored type is allowed.
const LARGEST: f64 = 3.0;
const ROOT_MEAN_SQUARE: f64 = 2.0;

const MODES: [GraphMode; 5] =
    [GraphMode::None, GraphMode::Piecewise, GraphMode::Full, GraphMode::FullDecodeOnly, GraphMode::FullAndPiecewise];

fn builder(name: &str, level: OptimizationLevel) -> LlmBuilder {
    let builder = with_cuda(checkpoint(name)).optimization_level(level);
    let limits = [("scheduler.max_num_seqs", "4".to_owned()), ("scheduler.max_num_batched_tokens", BUDGET.to_string())];
    limits.into_iter().fold(builder, |builder, (path, value)| builder.set(path, &value).unwrap())
}

/// What each prompt gives alone, through the library.
fn alone(builder: LlmBuilder, prompts: &[Vec<u32>]) -> Vec<TokenLogits> {
    let mut llm = builder.build().unwrap();
    prompts.iter().map(|prompt| llm.logits(prompt, NEW_TOKENS).unwrap()).collect()
}

/// What each prompt of a batch gives: the logits of its positions and of its continuation.
type Batched = Vec<[Vec<f32>; 2]>;

fn bits(all: &[TokenLogits]) -> Batched {
    all.iter().map(|one| [one.prompt.clone(), one.steps.clone()]).collect()
}

/// Runs the prompts as one batch: each in chunks, then the given continuations token by token.
fn together(
    runner: &mut BatchRunner<impl allotrope_runtime::Device>,
    prompts: &[Vec<u32>],
    alone: &[TokenLogits],
) -> Batched {
    let mut found: Batched = vec![Default::default(); prompts.len()];
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    for start in (0..longest).step_by(CHUNK) {
        let part = |prompt: &'_ Vec<u32>| start.min(prompt.len())..(start + CHUNK).min(prompt.len());
        let parts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[part(prompt)]).collect();
        for (found, logits) in found.iter_mut().zip(runner.step(&parts)) {
            found[0].extend(logits);
        }
    }
    for ([prompt, steps], alone) in found.iter_mut().zip(alone) {
        steps.extend(&prompt[prompt.len() - alone.vocabulary..]);
    }
    for step in 0..NEW_TOKENS - 1 {
        let next: Vec<&[u32]> = alone.iter().map(|alone| &alone.tokens[step..=step]).collect();
        for (found, logits) in found.iter_mut().zip(runner.step(&next)) {
            found[1].extend(logits);
        }
    }
    found
}

fn assert_same(context: &str, found: &Batched, expected: &Batched) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_same_bits(&format!("{context}, prompt {index}, positions"), &found[0], &expected[0]);
        assert_same_bits(&format!("{context}, prompt {index}, continuation"), &found[1], &expected[1]);
    }
}

/// Compares with transformers and with the CPU.
fn assert_right(reference: &Reference, found: &[TokenLogits]) {
    let prompts: Vec<Vec<u32>> = reference.prompts.iter().map(|prompt| prompt.prompt.clone()).collect();
    let on_cpu = alone(on_the_cpu(checkpoint(&reference.name)).optimization_level(OptimizationLevel::O2), &prompts);
    let (most, rms) = (LARGEST * reference.numeric_error, ROOT_MEAN_SQUARE * reference.numeric_error_rms);
    for (index, ((found, cpu), prompt)) in found.iter().zip(&on_cpu).zip(&reference.prompts).enumerate() {
        let context = format!("{}, prompt {index}", reference.name);
        let last = &found.prompt[found.prompt.len() - prompt.logits.len()..];
        assert_close(&format!("{context}, against transformers"), last, &prompt.logits, most, rms);
        assert_close(&format!("{context}, against the CPU"), &found.prompt, &cpu.prompt, most, rms);
        if reference.is_decisive() {
            assert_eq!(found.tokens, cpu.tokens, "{context}: other tokens than on the CPU");
            assert_eq!(found.tokens, prompt.tokens[..NEW_TOKENS], "{context}: other tokens than by transformers");
            let steps = &prompt.step_logits[..NEW_TOKENS * reference.vocabulary];
            assert_close(&format!("{context}, continuation, against transformers"), &found.steps, steps, most, rms);
            assert_close(&format!("{context}, continuation, against the CPU"), &found.steps, &cpu.steps, most, rms);
        }
    }
}

/// Runs the prompts in a batch in every graph mode; gives how many recordings each has.
fn check_modes(name: &str, level: OptimizationLevel, prompts: &[Vec<u32>], at_o0: &[TokenLogits]) -> String {
    let prefills = prompts.iter().map(Vec::len).max().unwrap().div_ceil(CHUNK);
    let counts = MODES.map(|mode| {
        let context = format!("{name} at {level} in mode {mode}, in a batch");
        let plan = builder(name, level).set("compilation.cudagraph_mode", &mode.to_string()).unwrap().plan().unwrap();
        let mut runner = BatchRunner::on_cuda(&plan, [prompts.len(), BUDGET], CAPTURE_SIZES.to_vec());
        assert_same(&context, &together(&mut runner, prompts, at_o0), &bits(at_o0));
        for way in [RuntimeMode::None, RuntimeMode::Piecewise, RuntimeMode::Full] {
            let decodes = if mode.decode() == way { NEW_TOKENS - 1 } else { 0 };
            let expected = decodes + if mode.mixed() == way { prefills } else { 0 };
            assert_eq!(runner.steps(way), expected as u64, "{context}: steps that run as {way:?}");
        }
        assert_eq!(runner.recordings() == 0, mode == GraphMode::None, "{context}");
        format!("{mode} {}", runner.recordings())
    });
    counts.join(", ")
}

fn check(name: &str) {
    let reference = Reference::load(name);
    let prompts: Vec<Vec<u32>> = reference.prompts.iter().map(|prompt| prompt.prompt.clone()).collect();
    let at_o0 = alone(builder(name, OptimizationLevel::O0), &prompts);
    assert_right(&reference, &at_o0);
    for level in OptimizationLevel::ALL {
        if level != OptimizationLevel::O0 {
            let found = alone(builder(name, level), &prompts);
            assert_same(&format!("{name} at {level}, alone"), &bits(&found), &bits(&at_o0));
        }
        let recordings = check_modes(name, level, &prompts, &at_o0);
        let kernels = builder(name, level).plan().unwrap().launches();
        show(format_args!("{name} at {level}: {kernels} kernels in a step; recordings by mode: {recordings}"));
    }
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {
        on_cuda! {$(
            fn $test() {
                check($name);
            }
        )*}
    };
}

allotrope_tests::for_every_checkpoint!(checkpoints);

on_cuda! {
    fn weights_that_are_made_are_as_good_as_others() {
        let prompts: Vec<Vec<u32>> = vec![(3..20).collect()];
        for name in ["gqa-bf16", "gqa-fp8"] {
            let folder = without_weights(name);
            let run = |level| {
                let builder = with_cuda(folder.path()).optimization_level(level);
                alone(builder.set("model.load_format", "dummy").unwrap(), &prompts)
            };
            let at_o0 = run(OptimizationLevel::O0);
            assert!(at_o0[0].prompt.iter().chain(&at_o0[0].steps).all(|logit| logit.is_finite()), "{name}");
            for level in OptimizationLevel::ALL {
                assert_same(&format!("{name} without weights at {level}"), &bits(&run(level)), &bits(&at_o0));
            }
        }
    }
}
