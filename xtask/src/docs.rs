//! `cargo xtask docs`: the documentation that is generated from the code.

use std::fs;

use crate::error::TaskError;
use crate::workspace;

/// What to do with the generated documentation.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a file is not what the code would generate
    #[arg(long)]
    pub(crate) check: bool,
}

/// The generated files: path below the repository's top folder, and text.
fn generated() -> [(&'static str, String); 2] {
    [
        ("docs/levels.md", allotrope_config::levels_markdown()),
        ("docs/settings.md", allotrope_config::settings_markdown()),
    ]
}

/// Writes or checks the generated files.
///
/// # Errors
/// If a file can't be written, or with `--check` is not current.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    for (path, text) in generated() {
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
