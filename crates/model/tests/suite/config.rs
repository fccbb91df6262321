//! `config.json` and `generation_config.json`.

use allotrope_graph::DType;
use allotrope_model::{Activation, Architecture, Fault, GenerationConfig, ModelConfig, ModelError, RopeKind};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::checkpoints::{Folder, assert_says, config, patched, shipped};

fn open(config: &Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::open(Folder::new().write_json("config.json", config).path())
}

fn generation(content: &Value) -> Result<GenerationConfig, ModelError> {
    GenerationConfig::open(Folder::new().write_json("generation_config.json", content).path(), 32)
}

#[test]
fn the_shipped_model_is_read_exactly() {
    let config = ModelConfig::open(&shipped("tiny-chat")).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(config.architecture.to_string(), "LlamaForCausalLM");
    assert_eq!((config.hidden_size, config.intermediate_size, config.layers), (160, 448, 4));
    assert_eq!((config.attention_heads, config.key_value_heads, config.head_dim), (5, 1, 32));
    assert_eq!((config.query_size(), config.key_value_size()), (160, 32));
    assert_eq!((config.vocab_size, config.max_position_embeddings), (1024, 1024));
    assert_eq!(config.rms_norm_eps, 1e-5);
    assert_eq!((config.rope.theta, config.rope.kind), (10000.0, RopeKind::Default));
    assert_eq!(config.activation, Activation::Silu);
    assert_eq!(config.dtype, Some(DType::Bf16));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(0), [1, 4].as_slice()));
    assert!(config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert_eq!(config.quantization, None);
}

#[test]
fn absent_fields_have_the_defaults_of_the_format() {
    let config = open(&json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 32
    }))
    .unwrap();
    assert_eq!((config.key_value_heads, config.head_dim), (2, 4));
    assert_eq!((config.rope.theta, config.rope.kind), (10000.0, RopeKind::Default));
    assert_eq!((config.bos_token_id, config.eos_token_ids.len(), config.dtype), (None, 0, None));
    assert_eq!((config.rms_norm_eps, config.max_position_embeddings), (1e-6, 2048));
    assert!(!config.tie_word_embeddings);
}

#[test]
fn a_null_counts_as_absent_and_the_new_name_of_dtype_is_known() {
    let config = patched(
        config(),
        &[
            ("head_dim", Value::Null),
            ("torch_dtype", Value::Null),
            ("dtype", json!("float16")),
            ("eos_token_id", json!(3)),
        ],
    );
    let config = open(&config).unwrap();
    assert_eq!((config.head_dim, config.dtype, config.eos_token_ids), (4, Some(DType::F16), vec![3]));
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let old = open(&patched(config(), &[("rope_theta", json!(500000.0)), ("rope_scaling", scaling.clone())])).unwrap();
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500000.0);
    let new = open(&patched(config(), &[("rope_theta", Value::Null), ("rope_parameters", parameters)])).unwrap();
    assert_eq!(old.rope, new.rope);
    let mut older = scaling;
    older["type"] = older["rope_type"].take();
    let older = open(&patched(config(), &[("rope_theta", json!(500000.0)), ("rope_scaling", older)])).unwrap();
    assert_eq!(old.rope, older.rope);
    let RopeKind::Llama3 { original_max_position_embeddings, factor, .. } = old.rope.kind else {
        panic!("{:?}", old.rope)
    };
    assert_eq!((original_max_position_embeddings, factor, old.rope.theta), (8192, 32.0, 500000.0));
}

