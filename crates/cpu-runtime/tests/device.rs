//! The CPU device against the reference evaluator, and against itself: whatever the path, the threads, the batch, the
//! weight layout and the groups, the bits are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod support;

use allotrope_cpu_runtime::Isa;
use allotrope_graph::{DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, StepInputs, TensorType, ValueId};
use rand::RngExt;
use support::*;

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
const ROW_OPS: [(&str, Build, f64); 8] = [
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
];

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
                let mut bits: Option<Vec<u32>> = None;
                for isa in Isa::available() {
                    let found = Runner::new(&graph, &weights, isa, 2, false).step(&inputs);
                    let what = format!("{name} {dtype} {width} {isa}");
                    let unit = match dtype {
                        DType::Bf16 => 2f64.powi(-8),
                        DType::F16 => 2f64.powi(-11),
                        _ => 2f64.powi(-23),
                    };
                    for (index, (f, e)) in found.iter().zip(&expected).enumerate() {
                        let (f, e) = (f64::from(*f), f64::from(*e));
                        let tolerance = ulps * unit * e.abs() + if ulps > 0.0 { 1e-7 } else { 0.0 };
                        assert!((f - e).abs() <= tolerance, "{what}: element {index} is {f}, expected {e}");
                    }
                    let found: Vec<u32> = found.iter().map(|value| value.to_bits()).collect();
                    assert!(
                        *bits.get_or_insert_with(|| found.clone()) == found,
                        "{what}: other bits than another path"
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
fn attention_agrees_with_the_reference_over_several_steps() {
    let mut random = random();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for (heads, kv_heads, head_dim, block_size) in [(4, 2, 16, 4), (3, 1, 10, 5), (8, 8, 64, 16), (6, 2, 80, 16)] {
            let graph = attention_graph(dtype, heads, kv_heads, head_dim);
            let weights = Weights::random(&mut random, &graph);
            let steps = conversation(&mut random, block_size);
            let mut caches = reference_caches(&graph, block_size);
            let expected: Vec<_> =
                steps.iter().map(|step| reference_step(&graph, &weights, step, &mut caches, block_size)).collect();
            for isa in Isa::available() {
                let mut runner = Runner::with_blocks(&graph, &weights, isa, 2, false, block_size);
                for (number, (step, expected)) in steps.iter().zip(&expected).enumerate() {
                    let found = runner.step(step);
                    let unit = match dtype {
                        DType::Bf16 => 2f64.powi(-7),
                        DType::F16 => 2f64.powi(-10),
                        _ => 2f64.powi(-21),
                    };
                    for (index, (f, e)) in found.iter().zip(expected).enumerate() {
                        let padding = step.positions[index / (heads * head_dim)] < 0;
                        let (f, e) = (f64::from(*f), if padding { 0.0 } else { f64::from(*e) });
                        let tolerance = if padding { 0.0 } else { unit * e.abs() + 3e-6 };
                        assert!(
                            (f - e).abs() <= tolerance,
                            "{dtype} {heads}/{kv_heads}×{head_dim} {isa} step {number} element {index}: {f}, expected {e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn attention_of_a_token_does_not_depend_on_its_batch_or_the_threads() {
    let mut random = random();
    for (heads, kv_heads, head_dim) in [(8, 2, 64), (3, 3, 18)] {
        let graph = attention_graph(DType::Bf16, heads, kv_heads, head_dim);
        let weights = Weights::random(&mut random, &graph);
        let tokens = 61;
        let ids: Vec<i32> = (0..tokens).map(|_| random.random_range(0..VOCABULARY as i32)).collect();
        let step = |range: std::ops::Range<usize>| sequence_batch(&ids, range, 16);
        for isa in Isa::available() {
            let whole = bits(&Runner::with_blocks(&graph, &weights, isa, 1, false, 16).step(&step(0..tokens)));
            for threads in [2, 3] {
                let again =
                    bits(&Runner::with_blocks(&graph, &weights, isa, threads, false, 16).step(&step(0..tokens)));
                assert!(again == whole, "{isa} {threads} threads");
            }
            let mut runner = Runner::with_blocks(&graph, &weights, isa, 2, false, 16);
            let mut alone = Vec::new();
            let mut begin = 0;
            while begin < tokens {
                let end = (begin + random.random_range(1..9)).min(tokens);
                alone.extend(bits(&runner.step(&step(begin..end))));
                begin = end;
            }
            assert!(alone == whole, "{isa}: in chunks");
        }
    }
}

#[test]
fn a_decoder_has_the_same_bits_however_it_runs() {
    let mut random = random();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for quantized in [false, true] {
            let graph = decoder(dtype, quantized);
            let weights = Weights::random(&mut random, &graph);
            let steps = conversation(&mut random, 4);
            let groupings = groupings(&mut random, &graph);
            for isa in Isa::available() {
                let mut expected: Option<Vec<Vec<u32>>> = None;
                for (name, grouped) in &groupings {
                    for (threads, repack, record) in
                        [(1, false, false), (2, true, false), (3, false, true), (2, true, true)]
                    {
                        let mut runner = Runner::with_blocks(grouped, &weights, isa, threads, repack, 4);
                        runner.record = record;
                        let found: Vec<_> = steps.iter().map(|step| bits(&runner.step(step))).collect();
                        let same = *expected.get_or_insert_with(|| found.clone()) == found;
                        assert!(
                            same,
                            "{dtype} quantized={quantized} {isa} {name} {threads} threads, repack={repack}, record={record}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_decoder_agrees_with_the_reference() {
    let mut random = random();
    for dtype in [DType::F32, DType::Bf16] {
        let graph = decoder(dtype, false);
        let weights = Weights::random(&mut random, &graph);
        let steps = conversation(&mut random, 4);
        let mut caches = reference_caches(&graph, 4);
        let mut runner = Runner::with_blocks(&graph, &weights, Isa::detect(), 2, true, 4);
        for step in &steps {
            let expected = reference_step(&graph, &weights, step, &mut caches, 4);
            let found = runner.step(step);
            let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
            let tolerance = largest * if dtype == DType::F32 { 1e-4 } else { 0.1 };
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() <= tolerance, "{dtype}: {f}, expected {e} within {tolerance}");
            }
        }
    }
}

#[test]
fn misuse_is_an_error_and_not_a_crash() {
    use allotrope_runtime::device::Device;
    let mut random = random();
    let graph = decoder(DType::Bf16, false);
    let weights = Weights::random(&mut random, &graph);
    let mut device = allotrope_cpu_runtime::CpuDevice::new(1, Isa::detect()).unwrap();
    assert!(device.prepare(&graph, 0).is_err(), "before weights");
    let mut runner = Runner::new(&graph, &weights, Isa::detect(), 1, false);
    let mut other = Runner::new(&graph, &weights, Isa::detect(), 1, false);
    let sizes = plain_batch(&mut random, 2).sizes();
    let kernel = runner.device.prepare(&graph, 0).unwrap();
    assert!(other.device.launch(&kernel, &sizes).is_err(), "a kernel of another device");
    assert!(runner.device.prepare(&graph, graph.groups().len()).is_err());
    let mut large = sizes;
    large.tokens = 1 << 20;
    assert!(runner.device.launch(&kernel, &large).is_err(), "beyond the limits");
    let recording = runner.device.record(std::slice::from_ref(&kernel), &sizes).unwrap();
    large.tokens = sizes.tokens + 1;
    assert!(runner.device.replay(&recording, &large).is_err(), "beyond the recording");
    let mut long = plain_batch(&mut random, 2);
    long.token_ids = vec![0; 1 << 20];
    assert!(runner.device.write_inputs(&long).is_err());
    // Indices that nobody validated lead nowhere.
    let mut hostile = plain_batch(&mut random, 2);
    hostile.token_ids = vec![i32::MAX, -5];
    hostile.slots = vec![i32::MAX, i32::MIN];
    hostile.positions = vec![i32::MAX, 3];
    hostile.token_sequences = vec![0, 77];
    hostile.block_tables.fill(i32::MAX);
    hostile.logit_rows = vec![i32::MAX, -1];
    runner.device.write_inputs(&hostile).unwrap();
    for group in 0..graph.groups().len() {
        let kernel = runner.device.prepare(&graph, group).unwrap();
        runner.device.launch(&kernel, &sizes).unwrap();
    }
}

#[test]
fn weights_that_differ_from_the_graph_are_refused_by_name() {
    let mut random = random();
    let graph = decoder(DType::Bf16, false);
    for change in [Change::Missing, Change::Shape, Change::Type, Change::Truncated] {
        let mut weights = Weights::random(&mut random, &graph);
        weights.change("layers.0.k_proj", change);
        let error = Runner::try_new(&graph, &weights, Isa::detect(), 1, true, 4).err().expect("an error").to_string();
        assert!(error.contains("layers.0.k_proj"), "{error}");
    }
}

#[test]
fn the_target_refuses_what_mixes_row_counts() {
    use allotrope_cpu_runtime::CpuTarget;
    use allotrope_graph::Target;
    let graph = decoder(DType::Bf16, false);
    let all: Vec<OpId> = (0..graph.ops().len()).map(|index| OpId(index as u32)).collect();
    assert!(CpuTarget.accepts(&graph, &all).is_err());
    for op in &all {
        CpuTarget.accepts(&graph, &[*op]).unwrap();
    }
    let cache = KvCacheType { dtype: DType::F8E4M3, kv_heads: 1, head_dim: 8 };
    let mut graph = Graph::new();
    let state = graph.state(0, cache);
    let ids = graph.input(Input::TokenIds);
    let table = graph.weight("t", TensorType::new(DType::F8E4M3, [Dim::Static(9), Dim::Static(8)]));
    let q = graph.push("q", OpKind::Embedding, &[table, ids]).unwrap();
    let (positions, sequences) = (graph.input(Input::Positions), graph.input(Input::TokenSequences));
    let tables = graph.input(Input::BlockTables);
    let kind = OpKind::Attention { heads: 1, scale: 1.0 };
    graph.push("attention", kind, &[q, state, positions, sequences, tables]).unwrap();
    let reason = CpuTarget.accepts(&graph, &[OpId(1)]).unwrap_err();
    assert!(reason.contains("KV cache"), "{reason}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn reference(graph: &Graph, weights: &Weights, inputs: &StepInputs) -> Vec<f32> {
    reference_step(graph, weights, inputs, &mut [], 1)
}
