//! `allotrope explain`: settings, passes and launches.

use serde_json::Value;

use crate::support::{Run, copy_of_model, run, with_model};

fn explain(more: &[&str]) -> Run {
    run(&with_model("explain", more))
}

fn json(more: &[&str]) -> Value {
    serde_json::from_str(&explain(&[&["--format", "json"], more].concat()).ok().stdout).unwrap()
}

fn launches(more: &[&str]) -> u64 {
    json(more)["step"]["launches"].as_u64().unwrap()
}

#[test]
fn the_table_shows_settings_passes_and_the_step() {
    let run = explain(&["-O2", "--threads", "1"]).ok();
    assert_eq!(run.stderr, "");
    for part in [
        "optimization_level",
        "command line -O",
        "command line --threads",
        "cudagraph_mode",
        "level O2",
        "fuse_add_norm",
        "launches after it",
        "as built",
        "pieces",
        "decode batches  one recording of the whole step",
        "recorded for    1, 2, 4",
    ] {
        assert!(run.stdout.contains(part), "no {part} in\n{}", run.stdout);
    }
}

#[test]
fn launches_fall_with_the_level_and_return_when_a_pass_is_turned_off() {
    let by_level = ["-O0", "-O1", "-O2"].map(|level| launches(&[level]));
    assert!(by_level[0] > by_level[1] && by_level[1] > by_level[2], "{by_level:?}");
    assert_eq!(json(&["-O0"])["step"]["launches_as_built"], by_level[0]);
    let without = launches(&["-O1", "-cc.pass_config.fuse_add_norm=false"]);
    assert!(without > by_level[1], "{without} {by_level:?}");
}

#[test]
fn json_tells_what_each_pass_did() {
    let explained = json(&["-O2"]);
    let step = &explained["step"];
    assert_eq!(step["launch_labels"].as_array().unwrap().len() as u64, step["launches"].as_u64().unwrap());
    let passes = explained["passes"].as_array().unwrap();
    let pass = passes.iter().find(|pass| pass["name"] == "fuse_add_norm").unwrap();
    assert_eq!((&pass["on"], pass["matches"].as_u64() > Some(0)), (&Value::Bool(true), true));
    let last = step["passes"].as_array().unwrap().last().unwrap();
    assert_eq!(last["launches"], step["launches"], "the last pass leaves the step as it runs");
    let off = json(&["-O0"]);
    assert!(off["passes"].as_array().unwrap().iter().all(|pass| pass["on"] == Value::Bool(false)));
    assert_eq!(off["step"]["capture_sizes"], Value::Array(Vec::new()));
}

#[test]
fn no_weights_are_loaded() {
    let copy = copy_of_model();
    // The header says which tensors there are; the data behind it becomes a hole that reads as zeros.
    let path = copy.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    std::fs::write(&path, &bytes[..header]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64).unwrap();
    let explained = run(&["explain", "--model", copy.path().to_str().unwrap(), "--format", "json"]).ok();
    let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert_eq!(explained["step"]["launch_labels"], json(&[])["step"]["launch_labels"]);
}

#[test]
fn one_group_can_be_asked_for() {
    let run = explain(&["--only", "cache"]).ok();
    assert!(run.stdout.contains("block_size") && !run.stdout.contains("max_num_seqs"), "{}", run.stdout);
    assert!(explain(&["--only", "cash"]).failed(2).contains("cash"));
}

#[test]
fn two_levels_can_be_compared() {
    let run = explain(&["--diff", "O1", "O2"]).ok();
    assert!(run.stdout.contains("fuse_qkv_proj") && run.stdout.contains("launches per step"), "{}", run.stdout);
    assert!(!run.stdout.contains("fuse_add_norm"), "both levels have it: {}", run.stdout);
    let compared = json(&["--diff", "1", "2"]);
    assert_eq!(compared["step"]["before"]["launches"], launches(&["-O1"]));
    assert_eq!(compared["step"]["after"]["launches"], launches(&["-O2"]));
    explain(&["--diff", "O1", "O4"]).failed(2);
    explain(&["--diff", "O1", "O2", "-O3"]).failed(2);
}

#[test]
fn settings_that_contradict_each_other_are_a_usage_error() {
    let message = explain(&["--enforce-eager", "-cc.cudagraph_mode=FULL"]).failed(2);
    assert!(message.contains("cudagraph_mode"), "{message}");
}
