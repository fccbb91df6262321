//! Laws of the pipeline on random graphs, and pinned counts on decoders.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use allotrope_config::OptimizationLevel;
use allotrope_graph::memory::plan_memory;
use allotrope_graph::partition::partition;
use allotrope_graph::passes::optimize;
use allotrope_graph::verify::verify;
use allotrope_graph::*;
use common::{Everything, Random, RandomWeights, decoder, passes_of, random_graph, run};
use proptest::prelude::*;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn optimized(mut graph: Graph, level: OptimizationLevel, quantized: bool) -> Graph {
    optimize(&mut graph, &passes_of(level, quantized), level != OptimizationLevel::O0, &Everything).unwrap();
    graph
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_pipeline_keeps_every_bit_and_its_groups_can_be_dropped(seed: u64) {
        let mut random = Random::new(seed);
        let graph = random_graph(&mut random);
        verify(&graph).unwrap();
        let weights = RandomWeights::new(&graph, &mut random);
        let before = run(&graph, &weights);
        let expected = before.tensor(graph.outputs()[0]).unwrap();
        for level in OptimizationLevel::ALL {
            let mut after = optimized(graph.clone(), level, true);
            let result = run(&after, &weights);
            prop_assert_eq!(bits(result.tensor(after.outputs()[0]).unwrap()), bits(expected), "{:?}", level);
            // Grouping left the operations alone: without its groups the graph is what the rewrites made of it.
            let ops = after.ops().to_vec();
            after.flatten();
            prop_assert_eq!(after.ops(), &ops[..]);
            prop_assert_eq!(after.groups().len(), ops.len());
            verify(&after).unwrap();
        }
    }

    #[test]
    fn live_buffers_never_overlap(seed: u64) {
        let mut random = Random::new(seed);
        let graph = optimized(random_graph(&mut random), OptimizationLevel::O2, true);
        let workspace: Vec<Vec<ValueId>> =
            graph.groups().iter().map(|group| group.ops.iter().map(|op| graph.op(*op).output).collect()).collect();
        let limits = Sizes { tokens: 7, sequences: 2, logit_rows: 2, blocks: 1 };
        let plan = plan_memory(&graph, &workspace, limits, 64).unwrap();
        let users = graph.users();
        let mut buffers = Vec::new();
        for (index, offset) in plan.offsets.iter().enumerate() {
            let Some(offset) = offset else { continue };
            let id = ValueId(index as u32);
            let bytes = graph.tensor_type(id).unwrap().bytes(&limits).unwrap();
            prop_assert!(offset % 64 == 0 && offset + bytes <= plan.bytes);
            let first = graph.group_of(graph.producer(id).unwrap());
            let last = users[index].iter().map(|user| graph.group_of(*user)).max().unwrap_or(first);
            let last = if graph.outputs().contains(&id) { usize::MAX } else { last };
            buffers.push((*offset, offset + bytes, first, last));
        }
        prop_assert!(plan.bytes >= plan.lower_bound);
        for (index, a) in buffers.iter().enumerate() {
            for b in &buffers[index + 1..] {
                let alive_together = a.2 <= b.3 && b.2 <= a.3;
                prop_assert!(!alive_together || a.1 <= b.0 || b.1 <= a.0, "{:?} and {:?}", a, b);
            }
        }
    }

    #[test]
    fn pieces_hold_every_launch_once_and_attention_alone(seed: u64) {
        let mut random = Random::new(seed);
        let graph = optimized(random_graph(&mut random), OptimizationLevel::O2, true);
        let pieces = partition(&graph);
        let covered: Vec<usize> = pieces.iter().flat_map(|piece| piece.groups.clone()).collect();
        prop_assert_eq!(covered, (0..graph.groups().len()).collect::<Vec<_>>());
        for piece in pieces {
            let attends = graph.groups()[piece.groups.clone()]
                .iter()
                .any(|group| group.ops.iter().any(|op| matches!(graph.op(*op).kind, OpKind::Attention { .. })));
            prop_assert_eq!(attends, piece.attention);
        }
    }
}

/// Launches of an L-layer Llama at each level, on a target that takes everything: what is constant, and per layer.
#[test]
fn launches_per_layer_are_pinned() {
    // Level, launches per layer in bf16, in FP8 with static scales.
    let table = [
        (OptimizationLevel::O0, 17, 24),
        (OptimizationLevel::O1, 14, 15),
        (OptimizationLevel::O2, 5, 5),
        (OptimizationLevel::O3, 5, 5),
    ];
    for (level, plain, quantized) in table {
        for (is_quantized, per_layer) in [(false, plain), (true, quantized)] {
            let launches = |layers| optimized(decoder(layers, is_quantized), level, is_quantized).groups().len();
            assert_eq!(launches(5) - launches(4), per_layer, "{level}, quantized: {is_quantized}");
        }
    }
}

