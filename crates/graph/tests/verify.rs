//! The verifier: each invariant, broken, is found and shown under its line.

#![allow(clippy::unwrap_used, reason = "tests")]

use allotrope_graph::evaluate::{ReferenceCache, evaluate};
use allotrope_graph::text::parse_unverified;
use allotrope_graph::verify::{VerifyError, verify};
use allotrope_graph::{DType, Dim, Graph, KvCacheType, StepInputs, TensorType, WeightData, WeightSource};

const SOUND: &str = "\
graph {
  input %token_ids: i32[T]
  input %positions: i32[T]
  input %slots: i32[T]
  input %token_sequences: i32[T]
  input %block_tables: i32[S, B]
  weight %table: bf16[11, 8]
  state<layer=0> %cache: kv_cache<bf16, kv_heads=2, head_dim=4>

  %x: bf16[T, 8] = embedding(%table, %token_ids)
  %y: bf16[T, 8] = silu(%x)
  %written: kv_cache<bf16, kv_heads=2, head_dim=4> = kv_write(%cache, %x, %y, %slots)
  %z: bf16[T, 8] = attention<heads=2, scale=0.5>(%x, %written, %positions, %token_sequences, %block_tables)
  %q: f8e4m3[T, 8] = quantize<scale=0.5>(%z)
  return %q
}
";

fn spoiled(changes: &[(&str, &str)]) -> VerifyError {
    let mut text = SOUND.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    verify(&parse_unverified(&text).unwrap()).unwrap_err()
}

/// What is spoiled, and what is found.
#[test]
fn each_invariant_is_checked() {
    verify(&parse_unverified(SOUND).unwrap()).unwrap();
    let cases: [(&[(&str, &str)], &str); 19] = [
        // Names.
        (
            &[("%y: bf16", "%x: bf16"), ("%x, %y, %slots", "%x, %x, %slots")],
            "the name %x stands for another value already",
        ),
        // SSA.
        (&[("silu(%x)", "silu(%z)")], "it uses %z before it is defined"),
        // Types and symbolic shapes.
        (&[("%y: bf16[T, 8]", "%y: bf16[R, 8]")], "it is declared bf16[R, 8], but silu gives bf16[T, 8]"),
        (&[("%slots: i32[T]", "%slots: i32[R]")], "it must be i32[T], but is declared i32[R]"),
        (
            &[("%positions, %token_sequences", "%token_ids, %block_tables")],
            "token_sequences must be i32[T], found i32[S, B]",
        ),
        (&[("kv_write(%cache, %x", "kv_write(%x, %x")], "the first operand must be a KV cache"),
        (
            &[
                ("kv_cache<bf16", "kv_cache<f8e4m3"),
                ("kv_cache<bf16", "kv_cache<f8e4m3"),
                ("%y: bf16[T, 8] = silu(%x)", "%y: f8e4m3[T, 8] = quantize<scale=1.0>(%x)"),
            ],
            "kv_write: v must be f32, f16 or bf16 [T, 2 × 4], found f8e4m3[T, 8]",
        ),
        (&[("silu(%x)", "silu(%cache)")], "operand 0 of silu is kv_cache"),
        (&[("silu(%x)", "silu(%x, %x)")], "silu takes the operands (x), found 2 operands"),
        (&[("heads=2, scale", "heads=3, scale")], "attention: q must be bf16[T, 3 × 4]"),
        (&[("bf16[11, 8]", "bf16[T, 8]")], "bf16[T, 8] has a size that no checkpoint knows"),
        (&[("bf16[11, 8]", "bf16[0, 8]")], "bf16[0, 8] has a size of zero"),
        // Rounding points.
        (&[("%y: bf16[T, 8]", "%y: f32[T, 8]")], "it is declared f32[T, 8], but silu gives bf16[T, 8]"),
        (&[("quantize<scale=0.5>", "quantize<scale=0.0>")], "scale must be a finite number above zero"),
        // State.
        (
            &[("attention<heads=2, scale=0.5>(%x, %written", "attention<heads=2, scale=0.5>(%x, %cache")],
            "it uses %cache, which %written writes",
        ),
        (&[("return %q", "return %written")], "%written is a state, and no state leaves the step"),
        // Groups.
        (
            &[
                ("  %x: bf16", "  group {\n%x: bf16"),
                ("  %written: kv", "  %w: bf16[T, 8] = silu(%y)\n }\n  %written: kv"),
                ("  %y: bf16[T, 8] = silu(%x)\n", ""),
                ("  %z: bf16", "  %y: bf16[T, 8] = silu(%x)\n  %z: bf16"),
            ],
            "it uses %y before it is defined",
        ),
        // Aliasing.
        (
            &[("  weight %table", "  state<layer=0> %again: kv_cache<bf16, kv_heads=2, head_dim=4>\n  weight %table")],
            "it stands for the same leaf as %again",
        ),
        (&[("  weight %table", "  input %slots: i32[T]\n  weight %table")], "it stands for the same leaf as %slots"),
    ];
    for (changes, message) in cases {
        let error = spoiled(changes);
        assert!(error.problems.iter().any(|problem| problem.message.contains(message)), "{message}\n{error}");
    }
}

