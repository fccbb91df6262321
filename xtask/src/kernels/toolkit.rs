//! Finds nvcc and ptxas, or installs them below `target`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// The release whose PTX the drivers read that the program runs on.
const RELEASE: &str = "13.0.";

/// The Python packages with nvcc. `nvvm` and `crt` must be named: nvcc's own package asks for them in any version, and gets
/// a newer one, whose PTX no driver of this release reads.
const PACKAGES: &str = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2";

/// A CUDA toolkit.
#[derive(Debug, Clone)]
pub(super) struct Toolkit {
    pub(super) nvcc: PathBuf,
    pub(super) ptxas: PathBuf,
    version: String,
}

impl Toolkit {
    /// The toolkit of a folder if one is named, else that in `PATH`, else the one of the Python packages, which are
    /// installed below `target` if they are not there yet.
    ///
    /// # Errors
    /// If the named one is none or of another release, or the packages can't be installed.
    pub(super) fn find(cuda_home: Option<&Path>) -> Result<Self, TaskError> {
        if let Some(home) = cuda_home {
            let home = fs::canonicalize(home).map_err(TaskError::file(home))?;
            let toolkit = Self::in_folder(&home)?;
            return toolkit.ok_or_else(|| {
                let home = home.display();
                TaskError::Message(format!("CUDA_HOME is {home}, which has no bin/nvcc; unset it to do without"))
            });
        }
        match Self::of_programs("nvcc".into(), "ptxas".into())? {
            Some(toolkit) if toolkit.is_of_release() => return Ok(toolkit),
            Some(toolkit) => {
                println!("nvcc in PATH is {}, not {RELEASE}x; using the Python packages", toolkit.version);
            }
            None => {}
        }
        Self::installed(&workspace::target_folder()?.join("cuda-toolkit"))
    }

    /// Version of nvcc, such as `13.0.88`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    fn is_of_release(&self) -> bool {
        self.version.starts_with(RELEASE)
    }

    /// The toolkit in a folder, `None` if it has no nvcc.
    fn in_folder(home: &Path) -> Result<Option<Self>, TaskError> {
        let toolkit = Self::of_programs(home.join("bin/nvcc"), home.join("bin/ptxas"))?;
        if let Some(toolkit) = &toolkit
            && !toolkit.is_of_release()
        {
            return Err(TaskError::Message(format!(
                "nvcc in {} is {}; the kernels are compiled with {RELEASE}x",
                home.display(),
                toolkit.version
            )));
        }
        Ok(toolkit)
    }

    /// The toolkit of two programs, `None` if there is no such nvcc.
    fn of_programs(nvcc: PathBuf, ptxas: PathBuf) -> Result<Option<Self>, TaskError> {
        let command = format!("{} --version", nvcc.display());
        let output = match Command::new(&nvcc).arg("--version").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TaskError::Start { command, source }),
            Ok(output) if !output.status.success() => return Err(TaskError::Status { command, status: output.status }),
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        };
        let version = version(&output).ok_or_else(|| TaskError::Message(format!("`{command}` names no version")))?;
        Ok(Some(Toolkit { nvcc, ptxas, version }))
    }

    /// The toolkit of a virtual environment, which is made if it is not there.
    fn installed(environment: &Path) -> Result<Self, TaskError> {
        if let Some(toolkit) = Self::in_environment(environment)? {
            return Ok(toolkit);
        }
        println!("installing {PACKAGES} into {}", environment.display());
        // Installed beside its place: an installation that breaks off must not be taken for a toolkit later.
        let partial = environment.with_extension("partial");
        let (partial_text, python) = (partial.to_string_lossy(), partial.join("bin/python"));
        let python = python.to_string_lossy();
        workspace::run("python3", &["-m", "venv", "--clear", &partial_text])?;
        workspace::run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGES])?;
        if environment.exists() {
            fs::remove_dir_all(environment).map_err(TaskError::file(environment))?;
        }
        fs::rename(&partial, environment).map_err(TaskError::file(environment))?;
        let environment_text = environment.display();
        let missing = || TaskError::Message(format!("{PACKAGES} is installed in {environment_text}, but has no nvcc"));
        Self::in_environment(environment)?.ok_or_else(missing)
    }

    fn in_environment(environment: &Path) -> Result<Option<Self>, TaskError> {
        // The folder between is that of the Python version.
        let Ok(versions) = fs::read_dir(environment.join("lib")) else { return Ok(None) };
        for version in versions {
            let version = version.map_err(TaskError::file(environment))?;
            if let Some(toolkit) = Self::in_folder(&version.path().join("site-packages/nvidia/cu13"))? {
                return Ok(Some(toolkit));
            }
        }
        Ok(None)
    }
}

/// The version in what `nvcc --version` prints.
fn version(output: &str) -> Option<String> {
    let (_, after) = output.split_once(", release ")?;
    let version = after.split_once(", V")?.1.split_whitespace().next()?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A folder with an nvcc that says that it has this version.
    fn toolkit(folder: &Path, version: &str) {
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        // Written by another process: a file that this one holds open for writing can't be run by a test beside this.
        let script = "printf '#!/bin/sh\\necho Cuda compilation tools, release 13.0, V%s\\n' $1 > $0; chmod +x $0";
        let status = Command::new("sh").arg("-c").arg(script).arg(bin.join("nvcc")).arg(version).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn a_named_folder_must_have_an_nvcc_of_the_release() {
        let folder = tempfile::tempdir().unwrap();
        let error = Toolkit::find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("has no bin/nvcc"), "{error}");
        toolkit(folder.path(), "12.9.86");
        let error = Toolkit::find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("12.9.86"), "{error}");
        toolkit(folder.path(), "13.0.88");
        let found = Toolkit::find(Some(folder.path())).unwrap();
        assert_eq!(found.version(), "13.0.88");
        assert!(found.ptxas.ends_with("bin/ptxas"));
        assert!(Toolkit::find(Some(&folder.path().join("nothing"))).is_err());
    }

    #[test]
    fn an_environment_is_used_if_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Toolkit::in_environment(folder.path()).unwrap().is_none());
        toolkit(&folder.path().join("lib/python3.12/site-packages/nvidia/cu13"), "13.0.88");
        assert_eq!(Toolkit::installed(folder.path()).unwrap().version(), "13.0.88");
    }
}
