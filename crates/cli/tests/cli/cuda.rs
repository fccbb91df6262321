//! The binary on CUDA: on the emulator, whose environment makes it fail where a test wants that; and without any driver.
//! With `ALLOTROPE_TEST_DEVICE=cuda`, what needs no failure runs on the GPU of the machine.

use std::collections::BTreeMap;

use allotrope_cuda_emulator::testing;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Run, command, copy_of_model, edit_json, with_model};

const QUESTION: &str = "What is 7 + 8?";
const ANSWER: &str = "7 + 8 = 15.\n";

/// Runs the binary on the model with the emulator for its driver, whatever GPU the machine has, and a clean environment but for
/// `variables`.
fn emulated(variables: &[(&str, &str)], subcommand: &str, more: &[&str]) -> Run {
    let folder = TempDir::new().unwrap();
    let mut command = command(&folder, &with_model(subcommand, more));
    testing::give(&mut command).unwrap();
    command.env_remove("ALLOTROPE_DEVICE").envs(variables.iter().copied()).output().unwrap().into()
}

/// The same on what tests of CUDA are to run on.
fn on_cuda(subcommand: &str, more: &[&str]) -> Run {
    let folder = TempDir::new().unwrap();
    let mut command = command(&folder, &with_model(subcommand, &[&["--device", "cuda"], more].concat()));
    testing::give_device(&mut command).unwrap();
    command.output().unwrap().into()
}

/// Runs the binary where there is no driver, whatever the machine has.
fn without_driver(arguments: &[String]) -> Run {
    let folder = TempDir::new().unwrap();
    let libraries = TempDir::new().unwrap();
    let mut command = command(&folder, arguments);
    testing::take_away(&mut command, libraries.path()).unwrap();
    command.env_remove("ALLOTROPE_DEVICE").output().unwrap().into()
}

/// Asks the question on the emulator, with a failure of the driver's planned.
fn failing(plan: &str, more: &[&str]) -> Run {
    let arguments = [&["--device", "cuda", "--max-num-seqs", "2"], more, &[QUESTION]].concat();
    let run = emulated(&[("ALLOTROPE_EMULATOR_FAIL", plan)], "generate", &arguments);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    run
}

