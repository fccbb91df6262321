//! Getting the other engines: from their Python packages, below cargo's target folder, where they are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::python::{self, FromSource};
use crate::workspace;

const DRIVER: &str = include_str!("llama_driver.cpp");

/// The Python package that has llama.cpp's source, built for this processor.
const PACKAGE: FromSource = FromSource {
    package: "llama-cpp-python",
    environment: &[("CMAKE_ARGS", "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF")],
};

/// llama.cpp, ready to run.
pub(super) struct LlamaCpp {
    pub(super) driver: PathBuf,
    pub(super) gguf: PathBuf,
}

/// The folder of the task's own sources.
fn sources() -> PathBuf {
    workspace::root().join("xtask/src/compare")
}

/// Builds llama.cpp and its driver where they are not yet, and writes the checkpoint in its format.
///
/// # Errors
/// If the package can't be had or built, there is no C++ compiler, or the checkpoint is no Llama in bf16.
pub(super) fn llama_cpp(folder: &Path, model: &Path) -> Result<LlamaCpp, TaskError> {
    let environment = folder.join("llama.cpp");
    let python = python::environment(&environment, &sources().join("llama_requirements.txt"), Some(&PACKAGE))?;
    let driver = build_driver(&environment, &python)?;
    // Written anew each time: it is of the checkpoint that is given now, and in the page cache when it is needed.
    let gguf = folder.join("model.gguf");
    let script = sources().join("write_gguf.py");
    let paths = [script.as_path(), model, &gguf].map(Path::to_string_lossy);
    workspace::run(&python.to_string_lossy(), &paths.each_ref().map(AsRef::as_ref))?;
    Ok(LlamaCpp { driver, gguf })
}

/// Compiles the driver against the installed library, unless that was done.
fn build_driver(environment: &Path, python: &Path) -> Result<PathBuf, TaskError> {
    let driver = environment.join("llama_driver");
    // A copy of the source says what was compiled.
    let compiled = environment.join("llama_driver.cpp");
    if driver.exists() && workspace::read(&compiled).is_ok_and(|found| found == DRIVER) {
        return Ok(driver);
    }
    let packages = packages(python)?;
    let libraries = packages.join("llama_cpp/lib");
    let (source, include) = (sources().join("llama_driver.cpp"), packages.join("include"));
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut arguments = ["-O2", "-std=c++17", "-o"].map(str::to_owned).to_vec();
    arguments.extend([path(&driver), path(&source), "-I".into(), path(&include), "-L".into(), path(&libraries)]);
    arguments.push(format!("-Wl,-rpath,{}", libraries.display()));
    arguments.extend(["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"].map(str::to_owned));
    workspace::run("c++", &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    fs::write(&compiled, DRIVER).map_err(TaskError::file(&compiled))?;
    Ok(driver)
}

/// Where an environment has its packages.
fn packages(python: &Path) -> Result<PathBuf, TaskError> {
    let arguments = ["-c", "import sysconfig; print(sysconfig.get_path('platlib'))"];
    let command = format!("{} {}", python.display(), arguments.join(" "));
    let output = Command::new(python).args(arguments).output();
    let output = output.map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if !output.status.success() {
        return Err(TaskError::Status { command, status: output.status });
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The interpreter that has transformers and PyTorch, and the driver.
///
/// # Errors
/// If the packages can't be had.
pub(super) fn transformers(folder: &Path) -> Result<(PathBuf, PathBuf), TaskError> {
    let requirements = sources().join("transformers_requirements.txt");
    let python = python::environment(&folder.join("transformers"), &requirements, None)?;
    Ok((python, sources().join("transformers_driver.py")))
}
