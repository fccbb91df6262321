//! Python environments of the tasks: each below cargo's target folder, with what a file of requirements says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// A package that is built from its source here, and how.
pub(crate) struct FromSource {
    pub(crate) package: &'static str,
    /// Variables of the build.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

/// The interpreter of the environment in `folder`, which is made, and its packages installed, unless it has them already.
///
/// # Errors
/// If Python or a package can't be had, or the folder can't be written.
pub(crate) fn environment(
    folder: &Path,
    requirements: &Path,
    from_source: Option<&FromSource>,
) -> Result<PathBuf, TaskError> {
    let python = folder.join("bin/python");
    // A copy of the requirements says what the environment has.
    let installed = folder.join("requirements.txt");
    let wanted = workspace::read(requirements)?;
    if workspace::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    workspace::run("python3", &["-m", "venv", &folder.to_string_lossy()])?;
    let mut install = Command::new(&python);
    // Without pip's own cache: some packages take gigabytes, and what is installed is kept.
    install.args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--requirement"]).arg(requirements);
    if let Some(FromSource { package, environment }) = from_source {
        install.args(["--no-binary", package]).envs(environment.iter().copied());
    }
    let command = format!("{install:?}");
    let status = install.status().map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if !status.success() {
        return Err(TaskError::Status { command, status });
    }
    fs::write(&installed, wanted).map_err(TaskError::file(&installed))?;
    Ok(python)
}
