//! Broken checkpoints, requests and settings end with one error that names the place, through the library as a program
//! uses it. Nothing panics, and a model that refused a request answers the next.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use allotrope_engine::{EngineError, LlmBuilder, Message, Prompt, SamplingParams};
use allotrope_tests::{checkpoint, on_the_cpu};
use serde_json::{Value, json};

/// The error of loading a copy of a checkpoint after `damage` was done to it.
fn error_after(name: &str, damage: impl FnOnce(&Path)) -> String {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(checkpoint(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    damage(copy.path());
    match on_the_cpu(copy.path()).build() {
        Ok(_) => panic!("a damaged {name} was loaded"),
        Err(error) => error.to_string(),
    }
}

/// Sets a field of `config.json` by its JSON pointer's first part.
fn set(field: &'static str, value: Value) -> impl FnOnce(&Path) {
    move |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        fs::write(path, config.to_string()).unwrap();
    }
}

/// Replaces the first occurrence of bytes in a file by as many others.
fn replace(file: &'static str, from: &'static str, to: &'static str) -> impl FnOnce(&Path) {
    assert_eq!(from.len(), to.len());
    move |folder| {
        let path = folder.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let place = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
        fs::write(path, bytes).unwrap();
    }
}

fn remove(file: &'static str) -> impl FnOnce(&Path) {
    move |folder| fs::remove_file(folder.join(file)).unwrap()
}

fn write(file: &'static str, text: &'static str) -> impl FnOnce(&Path) {
    move |folder| fs::write(folder.join(file), text).unwrap()
}

#[track_caller]
fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "`{word}` is not in the error: {error}");
    }
    assert!(error.len() < 1000, "an error of {} bytes: {error}", error.len());
}

#[test]
fn a_missing_folder_is_named() {
    let error = on_the_cpu("no/such/folder").build().err().unwrap().to_string();
    assert_names(&error, &["no/such/folder"]);
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert_names(&error_after("gqa-bf16", remove(file)), &[file]);
    }
    let shard = "model-00002-of-00003.safetensors";
    assert_names(&error_after("sharded-bf16", remove(shard)), &[shard]);
}

#[test]
fn broken_json_is_named() {
    for file in ["config.json", "tokenizer.json", "generation_config.json"] {
        assert_names(&error_after("gqa-bf16", write(file, "{\"a\": [1,")), &[file]);
    }
    let index = "model.safetensors.index.json";
    assert_names(&error_after("sharded-bf16", write(index, "{\"weight_map\": 7}")), &[index]);
}

#[test]
fn what_is_not_supported_is_named() {
    let cases = [
        ("architectures", json!(["MambaForCausalLM"]), "MambaForCausalLM"),
        ("hidden_act", json!("relu"), "relu"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "longrope"),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "gptq"),
    ];
    for (field, value, word) in cases {
        let error = error_after("gqa-bf16", set(field, value));
        assert_names(&error, &["config.json", word]);
    }
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    for field in ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"] {
        for value in [json!(0), json!(-1), json!(1_u64 << 62), json!(1.5), json!("64"), json!(null)] {
            let error = error_after("gqa-bf16", set(field, value.clone()));
            assert_names(&error, &["config.json", field]);
        }
    }
}

#[test]
fn shapes_that_contradict_the_configuration_are_named() {
    let cases: [(&'static str, Value, &str); 4] = [
        ("intermediate_size", json!(96), "mlp"),
        ("num_key_value_heads", json!(1), "k_proj"),
        ("vocab_size", json!(511), "embed_tokens"),
        ("tie_word_embeddings", json!(false), "lm_head"),
    ];
    for (field, value, tensor) in cases {
        assert_names(&error_after("gqa-bf16", set(field, value)), &[tensor]);
    }
    let reshaped = error_after("gqa-bf16", replace("model.safetensors", "[64,128]", "[128,64]"));
    assert_names(&reshaped, &["down_proj", "64", "128"]);
    let renamed = error_after("gqa-bf16", replace("model.safetensors", "model.norm.weight", "model.nork.weight"));
    assert_names(&renamed, &["model.norm.weight"]);
}

#[test]
fn truncated_and_corrupted_weights_are_named() {
    let length = fs::metadata(checkpoint("gqa-bf16").join("model.safetensors")).unwrap().len();
    for keep in [0, 1, 7, 8, 9, 100, length / 2, length - 1] {
        let truncate = |folder: &Path| {
            let file = fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).unwrap();
            file.set_len(keep).unwrap();
        };
        assert_names(&error_after("gqa-bf16", truncate), &["model.safetensors"]);
    }
    let huge_header = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(path, bytes).unwrap();
    };
    assert_names(&error_after("gqa-bf16", huge_header), &["model.safetensors"]);
    let overlapping = replace("model.safetensors", "[65536,65664]", "[65534,65662]");
    assert_names(&error_after("gqa-bf16", overlapping), &["model.safetensors"]);
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    let index = "model.safetensors.index.json";
    for outside in ["../escaped.safetensors", "/escaped.safetensors"] {
        let escape = |folder: &Path| {
            let path = folder.join(index);
            let mut read: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            read["weight_map"]["model.norm.weight"] = json!(outside);
            fs::write(path, read.to_string()).unwrap();
        };
        assert_names(&error_after("sharded-bf16", escape), &[index, outside]);
    }
}

