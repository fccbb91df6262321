//! Row operations one by one against the reference evaluator.

use allotrope_graph::{DType, Dim, Input, OpKind, ValueId, numerics};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::batches::plain_batch;
use super::graphs::{Builder, grouped};
use super::runner::Setup;
use super::suite::{Suite, reference, unit};
use super::{Report, Subject, Weights};
use crate::device::Device;

/// The width of rows, and how they are cut: `head_dim` is even and divides the width where that is even, `parts` divides it.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    head_dim: usize,
    parts: usize,
}

const fn shape(width: usize, head_dim: usize, parts: usize) -> Shape {
    Shape { width, head_dim, parts }
}

const SMALL: &[Shape] = &[shape(6, 6, 3), shape(15, 0, 3), shape(48, 8, 3), shape(192, 64, 3)];
/// Few rows of these.
const WIDE: &[Shape] = &[shape(1025, 0, 5), shape(2048, 128, 4)];
const FULL: &[Shape] =
    &[shape(1, 0, 1), shape(18, 6, 3), shape(64, 16, 4), shape(222, 74, 6), shape(2056, 8, 257), shape(6144, 64, 3)];

/// Pushes an operation with the operands it needs; `None` where there is no such operation on rows of the shape.
type Build = fn(&mut Builder, ValueId, ValueId, Shape) -> Option<ValueId>;

/// Row operations with the error that they may have against the reference, in [units](unit) of the result's type.
const ROW_OPERATIONS: [(&str, Build, f64); 21] = [
    ("add", |b, x, y, _| Some(b.push("op", OpKind::Add, &[x, y])), 0.0),
    ("mul", |b, x, y, _| Some(b.push("op", OpKind::Mul, &[x, y])), 0.0),
    (
        "add_vector",
        |b, x, _, shape| {
            let bias = b.vector("bias", b.dtype(x), shape.width);
            Some(b.push("op", OpKind::Add, &[x, bias]))
        },
        0.0,
    ),
    ("silu", |b, x, _, _| Some(b.push("op", OpKind::Silu, &[x])), 3.0),
    ("rms_norm", |b, x, _, _| Some(b.norm("op", x, 1e-5)), 6.0),
    ("quantize", |b, x, _, _| Some(b.push("op", OpKind::Quantize { scale: 0.003 }, &[x])), 0.0),
    ("cast", |b, x, _, _| Some(b.push("op", OpKind::Cast { to: DType::F16 }, &[x])), 0.0),
    (
        "rope",
        |b, x, _, shape| {
            (shape.head_dim > 0).then(|| {
                let angles = b.angles("angles", shape.head_dim);
                b.push("op", OpKind::Rope { heads: shape.width / shape.head_dim }, &[x, angles])
            })
        },
        0.0,
    ),
    ("sub", |b, x, y, _| Some(b.push("op", OpKind::Sub, &[x, y])), 0.0),
    ("sub of itself", |b, x, _, _| Some(b.push("op", OpKind::Sub, &[x, x])), 0.0),
    ("mul_scalar", |b, x, _, _| Some(b.push("op", OpKind::MulScalar { factor: -0.37 }, &[x])), 0.0),
    ("add_scalar", |b, x, _, _| Some(b.push("op", OpKind::AddScalar { term: 1.7 }, &[x])), 0.0),
    ("head_rms_norm", |b, x, _, shape| Some(b.head_norm("op", x, shape.parts)), 6.0),
    (
        "rms_norm of add_scalar",
        |b, x, _, _| {
            let sum = b.push("sum", OpKind::AddScalar { term: 3.0 }, &[x]);
            Some(b.norm("op", sum, 1e-5))
        },
        6.0,
    ),
    ("reshape", |b, x, _, shape| Some(b.shaped("op", x, shape.parts)), 0.0),
    ("slice", |b, x, _, shape| (shape.width > 5).then(|| b.slice("op", x, 1, 1..shape.width - 1)), 0.0),
    ("slice within", slice_within, 0.0),
    ("concat", |b, x, y, _| Some(b.push("op", OpKind::Concat { axis: 1 }, &[x, y, x])), 0.0),
    (
        "concat within",
        |b, x, y, shape| {
            let (x, y) = (b.shaped("x3", x, shape.parts), b.shaped("y3", y, shape.parts));
            let last = shape.width / shape.parts - 1;
            let part = b.slice("part", y, 2, last..last + 1);
            Some(b.push("op", OpKind::Concat { axis: 2 }, &[part, x, part]))
        },
        0.0,
    ),
    (
        "transpose",
        |b, x, _, shape| {
            let x = b.shaped("shaped", x, shape.parts);
            let turned = b.push("turned", OpKind::Transpose { permutation: vec![0, 2, 1] }, &[x]);
            let twice = b.push("twice", OpKind::Add, &[turned, turned]);
            let x = b.shaped("again", twice, shape.width);
            Some(b.push("op", OpKind::Transpose { permutation: vec![0, 1, 2] }, &[x]))
        },
        0.0,
    ),
    (
        "numbers by row",
        |b, x, y, shape| {
            let column = shape.width / 2;
            let [x, y] = [("x1", x), ("y1", y)].map(|(name, value)| {
                let column = b.slice(&format!("{name}.column"), value, 1, column..column + 1);
                b.push(name, OpKind::Reshape { shape: vec![Dim::Tokens] }, &[column])
            });
            Some(b.push("op", OpKind::Add, &[x, y]))
        },
        0.0,
    ),
];