#[test]
fn wrong_values_are_refused_with_field_value_and_what_would_be_right() {
    let llama3 = |field: &str, value: Value| {
        let mut scaling =
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        scaling[field] = value;
        ("rope_scaling", scaling)
    };
    let kind = |kind: &str| ("rope_scaling", json!({"rope_type": kind, "factor": 2.0}));
    let cases: Vec<((&str, Value), [&str; 2])> = vec![
        (
            ("architectures", json!(["MambaForCausalLM"])),
            ["`architectures` is [\"MambaForCausalLM\"]", "LlamaForCausalLM"],
        ),
        (("architectures", json!("LlamaForCausalLM")), ["`architectures`", "a list of strings"]),
        (("model_type", json!("mistral")), ["`model_type` is \"mistral\"", "llama"]),
        (("hidden_size", json!(0)), ["`hidden_size` is 0", "from 1"]),
        (("hidden_size", json!(-8)), ["`hidden_size` is -8", "whole number"]),
        (("hidden_size", json!(8.5)), ["`hidden_size` is 8.5", "whole number"]),
        (("hidden_size", json!("8")), ["`hidden_size` is \"8\"", "whole number"]),
        (("hidden_size", Value::Null), ["`hidden_size` is null", "whole number"]),
        (("hidden_size", json!(u64::MAX)), ["`hidden_size` is 18446744073709551615", "1048576"]),
        (("intermediate_size", json!(1_u64 << 40)), ["`intermediate_size` is 1099511627776", "from 1 to"]),
        (("num_hidden_layers", json!(1_000_000)), ["`num_hidden_layers`", "4096"]),
        (("num_attention_heads", json!(0)), ["`num_attention_heads` is 0", "from 1"]),
        (("num_key_value_heads", json!(3)), ["`num_key_value_heads` is 3", "divisor of num_attention_heads = 2"]),
        (("head_dim", json!(3)), ["`head_dim` is 3", "even"]),
        (("vocab_size", json!(0)), ["`vocab_size` is 0", "from 1"]),
        (("vocab_size", json!(u32::MAX)), ["`vocab_size` is 4294967295", "16777216"]),
        (("max_position_embeddings", json!(0)), ["`max_position_embeddings` is 0", "from 1"]),
        (("rms_norm_eps", json!(0.0)), ["`rms_norm_eps` is 0.0", "above 0"]),
        (("rms_norm_eps", json!(1e-300)), ["`rms_norm_eps` is 1e-300", "above 0"]),
        (("rms_norm_eps", json!("1e-5")), ["`rms_norm_eps` is \"1e-5\"", "above 0"]),
        (("hidden_act", json!("gelu")), ["`hidden_act` is \"gelu\"", "silu"]),
        (("torch_dtype", json!("float64")), ["`torch_dtype` is \"float64\"", "bfloat16"]),
        (("tie_word_embeddings", json!("yes")), ["`tie_word_embeddings` is \"yes\"", "true or false"]),
        (("bos_token_id", json!(32)), ["`bos_token_id` is 32", "below vocab_size = 32"]),
        (("bos_token_id", json!([0, 1])), ["`bos_token_id` is [0,1]", "one token id"]),
        (("eos_token_id", json!([1, -1])), ["`eos_token_id` is [1,-1]", "below vocab_size"]),
        (("rope_theta", json!(0.0)), ["`rope_theta` is 0.0", "above 1"]),
        (("partial_rotary_factor", json!(0.5)), ["`partial_rotary_factor` is 0.5", "1"]),
        (("rope_scaling", json!(2.0)), ["`rope_scaling` is 2.0", "object"]),
        (kind("dynamic"), ["`rope_scaling.rope_type` is \"dynamic\"", "\"llama3\" or \"yarn\""]),
        (kind("longrope"), ["`rope_scaling.rope_type` is \"longrope\"", "\"llama3\" or \"yarn\""]),
        (kind("spiral"), ["`rope_scaling.rope_type` is \"spiral\"", "\"llama3\" or \"yarn\""]),
        (("rope_scaling", json!({"factor": 2.0})), ["`rope_scaling.rope_type` is missing", "\"linear\""]),
        (("rope_scaling", json!({"rope_type": "linear"})), ["`rope_scaling.factor` is missing", "from 1"]),
        (("rope_scaling", json!({"rope_type": "linear", "factor": 0.5})), ["`rope_scaling.factor` is 0.5", "from 1"]),
        (llama3("low_freq_factor", Value::Null), ["`rope_scaling.low_freq_factor`", "above 0"]),
        (
            llama3("low_freq_factor", json!(4.0)),
            ["`rope_scaling.high_freq_factor` is 4.0", "above low_freq_factor = 4"],
        ),
        (llama3("factor", json!(1e300)), ["`rope_scaling.factor` is 1e+300", "from 1 to 1e15"]),
        (
            llama3("original_max_position_embeddings", json!(0)),
            ["`rope_scaling.original_max_position_embeddings` is 0", "from 1"],
        ),
    ];
    for ((field, value), words) in cases {
        let result = open(&patched(config(), &[(field, value)]));
        assert_says(result, &["config.json", words[0], words[1]]);
    }
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused() {
    let result = open(&patched(config(), &[("head_dim", Value::Null), ("hidden_size", json!(9))]));
    assert_says(result, &["`num_attention_heads` is 2", "divisor of hidden_size = 9", "head_dim"]);
    let result = open(&patched(config(), &[("head_dim", Value::Null), ("hidden_size", json!(6))]));
    assert_says(result, &["`head_dim` is 3", "even"]);
}

#[test]
fn two_rope_dictionaries_that_differ_are_refused() {
    let result = open(&patched(
        config(),
        &[
            ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"rope_type": "linear", "factor": 4.0})),
        ],
    ));
    assert_says(result, &["`rope_scaling`", "not two that differ"]);
}

