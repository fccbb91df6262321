//! Where the repository is, which files it has, and how programs are run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::TaskError;

/// Names of what holds no source: build outputs, version control, virtual environments.
const SKIPPED: [&str; 5] = ["target", ".git", ".venv", "__pycache__", "node_modules"];

/// The top folder of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Every file below `folder` but those in [`SKIPPED`], sorted; symbolic links are not followed.
///
/// # Errors
/// If a folder can't be listed.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(TaskError::file(&folder))? {
            let entry = entry.map_err(TaskError::file(&folder))?;
            let kind = entry.file_type().map_err(TaskError::file(&folder))?;
            let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
            // In a second working tree of git, `.git` is a file.
            if skipped {
                continue;
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a text file.
///
/// # Errors
/// If it can't be read or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<String, TaskError> {
    fs::read_to_string(path).map_err(TaskError::file(path))
}

/// What `cargo metadata` says of the workspace.
fn metadata() -> Result<Value, TaskError> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let command = format!("cargo {}", arguments.join(" "));
    let output = Command::new("cargo").args(arguments).current_dir(root()).output();
    let output = output.map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if !output.status.success() {
        return Err(TaskError::Status { command, status: output.status });
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| TaskError::Message(format!("cargo metadata is not JSON: {error}")))
}

/// Cargo's target folder.
///
/// # Errors
/// If cargo does not name one.
pub(crate) fn target_folder() -> Result<PathBuf, TaskError> {
    let metadata = metadata()?;
    let target = metadata.get("target_directory").and_then(Value::as_str).map(PathBuf::from);
    target.ok_or_else(|| TaskError::Message("cargo metadata names no target_directory".into()))
}

/// The package of a program of the workspace; `None` where the workspace has no such program.
///
/// # Errors
/// If cargo does not list what there is.
pub(crate) fn package_of(program: &str) -> Result<Option<String>, TaskError> {
    let metadata = metadata()?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let packages = packages.ok_or_else(|| TaskError::Message("cargo metadata lists no packages".into()))?;
    let is_it = |target: &Value| target["kind"] == serde_json::json!(["bin"]) && target["name"] == program;
    let has_it = |package: &&Value| package["targets"].as_array().is_some_and(|targets| targets.iter().any(is_it));
    Ok(packages.iter().find(has_it).and_then(|package| Some(package["name"].as_str()?.to_owned())))
}

/// Runs a program in the repository's top folder, its output going where ours goes.
///
/// # Errors
/// If it can't be started or ends with a failure.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), TaskError> {
    let command = [&[program], arguments].concat().join(" ");
    let status = Command::new(program).args(arguments).current_dir(root()).status();
    match status {
        Err(source) => Err(TaskError::Start { command, source }),
        Ok(status) if !status.success() => Err(TaskError::Status { command, status }),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn programs_of_the_workspace_are_told_from_others() {
        for (program, package) in
            [("allotrope", Some("allotrope")), ("xtask", Some("xtask")), ("ls", None), ("cli", None)]
        {
            assert_eq!(package_of(program).unwrap().as_deref(), package, "{program}");
        }
    }
}