#[test]
fn scales_that_are_no_scales_are_named() {
    let path = "model.safetensors";
    let error = error_after("gqa-fp8", |folder| {
        let mut bytes = fs::read(folder.join(path)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let described: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let offset = described["model.layers.0.mlp.up_proj.weight_scale"]["data_offsets"][0].as_u64().unwrap() as usize;
        // 0x7fc0 is a NaN in bf16.
        bytes[8 + header + offset..][..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
        fs::write(folder.join(path), bytes).unwrap();
    });
    assert_names(&error, &["model.layers.0.mlp.up_proj.weight_scale"]);
}

#[test]
fn a_broken_chat_template_hurts_only_conversations() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(checkpoint("tiny-chat").join(file), copy.path().join(file)).unwrap();
    }
    let broken = json!({"chat_template": "{% for message in messages %}{{ message.content "});
    fs::write(copy.path().join("tokenizer_config.json"), broken.to_string()).unwrap();
    let mut llm = on_the_cpu(copy.path()).build().unwrap();
    let params = SamplingParams { max_tokens: Some(4), ..SamplingParams::greedy() };
    let chat = Prompt::Chat(vec![Message { role: "user".into(), content: "Hello".into() }]);
    assert_names(&llm.generate(&[chat], &params).unwrap_err().to_string(), &["tokenizer_config.json"]);
    assert_eq!(llm.generate(&[Prompt::from("Once upon a time")], &params).unwrap()[0].tokens.len(), 4);
}

fn small() -> LlmBuilder {
    on_the_cpu(checkpoint("gqa-bf16")).set("model.max_model_len", "32").unwrap()
}

#[test]
fn prompts_that_cannot_run_are_refused_and_the_next_is_answered() {
    let mut llm = small().build().unwrap();
    let params = SamplingParams { max_tokens: Some(4), ignore_eos: true, ..SamplingParams::greedy() };
    let fine = [Prompt::Tokens(vec![1, 2, 3])];
    let before = llm.generate(&fine, &params).unwrap()[0].tokens.clone();
    let cases: [(Vec<u32>, &[&str]); 4] = [
        (vec![7; 40], &["40", "32", "max_model_len"]),
        (vec![7; 32], &["32", "max_model_len"]),
        (vec![], &["no tokens"]),
        (vec![1, 512], &["512", "vocab"]),
    ];
    for (tokens, words) in cases {
        let prompts = [fine[0].clone(), Prompt::Tokens(tokens.clone())];
        assert_names(&llm.generate(&prompts, &params).unwrap_err().to_string(), words);
        assert_names(&llm.stream(&prompts[1], &params).err().unwrap().to_string(), words);
        assert_names(&llm.logits(&tokens, 1).unwrap_err().to_string(), words);
        assert_eq!(llm.generate(&fine, &params).unwrap()[0].tokens, before, "after {words:?}");
    }
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let mut llm = small().build().unwrap();
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy() };
    let answer = &llm.generate(&[Prompt::Tokens(vec![5; 30])], &params).unwrap()[0];
    assert_eq!(answer.tokens.len(), 2);
}

#[test]
fn sampling_parameters_out_of_range_are_named() {
    let mut llm = small().build().unwrap();
    let base = SamplingParams::default;
    let cases = [
        ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
        ("temperature", SamplingParams { temperature: -0.5, ..base() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..base() }),
        ("top_p", SamplingParams { top_p: 0.0, ..base() }),
        ("top_p", SamplingParams { top_p: 1.5, ..base() }),
        ("top_p", SamplingParams { top_p: f32::NAN, ..base() }),
        ("min_p", SamplingParams { min_p: -0.1, ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: f32::NAN, ..base() }),
        ("max_tokens", SamplingParams { max_tokens: Some(0), ..base() }),
        ("stop", SamplingParams { stop: vec![String::new()], ..base() }),
        ("stop", SamplingParams { stop: vec!["x".into(); 1000], ..base() }),
    ];
    for (name, params) in cases {
        let error = llm.generate(&[Prompt::Tokens(vec![1])], &params).unwrap_err();
        assert!(matches!(error, EngineError::Sampling(_)) && error.is_usage(), "{name}: {error:?}");
        assert_names(&error.to_string(), &[name]);
    }
}

#[test]
fn settings_that_cannot_be_had_are_named() {
    let unknown = small().set("compilation.pass_config.fuse_ad_norm", "true").err().unwrap().to_string();
    assert_names(&unknown, &["fuse_ad_norm", "fuse_add_norm"]);
    let value = small().set("compilation.pass_config.fuse_add_norm", "maybe").err().unwrap().to_string();
    assert_names(&value, &["fuse_add_norm", "maybe"]);
    let cases = [("model.max_model_len", "1000000"), ("cache.kv_cache_memory", "64")];
    for (path, value) in cases {
        let error = on_the_cpu(checkpoint("gqa-bf16")).set(path, value).unwrap().build().err();
        assert_names(&error.unwrap_or_else(|| panic!("{path}={value} was accepted")).to_string(), &[path]);
    }
}