/// Checks that a run failed with status 1 and one message, after whatever it had answered; gives the message.
#[track_caller]
fn message(run: &Run) -> &str {
    assert_eq!(run.status, 1, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    assert!(ANSWER.starts_with(run.stdout.trim_end_matches('\n')), "{}", run.stdout);
    let messages: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(messages.len(), 1, "{}", run.stderr);
    messages[0]
}

#[test]
fn a_question_is_answered_at_every_level() {
    for level in ["-O0", "-O1", "-O2", "-O3"] {
        let run = on_cuda("generate", &[level, QUESTION]).ok();
        assert_eq!(run.stdout, ANSWER, "{level}");
        assert!(!run.stderr.contains("WARN"), "{level}: {}", run.stderr);
        let one = run.stderr.contains(" kernels per step in 1 submission\n");
        assert_eq!(one, ["-O2", "-O3"].contains(&level), "{level}: {}", run.stderr);
    }
}

#[test]
fn the_gpu_is_taken_where_there_is_one() {
    let run = emulated(&[], "generate", &["-v", QUESTION]).ok();
    assert_eq!(run.stdout, ANSWER);
    assert!(run.stderr.contains("device   CUDA emulator\n"), "{}", run.stderr);
}

#[test]
fn explain_lists_the_kernels_of_a_step() {
    let mut counts = Vec::new();
    for level in ["-O0", "-O1", "-O2"] {
        let explained: Value =
            serde_json::from_str(&on_cuda("explain", &[level, "--format", "json"]).ok().stdout).unwrap();
        let step = &explained["step"];
        let kernels = step["launch_kernels"].as_array().unwrap();
        assert_eq!(kernels.len() as u64, step["launches"].as_u64().unwrap());
        assert!(kernels.iter().all(|names| !names.as_array().unwrap().is_empty()), "{level}: {kernels:?}");
        counts.push(kernels.len());
    }
    assert_eq!(counts, [75, 62, 23]);
    let text = on_cuda("explain", &["-O2"]).ok().stdout;
    let (_, launches) = text.split_once("\nlaunches of a step\n").unwrap();
    let rows: Vec<(usize, &str)> = launches
        .lines()
        .map(|line| line.trim_start().split_once(" × ").unwrap())
        .map(|(count, row)| (count.parse().unwrap(), row))
        .collect();
    assert_eq!(rows.iter().map(|(count, _)| count).sum::<usize>(), 23, "{launches}");
    let of_attention = rows.iter().find(|(_, row)| row.starts_with("attention ")).unwrap();
    assert!(of_attention.0 == 4 && of_attention.1.ends_with(" attention_bf16"), "{launches}");
}

#[test]
fn a_dump_has_the_captured_graphs() {
    let dump = TempDir::new().unwrap();
    let path = dump.path().to_str().unwrap();
    on_cuda("generate", &["-O2", "--debug-dump-path", path, QUESTION]).ok();
    let step = std::fs::read_to_string(dump.path().join("recordings/step-1.dot")).unwrap();
    assert!(step.starts_with("digraph") && step.contains("attention_bf16"), "{step}");
}

#[test]
fn without_a_driver_all_but_the_gpu_works() {
    let help = without_driver(&["--help".to_owned()]).ok();
    assert!(help.stdout.contains("generate") && help.stderr.is_empty(), "{}", help.stderr);
    let run = without_driver(&with_model("generate", &["-v", QUESTION])).ok();
    assert_eq!(run.stdout, ANSWER);
    let said: Vec<&str> = run.stderr.lines().filter(|line| line.contains("as no GPU can be used")).collect();
    assert!(said.len() == 1 && said[0].contains("no CUDA driver: libcuda.so was not found"), "{}", run.stderr);
    // Most machines have none, and nobody is to be told so at each start.
    let run = without_driver(&with_model("generate", &[QUESTION])).ok();
    assert!(!run.stderr.contains("GPU"), "{}", run.stderr);
    let error = without_driver(&with_model("generate", &["--device", "cuda", QUESTION])).failed(1);
    assert!(
        error.contains("no CUDA driver: libcuda.so was not found. Install NVIDIA's driver (580 or newer)"),
        "{error}"
    );
    assert_eq!(error.matches("--device cpu").count(), 1, "{error}");
}

/// Each with what is said of it: a warning, but where there just is no GPU.
#[test]
fn a_driver_or_a_gpu_that_will_not_do_is_an_error_or_leaves_the_work_to_the_cpu() {
    let too_old = "the CUDA driver is too old: it is of CUDA 12.4, and CUDA 13.0 is needed";
    let too_small = "does not fit CUDA emulator: its weights take 2542400 bytes, and 2 MiB are free";
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[("ALLOTROPE_EMULATOR_DRIVER_VERSION", "12.4")], too_old),
        (&[("CUDA_VISIBLE_DEVICES", "")], "no GPU is visible, since CUDA_VISIBLE_DEVICES is ``"),
        (&[("CUDA_VISIBLE_DEVICES", "7")], "no GPU is visible, since CUDA_VISIBLE_DEVICES is `7`"),
        (&[("ALLOTROPE_EMULATOR_FAIL", "cuInit:1:100")], "the CUDA driver finds no GPU"),
        (
            &[("ALLOTROPE_EMULATOR_CAPABILITY", "7.5")],
            "has compute capability 7.5, and Allotrope's kernels need 8.0. Choose another GPU with CUDA_VISIBLE_DEVICES",
        ),
        (&[("ALLOTROPE_EMULATOR_FAIL", "cuDevicePrimaryCtxRetain:1:3")], "the GPU cannot be opened"),
        (&[("ALLOTROPE_EMULATOR_MEMORY_MIB", "2")], too_small),
    ];
    for (variables, expected) in cases {
        let error = emulated(variables, "generate", &["--device", "cuda", QUESTION]).failed(1);
        assert!(error.contains("`device` cannot be cuda") && error.contains(expected), "{expected}: {error}");
        assert_eq!(error.matches("--device cpu").count(), 1, "{expected}: {error}");
        let is_absence = expected == "the CUDA driver finds no GPU";
        let verbose: &[&str] = if is_absence { &["-v"] } else { &[] };
        let run = emulated(variables, "generate", &[verbose, &[QUESTION]].concat()).ok();
        assert_eq!(run.stdout, ANSWER, "{expected}");
        let said: Vec<&str> = run.stderr.lines().filter(|line| line.contains("the CPU runs the model")).collect();
        assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {}", run.stderr);
        assert_eq!(run.stderr.matches("WARN").count(), usize::from(!is_absence), "{expected}: {}", run.stderr);
    }
}

