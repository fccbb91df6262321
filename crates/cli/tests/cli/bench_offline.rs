//! `allotrope bench latency`, `throughput` and `startup` on the small model.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Run, command, model};

fn bench(folder: &TempDir, kind: &str, more: &[&str]) -> (Run, Value) {
    let model = model();
    let fixed = ["bench", kind, "--model", model.to_str().unwrap(), "--output-json", "out.json"];
    let output = command(folder, &[&fixed, more].concat()).output().unwrap();
    let text = std::fs::read_to_string(folder.path().join("out.json"));
    (output.into(), text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()))
}

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

#[test]
fn latency_is_that_of_each_batch() {
    let more = [
        "-O1",
        "--input-len",
        "4",
        "--output-len",
        "3",
        "--batch-size",
        "2",
        "--num-iters-warmup",
        "1",
        "--num-iters",
        "3",
    ];
    let (run, result) = bench(&folder(), "latency", &more);
    let run = run.ok();
    assert_eq!(run.stdout.lines().count(), 7, "the average and six percentiles: {}", run.stdout);
    assert!(run.stdout.starts_with("Average latency: "), "{}", run.stdout);
    let latencies: Vec<f64> =
        result["latencies"].as_array().unwrap().iter().map(|time| time.as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 3, "warm-up is not measured");
    let average = latencies.iter().sum::<f64>() / 3.0;
    assert!((result["avg_latency"].as_f64().unwrap() - average).abs() < 1e-12);
    let percentiles: Vec<&String> = result["percentiles"].as_object().unwrap().keys().collect();
    assert_eq!(percentiles, ["10", "25", "50", "75", "90", "99"]);
    assert_eq!(result["optimization_level"], "O1");
}

#[test]
fn throughput_counts_all_tokens() {
    let (run, result) =
        bench(&folder(), "throughput", &["--input-len", "4", "--output-len", "3", "--num-prompts", "5"]);
    let run = run.ok();
    assert!(run.stdout.starts_with("Throughput: ") && run.stdout.contains("Total output tokens: 15"), "{}", run.stdout);
    assert_eq!((&result["num_requests"], &result["total_num_tokens"]), (&json!(5), &json!(35)));
    assert_eq!(result["total_output_tokens"], 15);
    let number = |name: &str| result[name].as_f64().unwrap();
    assert!((number("requests_per_second") * number("elapsed_time") - 5.0).abs() < 1e-6);
    assert!((number("tokens_per_second") * number("elapsed_time") - 35.0).abs() < 1e-6);
}

#[test]
fn startup_is_measured_level_by_level() {
    let more = [
        "--levels",
        "0,2",
        "--num-iters-cold",
        "2",
        "--num-iters-warmup",
        "0",
        "--num-iters-warm",
        "1",
        "--max-num-seqs",
        "3",
    ];
    let (run, result) = bench(&folder(), "startup", &more);
    let run = run.ok();
    assert_eq!(run.stdout.lines().count(), 5, "a heading, and cold and warm of each level: {}", run.stdout);
    let levels: Vec<&String> = result["levels"].as_object().unwrap().keys().collect();
    assert_eq!(levels, ["O0", "O2"]);
    assert_eq!(result["device"], "cpu");
    for level in ["O0", "O2"] {
        let level = &result["levels"][level];
        for (kind, starts) in [("cold", 2), ("warm", 1)] {
            for what in ["startup", "compilation", "first_token", "process"] {
                assert_eq!(level[format!("{kind}_{what}_times")].as_array().unwrap().len(), starts);
                assert!(level[format!("avg_{kind}_{what}_time")].as_f64().unwrap() > 0.0, "{level}");
                assert!(level[format!("{kind}_{what}_percentiles")]["99"].is_number());
            }
        }
        assert!(level["avg_cold_process_time"].as_f64() > level["avg_cold_startup_time"].as_f64(), "{level}");
    }
}

#[test]
fn startup_without_levels_is_that_of_the_settings() {
    let more = ["-O1", "--num-iters-cold", "1", "--num-iters-warmup", "0", "--num-iters-warm", "0"];
    let (run, result) = bench(&folder(), "startup", &more);
    run.ok();
    let level = &result["levels"]["O1"];
    assert_eq!((level["cold_startup_times"].as_array().unwrap().len(), &level["warm_startup_times"]), (1, &json!([])));
}

#[test]
fn a_start_that_fails_says_why() {
    let (run, result) = bench(&folder(), "startup", &["--max-model-len", "100000", "--num-iters-cold", "1"]);
    let message = run.failed(1);
    assert!(message.contains("a start of ") && message.contains("100000"), "{message}");
    assert_eq!(result, Value::Null);
}

#[test]
fn what_cannot_be_is_refused() {
    let (run, _) = bench(&folder(), "latency", &["--input-len", "1000", "--output-len", "100"]);
    let message = run.failed(1);
    assert!(message.contains("1100 tokens") && message.contains("holds 1024"), "{message}");
    let (run, _) = bench(&folder(), "startup", &["--kernel-cache", "x"]);
    assert!(run.failed(2).contains("leave it out"));
    for (kind, more) in [
        ("latency", ["--batch-size", "0"]),
        ("throughput", ["--num-prompts", "0"]),
        ("startup", ["--levels", "4"]),
        ("latency", ["--output-json", "again.json"]),
    ] {
        bench(&folder(), kind, &more).0.failed(2);
    }
    let model = model();
    let arguments = ["bench", "throughput", "--model", model.to_str().unwrap(), "--output-json", "/nowhere/x.json"];
    let message = Run::from(command(&folder(), &arguments).output().unwrap()).failed(1);
    assert!(message.contains("/nowhere/x.json"), "found before the work: {message}");
}
