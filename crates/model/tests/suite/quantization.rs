//! Quantized checkpoints: which layers, which scales, and what is refused.

use allotrope_graph::DType;
use allotrope_model::{Checkpoint, LinearScheme, ModelConfig, ModelError};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoints::{Folder, Stored, assert_says, config, patched, safetensors_file, shipped, stored};

fn quantized_config() -> Value {
    let arguments = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false,
        "group_size": null, "block_structure": null, "actorder": null, "observer": "minmax", "observer_kwargs": {}});
    patched(
        config(),
        &[(
            "quantization_config",
            json!({
                "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
                "kv_cache_scheme": null, "global_compression_ratio": null, "ignore": ["lm_head"],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments, "input_activations": arguments, "output_activations": null}}
            }),
        )],
    )
}

fn layer(weight: Dtype, weight_scale: Option<Stored>, input_scale: Option<Stored>) -> Vec<Stored> {
    let mut tensors = vec![stored("layer.weight", weight, &[2, 2], vec![0; 4 * weight.bitsize() / 8])];
    tensors.extend(weight_scale.map(|scale| Stored { name: "layer.weight_scale".to_owned(), ..scale }));
    tensors.extend(input_scale.map(|scale| Stored { name: "layer.input_scale".to_owned(), ..scale }));
    tensors
}

fn bf16_scale(value: f32) -> Option<Stored> {
    Some(stored("", Dtype::BF16, &[1], bf16::from_f32(value).to_le_bytes().to_vec()))
}

fn scheme(config: &Value, tensors: &[Stored]) -> Result<LinearScheme, ModelError> {
    let folder = Folder::new();
    folder.write_json("config.json", config).write("model.safetensors", safetensors_file(tensors));
    Checkpoint::open(folder.path())?.linear_scheme("layer")
}

#[test]
fn the_shipped_quantized_model_has_a_scheme_for_every_layer() {
    let checkpoint = Checkpoint::open(&shipped("tiny-chat-fp8")).unwrap();
    let names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    for layer in 0..checkpoint.config().layers {
        for name in names {
            let scheme = checkpoint.linear_scheme(&format!("model.layers.{layer}.{name}")).unwrap();
            let LinearScheme::Fp8Static { weight_scale, input_scale } = scheme else { panic!("{scheme:?}") };
            assert!(weight_scale > 0.0 && weight_scale < 1.0 && input_scale > 0.0 && input_scale < 1.0, "{scheme:?}");
        }
    }
    assert_eq!(checkpoint.dtype(), DType::Bf16);
    let plain = Checkpoint::open(&shipped("tiny-chat")).unwrap();
    assert_eq!(plain.linear_scheme("model.layers.0.self_attn.q_proj").unwrap(), LinearScheme::Plain);
    assert_eq!(plain.eos_token_ids(), [1, 4]);
}

#[test]
fn scales_are_read_in_each_float_type_and_both_shapes() {
    let expected = LinearScheme::Fp8Static { weight_scale: 0.375, input_scale: 0.0625 };
    let input = || bf16_scale(0.0625);
    for (dtype, bytes) in [
        (Dtype::F32, 0.375_f32.to_le_bytes().to_vec()),
        (Dtype::F16, f16::from_f32(0.375).to_le_bytes().to_vec()),
        (Dtype::BF16, bf16::from_f32(0.375).to_le_bytes().to_vec()),
    ] {
        for shape in [&[1][..], &[]] {
            let tensors = layer(Dtype::F8_E4M3, Some(stored("", dtype, shape, bytes.clone())), input());
            assert_eq!(scheme(&quantized_config(), &tensors).unwrap(), expected);
        }
    }
}

#[test]
fn scales_that_cannot_be_are_refused() {
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let result = scheme(&quantized_config(), &layer(Dtype::F8_E4M3, bf16_scale(value), bf16_scale(1.0)));
        assert_says(result, &["`layer.weight_scale` is", "finite number above 0"]);
        let result = scheme(&quantized_config(), &layer(Dtype::F8_E4M3, bf16_scale(1.0), bf16_scale(value)));
        assert_says(result, &["`layer.input_scale` is", "finite number above 0"]);
    }
    let channels = Some(stored("", Dtype::BF16, &[2, 1], vec![0, 63, 0, 63]));
    assert_says(
        scheme(&quantized_config(), &layer(Dtype::F8_E4M3, channels, bf16_scale(1.0))),
        &["weight_scale` has shape [2, 1]", "whole tensor"],
    );
    let integer = Some(stored("", Dtype::I32, &[1], vec![1, 0, 0, 0]));
    assert_says(
        scheme(&quantized_config(), &layer(Dtype::F8_E4M3, integer, bf16_scale(1.0))),
        &["weight_scale` has dtype i32", "bf16"],
    );
    assert_says(
        scheme(&quantized_config(), &layer(Dtype::F8_E4M3, None, bf16_scale(1.0))),
        &["`layer.weight_scale` is missing"],
    );
    assert_says(
        scheme(&quantized_config(), &layer(Dtype::F8_E4M3, bf16_scale(1.0), None)),
        &["`layer.input_scale` is missing"],
    );
}