fn slice_within(b: &mut Builder, x: ValueId, _: ValueId, shape: Shape) -> Option<ValueId> {
    let inner = shape.width / shape.parts;
    if shape.parts < 2 || inner < 2 {
        return None;
    }
    let x = b.shaped("shaped", x, shape.parts);
    let middle = b.slice("middle", x, 1, 1..2);
    let last = b.slice("last", x, 2, 1..2);
    let middle = b.push("middle.sum", OpKind::Add, &[middle, middle]);
    let wide = b.slice("wide", middle, 2, 0..1);
    Some(b.push("op", OpKind::Concat { axis: 1 }, &[last, wide]))
}

/// A graph of operations over rows of embeddings, and for each output what it is and how far from the reference it may be.
fn graph_of(dtype: DType, shape: Shape, ops: &[(&'static str, Build, f64)]) -> (Builder, Vec<(&'static str, f64)>) {
    let mut b = Builder::default();
    let x = b.rows("a", dtype, shape.width, Input::TokenIds);
    let y = b.rows("b", dtype, shape.width, Input::Positions);
    let mut outputs = Vec::new();
    for (name, build, units) in ops {
        b.prefix = format!("{}.", name.replace(' ', "_"));
        if let Some(result) = build(&mut b, x, y, shape) {
            b.output(result);
            outputs.push((*name, *units));
        }
    }
    (b, outputs)
}

/// Every row operation by itself, at odd sizes and at those that vectors divide: against the reference, within a few steps of
/// rounding where it is not exact; with what is not a number, or infinite; and the movements of every `f8e4m3` code.
pub fn row_operations<S: Subject>(subject: &S, random: &mut ChaCha8Rng) -> Report {
    let mut suite = Suite::new(subject);
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (shapes, rows) in [(SMALL, 7), (WIDE, suite.effort.pick(2, 7)), (suite.effort.pick(&[], FULL), 7)] {
            shapes.iter().for_each(|shape| agree(&mut suite, random, dtype, *shape, rows));
        }
    }
    special(&mut suite, random);
    angles(&mut suite, random);
    heads_are_rows(&mut suite, random);
    heads_are_apart(&mut suite, random);
    codes(&mut suite, random);
    suite.finish("row operations")
}

