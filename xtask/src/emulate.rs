//! `cargo xtask emulate`: runs a program on the CUDA emulator in place of a driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// The names under which programs look for the driver: those that look for one alone find it, whichever it is.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program and its arguments, after --
    #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
    command: Vec<String>,
}

/// Builds the emulator, and runs the command with it where the dynamic linker looks first. A program of the workspace, named
/// without a folder, is built too and runs from the target folder.
///
/// # Errors
/// If the emulator can't be built, or the command can't be started or fails.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let [program, arguments @ ..] = options.command.as_slice() else {
        return Err(TaskError::Message("no command was given".to_owned()));
    };
    workspace::run("cargo", &["build", "--quiet", "--release", "--package", "allotrope-cuda-emulator"])?;
    let target = workspace::target_folder()?;
    let place = match workspace::package_of(program)? {
        Some(package) => {
            workspace::run("cargo", &["build", "--quiet", "--release", "--package", &package, "--bin", program])?;
            target.join("release").join(program)
        }
        None => PathBuf::from(program),
    };
    let folder = target.join("emulator");
    install(&target.join("release/liballotrope_cuda_emulator.so"), &folder)?;
    let command = options.command.join(" ");
    let status = Command::new(place).args(arguments).env("LD_LIBRARY_PATH", &folder).status();
    match status {
        Err(source) => Err(TaskError::Start { command, source }),
        Ok(status) if !status.success() => Err(TaskError::Status { command, status }),
        Ok(_) => Ok(()),
    }
}

/// Puts the emulator into a folder under the names of the driver.
fn install(library: &Path, folder: &Path) -> Result<(), TaskError> {
    fs::create_dir_all(folder).map_err(TaskError::file(folder))?;
    for name in NAMES {
        // A program that runs keeps the file that it has: the new one takes its name, and does not overwrite it.
        let (partial, path) = (folder.join(format!(".{name}.{}", std::process::id())), folder.join(name));
        fs::copy(library, &partial).map_err(TaskError::file(library))?;
        fs::rename(&partial, &path).map_err(TaskError::file(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_emulator_is_found_under_both_names_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (library, place) = (folder.path().join("library"), folder.path().join("emulator"));
        for content in ["first", "second"] {
            fs::write(&library, content).unwrap();
            install(&library, &place).unwrap();
            let found = NAMES.map(|name| fs::read_to_string(place.join(name)).unwrap());
            assert_eq!(found, [content, content]);
        }
        assert_eq!(fs::read_dir(&place).unwrap().count(), NAMES.len());
        let error = install(&folder.path().join("nothing"), &place).unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
    }
}