#[test]
fn weights_that_contradict_the_configuration_are_refused() {
    let result = scheme(&config(), &layer(Dtype::F8_E4M3, bf16_scale(1.0), bf16_scale(1.0)));
    assert_says(result, &["`layer.weight` has dtype f8e4m3", "quantization_config"]);
    let result = scheme(&quantized_config(), &layer(Dtype::BF16, bf16_scale(1.0), bf16_scale(1.0)));
    assert_says(result, &["`layer.weight` has dtype bf16", "quantization_config.ignore"]);
    let ignored = patched(quantized_config(), &[("quantization_config.ignore", json!(["layer"]))]);
    assert_eq!(scheme(&ignored, &layer(Dtype::BF16, None, None)).unwrap(), LinearScheme::Plain);
}

#[test]
fn ignored_layers_are_matched_by_name_and_by_pattern() {
    let quantizes = |ignore: Value, layer: &str| {
        let config = patched(quantized_config(), &[("quantization_config.ignore", ignore)]);
        let config = ModelConfig::open(Folder::new().write_json("config.json", &config).path()).unwrap();
        config.quantization.unwrap().quantizes(layer)
    };
    assert!(!quantizes(json!(["lm_head"]), "lm_head"));
    assert!(quantizes(json!(["lm_head"]), "model.lm_head"));
    assert!(quantizes(json!(["lm.head"]), "lm_head"));
    assert!(!quantizes(json!(["re:.*mlp\\.down_proj"]), "model.layers.3.mlp.down_proj"));
    assert!(quantizes(json!(["re:.*mlp\\.down_proj$"]), "model.layers.3.mlp.down_proj2"));
    assert!(
        quantizes(json!(["re:mlp"]), "model.layers.3.mlp.down_proj"),
        "patterns match from the beginning of the name"
    );
    assert!(!quantizes(json!(["re:a|model"]), "model.layers.3.mlp.down_proj"));
    assert!(!quantizes(json!(["Linear"]), "anything"));
    assert!(quantizes(json!([]), "lm_head"));
}

#[test]
fn other_schemes_are_refused_with_the_field() {
    let group = "quantization_config.config_groups.group_0";
    for (field, value, word) in [
        ("quantization_config.quant_method".to_owned(), json!("gptq"), "compressed-tensors"),
        ("quantization_config.format".to_owned(), json!("pack-quantized"), "float-quantized"),
        ("quantization_config.kv_cache_scheme".to_owned(), json!({"num_bits": 8}), "null"),
        ("quantization_config.config_groups".to_owned(), json!({}), "one group"),
        ("quantization_config.config_groups".to_owned(), json!({"a": {}, "b": {}}), "one group"),
        ("quantization_config.ignore".to_owned(), json!(["re:(?=x)"]), "look-around"),
        ("quantization_config.ignore".to_owned(), json!(["re:("]), "regular expressions"),
        ("quantization_config.ignore".to_owned(), json!(["re:(((a{1000}){1000}){1000})"]), "regular expressions"),
        ("quantization_config.ignore".to_owned(), json!("lm_head"), "list of strings"),
        (format!("{group}.targets"), json!(["Embedding"]), "Linear"),
        (format!("{group}.weights"), Value::Null, "static per-tensor FP8"),
        (format!("{group}.input_activations"), Value::Null, "static per-tensor FP8"),
        (format!("{group}.output_activations"), json!({}), "null"),
        (format!("{group}.weights.num_bits"), json!(4), "8"),
        (format!("{group}.weights.type"), json!("int"), "float"),
        (format!("{group}.weights.strategy"), json!("channel"), "tensor"),
        (format!("{group}.weights.symmetric"), json!(false), "true"),
        (format!("{group}.weights.group_size"), json!(128), "null"),
        (format!("{group}.input_activations.strategy"), json!("token"), "tensor"),
        (format!("{group}.input_activations.dynamic"), json!(true), "false"),
        (format!("{group}.input_activations.dynamic"), json!("local"), "false"),
    ] {
        let config = patched(quantized_config(), &[(&field, value)]);
        let result = ModelConfig::open(Folder::new().write_json("config.json", &config).path());
        assert_says(result, &["config.json", &format!("`{field}` is"), word]);
    }
}

#[test]
fn a_checkpoint_without_a_dtype_takes_that_of_its_weights() {
    let folder = Folder::new();
    folder.write_json("config.json", &patched(config(), &[("torch_dtype", Value::Null)]));
    folder.write(
        "model.safetensors",
        safetensors_file(&[stored("a", Dtype::I32, &[1], vec![0; 4]), stored("b", Dtype::F16, &[1], vec![0; 2])]),
    );
    assert_eq!(Checkpoint::open(folder.path()).unwrap().dtype(), DType::F16);
    folder.write("model.safetensors", safetensors_file(&[stored("a", Dtype::I32, &[1], vec![0; 4])]));
    assert_says(Checkpoint::open(folder.path()), &["dtype", "config.json"]);
}

#[test]
fn what_is_no_checkpoint_folder_is_refused() {
    let folder = Folder::new();
    assert_says(Checkpoint::open(&folder.path().join("gone")), &["cannot open", "gone"]);
    folder.write("model.gguf", "GGUF");
    assert_says(Checkpoint::open(&folder.path().join("model.gguf")), &["not a folder", "Hugging Face"]);
    assert_says(Checkpoint::open(folder.path()), &["config.json", "cannot open"]);
}
