//! Running the binary and looking at what it wrote.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The small chat model.
pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/models/tiny-chat")
        .canonicalize()
        .expect("the model is there")
}

/// What a run of the binary left behind.
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Checks that the run succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Checks that the run failed with `status`, wrote no result, and gave one message, which is returned.
    #[track_caller]
    pub(crate) fn failed(self, status: i32) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (status, ""), "stderr: {}", self.stderr);
        assert_eq!(self.stderr.matches("error: ").count(), 1, "one message: {}", self.stderr);
        self.stderr
    }

    /// Standard output as lines of JSON.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

/// The binary in an empty folder and without the environment of the test, whose settings must not count; on the CPU, unless
/// its arguments say otherwise.
pub(crate) fn command(folder: &TempDir, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_allotrope"));
    command.args(arguments).current_dir(folder.path()).env_clear().env("ALLOTROPE_DEVICE", "cpu");
    command
}

/// Runs the binary.
pub(crate) fn run(arguments: &[impl AsRef<OsStr>]) -> Run {
    let folder = TempDir::new().unwrap();
    command(&folder, arguments).stdin(Stdio::null()).output().unwrap().into()
}

/// Runs the binary with `input` on its standard input.
pub(crate) fn run_with_input(arguments: &[impl AsRef<OsStr>], input: &str) -> Run {
    let folder = TempDir::new().unwrap();
    let mut command = command(&folder, arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// The arguments of `command` with the model, then `more`.
pub(crate) fn with_model(command: &str, more: &[&str]) -> Vec<String> {
    let model = model().to_str().unwrap().to_owned();
    [command, "--model", &model].iter().chain(more).map(|&argument| argument.to_owned()).collect()
}

/// Runs `generate` on the model.
pub(crate) fn generate(more: &[&str]) -> Run {
    run(&with_model("generate", more))
}

/// A copy of the model that a test may change.
pub(crate) fn copy_of_model() -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        let target = copy.path().join(entry.file_name());
        std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
    }
    copy
}

/// Changes a JSON file of a copy.
pub(crate) fn edit_json(copy: &TempDir, file: &str, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = copy.path().join(file);
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(json.as_object_mut().unwrap());
    std::fs::write(path, json.to_string()).unwrap();
}
