//! Attention over the paged KV cache.

use allotrope_graph::{DType, Graph, Input, OpId, OpKind, StepInputs};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::{BLOCKS, conversation, sequence_batch, shuffle, token};
use super::graphs::{Builder, grouped};
use super::runner::Setup;
use super::suite::{Suite, reference_steps, unit};
use super::{Report, Subject, Weights};
use crate::device::Device;

/// Query heads, KV heads, elements of a head, tokens in a block.
type Shape = (usize, usize, usize, usize);

/// The type of queries, keys and values, and the type that keys and values are stored in.
type Types = (DType, DType);

const SMALL: &[Shape] = &[(3, 1, 8, 4), (2, 2, 10, 16), (4, 1, 64, 4), (3, 1, 128, 16)];
const FULL: &[Shape] =
    &[(4, 2, 16, 4), (3, 1, 10, 5), (8, 8, 64, 16), (6, 2, 80, 16), (4, 4, 8, 4), (12, 3, 64, 16), (8, 2, 128, 4)];

/// What follows in the same launch, where the target takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    Nothing,
    Cast,
    Scale,
    Quantize,
    /// A factor, then a quantization.
    Both,
}

const EPILOGUES: [Epilogue; 5] =
    [Epilogue::Nothing, Epilogue::Cast, Epilogue::Scale, Epilogue::Quantize, Epilogue::Both];

/// Attention of all types over prompts, decodes, chunks and padding, and over long contexts, against the reference; with what
/// follows in one launch: the same bits; and the same bits in chunks as whole, alone as in company.
pub fn attention<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    let wide = [DType::Bf16, DType::F16, DType::F32];
    let stored = |cache: Option<DType>| wide.into_iter().map(move |dtype| (dtype, cache.unwrap_or(dtype)));
    let types = stored(None).chain(stored(Some(DType::F8E4M3)));
    for types in types.filter(|types| types.0 == types.1 || takes(&suite, *types)).collect::<Vec<_>>() {
        for shape in [SMALL, suite.effort.pick(&[], FULL)].concat() {
            agree(&mut suite, random, types, shape);
        }
        long(&mut suite, random, types);
        for shape in suite.effort.pick(&[(3, 1, 16, 4)][..], &[(8, 2, 64, 16), (3, 3, 18, 16), (4, 1, 128, 4)]) {
            chunks(&mut suite, random, types, *shape);
        }
    }
    suite.finish("attention")
}

/// Whether the device has attention of these types: what it has not, its target refuses.
fn takes<S: Subject>(suite: &Suite<'_, S>, types: Types) -> bool {
    let (graph, _) = graph_of(types, SMALL[0], Epilogue::Nothing);
    graph.groups().iter().all(|group| suite.device.target().accepts(&graph, &group.ops).is_ok())
}

/// Queries, keys and values from tables, written to a cache and attended to. Gives the operations that may be one launch, too.
fn graph_of((dtype, cache): Types, (heads, kv_heads, head_dim, _): Shape, epilogue: Epilogue) -> (Graph, Vec<OpId>) {
    let mut b = Builder { kv_cache: Some(cache), ..Builder::default() };
    let widths = [("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)];
    let operands = widths.map(|(name, width)| b.rows(name, dtype, width, Input::TokenIds));
    let mut x = b.attend(0, operands, heads, head_dim, 4.0 / (head_dim as f32).sqrt());
    let first = b.graph.ops().len() - 1;
    if matches!(epilogue, Epilogue::Scale | Epilogue::Both) {
        x = b.push("scaled", OpKind::MulScalar { factor: -1.7 }, &[x]);
    }
    if matches!(epilogue, Epilogue::Quantize | Epilogue::Both) {
        x = b.push("quantized", OpKind::Quantize { scale: 0.004 }, &[x]);
    }
    if epilogue == Epilogue::Cast {
        let to = if dtype == DType::F16 { DType::F32 } else { DType::F16 };
        x = b.push("cast", OpKind::Cast { to }, &[x]);
    }
    let ops = b.graph.op_ids().skip(first).collect();
    b.output(x);
    (b.graph, ops)
}

/// A conversation against the reference, and with each epilogue fused and apart.
fn agree<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, types: Types, shape: Shape) {
    let (heads, _, head_dim, block_size) = shape;
    let steps = conversation(random, block_size, suite.effort);
    let (graph, _) = graph_of(types, shape, Epilogue::Nothing);
    let weights = Weights::random(random, &graph);
    let expected = reference_steps(&graph, &weights, &steps, block_size);
    let ways = suite.ways(block_size);
    let found = suite.run(&graph, &weights, ways[0], &steps);
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        close(suite, types.0, heads * head_dim, &steps[number], (found, expected));
    }
    suite.report.digest(&format!("attention of {types:?} {shape:?}"), &found.concat());
    for way in &ways[1..] {
        let again = suite.run(&graph, &weights, *way, &steps);
        suite.same(&again.concat(), &found.concat(), || format!("{types:?} {shape:?}, {way:?}"));
    }
    for epilogue in &EPILOGUES[1..] {
        let (graph, ops) = graph_of(types, shape, *epilogue);
        let Some(fused) = grouped(&graph, &ops, suite.device.target()) else { continue };
        let apart = suite.run(&graph, &weights, ways[0], &steps);
        let way = ways[random.random_range(0..ways.len())];
        let together = suite.run(&fused, &weights, way, &steps);
        suite.same(&together.concat(), &apart.concat(), || format!("{types:?} {shape:?} with {epilogue:?}, {way:?}"));
    }
}

