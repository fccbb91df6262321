//! `cargo xtask fixtures`: makes `tests/fixtures` and `tests/prompts` again with the Python tools in `tests/tools`.

use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// What the tools import; each is installed under this name.
const PACKAGES: [&str; 5] = ["torch", "transformers", "tokenizers", "safetensors", "numpy"];

/// How to make the fixtures.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Python interpreter that has torch, transformers, tokenizers, safetensors and numpy
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Make these fixtures alone (`tests/tools/make_fixtures.py --help` names them)
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
}

/// Makes the fixtures.
///
/// # Errors
/// If the interpreter or one of its packages is missing, or the tool fails.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let missing = missing_packages(&options.python)?;
    if !missing.is_empty() {
        return Err(TaskError::Message(format!(
            "{} lacks {}; install with `{} -m pip install {}`, or name another interpreter with --python",
            options.python,
            missing.join(", "),
            options.python,
            missing.join(" "),
        )));
    }
    let mut arguments = vec!["tests/tools/make_fixtures.py"];
    if !options.only.is_empty() {
        arguments.push("--only");
        arguments.extend(options.only.iter().map(String::as_str));
    }
    workspace::run(&options.python, &arguments)
}

/// Which of [`PACKAGES`] an interpreter can't find.
fn missing_packages(python: &str) -> Result<Vec<String>, TaskError> {
    let script = "import importlib.util, sys\nprint(*(p for p in sys.argv[1:] if importlib.util.find_spec(p) is None))";
    let output = Command::new(python).args(["-c", script]).args(PACKAGES).output();
    let output = output.map_err(|source| TaskError::Start { command: format!("{python} (Python 3)"), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(TaskError::Message(format!("{python} does not work as a Python 3 interpreter: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_missing_interpreter_is_named() {
        let error = missing_packages("no-such-python").unwrap_err().to_string();
        assert!(error.contains("no-such-python"), "{error}");
    }
}
