//! Small decoders.

use allotrope_graph::partition::SplittingOps;
use allotrope_graph::passes::{Fuel, PIPELINE, Pass, run_passes};
use allotrope_graph::schedule::schedule;
use allotrope_graph::{DType, Graph, Sizes, StepInputs, Target};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::{VOCABULARY, conversation};
use super::graphs::{DecoderSizes, decoder, groupings};
use super::suite::{Suite, reference_steps};
use super::{Report, Subject, Weights};
use crate::device::Device;

const SMALL: [DecoderSizes; 2] = [
    DecoderSizes { layers: 2, hidden: 22, heads: 3, kv_heads: 1, head_dim: 10, inner: 34, vocabulary: VOCABULARY },
    DecoderSizes { layers: 1, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, inner: 64, vocabulary: 64 },
];

const FULL: [DecoderSizes; 4] = [
    DecoderSizes::ODD,
    DecoderSizes { layers: 2, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, inner: 128, vocabulary: 64 },
    DecoderSizes { layers: 2, hidden: 128, heads: 4, kv_heads: 1, head_dim: 32, inner: 192, vocabulary: 128 },
    DecoderSizes { layers: 1, hidden: 128, heads: 6, kv_heads: 2, head_dim: 64, inner: 256, vocabulary: 64 },
];

/// Decoders of all types, plain and quantized, over a conversation: one operation after the other, in random groups, after each
/// pass by itself and after the whole pipeline, launched and recorded: the same bits; near the reference; and the same bits for a
/// sequence alone as in company.
pub fn decoders<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    for (number, sizes) in suite.effort.pick(&SMALL[..], &FULL).iter().enumerate() {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            for quantized in [false, true] {
                let graph = decoder(*sizes, dtype, quantized);
                let what = format!("decoder of {dtype}, quantized={quantized}, {sizes:?}");
                // Each pass by itself only where that costs little.
                let thorough = number == 0 && (dtype == DType::Bf16 || suite.effort == super::Effort::Full);
                in_any_form(&mut suite, random, &graph, &what, (dtype, quantized), thorough);
            }
        }
    }
    suite.finish("decoders")
}

fn in_any_form<S: Subject>(
    suite: &mut Suite<'_, S>,
    random: &mut ChaCha8Rng,
    graph: &Graph,
    what: &str,
    (dtype, quantized): (DType, bool),
    thorough: bool,
) {
    let weights = Weights::random(random, graph);
    let steps = conversation(random, 4, suite.effort);
    let target = suite.device.target();
    let whole = compiled(graph, target, |_| true);
    let mut forms = Vec::new();
    if thorough {
        forms.extend(groupings(random, graph, target).into_iter().skip(1));
        forms.extend(
            PIPELINE
                .iter()
                .map(|pass| (pass.name.to_owned(), compiled(graph, target, |other| other.name == pass.name))),
        );
        forms.retain(|(_, form)| form != graph);
    }
    let ways = suite.ways(4);
    let expected = suite.run(graph, &weights, ways[0], &steps);
    near_reference(suite, graph, &weights, &steps, &expected, (what, dtype, quantized));
    suite.report.digest(what, &expected.concat());
    for (name, form) in [("one by one", graph), ("the whole pipeline", &whole)] {
        for way in &ways {
            let found = suite.run(form, &weights, *way, &steps);
            suite.same(&found.concat(), &expected.concat(), || format!("{what}, {name}, {way:?}\n{form}"));
        }
    }
    for (name, form) in forms {
        let one = random.random_range(0..ways.len());
        for way in suite.effort.pick(&ways[one..=one], &ways) {
            let found = suite.run(&form, &weights, *way, &steps);
            suite.same(&found.concat(), &expected.concat(), || format!("{what}, {name}, {way:?}\n{form}"));
        }
    }
    alone(suite, &whole, &weights, &steps, &expected, what);
}

/// The graph after some passes and with its launches in the order that needs the least memory.
pub(crate) fn compiled(graph: &Graph, target: &dyn Target, on: impl Fn(&Pass) -> bool) -> Graph {
    let mut compiled = graph.clone();
    run_passes(&mut compiled, PIPELINE, on, target, Fuel::UNLIMITED, &mut |_, _| {}).unwrap();
    let limits = Sizes { tokens: 8, sequences: 8, logit_rows: 8, blocks: 8 };
    schedule(&mut compiled, &limits, &SplittingOps::default());
    compiled
}

/// Errors of rounding add up, and quantization takes steps of an eighth: as a part of the largest of the logits.
fn near_reference<S: Subject>(
    suite: &mut Suite<'_, S>,
    graph: &Graph,
    weights: &Weights,
    steps: &[StepInputs],
    found: &[Vec<f32>],
    (what, dtype, quantized): (&str, DType, bool),
) {
    let part = match (dtype, quantized) {
        (_, true) => 0.25,
        (DType::F32, _) => 1e-4,
        (DType::F16, _) => 0.02,
        _ => 0.1,
    };
    let expected = reference_steps(graph, weights, steps, 4);
    for (found, expected) in found.iter().zip(&expected) {
        let largest = expected.iter().fold(0f64, |largest, value| largest.max(f64::from(value.abs())));
        suite.near(found, expected, |_| largest * part, || format!("{what}\n{graph}"));
    }
}

/// The first sequence has the same logits without the others.
fn alone<S: Subject>(
    suite: &mut Suite<'_, S>,
    graph: &Graph,
    weights: &Weights,
    steps: &[StepInputs],
    expected: &[Vec<f32>],
    what: &str,
) {
    let only = |step: &StepInputs| {
        let tokens = step.token_sequences.iter().zip(&step.positions).take_while(|(s, p)| **s == 0 && **p >= 0).count();
        let mut alone = step.clone();
        for list in [&mut alone.token_ids, &mut alone.positions, &mut alone.slots, &mut alone.token_sequences] {
            list.truncate(tokens);
        }
        alone.logit_rows = vec![tokens as i32 - 1];
        alone
    };
    let steps: Vec<StepInputs> = steps.iter().map(only).collect();
    let way = suite.ways(4)[0];
    let found = suite.run(graph, weights, way, &steps);
    for (found, expected) in found.iter().zip(expected) {
        suite.same(found, &expected[..found.len()], || format!("{what}, a sequence alone\n{graph}"));
    }
}
