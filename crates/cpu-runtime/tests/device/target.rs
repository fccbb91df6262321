//! What the target takes, what it declines and why.

use allotrope_cpu_runtime::CpuTarget;
use allotrope_graph::{DType, Dim, Graph, Input, KvCacheType, OpId, OpKind, Target, TensorType, ValueId};
use allotrope_runtime::conformance::batches::VOCABULARY;
use allotrope_runtime::conformance::chains::{Ops, chain};
use allotrope_runtime::conformance::graphs::{DecoderSizes, decoder};
use allotrope_runtime::conformance::random;

#[test]
fn launches_over_tokens_and_over_rows_of_logits_are_apart() {
    let graph = decoder(DecoderSizes::ODD, DType::Bf16, false);
    let all: Vec<OpId> = graph.op_ids().collect();
    let reason = CpuTarget.accepts(&graph, &all).unwrap_err();
    assert!(reason.contains("over tokens or over rows of logits"), "{reason}");
    for op in &all {
        CpuTarget.accepts(&graph, &[*op]).unwrap();
    }
}

#[test]
fn any_row_operations_and_products_are_one_launch() {
    let mut random = random();
    for ops in [Ops::Rows, Ops::Products] {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            let graph = chain(&mut random, dtype, 40, ops);
            let all: Vec<OpId> = graph.op_ids().collect();
            CpuTarget.accepts(&graph, &all).unwrap();
        }
    }
}

#[test]
fn attention_over_a_cache_in_fp8_is_taken() {
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let mut graph = Graph::new();
        let state = graph.state(0, KvCacheType { dtype: DType::F8E4M3, kv_heads: 1, head_dim: 8 });
        let ids = graph.input(Input::TokenIds);
        let table = graph.weight("t", TensorType::new(dtype, [Dim::Static(9), Dim::Static(8)]));
        let q = graph.push("q", OpKind::Embedding, &[table, ids]).unwrap();
        let [slots, positions, sequences, tables] =
            [Input::Slots, Input::Positions, Input::TokenSequences, Input::BlockTables].map(|input| graph.input(input));
        let written = graph.push("written", OpKind::KvWrite, &[state, q, q, slots]).unwrap();
        let kind = OpKind::Attention { heads: 1, scale: 1.0 };
        graph.push("attention", kind, &[q, written, positions, sequences, tables]).unwrap();
        for op in [1, 2] {
            CpuTarget.accepts(&graph, &[OpId(op)]).unwrap();
        }
    }
}

/// The reason why the op that `build` pushes last is declined by itself.
fn declined(build: impl Fn(&mut Graph, ValueId) -> ValueId) -> String {
    let mut graph = Graph::new();
    let ids = graph.input(Input::TokenIds);
    let table = graph.weight("table", TensorType::new(DType::F32, [Dim::Static(VOCABULARY), Dim::Static(6)]));
    let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
    let result = build(&mut graph, x);
    let op = graph.producer(result).unwrap();
    let reason = CpuTarget.accepts(&graph, &[op]).unwrap_err();
    assert!(CpuTarget.accepts(&graph, &[OpId(0), op]).is_err());
    reason
}

fn turned(graph: &mut Graph, x: ValueId) -> ValueId {
    graph.push("turned", OpKind::Transpose { permutation: vec![1, 0] }, &[x]).unwrap()
}

#[test]
fn what_moves_rows_is_declined_in_words() {
    let within = "moves elements within rows only";
    let reason = declined(turned);
    assert!(reason.contains("transpose moves axis 0") && reason.contains(within), "{reason}");
    let reason = declined(|graph, x| {
        let shape = vec![Dim::Static(6), Dim::Tokens];
        graph.push("flat", OpKind::Reshape { shape }, &[x]).unwrap()
    });
    assert!(reason.contains("reshape changes axis 0 from T to 6") && reason.contains(within), "{reason}");
    let reason = declined(|graph, x| {
        let x = turned(graph, x);
        graph.push("part", OpKind::Slice { axis: 0, start: 1, end: 3 }, &[x]).unwrap()
    });
    assert!(reason.contains("slice takes a part of axis 0") && reason.contains(within), "{reason}");
    let reason = declined(|graph, x| {
        let x = turned(graph, x);
        graph.push("both", OpKind::Concat { axis: 0 }, &[x, x]).unwrap()
    });
    assert!(reason.contains("concat appends along axis 0") && reason.contains(within), "{reason}");
}

#[test]
fn rows_that_are_no_batch_size_are_declined() {
    let reason = declined(|graph, x| {
        let x = turned(graph, x);
        graph.push("y", OpKind::MulScalar { factor: 2.0 }, &[x]).unwrap()
    });
    assert!(reason.contains("mul_scalar over 6 rows: only T and R"), "{reason}");
    let reason = declined(|graph, _| {
        let tables = graph.input(Input::BlockTables);
        graph
            .push("part", OpKind::Reshape { shape: vec![Dim::Sequences, Dim::Blocks, Dim::Static(1)] }, &[tables])
            .unwrap()
    });
    assert!(reason.contains("reshape over S rows"), "{reason}");
}

#[test]
fn operands_from_elsewhere_are_declined_by_name() {
    let column = |graph: &mut Graph| {
        let positions = graph.input(Input::Positions);
        graph.push("column", OpKind::Reshape { shape: vec![Dim::Tokens, Dim::Static(1)] }, &[positions]).unwrap()
    };
    let reason = declined(|graph, _| column(graph));
    assert!(reason.contains("operand 0 of reshape, %positions: it must be computed"), "{reason}");
    let reason = declined(|graph, _| {
        let column = column(graph);
        graph.push("both", OpKind::Concat { axis: 1 }, &[column, column]).unwrap()
    });
    assert!(reason.contains("operand 0 of concat, %column: rows of i32 have no kernel"), "{reason}");
    let reason = declined(|graph, _| {
        let table = graph.weight("square", TensorType::new(DType::F32, [Dim::Static(2), Dim::Static(3)]));
        let sequences = graph.input(Input::TokenSequences);
        graph.push("chosen", OpKind::SelectRows, &[table, sequences]).unwrap()
    });
    assert!(reason.contains("operand 0 of select_rows, %square: it must be computed"), "{reason}");
    let reason = declined(|graph, x| {
        let weight = graph.weight("square", TensorType::new(DType::F32, [Dim::Static(2), Dim::Static(3)]));
        let flat = graph.push("flat", OpKind::Reshape { shape: vec![Dim::Static(6)] }, &[weight]).unwrap();
        graph.push("sum", OpKind::Add, &[x, flat]).unwrap()
    });
    assert!(reason.contains("operand 1 of add, %flat: it must be a weight"), "{reason}");
    let reason = declined(|graph, x| {
        let column = column(graph);
        let indices = graph.push("indices", OpKind::Reshape { shape: vec![Dim::Tokens] }, &[column]).unwrap();
        graph.push("chosen", OpKind::SelectRows, &[x, indices]).unwrap()
    });
    assert!(reason.contains("operand 1 of select_rows, %indices: it must be an input of the step"), "{reason}");
}