#[test]
fn every_pass_matches_as_often_as_the_architecture_says() {
    let layers = 3;
    let expected = |quantized: bool| {
        let per_layer = |count: usize| layers * count;
        let if_quantized = |count: usize| if quantized { count } else { 0 };
        [
            ("eliminate_noops", 1),
            // q, k and v share one quantization, and so do gate and up.
            ("eliminate_common_subexpressions", if_quantized(per_layer(3))),
            // The first norm follows the embedding and the last the choice of rows.
            ("fuse_add_norm", per_layer(2) - 1),
            ("fuse_act_mul", per_layer(1)),
            ("fuse_norm_quant", if_quantized(per_layer(2))),
            ("fuse_act_quant", if_quantized(per_layer(1))),
            ("fuse_qkv_proj", per_layer(1)),
            ("fuse_gate_up_proj", per_layer(1)),
            ("fuse_rope_kvcache", per_layer(1)),
            ("fuse_attn_quant", if_quantized(per_layer(1))),
            ("fuse_gemm_epilogue", per_layer(4)),
        ]
    };
    for quantized in [false, true] {
        let mut graph = decoder(layers, quantized);
        let config = passes_of(OptimizationLevel::O2, quantized);
        let reports = optimize(&mut graph, &config, true, &Everything).unwrap();
        let found: Vec<(&str, usize)> = reports.iter().map(|report| (report.name, report.matches)).collect();
        assert_eq!(found, expected(quantized), "quantized: {quantized}");
    }
}

#[test]
fn a_target_that_declines_is_asked_and_its_reason_reported() {
    struct NoNorms;
    impl Target for NoNorms {
        fn name(&self) -> &str {
            "picky"
        }
        fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
            let norm = ops.iter().any(|op| matches!(graph.op(*op).kind, OpKind::RmsNorm { .. }));
            if norm && ops.len() > 1 { Err("no kernel joins a norm".into()) } else { Ok(()) }
        }
    }
    let mut graph = decoder(2, false);
    let reports = optimize(&mut graph, &passes_of(OptimizationLevel::O2, false), true, &NoNorms).unwrap();
    let add_norm = reports.iter().find(|report| report.name == "fuse_add_norm").unwrap();
    assert_eq!(add_norm.matches, 0);
    assert_eq!(add_norm.declined, ["picky: no kernel joins a norm"]);
    assert!(reports.iter().any(|report| report.matches > 0));
}

#[test]
fn joining_that_would_make_a_cycle_is_refused_and_changes_nothing() {
    let mut builder = common::Builder::new();
    let x = builder.embedding();
    let a = builder.push(OpKind::Silu, &[x]);
    let b = builder.linear(a, 16, None);
    let c = builder.push(OpKind::Mul, &[a, b]);
    let mut graph = builder.finish(c);
    let before = graph.clone();
    let place = |value| graph.group_of(graph.producer(value).unwrap());
    let members = [place(a), place(c)];
    assert_eq!(graph.merge(&members), None);
    assert_eq!(graph, before);
}

#[test]
fn the_verifier_names_what_is_wrong() {
    let mut builder = common::Builder::new();
    let x = builder.embedding();
    builder.push(OpKind::Silu, &[x]);
    let mut graph = builder.graph;
    let y = graph.push("v2", OpKind::Silu, &[x]).unwrap();
    graph.add_output(y);
    let error = verify(&graph).unwrap_err();
    assert_eq!(error.problems, ["the name %v2 stands for several values"]);
}

#[test]
fn operands_that_break_a_rule_are_refused_with_the_rule() {
    let mut builder = common::Builder::new();
    let x = builder.embedding();
    let weight = builder.weight(DType::Bf16, &[8, 3]);
    let error = builder.graph.push("y", OpKind::Linear { to: DType::Bf16, scale: None }, &[x, weight]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("%y = linear: rows of x and weight must be equally long"), "{text}");
    assert!(text.contains("bf16[T, 16], bf16[8, 3]"), "{text}");
}

#[test]
fn the_text_shows_groups_with_their_body() {
    let text = optimized(decoder(1, false), OptimizationLevel::O2, false).to_string();
    assert!(text.contains("  group "), "{text}");
    assert!(text.contains("bf16[T, 16] = rms_norm<epsilon=0.00001>("), "{text}");
    assert!(text.trim_end().ends_with('}'), "{text}");
    assert_eq!(text, optimized(decoder(1, false), OptimizationLevel::O2, false).to_string());
}
