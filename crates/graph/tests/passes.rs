//! What the passes do to decoders, pinned; what they report; where they decline.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use allotrope_config::OptimizationLevel;
use allotrope_graph::history::PassReport;
use allotrope_graph::passes::{Fuel, PIPELINE, optimize, run_passes};
use allotrope_graph::*;
use common::*;

fn optimized(architecture: Architecture, layers: usize, level: OptimizationLevel) -> Graph {
    let mut graph = decoder(layers, architecture);
    let mut config = passes_of(level, architecture.quantized);
    config.fuse_qk_norm_rope.value &= architecture.qk_norm;
    optimize(&mut graph, &config, level != OptimizationLevel::O0, &Everything).unwrap();
    graph
}

const ARCHITECTURES: [(&str, Architecture); 5] =
    [("llama", LLAMA), ("llama fp8", LLAMA_FP8), ("qwen2", QWEN2), ("qwen3", QWEN3), ("qwen3 fp8", QWEN3_FP8)];

/// Launches per layer at O0 to O3, on a target that takes everything.
#[test]
fn launches_per_layer_are_pinned() {
    let pinned = [[17, 14, 5, 5], [24, 15, 5, 5], [20, 17, 5, 5], [19, 16, 5, 5], [26, 17, 5, 5]];
    for ((name, architecture), pinned) in ARCHITECTURES.into_iter().zip(pinned) {
        let found = OptimizationLevel::ALL.map(|level| {
            let launches = |layers| optimized(architecture, layers, level).groups().len();
            launches(5) - launches(4)
        });
        assert_eq!(found, pinned, "{name}");
    }
}

/// How often each pass matches in a decoder of L layers: so many times L, and so many more.
#[test]
fn every_pass_matches_as_often_as_the_architecture_says() {
    let if_so = |holds: bool, count: usize| if holds { count } else { 0 };
    for (name, architecture) in ARCHITECTURES {
        let Architecture { quantized, bias, qk_norm } = architecture;
        let expected = |layers: usize| {
            [
                // The cast of the embedding to its own type.
                ("eliminate_noops", 1),
                // q, k and v share one quantization, and so do gate and up.
                ("eliminate_common_subexpressions", layers * if_so(quantized, 3)),
                // The first norm follows the embedding.
                ("fuse_add_norm", 2 * layers - 1),
                ("fuse_act_mul", layers),
                ("fuse_norm_quant", layers * if_so(quantized, 2)),
                ("fuse_act_quant", layers * if_so(quantized, 1)),
                ("fuse_qkv_proj", layers),
                ("fuse_gate_up_proj", layers),
                ("fuse_qk_norm_rope", layers * if_so(qk_norm, 2)),
                ("fuse_rope_kvcache", layers),
                ("fuse_attn_quant", layers * if_so(quantized, 1)),
                // q+k+v, o, gate+up, down; and the biases of q, k and v one by one.
                ("fuse_gemm_epilogue", layers * (4 + if_so(bias, 3))),
                // The norm after the embedding, and the one before the logits with its choice of rows.
                ("fuse_gemm_prologue", 2),
            ]
        };
        for layers in [1, 3, 16] {
            let graph = optimized(architecture, layers, OptimizationLevel::O2);
            let found: Vec<(&str, usize)> =
                graph.history().iter().map(|report| (report.name, report.matches)).collect();
            assert_eq!(found, expected(layers), "{name}, {layers} layers");
        }
    }
}

fn report<'a>(graph: &'a Graph, name: &str) -> &'a PassReport {
    graph.history().iter().find(|report| report.name == name).unwrap()
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
    let mut graph = decoder(2, LLAMA);
    optimize(&mut graph, &passes_of(OptimizationLevel::O2, false), true, &NoNorms).unwrap();
    let add_norm = report(&graph, "fuse_add_norm");
    assert_eq!(add_norm.matches, 0);
    let declined: Vec<(&str, usize)> = add_norm.near_misses.iter().map(|miss| (&*miss.reason, miss.count)).collect();
    assert_eq!(
        declined,
        [
            ("its operand comes from embedding", 1),
            ("picky: no kernel joins a norm", 3),
            ("its operand comes from select_rows", 1)
        ]
    );
    assert!(graph.history().iter().any(|report| report.matches > 0));
}

