//! Products, with what comes before and after them in one launch.

use std::ops::Range;

use allotrope_graph::evaluate::evaluate;
use allotrope_graph::{DType, Graph, Input, OpId, OpKind, StepInputs, ValueId, WeightSource, numerics};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::{plain_batch, shuffle};
use super::graphs::{Builder, grouped};
use super::runner::Setup;
use super::suite::{Suite, reference, unit};
use super::{Report, Subject, Weights};
use crate::device::Device;

/// What makes the input of the products. Quantized products get a quantization of their own each after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prologue {
    /// Nothing: it is in memory, in the type of the products.
    Nothing,
    /// Rows of a table.
    Embedding,
    /// Rows of another launch, chosen: the products run over rows of logits.
    SelectRows,
    /// Only the quantizations, where there are.
    Quantize,
    Norm,
    /// The norm of a sum.
    SumNorm,
    /// One factor, activated, times another.
    Gate,
}

const PROLOGUES: [Prologue; 7] = [
    Prologue::Nothing,
    Prologue::Embedding,
    Prologue::SelectRows,
    Prologue::Quantize,
    Prologue::Norm,
    Prologue::SumNorm,
    Prologue::Gate,
];

/// What is done with the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    Nothing,
    Bias,
    Residual,
    /// A factor, then another type.
    Scale,
    Quantize,
    /// One product, activated, times another.
    Gate,
    /// Norms of heads, then a rotation.
    Heads,
    /// Rotations of queries and keys, and the write to the KV cache, to which the next launch attends.
    Cache,
}

const EPILOGUES: [Epilogue; 8] = [
    Epilogue::Nothing,
    Epilogue::Bias,
    Epilogue::Residual,
    Epilogue::Scale,
    Epilogue::Quantize,
    Epilogue::Gate,
    Epilogue::Heads,
    Epilogue::Cache,
];

/// A launch of products.
#[derive(Debug, Clone)]
struct Case {
    operands: DType,
    to: DType,
    inner: usize,
    /// Of each product.
    columns: Vec<usize>,
    head_dim: usize,
    rows: usize,
    prologue: Prologue,
    epilogue: Epilogue,
}

/// The graph of a case, and which operations are what.
struct Launch {
    graph: Graph,
    prologue: Range<usize>,
    products: Range<usize>,
    epilogue: Range<usize>,
}

/// Products of all types, at odd sizes and at those that tiles divide: against the reference within what sums in `f32` allow;
/// with prologues and epilogues, in one launch as far as the target takes them, and operation by operation: the same bits; and
/// the same bits for a row alone as in company.
pub fn projections<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    for operands in [DType::Bf16, DType::F16, DType::F32, DType::F8E4M3] {
        for case in plain_cases(&suite, random, operands).into_iter().chain(fused_cases(&suite, random, operands)) {
            run(&mut suite, random, &case);
        }
    }
    assert!(suite.report.fused > 0, "{}: the target takes no two operations in one launch", subject.name());
    suite.finish("projections")
}

fn pick<T: Copy>(random: &mut ChaCha8Rng, list: &[T]) -> T {
    list[random.random_range(0..list.len())]
}

/// A result type that products of a type have.
fn result_type(random: &mut ChaCha8Rng, operands: DType) -> DType {
    match operands {
        DType::F8E4M3 => pick(random, &[DType::Bf16, DType::F16, DType::F32]),
        _ => pick(random, &[operands, operands, DType::F32]),
    }
}

/// Rows of a batch, at most as many as the effort allows for so large products.
fn rows<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng, products: usize) -> usize {
    let most = suite.effort.pick(60_000, 20_000_000) / products.max(1);
    let all = suite.effort.pick(&[1, 2, 7, 8, 9, 33][..], &[1, 2, 7, 8, 9, 33, 70]);
    let fitting = all.iter().filter(|rows| **rows <= most).count().max(1);
    all[random.random_range(0..fitting)]
}

/// Products alone. Every inner size and every number of columns is in some case.
fn plain_cases<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng, operands: DType) -> Vec<Case> {
    let mut inner = vec![1, 5, 16, 33, 64, 100, 128];
    let mut columns = vec![1, 7, 16, 33, 64, 70];
    inner.extend(suite.effort.pick(&[][..], &[96, 192, 256, 1000, 2048]));
    columns.extend(suite.effort.pick(&[][..], &[100, 128, 192, 1000]));
    shuffle(random, &mut inner);
    shuffle(random, &mut columns);
    let count = suite.effort.pick(8, 36);
    let case = |index: usize| {
        let inner = inner[index % inner.len()];
        let products = random.random_range(1..4);
        let columns: Vec<usize> = (0..products).map(|product| columns[(index + product) % columns.len()]).collect();
        let rows = rows(suite, random, inner * columns.iter().sum::<usize>());
        let to = result_type(random, operands);
        let (prologue, epilogue) = (Prologue::Nothing, Epilogue::Nothing);
        Case { operands, to, inner, columns, head_dim: 1, rows, prologue, epilogue }
    };
    (0..count).map(case).collect()
}

