//! `allotrope generate` with one prompt.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{command, copy_of_model, edit_json, generate, run, run_with_input, with_model};

const QUESTION: &str = "What is 7 + 8?";
const ANSWER: &str = "7 + 8 = 15.";

fn json_answer(more: &[&str]) -> Value {
    let run = generate(&[&["--format", "json", "--quiet"], more].concat()).ok();
    let mut lines = run.json_lines();
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

#[test]
fn every_level_answers_a_question_and_reports_the_start_and_the_speed() {
    for level in ["-O0", "-O1", "-O2", "-O3"] {
        let run = generate(&[level, QUESTION]).ok();
        assert_eq!(run.stdout, format!("{ANSWER}\n"), "{level}");
        for part in ["startup\n", "(unclaimed)", "ready", "prefill", "decode", "tokens/s", "kernels per step"] {
            assert!(run.stderr.contains(part), "{level}: no {part} in {}", run.stderr);
        }
    }
}

#[test]
fn quiet_writes_the_answer_alone() {
    let run = generate(&["--quiet", QUESTION]).ok();
    assert_eq!((run.stdout, run.stderr), (format!("{ANSWER}\n"), String::new()));
}

#[test]
fn a_dash_reads_the_prompt_from_standard_input() {
    for input in [QUESTION.to_owned(), format!("{QUESTION}\n"), format!("{QUESTION}\r\n")] {
        let run = run_with_input(&with_model("generate", &["--quiet", "-"]), &input).ok();
        assert_eq!(run.stdout, format!("{ANSWER}\n"), "{input:?}");
    }
}

#[test]
fn json_has_text_tokens_reason_and_times() {
    let run = generate(&["--format", "json", QUESTION]).ok();
    let answer = &run.json_lines()[0];
    assert_eq!(answer["text"], ANSWER);
    assert_eq!(answer["finish_reason"], "stop");
    let tokens = answer["tokens"].as_array().unwrap().len();
    assert!(tokens > 1);
    assert!(answer["prompt_tokens"].as_u64().unwrap() > 1);
    assert!(answer.get("id").is_none(), "no id was given");
    for time in ["prefill_seconds", "decode_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(answer["timings"][time].as_f64().unwrap() > 0.0, "{time}");
    }
    let between = answer["timings"]["inter_token_seconds"].as_array().unwrap();
    assert_eq!(between.len(), tokens - 1);
    let sum: f64 = between.iter().map(|seconds| seconds.as_f64().unwrap()).sum();
    let decode = answer["timings"]["decode_seconds"].as_f64().unwrap();
    assert!((sum - decode).abs() <= 1e-6, "{sum} is not {decode}");
    let report: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    let startup = &report["startup"];
    let phases: f64 =
        startup["phases"].as_array().unwrap().iter().map(|phase| phase["seconds"].as_f64().unwrap()).sum();
    let (unclaimed, ready) =
        (startup["unclaimed_seconds"].as_f64().unwrap(), startup["ready_seconds"].as_f64().unwrap());
    assert!((phases + unclaimed - ready).abs() <= 1e-6, "the ledger does not sum up: {startup}");
    assert_eq!(report["optimization_level"], "O2");
    assert_eq!(report["prefill"]["tokens"], answer["prompt_tokens"]);
    assert_eq!(report["decode"]["tokens"], json!(tokens - 1));
    assert!(report["launches_per_decode_step"].as_u64().unwrap() > 0);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    assert_eq!(generate(&["--quiet", "--stop", " =", QUESTION]).ok().stdout, "7 + 8\n");
    let answer = json_answer(&["--stop", "nothing", "--stop", "15", QUESTION]);
    assert_eq!((&answer["text"], &answer["finish_reason"]), (&json!("7 + 8 = "), &json!("stop")));
}

#[test]
fn the_number_of_tokens_is_limited() {
    let whole = json_answer(&[QUESTION]);
    let short = json_answer(&["--max-tokens", "3", QUESTION]);
    assert_eq!(short["finish_reason"], "length");
    assert_eq!(short["tokens"].as_array().unwrap()[..], whole["tokens"].as_array().unwrap()[..3]);
}

#[test]
fn ignoring_the_end_of_sequence_goes_on_to_the_limit() {
    let whole = json_answer(&[QUESTION])["tokens"].as_array().unwrap().len();
    let more = json_answer(&["--ignore-eos", "--max-tokens", "40", QUESTION]);
    assert_eq!(more["tokens"].as_array().unwrap().len(), 40);
    assert!(whole < 40);
    assert_eq!(more["finish_reason"], "length");
}

#[test]
fn a_seed_decides_the_answer() {
    let draw = |seed: &str, level: &str| {
        let story = "Tell me a story about a fox named Ida.";
        json_answer(&["--temperature", "1.5", "--seed", seed, "--max-tokens", "30", level, story])["tokens"].clone()
    };
    let first = draw("1", "-O2");
    assert_eq!(draw("1", "-O2"), first);
    assert_eq!(draw("1", "-O0"), first, "a level changes no answer");
    assert!((2..6).any(|seed| draw(&seed.to_string(), "-O2") != first), "five seeds gave one answer");
}

#[test]
fn filters_that_leave_one_token_give_the_greedy_answer() {
    for filter in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        let run = generate(&[&["--quiet", "--temperature", "1"], &filter[..], &[QUESTION]].concat()).ok();
        assert_eq!(run.stdout, format!("{ANSWER}\n"), "{filter:?}");
    }
}