/// Checks a step against the reference; padding must be zeros.
fn close<S: Subject>(
    suite: &mut Suite<'_, S>,
    dtype: DType,
    width: usize,
    step: &StepInputs,
    (found, expected): (&[f32], &[f32]),
) {
    let units = if dtype == DType::F32 { 4.0 } else { 2.0 };
    let padding = |index: usize| step.positions[index / width] < 0;
    let numbers = expected.iter().enumerate();
    let expected: Vec<f32> = numbers.map(|(index, value)| if padding(index) { 0.0 } else { *value }).collect();
    let tolerance = |index: usize| match padding(index) {
        true => 0.0,
        false => units * unit(dtype) * f64::from(expected[index]).abs() + 3e-6,
    };
    suite.near(found, &expected, tolerance, || format!("{dtype}, rows of {width}: {step:?}"));
}

/// Contexts of hundreds of tokens: filled by tokens that look at the first position only, then read at positions around those at
/// which a device may split its work.
fn long<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, types: Types) {
    let (block_size, length) = (16, suite.effort.pick(530, 1000));
    let shape @ (heads, _, head_dim, _) = suite.effort.pick((3, 1, 8, block_size), (8, 2, 64, block_size));
    let (graph, _) = graph_of(types, shape, Epilogue::Nothing);
    let weights = Weights::random(random, &graph);
    let mut table: Vec<i32> = (0..BLOCKS as i32).collect();
    shuffle(random, &mut table);
    let slot = |position: usize| table[position / block_size] * block_size as i32 + (position % block_size) as i32;
    let mut read: Vec<i32> = vec![0, 31, 32, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512];
    read.push(length as i32 - 1);
    shuffle(random, &mut read);
    let mut step = |slots: Vec<i32>, positions: Vec<i32>| StepInputs {
        token_ids: slots.iter().map(|_| token(random)).collect(),
        token_sequences: vec![0; slots.len()],
        logit_rows: (0..slots.len() as i32).collect(),
        blocks: BLOCKS,
        block_tables: table.clone(),
        slots,
        positions,
    };
    let places: Vec<usize> = (0..length).collect();
    let fill =
        places.chunks(40).map(|chunk| step(chunk.iter().map(|place| slot(*place)).collect(), vec![0; chunk.len()]));
    let mut steps: Vec<StepInputs> = fill.collect();
    steps.push(step(vec![-1; read.len()], read));
    let expected = reference_steps(&graph, &weights, &steps, block_size);
    let mut runner = suite.runner(&graph, &weights, Setup { block_size, ..Setup::default() });
    for (step, expected) in steps.iter().zip(&expected) {
        let found = runner.step(step);
        close(suite, types.0, heads * head_dim, step, (&found, expected));
    }
    let last = steps.last().unwrap();
    let together = runner.step(last);
    for (index, row) in together.chunks_exact(heads * head_dim).enumerate() {
        let mut single = last.clone();
        for list in [&mut single.token_ids, &mut single.positions, &mut single.slots, &mut single.token_sequences] {
            *list = vec![list[index]];
        }
        single.logit_rows = vec![0];
        let alone = runner.step(&single);
        suite.same(&alone, row, || format!("{types:?} {shape:?}: position {} alone", single.positions[0]));
    }
    suite.report.steps += steps.len() + 1 + last.positions.len();
}

/// The tokens of a sequence have the same bits in one step as in many.
fn chunks<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, types: Types, shape: Shape) {
    let (_, _, _, block_size) = shape;
    let (graph, _) = graph_of(types, shape, Epilogue::Nothing);
    let weights = Weights::random(random, &graph);
    let tokens = suite.effort.pick(21, 61);
    let ids: Vec<i32> = (0..tokens).map(|_| token(random)).collect();
    let step = |range: std::ops::Range<usize>| sequence_batch(&ids, range, block_size);
    let ways = suite.ways(block_size);
    let whole = suite.run(&graph, &weights, ways[0], &[step(0..tokens)]).remove(0);
    for way in ways {
        let mut steps = Vec::new();
        let mut begin = 0;
        while begin < tokens {
            let end = (begin + random.random_range(1..9)).min(tokens);
            steps.push(step(begin..end));
            begin = end;
        }
        let again = suite.run(&graph, &weights, way, &[step(0..tokens)]).concat();
        suite.same(&again, &whole, || format!("{types:?} {shape:?} whole, {way:?}"));
        let parts = suite.run(&graph, &weights, way, &steps).concat();
        suite.same(&parts, &whole, || format!("{types:?} {shape:?} in {} chunks, {way:?}", steps.len()));
    }
}