/// Products with prologues and epilogues: all pairs, or each of both at least once.
fn fused_cases<S: Subject>(suite: &Suite<'_, S>, random: &mut ChaCha8Rng, operands: DType) -> Vec<Case> {
    let pairs = PROLOGUES.iter().flat_map(|prologue| EPILOGUES.iter().map(|epilogue| (*prologue, *epilogue)));
    let pairs: Vec<_> = pairs.filter(|pair| *pair != (Prologue::Nothing, Epilogue::Nothing)).collect();
    // Along a diagonal, since the two numbers have no common factor.
    let first = random.random_range(0..PROLOGUES.len() * EPILOGUES.len());
    let chosen = (0..EPILOGUES.len()).map(|index| {
        let place = first + index;
        (PROLOGUES[place % PROLOGUES.len()], EPILOGUES[place % EPILOGUES.len()])
    });
    let cases = suite.effort.pick(chosen.collect(), pairs).into_iter().map(|(prologue, epilogue)| {
        // What comes after products over rows of logits can't need tokens.
        let over_tokens = matches!(epilogue, Epilogue::Residual | Epilogue::Heads | Epilogue::Cache);
        let prologue = if over_tokens && prologue == Prologue::SelectRows { Prologue::Norm } else { prologue };
        let inner = pick(random, suite.effort.pick(&[20, 33, 48, 64, 128], &[20, 33, 64, 128, 200, 256, 1030]));
        let head_dim = pick(random, suite.effort.pick(&[8, 10, 16, 64], &[8, 10, 16, 64, 128]));
        let heads = pick(random, suite.effort.pick(&[1, 2], &[1, 3, 4]));
        let width = head_dim * heads;
        let columns = match epilogue {
            Epilogue::Gate => vec![width + random.random_range(0..2); 2],
            Epilogue::Cache => vec![width, head_dim, head_dim],
            Epilogue::Heads => vec![width, head_dim],
            _ => (0..random.random_range(1..4)).map(|_| pick(random, &[7, 33, 40, 64, 128])).collect(),
        };
        let rows = rows(suite, random, inner * columns.iter().sum::<usize>());
        let to = match epilogue {
            Epilogue::Scale => DType::F32,
            _ => result_type(random, operands),
        };
        Case { operands, to, inner, columns, head_dim, rows, prologue, epilogue }
    });
    cases.collect()
}

fn build(random: &mut ChaCha8Rng, case: &Case) -> Launch {
    let mut b = Builder::default();
    let quantized = case.operands == DType::F8E4M3;
    let prepared = matches!(case.prologue, Prologue::Nothing | Prologue::Embedding);
    let wide = if quantized { pick(random, &[DType::Bf16, DType::F16]) } else { case.operands };
    let dtype = if prepared { case.operands } else { wide };
    // What is in memory before.
    let source = (case.prologue != Prologue::Embedding).then(|| b.rows("x", dtype, case.inner, Input::TokenIds));
    let other = matches!(case.prologue, Prologue::SumNorm | Prologue::Gate)
        .then(|| b.rows("other", dtype, case.inner, Input::Positions));
    let residuals: Vec<Option<ValueId>> = (case.columns.iter().enumerate())
        .map(|(index, columns)| {
            let name = format!("residual.{index}");
            (case.epilogue == Epilogue::Residual).then(|| b.rows(&name, case.to, *columns, Input::Positions))
        })
        .collect();
    let rotates = matches!(case.epilogue, Epilogue::Heads | Epilogue::Cache);
    let angles = rotates.then(|| b.angles("angles", case.head_dim));
    let begin = b.graph.ops().len();
    let input = prologue(&mut b, case, source, other);
    let inputs: Vec<ValueId> = (0..case.columns.len())
        .map(|index| {
            let kind = OpKind::Quantize { scale: 0.005 * (1 + index) as f32 };
            if quantized && !prepared { b.push(&format!("quantized.{index}"), kind, &[input]) } else { input }
        })
        .collect();
    let products = b.graph.ops().len();
    let results: Vec<ValueId> = (inputs.iter().zip(&case.columns).enumerate())
        .map(|(index, (input, columns))| b.linear(&format!("product.{index}"), *input, *columns, case.to))
        .collect();
    let after = b.graph.ops().len();
    let results = epilogue(&mut b, case, &results, &residuals, angles);
    let mut end = b.graph.ops().len();
    // The next launch reads the cache.
    end -= usize::from(case.epilogue == Epilogue::Cache);
    results.into_iter().for_each(|result| b.output(result));
    Launch { graph: b.graph, prologue: begin..products, products: products..after, epilogue: after..end }
}

