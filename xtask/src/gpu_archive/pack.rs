//! Building the archive: release builds without debug information, the checkpoints and texts that they read, and the script.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::TaskError;
use crate::workspace;

/// The folder in the archive.
const FOLDER: &str = "allotrope-gpu";

/// The most that the archive may have, in bytes.
const MOST_BYTES: u64 = 60_000_000;

/// The script that runs everything there.
const SCRIPT: &str = include_str!("run.sh");

/// Tests that run on a GPU: the package, the test, and its name in the archive.
const TESTS: [(&str, &str, &str); 5] = [
    ("allotrope-cuda-runtime", "conformance", "test-conformance"),
    ("allotrope-tests", "cuda", "test-levels"),
    ("allotrope-cuda-emulator", "gpu", "test-ptx"),
    ("allotrope-cuda-runtime", "kernels", "test-kernels"),
    ("allotrope-cuda-runtime", "programs", "test-programs"),
];

/// Programs: the package and the program.
const PROGRAMS: [(&str, &str); 2] = [("allotrope", "allotrope"), ("xtask", "xtask")];

/// The emulator, which the script can take in place of a GPU.
const EMULATOR: &str = "liballotrope_cuda_emulator.so";

/// What the tests read, under the folder that `ALLOTROPE_TEST_ROOT` names as in the repository.
const READ: [&str; 4] = ["tests/fixtures", "tests/models", "tests/prompts", "crates/cuda-emulator/tests/ptx"];

/// Builds everything and writes the archive.
///
/// # Errors
/// If something can't be built, found or written, `tar` or `strip` is missing, or the archive is too large.
pub(super) fn run(out: Option<&Path>) -> Result<(), TaskError> {
    let target = workspace::target_folder()?;
    let archive = out.map_or_else(|| target.join(format!("{FOLDER}.tar.gz")), Path::to_path_buf);
    let built = build()?;
    let parent = tempfile::tempdir_in(&target).map_err(TaskError::file(&target))?;
    let folder = parent.path().join(FOLDER);
    for (name, path) in &built {
        let place = if name == EMULATOR { folder.join("emulator") } else { folder.join("bin") };
        copy(path, &place.join(name))?;
        let stripped = place.join(name);
        workspace::run("strip", &["--strip-debug", &stripped.to_string_lossy()])?;
    }
    for name in ["libcuda.so", "libcuda.so.1"] {
        link(EMULATOR, &folder.join("emulator").join(name))?;
    }
    // Not beside the tests, where those that start the emulator themselves look for it: on a GPU none may pass that way.
    let root = workspace::root();
    for below in READ {
        for path in workspace::files_below(&root.join(below))? {
            let relative = path.strip_prefix(&root).unwrap_or(&path);
            copy(&path, &folder.join(relative))?;
        }
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).map_err(TaskError::file(&script))?;
    executable(&script)?;
    let arguments = ["-C", &*parent.path().to_string_lossy(), "-czf", &*archive.to_string_lossy(), FOLDER];
    workspace::run("tar", &arguments)?;
    let bytes = fs::metadata(&archive).map_err(TaskError::file(&archive))?.len();
    println!("{}: {:.1} MB; unpack it with `tar xzf`, and run {FOLDER}/run.sh", archive.display(), bytes as f64 / 1e6);
    if bytes > MOST_BYTES {
        let message =
            format!("the archive has {bytes} bytes, and {MOST_BYTES} are the most; leave something out of it");
        return Err(TaskError::Message(message));
    }
    Ok(())
}

/// Builds the programs and the tests; gives where each is, by its name in the archive.
fn build() -> Result<BTreeMap<String, PathBuf>, TaskError> {
    let programs = PROGRAMS.iter().flat_map(|(package, program)| ["--package", package, "--bin", program]);
    let programs: Vec<&str> = ["build"].into_iter().chain(programs).collect();
    let emulator = ["build", "--package", "allotrope-cuda-emulator", "--lib"];
    let tests = TESTS.iter().flat_map(|(package, test, _)| ["--package", package, "--test", test]);
    let tests: Vec<&str> = ["test", "--no-run"].into_iter().chain(tests).collect();
    let mut built = BTreeMap::new();
    for arguments in [&programs[..], &emulator, &tests] {
        let common = ["--release", "--message-format", "json-render-diagnostics"];
        let arguments = [arguments, &common].concat();
        let output = Command::new("cargo")
            .args(&arguments)
            .current_dir(workspace::root())
            .stderr(std::process::Stdio::inherit())
            .output();
        let command = format!("cargo {}", arguments.join(" "));
        let output = output.map_err(|source| TaskError::Start { command: command.clone(), source })?;
        if !output.status.success() {
            return Err(TaskError::Status { command, status: output.status });
        }
        built.extend(artifacts(&String::from_utf8_lossy(&output.stdout)));
    }
    let wanted =
        PROGRAMS.iter().map(|(_, program)| *program).chain(TESTS.iter().map(|(_, _, name)| *name)).chain([EMULATOR]);
    match wanted.filter(|name| !built.contains_key(*name)).collect::<Vec<_>>()[..] {
        [] => Ok(built),
        ref missing => Err(TaskError::Message(format!("cargo built no {}", missing.join(", ")))),
    }
}

