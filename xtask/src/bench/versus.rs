//! The program as another commit has it: built in a working tree of its own, below cargo's target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// Builds the program of a commit and gives its path and the commit's short name. The working tree and what was built in
/// it are kept, so that the next time little is compiled.
///
/// # Errors
/// If git does not know the commit, or it can't be built.
pub(super) fn build(commit: &str, target: &Path) -> Result<(PathBuf, String), TaskError> {
    let name = git(&["rev-parse", "--short", "--verify", "--end-of-options", &format!("{commit}^{{commit}}")])?;
    let folder = target.join("bench/versus");
    let tree = folder.join("tree");
    let tree_text = tree.to_string_lossy();
    if tree.join(".git").exists() {
        git(&["-C", &tree_text, "checkout", "--quiet", "--detach", "--force", &name])?;
    } else {
        // A tree that was removed with the target folder is still on git's list.
        git(&["worktree", "prune"])?;
        git(&["worktree", "add", "--quiet", "--detach", &tree_text, &name])?;
    }
    let target = folder.join("target");
    let arguments = ["build", "--release", "--package", "allotrope", "--target-dir"];
    let mut cargo = Command::new("cargo");
    // The commit names a toolchain of its own, which the one that runs this task must not hide.
    cargo.args(arguments).arg(&target).current_dir(&tree).env_remove("RUSTUP_TOOLCHAIN");
    let command = format!("cargo {} {} (in {tree_text})", arguments.join(" "), target.display());
    let status = cargo.status().map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if !status.success() {
        return Err(TaskError::Status { command, status });
    }
    Ok((target.join("release").join(format!("allotrope{}", std::env::consts::EXE_SUFFIX)), name))
}

/// The commit that is checked out, with `changed` if tracked files differ from it; `unknown` outside of a repository.
pub(crate) fn current_commit() -> String {
    let Ok(name) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Ok(changes) if changes.is_empty() => name,
        _ => format!("{name}, changed"),
    }
}

/// What git prints, without the line's end.
fn git(arguments: &[&str]) -> Result<String, TaskError> {
    let command = format!("git {}", arguments.join(" "));
    let output = Command::new("git").args(arguments).current_dir(workspace::root()).output();
    let output = output.map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(TaskError::Message(format!("`{command}` failed ({}): {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_commit_that_is_none_is_refused_before_anything_is_built() {
        let folder = tempfile::tempdir().unwrap();
        for commit in ["no-such-commit", "--help", ""] {
            assert!(build(commit, folder.path()).unwrap_err().to_string().contains("git rev-parse"), "{commit}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
