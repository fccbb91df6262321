//! A folder with no more than `config.json` and the tokenizer runs, with weights that are made by shape: the same at every start,
//! so every level gives the same bits with them as with any others.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use allotrope_engine::{LlmBuilder, OptimizationLevel, Prompt, SamplingParams};
use allotrope_tests::{assert_same_bits, on_the_cpu, without_weights};

const NEW_TOKENS: usize = 12;

fn dummy(folder: &Path, level: OptimizationLevel) -> LlmBuilder {
    on_the_cpu(folder).optimization_level(level).set("model.load_format", "dummy").unwrap()
}

#[test]
fn every_level_and_every_start_gives_the_same_finite_logits() {
    let named =
        ["gqa-bf16", "bias-bf16", "mha-untied-bf16", "gqa-f16", "gqa-f32", "gqa-fp8", "tiny-chat", "tiny-chat-fp8"];
    for name in named {
        let folder = without_weights(name);
        let prompt: Vec<u32> = (0..20).collect();
        let run = |level| dummy(folder.path(), level).build().unwrap().logits(&prompt, NEW_TOKENS).unwrap();
        let first = run(OptimizationLevel::O0);
        assert!(first.prompt.iter().chain(&first.steps).all(|logit| logit.is_finite()), "{name}");
        let (least, most) = first
            .prompt
            .iter()
            .fold((f32::MAX, f32::MIN), |(least, most), logit| (least.min(*logit), most.max(*logit)));
        assert!(most - least > 0.1, "{name}: all logits lie between {least} and {most}, which hides any difference");
        for level in OptimizationLevel::ALL {
            let found = run(level);
            assert_same_bits(&format!("{name} at {level}, prompt"), &found.prompt, &first.prompt);
            assert_same_bits(&format!("{name} at {level}, continuation"), &found.steps, &first.steps);
            assert_eq!(found.tokens, first.tokens, "{name} at {level}");
        }
    }
}

#[test]
fn a_text_is_answered_and_the_weights_are_a_phase_of_the_start() {
    let folder = without_weights("tiny-chat");
    let mut llm = dummy(folder.path(), OptimizationLevel::O2).build().unwrap();
    let params = SamplingParams { max_tokens: Some(NEW_TOKENS), ignore_eos: true, ..SamplingParams::greedy() };
    let answers = llm.generate(&[Prompt::from("Once upon a time")], &params).unwrap();
    assert_eq!(answers[0].tokens.len(), NEW_TOKENS);
    assert!(llm.startup().phases.iter().any(|phase| phase.name == "make dummy weights"), "{}", llm.startup());
    assert!(llm.statistics().time_to_first_token.unwrap() > llm.startup().total);
}

#[test]
fn a_plan_makes_no_weights() {
    let folder = without_weights("gqa-bf16");
    // So large that no machine could hold it.
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (field, value) in [
        ("hidden_size", 65536),
        ("intermediate_size", 262144),
        ("num_attention_heads", 512),
        ("head_dim", 128),
        ("num_hidden_layers", 200),
    ] {
        config[field] = value.into();
    }
    fs::write(&path, config.to_string()).unwrap();
    let builder = || dummy(folder.path(), OptimizationLevel::O2).set("scheduler.max_num_batched_tokens", "32").unwrap();
    let plan = builder().plan().unwrap();
    assert_eq!(plan.settings().row("model.load_format").unwrap().value, "dummy");
    let error = builder().build().err().unwrap().to_string();
    assert!(error.contains("model.load_format=dummy makes") && error.contains("choose a smaller model"), "{error}");
}

#[test]
fn a_folder_without_weights_names_the_way_to_run_it() {
    let folder = without_weights("gqa-bf16");
    for format in ["auto", "safetensors"] {
        let error =
            on_the_cpu(folder.path()).set("model.load_format", format).unwrap().build().err().unwrap().to_string();
        assert!(error.contains("model.safetensors") && error.contains("--load-format dummy"), "{error}");
    }
    let error = on_the_cpu(folder.path()).set("model.load_format", "gguf").err().unwrap().to_string();
    assert!(error.contains("safetensors"), "{error}");
}
