//! Row operations one by one: against the reference evaluator, and the same bits on every path.

use crate::support::*;
use allotrope_cpu_runtime::Isa;
use allotrope_graph::{DType, Dim, Graph, Input, OpKind, TensorType, ValueId};
use rand::RngExt;

/// A graph of one op over rows of embeddings, with the result cast to f32.
fn one_op(dtype: DType, width: usize, build: impl Fn(&mut Graph, ValueId, ValueId) -> ValueId) -> Graph {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let positions = graph.input(Input::Positions);
    let table = graph.weight("a", TensorType::new(dtype, [Dim::Static(VOCABULARY), Dim::Static(width)]));
    let other = graph.weight("b", TensorType::new(dtype, [Dim::Static(VOCABULARY), Dim::Static(width)]));
    let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
    let y = graph.push("y", OpKind::Embedding, &[other, positions]).unwrap();
    let result = build(&mut graph, x, y);
    let output = graph.push("output", OpKind::Cast { to: DType::F32 }, &[result]).unwrap();
    graph.add_output(output);
    graph
}

fn vector(graph: &mut Graph, name: &str, dtype: DType, width: usize) -> ValueId {
    graph.weight(name, TensorType::vector(dtype, Dim::Static(width)))
}

type Build = fn(&mut Graph, ValueId, ValueId) -> ValueId;

/// Row ops with the error that they may have against the reference: units in the last place of the result's type.
const ROW_OPS: [(&str, Build, f64); 21] = [
    ("add", |g, x, y| g.push("op", OpKind::Add, &[x, y]).unwrap(), 0.0),
    ("mul", |g, x, y| g.push("op", OpKind::Mul, &[x, y]).unwrap(), 0.0),
    (
        "add_vector",
        |g, x, _| {
            let tensor = g.tensor_type(x).unwrap().clone();
            let bias = vector(g, "bias", tensor.dtype, tensor.width().unwrap());
            g.push("op", OpKind::Add, &[x, bias]).unwrap()
        },
        0.0,
    ),
    ("silu", |g, x, _| g.push("op", OpKind::Silu, &[x]).unwrap(), 3.0),
    (
        "rms_norm",
        |g, x, _| {
            let tensor = g.tensor_type(x).unwrap().clone();
            let weight = vector(g, "norm", tensor.dtype, tensor.width().unwrap());
            g.push("op", OpKind::RmsNorm { epsilon: 1e-5 }, &[x, weight]).unwrap()
        },
        6.0,
    ),
    ("quantize", |g, x, _| g.push("op", OpKind::Quantize { scale: 0.003 }, &[x]).unwrap(), 0.0),
    ("cast", |g, x, _| g.push("op", OpKind::Cast { to: DType::F16 }, &[x]).unwrap(), 0.0),
    (
        "rope",
        |g, x, _| {
            let positions = g.input(Input::Positions);
            let frequencies: Vec<f32> = vec![1.0, 0.31, 0.011];
            let kind = OpKind::RopeAngles { inverse_frequencies: frequencies.into(), attention_scaling: 1.1 };
            let angles = g.push("angles", kind, &[positions]).unwrap();
            let heads = g.tensor_type(x).unwrap().width().unwrap() / 6;
            g.push("op", OpKind::Rope { heads }, &[x, angles]).unwrap()
        },
        0.0,
    ),
    ("sub", |g, x, y| g.push("op", OpKind::Sub, &[x, y]).unwrap(), 0.0),
    ("sub of itself", |g, x, _| g.push("op", OpKind::Sub, &[x, x]).unwrap(), 0.0),
    ("mul_scalar", |g, x, _| g.push("op", OpKind::MulScalar { factor: -0.37 }, &[x]).unwrap(), 0.0),
    ("add_scalar", |g, x, _| g.push("op", OpKind::AddScalar { term: 1.7 }, &[x]).unwrap(), 0.0),
    ("head_rms_norm", |g, x, _| norm_of_heads(g, x, 3), 6.0),
    (
        "rms_norm of add_scalar",
        |g, x, _| {
            let sum = g.push("sum", OpKind::AddScalar { term: 3.0 }, &[x]).unwrap();
            norm_of_heads(g, sum, 1)
        },
        6.0,
    ),
    ("reshape", |g, x, _| shaped(g, "op", x, 3), 0.0),
    ("slice", |g, x, _| slice(g, "op", x, 1, 1..5), 0.0),
    (
        "slice within",
        |g, x, _| {
            let x = shaped(g, "shaped", x, 3);
            let middle = slice(g, "middle", x, 1, 1..2);
            let last = slice(g, "last", x, 2, 1..2);
            let middle = g.push("middle.sum", OpKind::Add, &[middle, middle]).unwrap();
            let wide = slice(g, "wide", middle, 2, 0..1);
            g.push("op", OpKind::Concat { axis: 1 }, &[last, wide]).unwrap()
        },
        0.0,
    ),
    ("concat", |g, x, y| g.push("op", OpKind::Concat { axis: 1 }, &[x, y, x]).unwrap(), 0.0),
    (
        "concat within",
        |g, x, y| {
            let (x, y) = (shaped(g, "x3", x, 3), shaped(g, "y3", y, 3));
            let part = slice(g, "part", y, 2, 1..2);
            g.push("op", OpKind::Concat { axis: 2 }, &[part, x, part]).unwrap()
        },
        0.0,
    ),
    (
        "transpose",
        |g, x, _| {
            let x = shaped(g, "shaped", x, 3);
            let turned = g.push("turned", OpKind::Transpose { permutation: vec![0, 2, 1] }, &[x]).unwrap();
            let twice = g.push("twice", OpKind::Add, &[turned, turned]).unwrap();
            let x = shaped(g, "again", twice, 6);
            g.push("op", OpKind::Transpose { permutation: vec![0, 1, 2] }, &[x]).unwrap()
        },
        0.0,
    ),
    (
        "numbers by row",
        |g, x, y| {
            let [x, y] = [("x1", x), ("y1", y)].map(|(name, value)| {
                let column = slice(g, &format!("{name}.column"), value, 1, 2..3);
                g.push(name, OpKind::Reshape { shape: vec![Dim::Tokens] }, &[column]).unwrap()
            });
            g.push("op", OpKind::Add, &[x, y]).unwrap()
        },
        0.0,
    ),
];

