//! The CPU device against the reference evaluator, and against itself: whatever the path, the threads, the batch, the
//! weight layout and the groups, the bits are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod chains;
mod conformance;
mod describe;
mod in_place;
mod row_ops;
mod support;
mod target;

use allotrope_cpu_runtime::Isa;
use allotrope_graph::DType;
use allotrope_runtime::Recorder;
use rand::RngExt;
use support::*;

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
    let recording = runner.device.recorder().unwrap().record(std::slice::from_ref(&kernel), &sizes).unwrap();
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