/// All operations at one shape: in graphs of their own, or, where time is short, in one.
fn agree<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng, dtype: DType, shape: Shape, rows: usize) {
    let together = if shape.width > 256 { ROW_OPERATIONS.len() } else { suite.effort.pick(ROW_OPERATIONS.len(), 1) };
    for ops in ROW_OPERATIONS.chunks(together) {
        let (Builder { graph, .. }, outputs) = graph_of(dtype, shape, ops);
        if outputs.is_empty() {
            continue;
        }
        let weights = Weights::random(random, &graph);
        let inputs = plain_batch(random, rows);
        let expected = reference(&graph, &weights, &inputs);
        let variant = random.random_range(0..suite.subject.variants());
        let setup = Setup { variant, ..Setup::default() };
        let found = suite.run(&graph, &weights, setup, std::slice::from_ref(&inputs)).remove(0);
        let mut begin = 0;
        for (output, (name, units)) in graph.outputs().iter().zip(outputs) {
            let end = begin + graph.tensor_type(*output).unwrap().elements(&inputs.sizes()).unwrap();
            let (found, expected) = (&found[begin..end], &expected[begin..end]);
            let tolerance = |index: usize| units * unit(dtype) * f64::from(expected[index]).abs() + 1e-7;
            let what = format!("{name} of {dtype}, {} wide", shape.width);
            match units {
                0.0 => suite.exact(found, expected, || what.clone()),
                _ => suite.near(found, expected, tolerance, || what.clone()),
            }
            suite.report.digest(&what, found);
            begin = end;
        }
        assert_eq!(begin, found.len());
    }
}

/// What is not a number or infinite stays so, and spoils nothing else.
fn special<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    for ops in ROW_OPERATIONS.chunks(suite.effort.pick(ROW_OPERATIONS.len(), 1)) {
        let (Builder { graph, .. }, _) = graph_of(DType::Bf16, shape(48, 6, 3), ops);
        let mut weights = Weights::random(random, &graph);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            weights.set("a.table", 3 * 48 + 5, special);
            let mut inputs = plain_batch(random, 2);
            inputs.token_ids = vec![3, 4];
            let expected = reference(&graph, &weights, &inputs);
            let found = suite.run(&graph, &weights, Setup::default(), std::slice::from_ref(&inputs)).remove(0);
            for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                let same = f.is_nan() == e.is_nan() && f.is_infinite() == e.is_infinite();
                assert!(same, "{}: {special}: element {index}: {f}, expected {e}\n{graph}", suite.subject.name());
            }
            suite.report.elements += found.len();
        }
    }
}

/// Angles are the reference's at long positions too.
fn angles<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let mut b = Builder::default();
    let positions = b.graph.input(Input::Positions);
    let frequencies: Vec<f32> = (0..32).map(|i| 500_000f32.powf(-(i as f32) / 32.0)).collect();
    let kind = OpKind::RopeAngles { inverse_frequencies: frequencies.clone().into(), attention_scaling: 1.0 };
    let output = b.push("angles", kind, &[positions]);
    b.graph.add_output(output);
    let mut inputs = plain_batch(random, 5);
    inputs.positions = vec![0, 1, 4095, 131_071, random.random_range(0..131_072)];
    let expected = inputs.positions.iter().flat_map(|position| {
        let phases = frequencies.iter().map(move |frequency| f64::from(*position as f32 * frequency));
        phases.clone().map(f64::cos).chain(phases.map(f64::sin)).map(|value| value as f32)
    });
    let expected: Vec<f32> = expected.collect();
    let found = suite.run(&b.graph, &Weights::default(), Setup::default(), std::slice::from_ref(&inputs)).remove(0);
    suite.same(&found, &expected, || format!("angles at {:?}", inputs.positions));
}