/// Norms of the heads of rows, with a weight of their own.
fn norm_of_heads(graph: &mut Graph, x: ValueId, heads: usize) -> ValueId {
    let tensor = graph.tensor_type(x).unwrap().clone();
    let weight = vector(graph, "norm", tensor.dtype, tensor.width().unwrap() / heads);
    let kind = match heads {
        1 => OpKind::RmsNorm { epsilon: 1e-5 },
        _ => OpKind::HeadRmsNorm { heads, epsilon: 1e-5 },
    };
    graph.push("op", kind, &[x, weight]).unwrap()
}

/// Rows as matrices of `rows` rows.
fn shaped(graph: &mut Graph, name: &str, x: ValueId, rows: usize) -> ValueId {
    let width = graph.tensor_type(x).unwrap().width().unwrap();
    let shape = vec![Dim::Tokens, Dim::Static(rows), Dim::Static(width / rows)];
    graph.push(name, OpKind::Reshape { shape }, &[x]).unwrap()
}

fn slice(graph: &mut Graph, name: &str, x: ValueId, axis: usize, range: std::ops::Range<usize>) -> ValueId {
    graph.push(name, OpKind::Slice { axis, start: range.start, end: range.end }, &[x]).unwrap()
}

#[test]
fn row_ops_agree_with_the_reference_and_across_paths() {
    let mut random = random();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for width in [6, 18, 48, 222] {
            for (name, build, ulps) in ROW_OPS {
                let graph = one_op(dtype, width, build);
                let weights = Weights::random(&mut random, &graph);
                let inputs = plain_batch(&mut random, 7);
                let expected = reference(&graph, &weights, &inputs);
                let mut same: Option<Vec<u32>> = None;
                for isa in Isa::available() {
                    let found = Runner::new(&graph, &weights, isa, 2, false).step(&inputs);
                    let what = format!("{name} {dtype} {width} {isa}");
                    assert_eq!(found.len(), expected.len(), "{what}");
                    for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                        let (f, e) = (f64::from(*f), f64::from(*e));
                        let tolerance = ulps * unit(dtype) * e.abs() + if ulps > 0.0 { 1e-7 } else { 0.0 };
                        assert!((f - e).abs() <= tolerance, "{what}: element {index} is {f}, expected {e}");
                    }
                    let found = bits(&found);
                    assert!(
                        *same.get_or_insert_with(|| found.clone()) == found,
                        "{what}: not the bits of another path"
                    );
                }
            }
        }
    }
}

#[test]
fn angles_are_accurate_at_long_positions() {
    let mut graph = Graph::new();
    let positions = graph.input(Input::Positions);
    let frequencies: Vec<f32> = (0..32).map(|i| 500_000f32.powf(-(i as f32) / 32.0)).collect();
    let kind = OpKind::RopeAngles { inverse_frequencies: frequencies.clone().into(), attention_scaling: 1.0 };
    let output = graph.push("angles", kind, &[positions]).unwrap();
    graph.add_output(output);
    let mut random = random();
    let mut inputs = plain_batch(&mut random, 5);
    inputs.positions = vec![0, 1, 4095, 131_071, random.random_range(0..131_072)];
    let found = Runner::new(&graph, &Weights::default(), Isa::detect(), 2, false).step(&inputs);
    for (row, position) in inputs.positions.iter().enumerate() {
        for (index, frequency) in frequencies.iter().enumerate() {
            let phase = f64::from(*position as f32 * frequency);
            assert_eq!(found[row * 64 + index], phase.cos() as f32);
            assert_eq!(found[row * 64 + 32 + index], phase.sin() as f32);
        }
    }
}