fn prologue(b: &mut Builder, case: &Case, source: Option<ValueId>, other: Option<ValueId>) -> ValueId {
    let Some(x) = source else { return b.rows("x", case.operands, case.inner, Input::TokenIds) };
    match (case.prologue, other) {
        (Prologue::SelectRows, _) => {
            let rows = b.graph.input(Input::LogitRows);
            b.push("selected", OpKind::SelectRows, &[x, rows])
        }
        (Prologue::Norm, _) => b.norm("norm", x, 1e-5),
        (Prologue::SumNorm, Some(other)) => {
            let sum = b.push("sum", OpKind::Add, &[x, other]);
            b.norm("norm", sum, 1e-5)
        }
        (Prologue::Gate, Some(other)) => {
            let gate = b.push("gate", OpKind::Silu, &[x]);
            b.push("gated", OpKind::Mul, &[gate, other])
        }
        _ => x,
    }
}

fn epilogue(
    b: &mut Builder,
    case: &Case,
    products: &[ValueId],
    residuals: &[Option<ValueId>],
    angles: Option<ValueId>,
) -> Vec<ValueId> {
    let heads = |b: &Builder, x: ValueId| b.width(x) / case.head_dim;
    match (case.epilogue, products, angles) {
        (Epilogue::Gate, [gate, up], _) => {
            let gate = b.push("silu", OpKind::Silu, &[*gate]);
            vec![b.push("product", OpKind::Mul, &[gate, *up])]
        }
        (Epilogue::Cache, [q, k, v], Some(angles)) => {
            let count = heads(b, *q);
            let q = b.push("q.rotated", OpKind::Rope { heads: count }, &[*q, angles]);
            let k = b.push("k.rotated", OpKind::Rope { heads: 1 }, &[*k, angles]);
            vec![b.attend(0, [q, k, *v], count, case.head_dim, 0.2)]
        }
        _ => {
            let one = |(index, product): (usize, &ValueId)| {
                let product = *product;
                let name = format!("result.{index}");
                match (case.epilogue, residuals[index], angles) {
                    (Epilogue::Bias, ..) => {
                        let bias = b.vector(&format!("bias.{index}"), case.to, b.width(product));
                        b.push(&name, OpKind::Add, &[product, bias])
                    }
                    (Epilogue::Residual, Some(residual), _) => b.push(&name, OpKind::Add, &[residual, product]),
                    (Epilogue::Scale, ..) => {
                        let scaled = b.push(&format!("scaled.{index}"), OpKind::MulScalar { factor: 0.37 }, &[product]);
                        b.push(&name, OpKind::Cast { to: DType::Bf16 }, &[scaled])
                    }
                    (Epilogue::Quantize, ..) => b.push(&name, OpKind::Quantize { scale: 0.02 }, &[product]),
                    (Epilogue::Heads, _, Some(angles)) => {
                        let heads = heads(b, product);
                        let normed = b.head_norm(&format!("normed.{index}"), product, heads);
                        b.push(&name, OpKind::Rope { heads }, &[normed, angles])
                    }
                    _ => product,
                }
            };
            products.iter().enumerate().map(one).collect()
        }
    }
}