/// A GPU without room for one sequence is of no use, unless somebody asks for a context that there is room for.
#[test]
fn a_context_that_a_gpu_has_no_room_for_is_left_to_the_cpu() {
    let on_small = |command, more: &[&str]| emulated(&[("ALLOTROPE_EMULATOR_MEMORY_MIB", "3")], command, more);
    let run = on_small("generate", &[QUESTION]).ok();
    assert_eq!(run.stdout, ANSWER);
    let said: Vec<&str> = run.stderr.lines().filter(|line| line.contains("WARN")).collect();
    assert!(said.len() == 1 && said[0].contains("KV cache of one sequence of 1024 tokens 512 KiB"), "{}", run.stderr);
    let error = on_small("generate", &["--device", "cuda", QUESTION]).failed(1);
    assert!(error.contains("does not fit CUDA emulator") && error.contains("write a smaller model.max_model_len"));
    let run = on_small("explain", &["--max-model-len", "64"]).ok();
    assert!(run.stderr.is_empty() && run.stdout.contains("CUDA emulator runs the model"), "{}", run.stdout);
    // A setting that is wrong is so on every device.
    let error = emulated(&[], "generate", &["--max-model-len", "4096", QUESTION]).failed(2);
    assert!(error.contains("`model.max_model_len` cannot be 4096"), "{error}");
    let error = on_small("generate", &["--kv-cache-memory", "1MiB", QUESTION]).failed(2);
    assert!(error.contains("`cache.kv_cache_memory` cannot be 1 MiB"), "{error}");
}

/// The model with one layer, whose heads are wider than CUDA's attention can be, and zeros for all its weights.
fn wide_heads() -> TempDir {
    const HEAD_DIM: u64 = 1024;
    let copy = copy_of_model();
    edit_json(&copy, "config.json", |config| {
        config.extend([("head_dim".to_owned(), HEAD_DIM.into()), ("num_hidden_layers".to_owned(), 1.into())]);
    });
    let path = copy.path().join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
    header.retain(|name, _| name != "__metadata__" && (!name.contains(".layers.") || name.contains(".layers.0.")));
    let mut end = 0;
    for (name, tensor) in &mut header {
        let axis = usize::from(name.contains(".o_proj."));
        if name.contains(".self_attn.") {
            tensor["shape"][axis] = (HEAD_DIM * if name.contains(".q_") || axis == 1 { 5 } else { 1 }).into();
        }
        let elements: u64 = tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product();
        tensor["data_offsets"] = [end, end + 2 * elements].into_iter().collect();
        end += 2 * elements;
    }
    let header = serde_json::to_vec(&header).unwrap();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    copy
}