/// Where the target can't run a norm after a matrix product, the residual addition is its epilogue and the norm the prologue
/// of the next one: the addition is taken out of the launch that an earlier pass put it into.
#[test]
fn an_epilogue_takes_the_beginning_of_a_launch_and_a_prologue_the_rest() {
    struct NoNormAfterProducts;
    impl Target for NoNormAfterProducts {
        fn name(&self) -> &str {
            "columns"
        }
        fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
            let place = |is: &dyn Fn(&OpKind) -> bool| ops.iter().position(|op| is(&graph.op(*op).kind));
            let product = place(&|kind| matches!(kind, OpKind::Linear { .. }));
            let norm = ops.iter().rposition(|op| matches!(graph.op(*op).kind, OpKind::RmsNorm { .. }));
            match (product, norm) {
                (Some(product), Some(norm)) if product < norm => Err("a norm needs whole rows".into()),
                _ => Ok(()),
            }
        }
    }
    for architecture in [LLAMA, LLAMA_FP8] {
        let layer = |layers: usize| {
            let mut graph = decoder(layers, architecture);
            let config = passes_of(OptimizationLevel::O2, architecture.quantized);
            optimize(&mut graph, &config, true, &NoNormAfterProducts).unwrap();
            graph
        };
        assert_eq!(layer(5).groups().len() - layer(4).groups().len(), 5);
        let graph = layer(2);
        let labels: Vec<String> = (0..graph.groups().len()).map(|group| graph.group_label(group)).collect();
        let quantize = if architecture.quantized { "+quantize" } else { "" };
        let layer = [
            format!("rms_norm{quantize}+linear×3+rope×2+kv_write"),
            format!("attention{quantize}"),
            "linear+add".to_owned(),
            match architecture.quantized {
                true => "rms_norm+quantize×2+linear×2+silu+mul".to_owned(),
                false => "rms_norm+linear×2+silu+mul".to_owned(),
            },
            "linear+add".to_owned(),
        ];
        assert_eq!(labels[2..7], layer);
        assert_eq!(labels[7..12], layer);
        assert_eq!(labels[12], "select_rows+rms_norm+linear");
        assert!(!report(&graph, "fuse_gemm_epilogue").near_misses.is_empty(), "why the norm stayed out is said");
    }
}

#[test]
fn fuel_stops_the_pipeline_and_the_history_says_so() {
    let mut graph = decoder(2, LLAMA);
    run_passes(&mut graph, PIPELINE, |_| true, &Everything, Fuel::limited(3), &mut |_, _| {}).unwrap();
    let burnt: Vec<usize> = graph.history().iter().map(|report| report.matches).collect();
    assert_eq!(burnt[..4], [1, 0, 2, 0]);
    assert!(burnt[4..].iter().all(|matches| *matches == 0));
    let dry: Vec<bool> = graph.history().iter().map(|report| report.out_of_fuel).collect();
    assert_eq!(dry[..4], [false, false, true, true]);
    // Just enough is enough.
    for (spare, runs_out) in [(0, false), (1, true)] {
        let mut graph = decoder(2, LLAMA);
        run_passes(&mut graph, PIPELINE, |_| true, &Everything, Fuel::UNLIMITED, &mut |_, _| {}).unwrap();
        let needed: usize = graph.history().iter().map(|report| report.matches).sum();
        let mut graph = decoder(2, LLAMA);
        let fuel = Fuel::limited(needed - spare);
        run_passes(&mut graph, PIPELINE, |_| true, &Everything, fuel, &mut |_, _| {}).unwrap();
        assert_eq!(graph.history().last().unwrap().out_of_fuel, runs_out, "{spare} too few");
    }
}

#[test]
fn rewrites_leave_grouped_graphs_alone_and_say_so() {
    let mut graph = decoder(1, LLAMA);
    optimize(&mut graph, &passes_of(OptimizationLevel::O2, false), true, &Everything).unwrap();
    let before = graph.clone();
    run_passes(&mut graph, &PIPELINE[..1], |_| true, &Everything, Fuel::UNLIMITED, &mut |_, _| {}).unwrap();
    assert_eq!(graph, before);
    let last = graph.history().last().unwrap();
    assert_eq!(last.near_misses[0].reason, "operations are rewritten before they are grouped");
}

#[test]
fn regrouping_that_would_make_a_cycle_is_refused_by_name_and_changes_nothing() {
    let mut builder = Builder::new();
    let x = builder.embedding();
    let a = builder.push(OpKind::Silu, &[x]);
    let b = builder.linear(a, 16, None);
    let c = builder.push(OpKind::Mul, &[a, b]);
    let mut graph = builder.finish(c);
    let before = graph.clone();
    let [a, c] = [a, c].map(|value| graph.producer(value).unwrap());
    let name = graph.value(b).name.clone();
    assert_eq!(graph.regroup(&[a, c]), Err(RegroupError::Cycle(name)));
    assert_eq!(graph, before);
}

#[test]
fn operands_that_break_a_rule_are_refused_with_the_rule() {
    let mut builder = Builder::new();
    let x = builder.embedding();
    let weight = builder.weight(DType::Bf16, &[8, 3]);
    let error = builder.graph.push("y", OpKind::Linear { to: DType::Bf16, scale: None }, &[x, weight]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("%y = linear: rows of x and weight must be equally long"), "{text}");
    assert!(text.contains("bf16[T, 16], bf16[8, 3]"), "{text}");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = builder.graph.push("q", OpKind::Quantize { scale }, &[x]).unwrap_err();
        assert!(error.to_string().contains("scale must be a finite number above zero"), "{error}");
    }
}
