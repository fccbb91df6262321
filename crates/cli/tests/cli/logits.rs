//! `allotrope logits`: the file that it writes.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::support::{Run, command, run, with_model};

fn logits(prompts: &Path, out: &Path, more: &[&str]) -> Run {
    let files = ["--tokens", prompts.to_str().unwrap(), "--out", out.to_str().unwrap()];
    run(&with_model("logits", &[&files, more].concat()))
}

fn numbers<const WIDTH: usize, T>(data: &[u8], from: fn([u8; WIDTH]) -> T) -> Vec<T> {
    data.chunks_exact(WIDTH).map(|chunk| from(chunk.try_into().unwrap())).collect()
}

/// The place of the largest value, the first among equals.
fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, place| if row[place] > row[best] { place } else { best })
}

#[test]
fn the_file_has_every_tensor_in_shape_and_the_continuation_is_greedy() {
    let folder = TempDir::new().unwrap();
    let (prompts, out) = (folder.path().join("prompts.json"), folder.path().join("out.safetensors"));
    std::fs::write(&prompts, "[[0, 10, 20, 30, 40], [7]]").unwrap();
    std::fs::write(&out, "what was there before").unwrap();
    let report = logits(&prompts, &out, &["--new-tokens", "6"]).ok();
    assert_eq!(report.stdout, "");
    assert!(report.stderr.contains("ready"), "{}", report.stderr);

    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 8);
    for (index, prompt) in [vec![0i64, 10, 20, 30, 40], vec![7]].into_iter().enumerate() {
        let tensor = |name: &str| file.tensor(&format!("{name}.{index}")).unwrap();
        let (ids, all) = (tensor("prompt"), tensor("logits"));
        let (tokens, steps) = (tensor("tokens"), tensor("step_logits"));
        let vocabulary = all.shape()[1];
        assert_eq!((ids.dtype(), ids.shape()), (Dtype::I64, &[prompt.len()][..]));
        assert_eq!(numbers(ids.data(), i64::from_le_bytes), prompt);
        assert_eq!((all.dtype(), all.shape()), (Dtype::F32, &[prompt.len(), vocabulary][..]));
        assert_eq!((tokens.dtype(), tokens.shape()), (Dtype::I64, &[6][..]));
        assert_eq!((steps.dtype(), steps.shape()), (Dtype::F32, &[6, vocabulary][..]));
        let all = numbers(all.data(), f32::from_le_bytes);
        let steps = numbers(steps.data(), f32::from_le_bytes);
        assert!(all.iter().chain(&steps).all(|value| value.is_finite()));
        assert_eq!(
            steps[..vocabulary],
            all[all.len() - vocabulary..],
            "the first step is picked from the last position"
        );
        let picked: Vec<i64> = steps.chunks(vocabulary).map(|row| argmax(row) as i64).collect();
        assert_eq!(numbers(tokens.data(), i64::from_le_bytes), picked);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(&out), permissions(&prompts), "it is as accessible as any other new file");
}

#[test]
fn a_relative_path_is_in_the_working_directory() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("prompts.json"), "[[0, 1]]").unwrap();
    let arguments = ["-O0", "--tokens", "prompts.json", "--out", "out.safetensors", "--quiet"];
    let status = command(&folder, &with_model("logits", &arguments)).status().unwrap();
    assert!(status.success());
    assert!(SafeTensors::deserialize(&std::fs::read(folder.path().join("out.safetensors")).unwrap()).is_ok());
}

#[test]
fn every_level_writes_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let prompts = folder.path().join("prompts.json");
    std::fs::write(&prompts, "[[0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34], [3, 2, 1]]")
        .unwrap();
    let bytes = |level: &str| {
        let out = folder.path().join(format!("out{level}"));
        logits(&prompts, &out, &[level, "--quiet"]).ok();
        std::fs::read(out).unwrap()
    };
    let first = bytes("-O0");
    for level in ["-O1", "-O2", "-O3"] {
        assert!(bytes(level) == first, "{level} differs from -O0");
    }
}

#[test]
fn no_new_tokens_are_an_empty_continuation() {
    let folder = TempDir::new().unwrap();
    let (prompts, out) = (folder.path().join("prompts.json"), folder.path().join("out.safetensors"));
    std::fs::write(&prompts, "[[0, 1]]").unwrap();
    logits(&prompts, &out, &["--new-tokens", "0", "--quiet"]).ok();
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("tokens.0").unwrap().shape(), [0]);
    assert_eq!(file.tensor("step_logits.0").unwrap().shape()[0], 0);
}

#[test]
fn what_is_wrong_with_the_prompts_is_named_and_no_file_appears() {
    let folder = TempDir::new().unwrap();
    let (prompts, out) = (folder.path().join("prompts.json"), folder.path().join("out.safetensors"));
    let cases = [
        ("[[0, 1], [99999999]]", "list 1: token id 99999999 is not in the vocabulary"),
        ("[[0], []]", "list 1 is empty"),
        ("[]", "there is no list in it"),
        ("[[0, -1]]", "invalid value: integer `-1`, expected u32 at line 1"),
        ("{\"a\": 1}", "write a JSON list of lists of token ids"),
        ("[[0", "EOF while parsing"),
    ];
    for (text, expected) in cases {
        std::fs::write(&prompts, text).unwrap();
        let message = logits(&prompts, &out, &[]).failed(1);
        assert!(message.contains("prompts.json: ") && message.contains(expected), "{text}: {message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the prompts are there");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named_before_the_model_is_loaded() {
    let folder = TempDir::new().unwrap();
    let prompts = folder.path().join("prompts.json");
    std::fs::write(&prompts, "[[0]]").unwrap();
    let run_to = |out: &Path| {
        let (prompts, out) = (prompts.to_str().unwrap(), out.to_str().unwrap());
        run(&["logits", "--model", "/nowhere", "--tokens", prompts, "--out", out]).failed(1)
    };
    let missing = folder.path().join("missing/out.safetensors");
    assert!(run_to(&missing).contains(&format!("cannot write {}", missing.display())));
    assert!(run_to(folder.path()).contains("cannot write"), "a folder is no file");
}
