//! `cargo xtask docs`: the documentation that is generated from the code, and what is generated at run time: help and
//! shell completions, which are held against the declaration of the settings.

pub(crate) mod gains;
mod ir;
mod layer;
mod passes;

use std::fs;

use clap_complete::Shell;

use crate::bench::published;
use crate::error::TaskError;
use crate::{kernels, workspace};

/// What to do with the generated documentation.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a file is not what the code would generate
    #[arg(long)]
    pub(crate) check: bool,
}

/// The generated files: path below the repository's top folder, and text.
fn generated() -> Result<[(&'static str, String); 7], TaskError> {
    Ok([
        ("docs/levels.md", allotrope_config::levels_markdown()),
        ("docs/settings.md", allotrope_config::settings_markdown()),
        ("docs/ir.md", ir::markdown()),
        ("docs/kernels.md", kernels::document()?),
        ("docs/layer.md", layer::markdown()?),
        ("docs/passes.md", passes::markdown()?),
        (published::DOCUMENT, published::document()?),
    ])
}

/// Writes or checks the generated files.
///
/// # Errors
/// If a file can't be written, or with `--check` is not current.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    for (path, text) in generated()? {
        let file = workspace::root().join(path);
        if options.check {
            if fs::read_to_string(&file).ok().as_deref() != Some(text.as_str()) {
                return Err(TaskError::Message(format!("{path} is not current; run `cargo xtask docs`")));
            }
        } else {
            fs::write(&file, text).map_err(TaskError::file(&file))?;
            println!("wrote {path}");
        }
    }
    if options.check { check_command_line() } else { Ok(()) }
}

/// Holds the help and the completions that the command line makes of the settings against their declaration.
fn check_command_line() -> Result<(), TaskError> {
    let settings = allotrope_config::resolve_with(&allotrope_config::Options::default(), None, None)
        .map_err(|error| TaskError::Message(format!("resolving the defaults: {error}")))?;
    let mut command = clap::Command::new("allotrope").args(allotrope_config::command_line::arguments());
    let help = command.render_long_help().to_string();
    for row in settings.rows() {
        let path = row.setting;
        let in_files = help.contains(&format!("In files: {path}"));
        // Keys of `-cc` are listed below its argument without the name of their group.
        let key = path.strip_prefix("compilation.").is_some_and(|key| help.contains(&format!("  {key}: ")));
        if !in_files && !key {
            return Err(TaskError::Message(format!("the command line's help does not say how to set {path}")));
        }
    }
    let flags: Vec<String> = command.get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "allotrope", &mut script);
        let script = String::from_utf8_lossy(&script);
        if let Some(flag) = flags.iter().find(|flag| !script.contains(flag.as_str())) {
            return Err(TaskError::Message(format!("the completions for {shell} do not have --{flag}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_generated_documentation_is_current() {
        run(&Options { check: true }).unwrap();
    }
}
