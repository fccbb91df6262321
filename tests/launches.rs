//! What the levels do to a step: launches fall from O0 to O2, by numbers pinned for each architecture; every pass takes
//! its share, and turning it off brings its launches back; recordings replay what is left.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use allotrope_cpu_runtime::CpuTarget;
use allotrope_cuda_runtime::CudaTarget;
use allotrope_engine::{LlmBuilder, OptimizationLevel, Plan, Prompt, SamplingParams, Statistics, TokenLogits};
use allotrope_graph::Target;
use allotrope_graph::passes::{Fuel, PIPELINE, run_passes};
use allotrope_graph::text::launches_of_layer;
use allotrope_tests::{assert_same_bits, checkpoint, on_the_cpu};

const PASS_CONFIG: &str = "compilation.pass_config";

fn builder(name: &str, level: OptimizationLevel) -> LlmBuilder {
    on_the_cpu(checkpoint(name)).optimization_level(level)
}

fn plan(name: &str, level: OptimizationLevel) -> Plan {
    builder(name, level).plan().unwrap()
}

/// The plan at O2 with some passes turned off.
fn plan_without(name: &str, passes: &[&str]) -> Plan {
    let off = |builder: LlmBuilder, pass: &&str| builder.set(&format!("{PASS_CONFIG}.{pass}"), "false").unwrap();
    passes.iter().fold(builder(name, OptimizationLevel::O2), off).plan().unwrap()
}

#[test]
fn launches_at_each_level_are_pinned() {
    let pinned = [
        ("gqa-bf16", [41, 34, 13, 13]),
        ("bias-bf16", [55, 48, 13, 13]),
        ("gqa-fp8", [31, 21, 8, 8]),
        ("tiny-chat", [75, 62, 23, 23]),
        ("tiny-chat-fp8", [103, 66, 23, 23]),
    ];
    let found = pinned.map(|(name, _)| (name, OptimizationLevel::ALL.map(|level| plan(name, level).launches())));
    assert_eq!(found, pinned);
    for (name, [o0, o1, o2, _]) in found {
        assert!(o0 > o1 && o1 > o2, "{name}: {o0}, {o1}, {o2}");
    }
}

/// At O2 a Llama layer is five launches, on the CPU and on CUDA, in bf16 and in FP8. Launches that belong to no layer
/// (embedding, angles, logits) are not counted, and one that ends a layer and begins the next counts once.
#[test]
fn a_layer_is_five_launches_on_the_cpu_and_on_cuda() {
    for name in ["gqa-bf16", "bias-bf16", "gqa-fp8", "tiny-chat", "tiny-chat-fp8"] {
        let plan = plan(name, OptimizationLevel::O2);
        let layers = plan.checkpoint().config().layers;
        for target in [&CpuTarget as &dyn Target, &CudaTarget] {
            let mut graph = plan.as_built().clone();
            let config = &plan.settings().compilation.pass_config;
            run_passes(&mut graph, PIPELINE, |pass| (pass.enabled)(config), target, Fuel::UNLIMITED, &mut |_, _| {})
                .unwrap();
            let of_layers = (0..layers).flat_map(|layer| launches_of_layer(&graph, layer));
            let launches: BTreeSet<usize> = of_layers.collect();
            assert_eq!(launches.len(), 5 * layers, "{name} on {}\n{graph}", target.name());
        }
    }
}

#[test]
fn the_reports_of_the_passes_account_for_every_launch() {
    for name in ["gqa-bf16", "gqa-fp8"] {
        for level in OptimizationLevel::ALL {
            let plan = plan(name, level);
            let mut launches = plan.launches_as_built();
            for report in plan.passes() {
                assert!(report.enabled || report.matches == 0, "{name} at {level}: {} is off but matched", report.name);
                assert!(report.launches <= launches, "{name} at {level}: {} adds launches", report.name);
                assert_eq!(report.launches < launches, report.matches > 0, "{name} at {level}: {}", report.name);
                launches = report.launches;
            }
            assert_eq!(launches, plan.launches(), "{name} at {level}");
            assert_eq!(plan.launch_labels().len(), plan.launches(), "{name} at {level}");
        }
    }
}

#[test]
fn passes_match_as_pinned() {
    let plain = [
        ("eliminate_noops", 2),
        ("eliminate_common_subexpressions", 0),
        ("fuse_add_norm", 7),
        ("fuse_act_mul", 4),
        ("fuse_norm_quant", 0),
        ("fuse_act_quant", 0),
        ("fuse_qkv_proj", 4),
        ("fuse_gate_up_proj", 4),
        ("fuse_qk_norm_rope", 0),
        ("fuse_rope_kvcache", 4),
        ("fuse_attn_quant", 0),
        ("fuse_gemm_epilogue", 16),
        // The norm after the embedding, and the one before the logits with its choice of rows.
        ("fuse_gemm_prologue", 2),
    ];
    let mut quantized = plain;
    // One quantization for each of two norms in four layers, of which three inputs of q, k, v and two of gate, up are the
    // same; one for each attention and each activation.
    for (name, matches) in
        [("eliminate_common_subexpressions", 12), ("fuse_norm_quant", 8), ("fuse_act_quant", 4), ("fuse_attn_quant", 4)]
    {
        quantized.iter_mut().filter(|(pass, _)| *pass == name).for_each(|(_, pinned)| *pinned = matches);
    }
    for (name, pinned) in [("tiny-chat", plain), ("tiny-chat-fp8", quantized)] {
        let plan = plan(name, OptimizationLevel::O2);
        let found: Vec<_> = plan.passes().iter().map(|report| (report.name, report.matches)).collect();
        assert_eq!(found, pinned, "{name}");
    }
}