/// That CUDA has no kernel is known before a weight is touched, and the CPU runs the model under `auto`.
#[test]
fn a_model_that_cuda_has_no_kernel_for_is_refused_or_left_to_the_cpu() {
    let model = wide_heads();
    let generate = |device: &str, level: &str| {
        let folder = TempDir::new().unwrap();
        let path = model.path().to_str().unwrap();
        let arguments =
            ["generate", "--model", path, "--device", device, level, "--max-tokens", "2", "--format", "json", "hi"];
        let mut command = command(&folder, &arguments);
        testing::give(&mut command).unwrap();
        Run::from(command.output().unwrap())
    };
    for level in ["-O0", "-O2"] {
        let error = generate("cuda", level).failed(1);
        for part in ["`device` cannot be cuda", "launch ", "attention", "has no kernel: ", "bytes of shared memory"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        assert_eq!(error.matches("--device cpu").count(), 1, "{error}");
        assert!(!error.contains("a bug in Allotrope"), "{error}");
        let run = generate("auto", level).ok();
        let said: Vec<&str> = run.stderr.lines().filter(|line| line.contains("WARN")).collect();
        assert!(said.len() == 1 && said[0].contains("the CPU runs the model"), "{}", run.stderr);
        assert_eq!(run.json_lines()[0]["tokens"], generate("cpu", level).ok().json_lines()[0]["tokens"]);
    }
}

#[test]
fn memory_that_does_not_suffice_at_load_is_an_error_that_says_how_much_was_wanted() {
    let run = emulated(&[("ALLOTROPE_EMULATOR_MEMORY_MIB", "4")], "generate", &["--device", "cuda", QUESTION]);
    let error = run.failed(1);
    assert!(error.contains("out of GPU memory") && error.contains(" of 4194304 bytes are free"), "{error}");
    assert!(error.contains("bytes were wanted") && error.contains("the KV cache's blocks"), "{error}");
    assert_eq!(error.matches("--device cpu").count(), 1, "{error}");
    let error = failing("cuMemHostAlloc:1:2", &[]).failed(1);
    for part in ["pinned memory of the host", "out of host memory", "bytes were wanted", "`ulimit -l`", "container"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    assert!(!error.contains("out of GPU memory") && !error.contains("lower what is kept on the GPU"), "{error}");
    assert_eq!(error.matches("--device cpu").count(), 1, "{error}");
    // What fails when the GPU was just taken says how to do without it too.
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuMemAlloc_v2:1:2")];
    let error = emulated(&failing, "generate", &[QUESTION]).failed(1);
    assert!(error.contains("out of GPU memory") && error.matches("--device cpu").count() == 1, "{error}");
}

/// The level's mode goes on without the recording and says so; a mode that was asked for stops.
#[test]
fn memory_that_does_not_suffice_for_a_recording() {
    let failure = "cuGraphInstantiateWithFlags:1:2";
    let run = failing(failure, &["--format", "json"]).ok();
    assert_eq!(run.json_lines()[0]["text"], ANSWER.trim_end());
    assert_eq!(run.stderr.matches("failed, and steps run without it").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("at size 4 failed") && run.stderr.contains("out of GPU memory"), "{}", run.stderr);
    let report: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(report["failed_captures"], 1);

    let error = failing(failure, &["-cc.cudagraph_mode=full"]).failed(1);
    assert!(error.contains("at size 4 failed") && error.contains("cudagraph_mode=FULL was asked for"), "{error}");
    assert!(error.contains("smaller compilation.cudagraph_capture_sizes"), "{error}");
}

#[test]
fn memory_that_does_not_suffice_in_a_step_is_an_error() {
    let run = failing("cuGraphLaunch:4:2", &[]);
    let error = message(&run);
    assert!(error.contains("cuGraphLaunch failed with CUDA_ERROR_OUT_OF_MEMORY (out of GPU memory)"), "{error}");
}

/// A kernel that fails in the middle of an answer ends the run: what was answered stays, and the message names what ran.
#[test]
fn a_kernel_that_fails_in_mid_stream_is_an_error_that_names_what_ran() {
    for (plan, level, code) in [
        ("cuGraphLaunch:4:700", "-O2", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuGraphLaunch:4:719", "-O2", "CUDA_ERROR_LAUNCH_FAILED"),
        ("cuStreamSynchronize:10:700", "-O0", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuLaunchKernelEx:300:719", "-O0", "CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        let run = failing(plan, &[level]);
        let error = message(&run);
        assert!(error.contains(code) && error.contains("launch"), "{plan}: {error}");
        assert!(error.contains("restart the process to use the GPU again"), "{plan}: {error}");
        assert!(error.ends_with("(this is a bug in Allotrope)"), "{plan}: {error}");
    }
}

/// A GPU that fails while graphs are recorded is not taken for a recording that failed.
#[test]
fn a_gpu_that_fails_during_a_capture_ends_the_run_with_one_message() {
    let run = failing("cuGraphUpload:3:719", &[]);
    let error = message(&run);
    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED") && error.contains("restart the process"), "{error}");
    assert!(run.stderr.matches("steps run without it").count() == 0, "{}", run.stderr);
}