#[test]
fn files_that_are_no_json_objects_are_refused_with_the_place() {
    for (content, words) in [
        ("", ["line 1, column 0", "JSON object"]),
        ("{\"hidden_size\": 8,\n \"vocab", ["line 2, column", "JSON object"]),
        ("[1, 2]", ["line 1", "JSON object"]),
        ("\u{feff}{}", ["line 1", "JSON object"]),
        ("{\"a\": NaN}", ["line 1", "JSON object"]),
    ] {
        let folder = Folder::new();
        let error = ModelConfig::open(folder.write("config.json", content).path());
        assert_says(error, &["config.json", words[0], words[1]]);
    }
    let deep = "[".repeat(100_000);
    assert_says(
        ModelConfig::open(Folder::new().write("config.json", format!("{{\"a\":{deep}")).path()),
        &["config.json", "recursion"],
    );
}

#[test]
fn missing_files_and_folders_in_their_place_are_named() {
    let folder = Folder::new();
    assert_says(ModelConfig::open(folder.path()), &["config.json", "cannot open", "folder that holds a whole"]);
    assert_eq!(ModelConfig::open(folder.path()).unwrap_err().fault(), Fault::Input);
    std::fs::create_dir(folder.path().join("config.json")).unwrap();
    assert_says(ModelConfig::open(folder.path()), &["config.json", "not a regular file"]);
}

#[test]
fn a_huge_value_does_not_make_a_huge_message() {
    let result = open(&patched(config(), &[("hidden_act", json!("x\u{7}\n".repeat(100_000)))]));
    assert_says(result, &["`hidden_act`", "…"]);
}

#[test]
fn generation_defaults_are_read_and_may_be_missing() {
    assert_eq!(GenerationConfig::open(Folder::new().path(), 32).unwrap(), GenerationConfig::default());
    let config =
        generation(&json!({"eos_token_id": [3, 4], "do_sample": true, "temperature": 0.5, "top_p": 0.75, "top_k": 40,
        "min_p": 0.125, "repetition_penalty": 1.25, "max_new_tokens": 100, "transformers_version": "4.45.0"}));
    let expected = GenerationConfig {
        eos_token_ids: vec![3, 4],
        do_sample: Some(true),
        temperature: Some(0.5),
        top_p: Some(0.75),
        top_k: Some(40),
        min_p: Some(0.125),
        repetition_penalty: Some(1.25),
        max_new_tokens: Some(100),
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn generation_defaults_out_of_range_are_refused() {
    for (field, value) in [
        ("temperature", json!(-0.1)),
        ("temperature", json!("warm")),
        ("top_p", json!(0.0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-1)),
        ("top_k", json!(1.5)),
        ("min_p", json!(2.0)),
        ("repetition_penalty", json!(0.0)),
        ("max_new_tokens", json!(0)),
        ("do_sample", json!(1)),
        ("eos_token_id", json!(32)),
        ("eos_token_id", json!({"a": 1})),
    ] {
        let message = format!("`{field}` is {value}");
        assert_says(generation(&json!({field: value})), &["generation_config.json", &message, "expected"]);
    }
    let broken = Folder::new();
    assert_says(
        GenerationConfig::open(broken.write("generation_config.json", "{").path(), 32),
        &["generation_config.json", "line 1"],
    );
}

/// Any JSON value of a few levels.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~é]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,12}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_values_in_any_fields_give_a_usable_model_or_an_error_that_names_the_file(
        changes in prop::collection::vec((0_usize..20, any_json()), 1..4),
    ) {
        let mut config = config();
        let mut fields: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        fields.extend(["rope_scaling", "rope_parameters", "quantization_config"].map(str::to_owned));
        for (field, value) in changes {
            config[fields[field % fields.len()].as_str()] = value;
        }
        match open(&config) {
            Err(error) => prop_assert!(error.to_string().contains("config.json"), "{}", error),
            Ok(config) => {
                prop_assert!(config.head_dim % 2 == 0 && config.head_dim > 0);
                prop_assert!(config.attention_heads % config.key_value_heads == 0);
                let rope = config.rope.parameters(config.head_dim);
                prop_assert_eq!(rope.inverse_frequencies.len(), config.head_dim / 2);
                prop_assert!(rope.inverse_frequencies.iter().all(|frequency| frequency.is_finite() && *frequency >= 0.0), "{:?}", rope);
                prop_assert!(rope.attention_scaling.is_finite());
            }
        }
    }
}
