//! The text of what the CPU runs for a group.

use allotrope_cpu_runtime::{CpuDevice, CpuTarget, Isa};
use allotrope_graph::{DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, TensorType};
use allotrope_runtime::conformance::batches::VOCABULARY;
use allotrope_runtime::conformance::graphs::{DecoderSizes, decoder, groupings};
use allotrope_runtime::conformance::random;
use allotrope_runtime::device::Device;

fn describe(graph: &Graph, group: usize) -> String {
    CpuDevice::new(1, Isa::Portable).unwrap().describe(graph, group)
}

#[test]
fn each_phase_is_a_line_that_shows_its_kernel() {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let table = graph.weight("table", TensorType::new(DType::Bf16, [Dim::Static(VOCABULARY), Dim::Static(8)]));
    let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
    let norm = graph.weight("norm", TensorType::vector(DType::Bf16, Dim::Static(8)));
    let normed = graph.push("normed", OpKind::RmsNorm { epsilon: 1e-5 }, &[x, norm]).unwrap();
    let quantized = graph.push("quantized", OpKind::Quantize { scale: 0.5 }, &[normed]).unwrap();
    let weight = graph.weight("w", TensorType::new(DType::F8E4M3, [Dim::Static(24), Dim::Static(8)]));
    let kind = OpKind::Linear { to: DType::Bf16, scale: Some(0.25) };
    let qkv = graph.push("qkv", kind, &[quantized, weight]).unwrap();
    let [q, k, v] = [("q", 0), ("k", 8), ("v", 16)]
        .map(|(name, start)| graph.push(name, OpKind::Slice { axis: 1, start, end: start + 8 }, &[qkv]).unwrap());
    let positions = graph.input(Input::Positions);
    let kind = OpKind::RopeAngles { inverse_frequencies: vec![1.0, 0.5].into(), attention_scaling: 1.0 };
    let angles = graph.push("angles", kind, &[positions]).unwrap();
    let rotated = graph.push("rotated", OpKind::Rope { heads: 2 }, &[q, angles]).unwrap();
    let state = graph.state(0, KvCacheType { dtype: DType::Bf16, kv_heads: 2, head_dim: 4 });
    let slots = graph.input(Input::Slots);
    let cache = graph.push("cache", OpKind::KvWrite, &[state, k, v, slots]).unwrap();
    let (sequences, tables) = (graph.input(Input::TokenSequences), graph.input(Input::BlockTables));
    let kind = OpKind::Attention { heads: 2, scale: 0.5 };
    let attended = graph.push("attended", kind, &[rotated, cache, positions, sequences, tables]).unwrap();
    let o = graph.weight("o", TensorType::new(DType::Bf16, [Dim::Static(8), Dim::Static(8)]));
    let kind = OpKind::Linear { to: DType::Bf16, scale: None };
    let projected = graph.push("projected", kind, &[attended, o]).unwrap();
    let sum = graph.push("sum", OpKind::Add, &[projected, x]).unwrap();
    graph.add_output(sum);
    let ops: Vec<OpId> = graph.op_ids().skip(1).collect();
    graph.regroup(&ops).unwrap();
    assert_eq!(
        describe(&graph, 0),
        "phase 0: row program over T rows: %x = embedding %table, %token_ids; store %x: bf16[T, 8]"
    );
    let expected = [
        "phase 0: row program over T rows: load %x: bf16[T, 8]; %normed = rms_norm<epsilon=1e-5> %x, %norm; \
         %quantized = quantize<scale=0.5> %normed; store %quantized: f8e4m3[T, 8]; %angles = rope_angles<4> %positions; \
         store %angles: f32[T, 4]",
        "phase 1: projections over T rows: %qkv = %quantized · %w (f8e4m3, 24×8, times 0.25, to bf16)",
        "phase 2: row program over T rows: load %qkv: bf16[T, 24]; %q = slice<axis=1, start=0, end=8> %qkv; \
         %k = slice<axis=1, start=8, end=16> %qkv; %v = slice<axis=1, start=16, end=24> %qkv; \
         load %angles: f32[T, 4]; %rotated = rope<heads=2> %q, %angles; store %rotated: bf16[T, 8]; \
         %cache = kv_write %layers.0.kv_cache, %k, %v, %slots",
        "phase 3: attention over T rows: %attended = 2 heads of %rotated over 2 of %cache (bf16, 4 wide, scores times 0.5)",
        "phase 4: projections over T rows: %projected = %attended · %o (bf16, 8×8)",
        "phase 5: row program over T rows: load %projected: bf16[T, 8]; load %x: bf16[T, 8]; \
         %sum = add %projected, %x; store %sum: bf16[T, 8]",
    ];
    assert_eq!(describe(&graph, 1).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn what_has_no_kernel_is_described_by_the_reason() {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let table = graph.weight("table", TensorType::new(DType::F32, [Dim::Static(VOCABULARY), Dim::Static(8)]));
    let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
    graph.push("turned", OpKind::Transpose { permutation: vec![1, 0] }, &[x]).unwrap();
    let text = describe(&graph, 1);
    assert!(text.starts_with("no kernel: transpose moves axis 0"), "{text}");
    assert_eq!(describe(&graph, 2), "the graph has no group 2");
}

#[test]
fn the_text_is_the_same_for_the_same_group_and_names_all_that_the_plan_keeps() {
    let mut random = random();
    let graph = decoder(DecoderSizes::ODD, DType::Bf16, true);
    for (_, grouped) in groupings(&mut random, &graph, &CpuTarget) {
        for (index, group) in grouped.groups().iter().enumerate() {
            let text = describe(&grouped, index);
            assert_eq!(text, describe(&grouped, index));
            for op in &group.ops {
                let name = format!("%{} = ", grouped.value(grouped.op(*op).output).name);
                assert_eq!(text.matches(&name).count(), 1, "{name} in {text}");
            }
        }
    }
}
