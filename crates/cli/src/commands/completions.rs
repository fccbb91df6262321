//! `allotrope completions`: a script for a shell.

use clap::ArgMatches;
use clap_complete::Shell;

use crate::error::CliError;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let Some(&shell) = matches.get_one::<Shell>(arguments::SHELL) else {
        // clap requires it.
        return Err(CliError::Usage("no shell was given; `allotrope completions --help` lists them".to_owned()));
    };
    let mut command = arguments::command();
    let name = command.get_name().to_owned();
    // Made in memory, because the library panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::show(String::from_utf8_lossy(&script))
}