#[test]
fn nan_and_infinity_pass_through_row_ops() {
    let mut random = random();
    for (name, build, _) in ROW_OPS {
        let graph = one_op(DType::Bf16, 48, build);
        let mut weights = Weights::random(&mut random, &graph);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            weights.set("a", 3 * 48 + 5, special);
            let mut inputs = plain_batch(&mut random, 2);
            inputs.token_ids = vec![3, 4];
            let expected = reference(&graph, &weights, &inputs);
            for isa in Isa::available() {
                let found = Runner::new(&graph, &weights, isa, 1, false).step(&inputs);
                for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(f.is_nan(), e.is_nan(), "{name} {special} {isa}: element {index}: {f}, expected {e}");
                    assert_eq!(f.is_infinite(), e.is_infinite(), "{name} {special} {isa}: element {index}: {f}, {e}");
                }
            }
        }
    }
}

#[test]
fn a_head_is_normalized_as_a_row_of_its_width_is() {
    let mut random = random();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (heads, width) in [(1, 1), (5, 1), (7, 3), (2, 16), (3, 17), (4, 40), (2, 64), (3, 100), (2, 31)] {
            let mut graph = Graph::new();
            let ids = graph.input(Input::TokenIds);
            let shape = [Dim::Static(VOCABULARY), Dim::Static(heads * width)];
            let table = graph.weight("table", TensorType::new(dtype, shape));
            let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
            let weight = vector(&mut graph, "norm", dtype, width);
            let kind = OpKind::HeadRmsNorm { heads, epsilon: 1e-6 };
            let normed = graph.push("normed", kind, &[x, weight]).unwrap();
            let rows: Vec<ValueId> = (0..heads)
                .map(|head| {
                    let row = slice(&mut graph, &format!("row.{head}"), x, 1, head * width..(head + 1) * width);
                    let kind = OpKind::RmsNorm { epsilon: 1e-6 };
                    graph.push(format!("row.{head}.normed"), kind, &[row, weight]).unwrap()
                })
                .collect();
            let rows = graph.push("rows", OpKind::Concat { axis: 1 }, &rows).unwrap();
            for value in [normed, rows] {
                let name = format!("{}.output", graph.value(value).name);
                let output = graph.push(name, OpKind::Cast { to: DType::F32 }, &[value]).unwrap();
                graph.add_output(output);
            }
            let weights = Weights::random(&mut random, &graph);
            let inputs = plain_batch(&mut random, 9);
            for isa in Isa::available() {
                let found = bits(&Runner::new(&graph, &weights, isa, 2, false).step(&inputs));
                let (by_head, by_row) = found.split_at(found.len() / 2);
                assert!(by_head == by_row, "{dtype} {heads} heads of {width} on {isa}");
            }
        }
    }
}

#[test]
fn a_norm_of_one_head_does_not_spoil_another() {
    let mut random = random();
    let graph = one_op(DType::F32, 18, |g, x, _| norm_of_heads(g, x, 3));
    let mut weights = Weights::random(&mut random, &graph);
    weights.set("a", 3 * 18 + 7, f32::NAN);
    let mut inputs = plain_batch(&mut random, 1);
    inputs.token_ids = vec![3];
    for isa in Isa::available() {
        let found = Runner::new(&graph, &weights, isa, 1, false).step(&inputs);
        let nan: Vec<usize> = (0..18).filter(|index| found[*index].is_nan()).collect();
        assert_eq!(nan, [6, 7, 8, 9, 10, 11], "{isa}");
    }
}

#[test]
fn every_e4m3_code_moves_as_it_is() {
    let mut random = random();
    // The ops in groups of their own, so that every value goes through memory, and all in one.
    let mut graph = one_op(DType::F8E4M3, 18, |g, x, y| {
        let shaped = shaped(g, "shaped", x, 3);
        let turned = g.push("turned", OpKind::Transpose { permutation: vec![0, 2, 1] }, &[shaped]).unwrap();
        let flat = vec![Dim::Tokens, Dim::Static(18)];
        let flat = g.push("flat", OpKind::Reshape { shape: flat }, &[turned]).unwrap();
        let both = g.push("both", OpKind::Concat { axis: 1 }, &[flat, y, flat]).unwrap();
        let sequences = g.input(Input::TokenSequences);
        let chosen = g.push("chosen", OpKind::SelectRows, &[both, sequences]).unwrap();
        slice(g, "part", chosen, 1, 5..49)
    });
    let mut weights = Weights::random(&mut random, &graph);
    for code in 0..=255u8 {
        weights.set("a", usize::from(code), allotrope_graph::numerics::e4m3_to_f32(code));
    }
    let mut inputs = plain_batch(&mut random, 20);
    inputs.token_ids = (0..20).collect();
    inputs.token_sequences = (0..20).rev().collect();
    let expected = reference(&graph, &weights, &inputs);
    let all: Vec<_> = graph.op_ids().collect();
    for grouped in [false, true] {
        if grouped {
            graph.regroup(&all).unwrap();
        }
        for isa in Isa::available() {
            let found = Runner::new(&graph, &weights, isa, 2, false).step(&inputs);
            for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                let same = f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan());
                assert!(same, "{isa} grouped={grouped}: element {index} is {f}, expected {e}");
            }
        }
    }
}