/// What cargo's messages say was built, as far as it belongs into the archive: its name there and where it is.
fn artifacts(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let artifacts = messages.filter(|message| message.get("reason") == Some(&Value::from("compiler-artifact")));
    let of = |artifact: Value| -> Vec<(String, PathBuf)> {
        let text = |pointer: &str| artifact.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/target/kind/0"), text("/target/name"));
        let is_of = |package: &str| text("/package_id").contains(&format!("#{package}@"));
        let files = artifact.get("filenames").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let library = files.filter(|file| file.ends_with(EMULATOR)).map(|file| (EMULATOR.to_owned(), file.into()));
        let found = match kind {
            "bin" => PROGRAMS.iter().find(|(_, program)| *program == name).map(|_| name),
            // Several packages may have tests of one name, and cargo builds them all.
            "test" => TESTS.iter().find(|(package, test, _)| *test == name && is_of(package)).map(|(_, _, name)| *name),
            _ => None,
        };
        let executable = found.filter(|_| !text("/executable").is_empty());
        library.chain(executable.map(|name| (name.to_owned(), text("/executable").into()))).collect()
    };
    artifacts.flat_map(of).collect()
}

/// Copies a file, with its permissions, into a folder that is made.
fn copy(from: &Path, to: &Path) -> Result<(), TaskError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(TaskError::file(folder))?;
    }
    fs::copy(from, to).map(|_| ()).map_err(TaskError::file(from))
}

#[cfg(unix)]
fn link(to: &str, at: &Path) -> Result<(), TaskError> {
    std::os::unix::fs::symlink(to, at).map_err(TaskError::file(at))
}

#[cfg(unix)]
fn executable(path: &Path) -> Result<(), TaskError> {
    use std::os::unix::fs::PermissionsExt;

    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(TaskError::file(path))
}

#[cfg(not(unix))]
fn link(_to: &str, at: &Path) -> Result<(), TaskError> {
    Err(TaskError::Message(format!("{}: the archive is for Linux, and is built there", at.display())))
}

#[cfg(not(unix))]
fn executable(_path: &Path) -> Result<(), TaskError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_built_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","package_id":"path+file:///crates/cuda-emulator#allotrope-cuda-emulator@0.1.0","target":{"kind":["test"],"name":"gpu"},"executable":"/t/gpu-1","filenames":["/t/gpu-1"]}
{"reason":"compiler-artifact","package_id":"path+file:///crates/cuda-runtime#allotrope-cuda-runtime@0.1.0","target":{"kind":["test"],"name":"kernels"},"executable":"/t/kernels-1","filenames":["/t/kernels-1"]}
{"reason":"compiler-artifact","package_id":"path+file:///crates/cuda-emulator#allotrope-cuda-emulator@0.1.0","target":{"kind":["test"],"name":"kernels"},"executable":"/t/kernels-2","filenames":["/t/kernels-2"]}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"other"},"executable":"/t/other","filenames":[]}
{"reason":"compiler-artifact","target":{"kind":["cdylib","rlib"],"name":"x"},"executable":null,"filenames":["/t/liballotrope_cuda_emulator.so"]}
no json
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"xtask"},"executable":"/t/xtask","filenames":[]}"#;
        let found: Vec<(String, PathBuf)> = artifacts(messages).into_iter().collect();
        let expected = [
            (EMULATOR, "/t/liballotrope_cuda_emulator.so"),
            ("test-kernels", "/t/kernels-1"),
            ("test-ptx", "/t/gpu-1"),
            ("xtask", "/t/xtask"),
        ];
        assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))));
    }

    #[test]
    fn the_script_is_sound_and_names_what_is_in_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("run.sh");
        fs::write(&script, SCRIPT).unwrap();
        let checked = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        for (_, program) in PROGRAMS {
            assert!(SCRIPT.contains(&format!("$here/bin/{program}")), "run.sh never runs {program}");
        }
        for (_, _, test) in TESTS {
            assert!(SCRIPT.contains(test), "run.sh never runs {test}");
        }
        for folder in READ {
            assert!(workspace::root().join(folder).is_dir(), "{folder}");
        }
    }
}