/// Of the rewrites, operations are counted: a group may take in what they would have dropped.
#[test]
fn each_pass_saves_launches_or_operations() {
    for name in ["gqa-bf16", "bias-bf16", "tiny-chat-fp8"] {
        let full = plan(name, OptimizationLevel::O2);
        for report in full.passes().iter().filter(|report| report.matches > 0) {
            let pass = report.name;
            // A prologue takes in what another pass did not join with its neighbours: without prologues, launches come back.
            let also_off: &[&str] = if pass == "fuse_gemm_prologue" { &[] } else { &["fuse_gemm_prologue"] };
            let full = plan_without(name, also_off);
            let without = plan_without(name, &[&[pass], also_off].concat());
            if pass.starts_with("eliminate_") {
                assert!(without.graph().ops().len() > full.graph().ops().len(), "{name}: {pass}");
            } else {
                let (without, with) = (without.launches(), full.launches());
                assert!(without > with, "{name}: {without} launches without {pass}, {with} with it");
            }
        }
        let all: Vec<&'static str> = full.passes().iter().map(|report| report.name).collect();
        assert_eq!(plan_without(name, &all).launches(), full.launches_as_built(), "{name}: with all passes off");
    }
}

/// Statistics after an answer of some tokens.
fn statistics(name: &str, level: OptimizationLevel) -> Statistics {
    let mut llm = builder(name, level).build().unwrap();
    let params = SamplingParams { max_tokens: Some(6), ignore_eos: true, ..SamplingParams::greedy() };
    llm.generate(&[Prompt::Tokens(vec![3, 1, 4])], &params).unwrap();
    llm.statistics()
}

#[test]
fn recordings_replace_launches() {
    use OptimizationLevel::{O0, O1, O2, O3};
    for name in ["gqa-bf16", "tiny-chat-fp8"] {
        let [o0, o1, o2, o3] = [O0, O1, O2, O3].map(|level| statistics(name, level));
        for (level, found) in [(O0, &o0), (O1, &o1), (O2, &o2), (O3, &o3)] {
            assert_eq!(found.throughput.launches_per_decode_step, plan(name, level).launches(), "{name} at {level}");
            assert_eq!(found.late_captures, 0, "{name} at {level}: something was recorded after the start");
        }
        assert_eq!(o0.recordings, 0, "{name}");
        assert_eq!(o0.throughput.submissions_per_decode_step, o0.throughput.launches_per_decode_step, "{name}");
        let submissions = [&o0, &o1, &o2].map(|found| found.throughput.submissions_per_decode_step);
        assert!(submissions[0] > submissions[1] && submissions[1] > submissions[2], "{name}: {submissions:?}");
        assert_eq!(
            (submissions[2], o3.throughput.submissions_per_decode_step),
            (1, 1),
            "{name}: a decode step is one replay"
        );
        assert!(o1.recordings > 0 && o2.recordings > o1.recordings, "{name}: {} and {}", o1.recordings, o2.recordings);
    }
}

/// The logits of a prompt and of its continuation, at once and again, with recordings made when `capture` says.
fn logits(capture: &str) -> [TokenLogits; 2] {
    let builder = builder("tiny-chat", OptimizationLevel::O2).set("compilation.cudagraph_capture", capture).unwrap();
    let mut llm = builder.build().unwrap();
    let found = [(); 2].map(|()| llm.logits(&[3, 1, 4, 1, 5], 8).unwrap());
    let statistics = llm.statistics();
    assert_eq!(statistics.failed_captures, 0, "{capture}");
    match capture {
        "startup" => assert_eq!(statistics.late_captures, 0),
        "lazy" => assert_eq!(statistics.late_captures, statistics.recordings as u64),
        // How many have arrived is a matter of time.
        _ => {}
    }
    found
}

#[test]
fn recordings_give_the_same_bits_whenever_they_are_made() {
    let [expected, again] = logits("startup");
    for (when, found) in
        [("startup", vec![again]), ("lazy", logits("lazy").into()), ("background", logits("background").into())]
    {
        for found in found {
            assert_same_bits(when, &found.prompt, &expected.prompt);
            assert_same_bits(when, &found.steps, &expected.steps);
            assert_eq!(found.tokens, expected.tokens, "{when}");
        }
    }
}

#[test]
fn eager_execution_keeps_the_level_but_records_and_fuses_nothing() {
    let llm = builder("gqa-bf16", OptimizationLevel::O2).set("enforce_eager", "true").unwrap();
    let plan = llm.plan().unwrap();
    assert_eq!(plan.launches(), plan.launches_as_built());
    assert!(*plan.settings().kernel.repack_weights, "the rest is left to the level");
}