#[test]
fn a_filter_without_effect_is_told() {
    let run = generate(&["--top-p", "0.5", "--seed", "3", QUESTION]).ok();
    assert!(run.stderr.contains("--top-p, --seed changes nothing"), "{}", run.stderr);
    assert_eq!(run.stdout, format!("{ANSWER}\n"));
}

#[test]
fn raw_text_is_not_put_into_the_template() {
    let templated = json_answer(&["--max-tokens", "1", QUESTION])["prompt_tokens"].as_u64().unwrap();
    let raw = json_answer(&["--max-tokens", "1", "--raw", QUESTION])["prompt_tokens"].as_u64().unwrap();
    assert!(raw < templated, "{raw} {templated}");
    let by_hand =
        "<|begin|><|start_header|>user<|end_header|>\nWhat is 7 + 8?<|eot|>\n<|start_header|>assistant<|end_header|>\n";
    let answer = json_answer(&["--raw", by_hand]);
    assert_eq!(answer["text"], ANSWER, "the template by hand gives the same");
    assert_eq!(answer["prompt_tokens"].as_u64(), Some(templated));
}

#[test]
fn a_system_message_goes_before_the_prompt() {
    let tokens =
        |more: &[&str]| json_answer(&[more, &["--max-tokens", "1", QUESTION]].concat())["prompt_tokens"].as_u64();
    assert!(tokens(&["--system", "Count from 1 to 3."]) > tokens(&[]));
}

#[test]
fn without_a_template_the_prompt_is_passed_as_it_is_and_that_is_told() {
    let copy = copy_of_model();
    edit_json(&copy, "tokenizer_config.json", |config| {
        config.remove("chat_template");
    });
    let folder = copy.path().to_str().unwrap();
    let run_copy = |more: &[&str]| run(&[&["generate", "--model", folder, "--max-tokens", "2"], more].concat());
    let plain = run_copy(&[QUESTION]).ok();
    assert!(plain.stderr.contains("passed as it is, as with --raw"), "{}", plain.stderr);
    let raw = run_copy(&["--raw", QUESTION]).ok();
    assert_eq!(plain.stdout, raw.stdout);
    assert!(!raw.stderr.contains("as with --raw"), "asked for, so not worth a warning: {}", raw.stderr);
    let message = run_copy(&["--system", "Be brief.", QUESTION]).failed(1);
    assert!(message.contains("--system needs a chat template"), "{message}");
}

#[test]
fn a_generation_config_out_of_range_is_named() {
    let copy = copy_of_model();
    edit_json(&copy, "generation_config.json", |config| {
        config.insert("do_sample".to_owned(), json!(true));
        config.insert("temperature".to_owned(), json!(7.5));
    });
    let folder = copy.path().to_str().unwrap();
    let message = run(&["generate", "--model", folder, QUESTION]).failed(1);
    assert!(message.contains("generation_config.json") && message.contains("temperature"), "{message}");
    run(&["generate", "--model", folder, "--temperature", "0", QUESTION]).ok();
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let folder = TempDir::new().unwrap();
    let arguments = with_model("generate", &["--quiet", "--ignore-eos", "--max-tokens", "900", QUESTION]);
    let mut child = command(&folder, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One byte, so that the program writes; then nobody listens any more.
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let message = generate(&["--max-model-len", "16", "Tell me a story about a fox named Ida."]).failed(1);
    assert!(message.contains("maximum context length is 16") && message.contains("model.max_model_len"), "{message}");
}

#[test]
fn the_context_ends_an_answer() {
    let answer = json_answer(&["--max-model-len", "40", "--ignore-eos", QUESTION]);
    assert_eq!(answer["finish_reason"], "length");
    let (prompt, tokens) =
        (answer["prompt_tokens"].as_u64().unwrap(), answer["tokens"].as_array().unwrap().len() as u64);
    assert_eq!(prompt + tokens, 40);
}

#[test]
fn a_folder_without_weights_runs_with_dummy_ones() {
    let copy = copy_of_model();
    std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();
    let folder = copy.path().to_str().unwrap();
    let generate =
        |more: &[&str]| run(&[&["generate", "--model", folder, "--ignore-eos", "--max-tokens=8"], more].concat());
    let error = generate(&[QUESTION]).failed(1);
    assert!(error.contains("model.safetensors") && error.contains("--load-format dummy"), "{error}");
    let first = generate(&["--load-format", "dummy", QUESTION]).ok();
    assert!(first.stderr.contains("make dummy weights") && first.stderr.contains("first token"), "{}", first.stderr);
    for level in ["-O0", "-O3"] {
        let again = generate(&["--load-format=dummy", "--quiet", level, QUESTION]).ok();
        assert_eq!(again.stdout, first.stdout, "{level}");
    }
    let explained = run(&["explain", "--model", folder, "--load-format", "dummy", "--only", "model"]).ok().stdout;
    let line = explained.lines().find(|line| line.contains("load_format")).unwrap();
    assert!(line.contains("dummy") && line.contains("--load-format"), "{line}");
}
