//! What CUDA takes as one launch, and why it does not take the rest.

#![allow(clippy::unwrap_used, reason = "tests")]

use allotrope_cuda_runtime::CudaTarget;
use allotrope_graph::text::parse;
use allotrope_graph::{OpId, Target};

const GRAPH: &str = "graph {
  input %token_ids: i32[T]
  input %positions: i32[T]
  input %slots: i32[T]
  input %token_sequences: i32[T]
  input %block_tables: i32[S, B]
  input %logit_rows: i32[R]
  weight %table: bf16[32, 16]
  weight %scale: bf16[16]
  weight %w: bf16[16, 16]
  weight %w8: f8e4m3[16, 16]
  state<layer=0> %cache: kv_cache<bf16, kv_heads=4, head_dim=4>
  %x: bf16[T, 16] = embedding(%table, %token_ids)
  %angles: f32[T, 4] = rope_angles<attention_scaling=1.0, inverse_frequencies=[1.0, 0.1]>(%positions)
  %sum: bf16[T, 16] = add(%x, %x)
  %norm: bf16[T, 16] = rms_norm<epsilon=1e-5>(%sum, %scale)
  %quantized: f8e4m3[T, 16] = quantize<scale=0.5>(%norm)
  %other: f8e4m3[T, 16] = quantize<scale=0.25>(%norm)
  %p: bf16[T, 16] = linear<to=bf16, scale=0.5>(%quantized, %w8)
  %q: bf16[T, 16] = linear<to=bf16, scale=0.5>(%other, %w8)
  %r: bf16[T, 16] = linear<to=bf16>(%x, %w)
  %rotated: bf16[T, 16] = rope<heads=4>(%q, %angles)
  %written: kv_cache<bf16, kv_heads=4, head_dim=4> = kv_write(%cache, %rotated, %p, %slots)
  %attended: bf16[T, 16] = attention<heads=4, scale=0.5>(%rotated, %written, %positions, %token_sequences, %block_tables)
  %attended_q: f8e4m3[T, 16] = quantize<scale=0.5>(%attended)
  %o: bf16[T, 16] = linear<to=bf16, scale=0.5>(%attended_q, %w8)
  %residual: bf16[T, 16] = add(%sum, %o)
  %chain: bf16[T, 16] = linear<to=bf16>(%residual, %w)
  %late: bf16[T, 16] = rms_norm<epsilon=1e-5>(%residual, %scale)
  %after: bf16[T, 16] = linear<to=bf16>(%late, %w)
  %wide: bf16[T, 4, 4] = reshape<shape=[T, 4, 4]>(%after)
  %turned: bf16[4, T, 4] = transpose<permutation=[1, 0, 2]>(%wide)
  %chosen: bf16[R, 16] = select_rows(%after, %logit_rows)
  %again: bf16[T, 16] = select_rows(%late, %slots)
  return %turned, %chosen, %again
}";

/// What CUDA says of a launch of these values' operations.
fn answer(values: &[&str]) -> Result<(), String> {
    let graph = parse(GRAPH).unwrap();
    let find = |name: &&str| {
        let is_named = |op: &OpId| graph.value(graph.op(*op).output).name == **name;
        graph.op_ids().find(is_named).unwrap_or_else(|| panic!("no %{name}"))
    };
    let mut ops: Vec<OpId> = values.iter().map(find).collect();
    ops.sort_unstable();
    CudaTarget.accepts(&graph, &ops)
}

#[test]
fn the_launches_of_a_layer_are_taken() {
    for launch in [
        &["x"][..],
        &["sum", "norm", "quantized", "other"],
        &["norm", "quantized", "other", "p", "q", "rotated", "written"],
        &["quantized", "p"],
        &["attended", "attended_q"],
        &["o", "residual"],
        &["late", "wide"],
        &["chosen"],
    ] {
        let accepted = answer(launch);
        // The late norm is read by a choice of rows as well, so it can't hide in a prologue.
        assert_eq!(accepted, Ok(()), "{launch:?}");
    }
}

#[test]
fn what_is_no_launch_is_declined_with_the_reason() {
    for (launch, reason) in [
        (&["o", "residual", "late"][..], "rms_norm needs whole rows, which no block has after a matrix product"),
        (&["late", "after"], "the result of rms_norm can't leave it"),
        (&["p", "attended"], "attention and matrix products take launches of their own"),
        (&["rotated", "attended"], "rope before attention takes a launch of its own"),
        (&["o", "residual", "chain"], "a matrix product can't wait for another one inside a launch"),
        (&["p", "r"], "matrix products of one launch have one input"),
        (&["late", "chosen"], "one launch runs over tokens or over rows of logits, not both"),
        (&["late", "again"], "select_rows chooses among rows that other blocks of the launch make"),
        (&["turned"], "transpose moves elements between rows"),
        (&["written", "r"], "every block computes the prologue, so it can't write the KV cache"),
    ] {
        let error = answer(launch).unwrap_err();
        assert!(error.contains(reason), "{launch:?}: {error}");
    }
}