/// Runs a case operation by operation and with every group that the target takes.
fn run<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, case: &Case) {
    let launch = build(random, case);
    let weights = Weights::random(random, &launch.graph);
    let mut inputs = plain_batch(random, case.rows);
    inputs.block_tables = (0..16).collect();
    let steps = std::slice::from_ref(&inputs);
    let repack = pick(random, suite.subject.layouts());
    let variant = random.random_range(0..suite.subject.variants());
    let setup = Setup { variant, repack, block_size: 16, ..Setup::default() };
    let expected = suite.run(&launch.graph, &weights, Setup { block_size: 16, ..Setup::default() }, steps).remove(0);
    suite.report.digest(&format!("{case:?}"), &expected);
    if matches!(case.prologue, Prologue::Nothing | Prologue::Embedding | Prologue::SelectRows | Prologue::Quantize) {
        against_reference(suite, case, &launch, &weights, &inputs, &expected);
    }
    let Launch { prologue, products, epilogue, .. } = &launch;
    let cuts = [prologue.start..epilogue.end, prologue.start..products.end, products.start..epilogue.end];
    let mut cuts: Vec<Range<usize>> = cuts.into_iter().chain([products.clone()]).collect();
    cuts.dedup();
    let ids: Vec<OpId> = launch.graph.op_ids().collect();
    let fused = cuts.into_iter().filter(|cut| cut.len() > 1);
    let fused = fused.filter_map(|cut| grouped(&launch.graph, &ids[cut], suite.device.target()));
    let fused: Vec<Graph> = fused.take(suite.effort.pick(1, 4)).collect();
    let record = random.random_range(0..fused.len().max(1));
    for (index, graph) in fused.iter().enumerate() {
        let setup = Setup { record: index == record, ..setup };
        let found = suite.run(graph, &weights, setup, steps).remove(0);
        suite.same(&found, &expected, || format!("fused: {case:?}, {setup:?}\n{graph}"));
    }
    alone(suite, random, case, fused.first().unwrap_or(&launch.graph), (&weights, &inputs, &expected));
}

/// Rows by themselves have the bits that they have in company.
fn alone<S: Subject>(
    suite: &mut Suite<'_, S>,
    random: &mut ChaCha8Rng,
    case: &Case,
    graph: &Graph,
    (weights, inputs, expected): (&Weights, &StepInputs, &[f32]),
) {
    let mut runner = suite.runner(graph, weights, Setup { block_size: 16, ..Setup::default() });
    // What they attend to.
    let again = runner.step(inputs);
    suite.same(&again, expected, || format!("in company: {case:?}\n{graph}"));
    let row = random.random_range(0..case.rows);
    let mut single = inputs.clone();
    for list in [&mut single.token_ids, &mut single.positions, &mut single.slots, &mut single.token_sequences] {
        *list = vec![list[row]];
    }
    single.logit_rows = vec![0];
    let found = runner.step(&single);
    suite.report.steps += 2;
    let widths = graph.outputs().iter().map(|output| graph.tensor_type(*output).unwrap().width().unwrap());
    let (mut begin, mut expected_row) = (0, Vec::new());
    for width in widths {
        expected_row.extend(&expected[begin + row * width..][..width]);
        begin += case.rows * width;
    }
    suite.same(&found, &expected_row, || format!("row {row} alone: {case:?}\n{graph}"));
}

/// Checks products whose input is exact, and that nothing follows, against the reference.
#[allow(clippy::unreachable, reason = "the range names products alone")]
fn against_reference<S: Subject>(
    suite: &mut Suite<'_, S>,
    case: &Case,
    launch: &Launch,
    weights: &Weights,
    inputs: &StepInputs,
    found: &[f32],
) {
    if case.epilogue != Epilogue::Nothing {
        return;
    }
    let graph = &launch.graph;
    let expected = reference(graph, weights, inputs);
    let evaluation = evaluate(graph, weights, inputs, &mut [], 1).unwrap();
    let allowed = suite.subject.sum_tolerance(case.operands, case.inner);
    let mut tolerances = Vec::with_capacity(found.len());
    for op in &graph.ops()[launch.products.clone()] {
        let OpKind::Linear { scale, .. } = op.kind else { unreachable!("a product") };
        let x = evaluation.tensor(op.inputs[0]).unwrap();
        let weight = weights.weight(&graph.value(op.inputs[1]).name).unwrap();
        let weight = numerics::decode(weight.dtype, weight.bytes);
        for row in x.chunks_exact(case.inner) {
            for column in weight.chunks_exact(case.inner) {
                let terms = row.iter().zip(column).map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs());
                tolerances.push(allowed * terms.sum::<f64>() * f64::from(scale.unwrap_or(1.0)));
            }
        }
    }
    // Where both sides of a tie are near, rounding makes it a whole unit in the last place.
    let rounding =
        |index: usize| if case.to == DType::F32 { 0.0 } else { 2.0 * unit(case.to) * f64::from(expected[index]).abs() };
    let tolerance = |index: usize| tolerances[index] + rounding(index) + 1e-30;
    suite.near(found, &expected, tolerance, || format!("{case:?}\n{graph}"));
}
