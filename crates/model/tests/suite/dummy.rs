//! Checkpoints without weights: tensors are made by shape, finite, of the size that a model's are, and always the same.

use std::fs;
use std::path::Path;

use allotrope_graph::{DType, WeightData, WeightSource};
use allotrope_model::{Checkpoint, LinearScheme};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::checkpoints::{Folder, assert_says, config, patched, shipped};

fn dummy(config: &Value) -> Checkpoint {
    let folder = Folder::new();
    folder.write_json("config.json", config);
    Checkpoint::open_dummy(folder.path()).unwrap()
}

/// The value of an e4m3 byte.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    assert!(byte & 0x7f != 0x7f, "NaN");
    let magnitude = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

fn numbers(data: &WeightData<'_>) -> Vec<f32> {
    match data.dtype {
        DType::F32 => data.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        DType::F16 => data.bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        DType::Bf16 => data.bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        DType::F8E4M3 => data.bytes.iter().map(|byte| e4m3(*byte)).collect(),
        DType::I32 => panic!("a weight of integers"),
    }
}

/// A model large enough that tensors take several of the generator's blocks, and one part of them ends within a line.
fn large() -> Value {
    patched(
        config(),
        &[
            ("hidden_size", json!(328)),
            ("intermediate_size", json!(777)),
            ("num_attention_heads", json!(2)),
            ("head_dim", json!(164)),
            ("vocab_size", json!(7001)),
            ("attention_bias", json!(true)),
        ],
    )
}

fn quantized(mut config: Value) -> Value {
    let described: Value =
        serde_json::from_slice(&fs::read(shipped("tiny-chat-fp8").join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = described["quantization_config"].clone();
    config
}

/// The names of a checkpoint's weights.
fn names(checkpoint: &Checkpoint) -> Vec<String> {
    let graph = checkpoint.graph().unwrap();
    let weights = graph.values().iter().filter_map(|value| match &value.definition {
        allotrope_graph::Definition::Weight(name) => Some(name.clone()),
        _ => None,
    });
    weights.collect()
}

/// A copy of a shipped checkpoint that has everything but weights.
fn without_weights(from: &Path) -> Folder {
    let folder = Folder::new();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

#[test]
fn the_graph_is_that_of_the_checkpoint_with_its_weights() {
    let real = Checkpoint::open(&shipped("tiny-chat")).unwrap();
    let made = Checkpoint::open_dummy(without_weights(&shipped("tiny-chat")).path()).unwrap();
    assert_eq!(made.graph().unwrap(), real.graph().unwrap());
    assert!(made.is_dummy() && !real.is_dummy());
    for name in names(&real) {
        let (made, real) = (made.weight(&name).unwrap(), real.weight(&name).unwrap());
        assert_eq!((made.dtype, made.shape, made.bytes.len()), (real.dtype, real.shape, real.bytes.len()), "{name}");
    }
}

#[test]
fn a_quantized_checkpoint_has_the_types_and_scales_of_one() {
    let real = Checkpoint::open(&shipped("tiny-chat-fp8")).unwrap();
    let made = Checkpoint::open_dummy(without_weights(&shipped("tiny-chat-fp8")).path()).unwrap();
    let mut quantized = 0;
    for name in names(&real) {
        let (made, real) = (made.weight(&name).unwrap(), real.weight(&name).unwrap());
        assert_eq!((made.dtype, made.shape), (real.dtype, real.shape), "{name}");
        quantized += usize::from(made.dtype == DType::F8E4M3);
    }
    assert_eq!(quantized, 7 * real.config().layers);
    let scheme = made.linear_scheme("model.layers.0.mlp.up_proj").unwrap();
    assert!(matches!(scheme, LinearScheme::Fp8Static { .. }), "{scheme:?}");
    assert_eq!(made.linear_scheme("lm_head").unwrap(), LinearScheme::Plain);
}

#[test]
fn numbers_are_finite_and_as_large_as_a_models() {
    let plain = ["bfloat16", "float16", "float32"].map(|dtype| patched(large(), &[("torch_dtype", json!(dtype))]));
    for config in plain.into_iter().chain([quantized(large())]) {
        let checkpoint = dummy(&config);
        for name in names(&checkpoint) {
            let data = checkpoint.weight(&name).unwrap();
            let scale = match (data.dtype, checkpoint.linear_scheme(name.trim_end_matches(".weight")).unwrap()) {
                (DType::F8E4M3, LinearScheme::Fp8Static { weight_scale, .. }) => weight_scale,
                _ => 1.0,
            };
            let numbers: Vec<f32> = numbers(&data).into_iter().map(|number| number * scale).collect();
            let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
            let square = (numbers.iter().map(|number| number * number).sum::<f32>() / numbers.len() as f32).sqrt();
            let most = numbers.iter().fold(0f32, |most, number| most.max(number.abs()));
            let context = format!("{name}, {}: mean {mean}, root mean square {square}, at most {most}", data.dtype);
            match data.shape {
                [_] if name.ends_with("bias") => assert!(most < 0.04 && square > 0.01, "{context}"),
                [_] => assert!(numbers.iter().all(|number| (1.0..=1.125).contains(number)), "{context}"),
                [_, columns] => {
                    let expected = 1.0 / (*columns as f32).sqrt();
                    assert!(square > 0.6 * expected && square < 1.7 * expected, "{context}, not {expected}");
                    assert!(mean.abs() < 0.05 * square && most < 2.0 * square, "{context}");
                }
                _ => panic!("{context}"),
            }
        }
    }
}

#[test]
fn a_tensor_is_the_same_whenever_and_however_it_is_made() {
    let (one_by_one, together) = (dummy(&large()), dummy(&large()));
    together.make_dummy_weights().unwrap();
    let names = names(&one_by_one);
    for name in names.iter().rev() {
        let data = one_by_one.weight(name).unwrap();
        assert!(data.bytes == together.weight(name).unwrap().bytes, "{name} depends on when it is made");
    }
    let bytes = |name: &str| one_by_one.weight(name).unwrap().bytes;
    let layer = "model.layers.0.mlp";
    assert!(bytes(&format!("{layer}.up_proj.weight")) != bytes(&format!("{layer}.gate_proj.weight")));
    let table = bytes("model.embed_tokens.weight");
    let rows: std::collections::HashSet<&[u8]> = table.chunks_exact(2 * 328).collect();
    assert_eq!(rows.len(), 7001, "no row comes twice");
}

#[test]
fn a_released_tensor_can_be_read_again() {
    let checkpoint = dummy(&large());
    let name = "model.embed_tokens.weight";
    let before = checkpoint.weight(name).unwrap().bytes.to_vec();
    checkpoint.release(name);
    checkpoint.release(name);
    checkpoint.release("no such tensor");
    for _ in 0..2 {
        assert!(checkpoint.weight(name).unwrap().bytes == before, "other bytes after they were released");
    }
    assert!(checkpoint.weight("no such tensor").is_none());
}

#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new();
    assert_says(Checkpoint::open_dummy(folder.path()), &["config.json", "cannot open"]);
    let mut config = config();
    config.as_object_mut().unwrap().remove("torch_dtype");
    folder.write_json("config.json", &config);
    assert_says(Checkpoint::open_dummy(folder.path()), &["config.json has no `dtype`"]);
    assert_says(Checkpoint::open(folder.path()), &["model.safetensors", "--load-format dummy"]);
    assert_says(Checkpoint::open_dummy(&folder.path().join("gone")), &["cannot open", "gone"]);
}
