//! The graph that a checkpoint gives, run by the reference evaluator, against the Hugging Face implementation: what
//! ties the meaning of every operation to the world outside.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use allotrope_graph::evaluate::{ReferenceCache, evaluate};
use allotrope_graph::verify::verify;
use allotrope_graph::{DType, Definition, StepInputs};
use allotrope_model::Checkpoint;
use safetensors::SafeTensors;

const BLOCK_SIZE: usize = 16;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A prompt in blocks that are not in order, with logits wanted at every position.
fn prefill(tokens: &[i32]) -> StepInputs {
    let blocks = tokens.len().div_ceil(BLOCK_SIZE);
    let table: Vec<i32> = (0..blocks as i32).rev().collect();
    let slot = |position: usize| table[position / BLOCK_SIZE] * BLOCK_SIZE as i32 + (position % BLOCK_SIZE) as i32;
    let length = tokens.len();
    StepInputs {
        token_ids: tokens.to_vec(),
        positions: (0..length as i32).collect(),
        slots: (0..length).map(slot).collect(),
        token_sequences: vec![0; length],
        block_tables: table,
        blocks,
        logit_rows: (0..length as i32).collect(),
    }
}

fn logits(checkpoint: &Checkpoint, tokens: &[i32]) -> Vec<f32> {
    let graph = checkpoint.graph().unwrap();
    verify(&graph).unwrap();
    let inputs = prefill(tokens);
    let states = graph.values().iter().filter(|value| matches!(value.definition, Definition::State { .. }));
    let mut caches: Vec<ReferenceCache> =
        states.map(|value| ReferenceCache::new(value.ty.kv_cache().unwrap(), inputs.blocks * BLOCK_SIZE)).collect();
    let evaluation = evaluate(&graph, checkpoint, &inputs, &mut caches, BLOCK_SIZE).unwrap();
    evaluation.tensor(graph.outputs()[0]).unwrap().to_vec()
}

/// Compares every logit of every prompt of a fixture, the last positions where the fixture holds no more.
fn agrees(name: &str, tolerance: f32) {
    let checkpoint = Checkpoint::open(&fixtures().join(name)).unwrap();
    let bytes = std::fs::read(fixtures().join(format!("reference/{name}.safetensors"))).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let mut prompts = 0;
    while let Ok(prompt) = reference.tensor(&format!("prompt.{prompts}")) {
        let tokens: Vec<i32> =
            prompt.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect();
        let expected = reference.tensor(&format!("logits.{prompts}")).unwrap();
        let expected: Vec<f32> =
            expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let found = logits(&checkpoint, &tokens);
        let found = &found[found.len() - expected.len()..];
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found - expected).abs();
            assert!(error <= tolerance, "{name}, prompt {prompts}, logit {index}: {found} instead of {expected}");
        }
        prompts += 1;
    }
    assert!(prompts > 0, "{name} has no prompts");
}

/// With `f32` storage both sides differ by the order of sums alone: 64 terms of magnitude 1 at 2⁻²⁴ each, through two
/// layers, stay below 10⁻⁴.
#[test]
fn f32_checkpoints_agree_to_the_order_of_sums() {
    for name in ["gqa-f32", "rope-linear-f32", "rope-llama3-f32", "rope-yarn-f32"] {
        agrees(name, 1e-4);
    }
}

#[test]
fn the_graph_has_the_operations_of_the_architecture() {
    for (name, per_layer) in [("gqa-bf16", 17), ("gqa-fp8", 24), ("bias-bf16", 24)] {
        let checkpoint = Checkpoint::open(&fixtures().join(name)).unwrap();
        let graph = checkpoint.graph().unwrap();
        verify(&graph).unwrap();
        // Embedding, cast, angles; choice of rows, norm, cast, projection.
        assert_eq!(graph.ops().len(), per_layer * checkpoint.config().layers + 7, "{name}");
        let logits = graph.tensor_type(graph.outputs()[0]).unwrap();
        assert_eq!(logits.dtype, DType::F32);
        assert_eq!(logits.width(), Some(checkpoint.config().vocab_size));
    }
}
