//! `cargo xtask clients`: the official `openai` package for Python against the server, as its users use it.

use std::path::{Path, PathBuf};

use crate::error::TaskError;
use crate::server::Server;
use crate::workspace;

const KEY: &str = "a-key-of-the-test";

/// Installs the package where it is not yet, starts a server of tiny-chat and runs every check.
///
/// # Errors
/// If Python or the package can't be had, the server does not start, or a check fails.
pub(crate) fn run() -> Result<(), TaskError> {
    let target = workspace::target_folder()?;
    let python = python(&target)?;
    workspace::run("cargo", &["build", "--package", "allotrope"])?;
    let program = target.join("debug").join(format!("allotrope{}", std::env::consts::EXE_SUFFIX));
    let model = workspace::root().join("tests/models/tiny-chat");
    let server = Server::start(&program, &model, &["--device", "cpu", "--api-key", KEY, "--metrics-prefix", "vllm:"])?;
    let script = workspace::root().join("tests/tools/openai_client.py");
    workspace::run(&python.to_string_lossy(), &[&script.to_string_lossy(), &server.url, KEY])
}

/// The Python of an environment below `target` that has what the requirements file names.
fn python(target: &Path) -> Result<PathBuf, TaskError> {
    let requirements = workspace::root().join("tests/tools/openai_requirements.txt");
    let environment = target.join("openai");
    let python = environment.join("bin/python");
    // A copy of the requirements says what the environment has.
    let installed = environment.join("requirements.txt");
    let wanted = workspace::read(&requirements)?;
    if workspace::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    workspace::run("python3", &["-m", "venv", &environment.to_string_lossy()])?;
    let install = ["-m", "pip", "install", "--quiet", "--requirement", &requirements.to_string_lossy()];
    workspace::run(&python.to_string_lossy(), &install)?;
    std::fs::write(&installed, wanted).map_err(TaskError::file(&installed))?;
    Ok(python)
}