/// A head is normalized as a row of its width is.
fn heads_are_rows<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let shapes = [(1, 1), (5, 1), (7, 3), (2, 16), (3, 17), (4, 40), (2, 64), (3, 100), (2, 31), (2, 128)];
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (heads, width) in shapes {
            let mut b = Builder::default();
            let x = b.rows("x", dtype, heads * width, Input::TokenIds);
            let weight = b.vector("norm", dtype, width);
            let normed = b.push("normed", OpKind::HeadRmsNorm { heads, epsilon: 1e-6 }, &[x, weight]);
            let row = |head: usize| {
                let row = b.slice(&format!("row.{head}"), x, 1, head * width..(head + 1) * width);
                b.push(&format!("row.{head}.normed"), OpKind::RmsNorm { epsilon: 1e-6 }, &[row, weight])
            };
            let rows: Vec<ValueId> = (0..heads).map(row).collect();
            let rows = b.push("rows", OpKind::Concat { axis: 1 }, &rows);
            b.output(normed);
            b.output(rows);
            let weights = Weights::random(random, &b.graph);
            let inputs = [plain_batch(random, suite.effort.pick(3, 9))];
            let found = suite.run(&b.graph, &weights, Setup::default(), &inputs).remove(0);
            let (by_head, by_row) = found.split_at(found.len() / 2);
            if !suite.subject.heads_are_rows() {
                continue;
            }
            suite.same(by_head, by_row, || format!("{dtype} norms of {heads} heads of {width}"));
        }
    }
}

/// A norm of one head does not spoil another.
fn heads_are_apart<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let mut b = Builder::default();
    let x = b.rows("a", DType::F32, 18, Input::TokenIds);
    let normed = b.head_norm("normed", x, 3);
    b.output(normed);
    let mut weights = Weights::random(random, &b.graph);
    weights.set("a.table", 3 * 18 + 7, f32::NAN);
    let mut inputs = plain_batch(random, 1);
    inputs.token_ids = vec![3];
    let found = suite.run(&b.graph, &weights, Setup::default(), std::slice::from_ref(&inputs)).remove(0);
    let nan: Vec<usize> = (0..18).filter(|index| found[*index].is_nan()).collect();
    assert_eq!(nan, [6, 7, 8, 9, 10, 11], "{}", suite.subject.name());
    suite.report.elements += found.len();
}

/// Every `f8e4m3` code moves as it is, through memory and within a launch.
fn codes<S: Subject>(suite: &mut Suite<'_, S>, random: &mut ChaCha8Rng) {
    let mut b = Builder::default();
    let x = b.rows("a", DType::F8E4M3, 18, Input::TokenIds);
    let y = b.rows("b", DType::F8E4M3, 18, Input::Positions);
    let shaped = b.shaped("shaped", x, 3);
    let turned = b.push("turned", OpKind::Transpose { permutation: vec![0, 2, 1] }, &[shaped]);
    let flat = b.push("flat", OpKind::Reshape { shape: vec![Dim::Tokens, Dim::Static(18)] }, &[turned]);
    let both = b.push("both", OpKind::Concat { axis: 1 }, &[flat, y, flat]);
    let sequences = b.graph.input(Input::TokenSequences);
    let chosen = b.push("chosen", OpKind::SelectRows, &[both, sequences]);
    let part = b.slice("part", chosen, 1, 5..49);
    b.output(part);
    let mut weights = Weights::random(random, &b.graph);
    for code in 0..=255u8 {
        weights.set("a.table", usize::from(code), numerics::e4m3_to_f32(code));
    }
    let mut inputs = plain_batch(random, 20);
    inputs.token_ids = (0..20).collect();
    inputs.token_sequences = (0..20).rev().collect();
    let expected = reference(&b.graph, &weights, &inputs);
    let ops: Vec<_> = b.graph.op_ids().collect();
    // All in one launch, or what is before and what is after the choice of rows: at least that.
    let cuts: [&[_]; 3] = [&ops, &ops[..6], &ops[6..]];
    let fused: Vec<_> = cuts.iter().filter_map(|ops| grouped(&b.graph, ops, suite.device.target())).collect();
    for graph in [&b.graph].into_iter().chain(&fused) {
        let found = suite.run(graph, &weights, Setup::default(), std::slice::from_ref(&inputs)).remove(0);
        suite.exact(&found, &expected, || format!("moved codes\n{graph}"));
    }
}
