//! `--device`: which device runs, and what is said where one can't be had. `CUDA_VISIBLE_DEVICES` hides whatever GPU this machine has.

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Run, command, with_model};

/// Runs the binary where no GPU can be seen and no environment says a device.
fn without_gpu(arguments: &[String]) -> Run {
    let folder = TempDir::new().unwrap();
    let mut command = command(&folder, arguments);
    command.env_remove("ALLOTROPE_DEVICE").env("CUDA_VISIBLE_DEVICES", "");
    command.output().unwrap().into()
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_an_error_that_says_what_to_do() {
    for command in ["generate", "explain", "graph"] {
        let more: &[&str] = if command == "generate" { &["hi"] } else { &[] };
        let error = without_gpu(&with_model(command, &[&["--device", "cuda"], more].concat())).failed(1);
        assert!(error.contains("command line --device: `device` cannot be cuda: cuda: "), "{error}");
        assert_eq!(error.matches("--device cpu").count(), 1, "{error}");
    }
    let error = without_gpu(&with_model("explain", &["--device", "tpu"])).failed(2);
    assert!(error.contains("'--device <NAME>': it must be one of auto, cpu, cuda"), "{error}");
}

#[test]
fn without_a_gpu_the_cpu_runs_and_says_why() {
    let explained = without_gpu(&with_model("explain", &["--format", "json"])).ok().stdout;
    let explained: Value = serde_json::from_str(&explained).unwrap();
    let rows = explained["settings"].as_array().unwrap();
    let row = rows.iter().find(|row| row["setting"] == "device").unwrap();
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.starts_with("the CPU runs the model, as no GPU can be used: cuda: "), "{reason}");
    assert_eq!((&row["value"], &explained["step"]["device"]), (&"auto".into(), &"cpu".into()));

    let run = without_gpu(&with_model("generate", &["-v", "What is 7 + 8?"])).ok();
    assert_eq!(run.stdout, "7 + 8 = 15.\n");
    assert_eq!(run.stderr.matches("the CPU runs the model, as no GPU can be used").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("device   cpu\n"), "{}", run.stderr);
    // Nobody is told what was asked for.
    let run = without_gpu(&with_model("generate", &["-v", "--device", "cpu", "What is 7 + 8?"])).ok();
    assert!(!run.stderr.contains("GPU"), "{}", run.stderr);
}