#[test]
fn all_problems_are_collected_and_each_is_shown_under_its_line() {
    let error = spoiled(&[("%y: bf16[T, 8]", "%y: f32[T, 8]"), ("quantize<scale=0.5>", "quantize<scale=-1.0>")]);
    let expected = "\
the graph is malformed (a bug in whoever built or rewrote it):
  %y: f32[T, 8] = silu(%x)
  ^ it is declared f32[T, 8], but silu gives bf16[T, 8]
  %written: kv_cache<bf16, kv_heads=2, head_dim=4> = kv_write(%cache, %x, %y, %slots)
  ^ kv_write: v must be bf16[T, 2 × 4], found f32[T, 8]
  %q: f8e4m3[T, 8] = quantize<scale=-1.0>(%z)
  ^ quantize: scale must be a finite number above zero";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_second_write_to_one_state_is_found() {
    let second = "  %z: bf16";
    let write = "  %again: kv_cache<bf16, kv_heads=2, head_dim=4> = kv_write(%cache, %x, %y, %slots)\n  %z: bf16";
    let error = spoiled(&[(second, write)]);
    assert!(error.to_string().contains("it uses %cache, which %written writes"), "{error}");
}

#[test]
fn a_leaf_that_is_asked_for_with_two_types_is_found() {
    let mut graph = Graph::new();
    let narrow = graph.weight("w", TensorType::vector(DType::Bf16, Dim::Static(4)));
    assert_eq!(graph.weight("w", TensorType::vector(DType::Bf16, Dim::Static(4))), narrow);
    let wide = graph.weight("w", TensorType::vector(DType::F32, Dim::Static(9)));
    assert_ne!(wide, narrow);
    assert!(verify(&graph).unwrap_err().to_string().contains("it stands for the same leaf as %w"));
}

#[test]
fn the_evaluator_refuses_indices_that_lead_nowhere() {
    let text = SOUND.replacen("embedding(%table, %token_ids)", "embedding(%table, %slots)", 1);
    let graph = parse_unverified(&text).unwrap();
    verify(&graph).unwrap();
    let inputs = |slots: [i32; 2], positions: [i32; 2]| StepInputs {
        slots: slots.to_vec(),
        positions: positions.to_vec(),
        ..StepInputs::one_sequence(&[1, 2], 4)
    };
    let run = |graph: &Graph, inputs: &StepInputs| {
        let cache = KvCacheType { dtype: DType::Bf16, kv_heads: 2, head_dim: 4 };
        let mut caches = [ReferenceCache::new(&cache, 4)];
        evaluate(graph, &Ones, inputs, &mut caches, 4).map(|_| ()).map_err(|error| error.to_string())
    };
    let sound = parse_unverified(SOUND).unwrap();
    assert_eq!(run(&sound, &inputs([0, 1], [0, 1])), Ok(()));
    assert!(run(&graph, &inputs([0, 11], [0, 1])).unwrap_err().contains("operand 1 has the index 11, beyond 11"));
    assert!(run(&sound, &inputs([0, 4], [0, 1])).unwrap_err().contains("token 1 has slot 4, but the cache has 4"));
    assert!(run(&sound, &inputs([0, 1], [0, 7])).unwrap_err().contains("position 4 of token 1 is in no block"));
}

/// A checkpoint that has the one tensor that the graphs of this file use.
struct Ones;

impl WeightSource for Ones {
    fn weight(&self, _: &str) -> Option<WeightData<'_>> {
        const BYTES: [u8; 11 * 8 * 2] = [0x3f; 11 * 8 * 2];
        Some(WeightData { dtype: DType::Bf16, shape: &[11, 8], bytes: &BYTES })
    }
}
