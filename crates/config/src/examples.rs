//! What a person sees, for `docs/settings.md`: help, mistakes and their messages, and explanations. Made by running the code itself.
//!
//! Every block that begins with `$` is a command line with what it prints, or the beginning of that.

use std::fmt::Write as _;
use std::path::Path;

use crate::command_line::{arguments, group_help};
use crate::error::SettingsError;
use crate::explain::{Format, diff, explain};
use crate::facts::{DeviceFacts, ModelFacts};
use crate::file;
use crate::level::OptimizationLevel;
use crate::options::Options;
use crate::resolve::resolve;
use crate::settings::Settings;
use crate::source::Source;

const COMMAND: &str = "allotrope explain --model tests/models/tiny-chat";
const FILE: &str = "few.toml";
const FILE_TEXT: &str = "[scheduler]\nmax_num_seqs = 0\n";
const GROUP: &str = "cache";

/// The section of the settings page that shows them.
pub(crate) fn examples() -> String {
    let mut text = "\n## What it looks like\n".to_owned();
    help(&mut text);
    mistakes(&mut text);
    explanations(&mut text);
    text
}

fn help(text: &mut String) {
    // The settings alone: each command has options of its own before them.
    let help = clap::Command::new("allotrope")
        .args(arguments())
        .disable_help_flag(true)
        .help_template("{all-args}")
        .render_help();
    let _ = write!(
        text,
        "\n`allotrope explain -h` lists the command's own options and then, as every command that loads a model does, those of \
         the settings. `--help` says more of each.\n\n```text\n{}\n```\n",
        help.to_string().trim_end()
    );
    if let Ok(help) = group_help(GROUP) {
        let _ = write!(
            text,
            "\n`--help=GROUP` says everything about one group:\n\n```console\n$ allotrope explain --help={GROUP}\n{help}```\n"
        );
    }
}

fn mistakes(text: &mut String) {
    text.push_str(
        "\nWhat cannot be is an error with exit status 2, which says where it was written, what is wrong, and what to write \
         instead. A name that does not exist:\n",
    );
    mistake(text, &format!("{COMMAND} -cc.pass_config.fuse_add_nrm=false"), {
        let flag = "-cc.pass_config.fuse_add_nrm".to_owned();
        Options::new().set("compilation.pass_config.fuse_add_nrm", "false", Source::CommandLine { flag })
    });
    let _ = write!(
        text,
        "\nA value that cannot be, in a file, here `{FILE}`, and in the environment:\n\n```toml\n{FILE_TEXT}```\n"
    );
    mistake(text, &format!("{COMMAND} --config {FILE}"), file::parse(Path::new(FILE), FILE_TEXT).map(drop));
    mistake(text, &format!("ALLOTROPE_CACHE__BLOCK_SIZE=many {COMMAND}"), {
        let variable = "ALLOTROPE_CACHE__BLOCK_SIZE".to_owned();
        Options::new().set("cache.block_size", "many", Source::Environment { variable })
    });
    text.push_str("\nTwo settings that contradict each other:\n");
    mistake(text, &format!("{COMMAND} --enforce-eager -cc.cudagraph_mode=FULL"), contradiction().map(drop));
}

/// A command line and its message. What is no error is not shown, and the test of the page misses it.
fn mistake(text: &mut String, command: &str, outcome: Result<(), SettingsError>) {
    if let Err(error) = outcome {
        let _ = write!(text, "\n```console\n$ {command}\nerror: {error}\n```\n");
    }
}

fn contradiction() -> Result<Settings, SettingsError> {
    let flag = |flag: &str| Source::CommandLine { flag: flag.to_owned() };
    let mut options = Options::new();
    options.set("enforce_eager", "true", flag("--enforce-eager"))?;
    options.set("compilation.cudagraph_mode", "FULL", flag("-cc.cudagraph_mode"))?;
    resolve(&options, &ModelFacts::assumed(), &DeviceFacts::assumed())
}

fn explanations(text: &mut String) {
    let at = |level, flag: &str| {
        let mut options = Options::new();
        options.set_optimization_level(level, Source::CommandLine { flag: flag.to_owned() });
        resolve(&options, &ModelFacts::assumed(), &DeviceFacts::assumed())
    };
    let format = Format::Text { color: false };
    if let (Ok(before), Ok(after)) = (at(OptimizationLevel::O1, "--diff"), at(OptimizationLevel::O2, "--diff")) {
        let changed = diff(&before, &after, &format);
        let _ = write!(text, "\nWhat O2 changes over O1:\n\n```console\n$ {COMMAND} --diff O1 O2\n{changed}```\n");
    }
    let explained =
        at(OptimizationLevel::O1, "-O").and_then(|settings| explain(&settings, &[], Some("compilation"), &format));
    if let Ok(explained) = explained {
        let _ = write!(
            text,
            "\nEvery value with its source and reason; what each pass did on this model follows:\n\n\
             ```console\n$ {COMMAND} -O1 --only compilation\n{explained}```\n"
        );
    }
}
