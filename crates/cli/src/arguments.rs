//! The commands and their arguments.
//!
//! The arguments of the settings come from their declarations in `allotrope-config`; those of each command are here.

mod bench;
pub(crate) mod clients;
pub(crate) mod serve;

use std::path::PathBuf;

use allotrope_config::{OptimizationLevel, PROJECT_FILE, command_line};
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgGroup, Command, value_parser};
use clap_complete::Shell;

pub(crate) use self::bench::*;
pub(crate) use self::clients::*;

pub(crate) const GENERATE: &str = "generate";
pub(crate) const LOGITS: &str = "logits";
pub(crate) const EXPLAIN: &str = "explain";
pub(crate) const GRAPH: &str = "graph";
pub(crate) const SETTINGS: &str = "settings";
pub(crate) const COMPLETIONS: &str = "completions";

pub(crate) const VERBOSE: &str = "verbose";
pub(crate) const QUIET: &str = "quiet";
pub(crate) const MODEL: &str = "model";
pub(crate) const FORMAT: &str = "format";

pub(crate) const PROMPT: &str = "prompt";
pub(crate) const PROMPTS: &str = "prompts";
pub(crate) const SYSTEM: &str = "system";
pub(crate) const RAW: &str = "raw";

pub(crate) const MAX_TOKENS: &str = "max-tokens";
pub(crate) const TEMPERATURE: &str = "temperature";
pub(crate) const TOP_P: &str = "top-p";
pub(crate) const TOP_K: &str = "top-k";
pub(crate) const MIN_P: &str = "min-p";
pub(crate) const REPETITION_PENALTY: &str = "repetition-penalty";
pub(crate) const SEED: &str = "seed";
pub(crate) const STOP: &str = "stop";
pub(crate) const IGNORE_EOS: &str = "ignore-eos";

pub(crate) const TOKENS: &str = "tokens";
pub(crate) const OUT: &str = "out";
pub(crate) const NEW_TOKENS: &str = "new-tokens";

pub(crate) const ONLY: &str = "only";
pub(crate) const DIFF: &str = "diff";

pub(crate) const LAYER: &str = "layer";
pub(crate) const AIR: &str = "air";
pub(crate) const DOT: &str = "dot";
pub(crate) const HTML: &str = "html";

pub(crate) const INIT: &str = "init";
pub(crate) const SCHEMA: &str = "schema";
pub(crate) const OF_FILES: &str = "file";
pub(crate) const OF_EXPLANATIONS: &str = "explain";

pub(crate) const SHELL: &str = "shell";

pub(crate) const JSON: &str = "json";
pub(crate) const TEXT: &str = "text";
pub(crate) const TABLE: &str = "table";

const SAMPLING: &str = "Sampling (what is not given comes from the checkpoint's generation_config.json)";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("allotrope")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs large language models. Optimization levels -O0 to -O3 trade startup time for speed; the answers stay the same.")
        .after_help(
            "`allotrope COMMAND --help` explains a command and all of its options; `-h` is the short form. \
             `allotrope COMMAND --help=GROUP` explains one group of settings, such as compilation.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new(VERBOSE)
                .short('v')
                .long(VERBOSE)
                .action(ArgAction::Count)
                .global(true)
                .help("Log what happens to standard error; -vv logs details, -vvv everything"),
        )
        .subcommand(with_settings(generate()))
        .subcommand(with_settings(serve::serve()))
        .subcommand(with_settings(clients::chat()))
        .subcommand(clients::complete())
        .subcommand(bench::bench())
        .subcommand(with_settings(logits()))
        .subcommand(with_settings(explain()))
        .subcommand(with_settings(graph()))
        .subcommand(settings())
        .subcommand(completions())
}

/// A command with the flags of all settings, and a `--help` that says how to read about them.
fn with_settings(command: Command) -> Command {
    let help =
        Arg::new("help").short('h').long("help").action(ArgAction::Help).help(
            "Print help: -h in short, --help in full, --help=GROUP about one group of settings, such as compilation",
        );
    command.disable_help_flag(true).arg(help).args(command_line::arguments())
}

fn generate() -> Command {
    Command::new(GENERATE)
        .about("Answers a prompt, or a file of prompts")
        .long_about(
            "Answers a prompt, or a file of prompts.\n\n\
             The text goes to standard output as it is generated. After it, the time that the start took and the speed \
             are reported on standard error.\n\n\
             A prompt is put into the checkpoint's chat template as the message of a user, if the checkpoint has a \
             template; --raw passes it as it is.",
        )
        .after_help(
            "Examples:\n  \
             allotrope generate --model tiny-chat \"What is 7 + 8?\"\n  \
             allotrope generate --model tiny-chat -O3 --temperature 0.8 --seed 1 \"Tell me a story about a fox named Ida.\"\n  \
             allotrope generate --model tiny-chat --prompts questions.jsonl --format json > answers.jsonl",
        )
        .arg(model())
        .arg(
            Arg::new(PROMPT)
                .value_name("PROMPT")
                .help("The prompt; - reads it from standard input")
                .long_help(
                    "The prompt; - reads it from standard input. Write -- before a prompt that begins with a dash.",
                ),
        )
        .arg(
            Arg::new(PROMPTS)
                .long(PROMPTS)
                .value_name("FILE.jsonl")
                .value_parser(value_parser!(PathBuf))
                .help("Answer every line of a file; {\"prompt\": \"...\"} on each line")
                .long_help(
                    "Answer every line of a file, several at a time, and print the answers in the order of the lines. \
                     - reads standard input.\n\n\
                     Each line is a JSON object with one of\n  \
                     {\"prompt\": \"TEXT\"}\n  \
                     {\"messages\": [{\"role\": \"user\", \"content\": \"TEXT\"}, ...]}\n  \
                     {\"tokens\": [ID, ...]}\n\
                     and, if wanted, an \"id\" (a string or a number) that is repeated in the JSON form of the answer.",
                ),
        )
        .group(ArgGroup::new("input").args([PROMPT, PROMPTS]).required(true))
        .arg(system("Put a system message before the prompt").conflicts_with(RAW))
        .arg(
            Arg::new(RAW)
                .long(RAW)
                .action(ArgAction::SetTrue)
                .help("Pass the prompt as it is, without the chat template"),
        )
        .arg(format([TEXT, JSON], TEXT).long_help(
            "How answers are printed: text, or json, with one object on a line for each prompt (text, tokens, \
             finish_reason, prompt_tokens, timings). With json, the report on standard error is JSON too.",
        ))
        .arg(quiet("Do not report the start and the speed"))
        .args(sampling())
}

fn logits() -> Command {
    Command::new(LOGITS)
        .about("Writes logits to a file, to compare engines with")
        .long_about(
            "Writes logits to a file, to compare engines with: for every list of token ids those at each position, and \
             a greedy continuation, which does not stop at the end of a text, with the logits that each of its tokens \
             was picked from.\n\n\
             For list i the file has, with T tokens, N new tokens and a vocabulary of V: prompt.i int64 [T], logits.i \
             float32 [T, V], tokens.i int64 [N], step_logits.i float32 [N, V]. It is held in memory until all of it \
             is there, and then written at once.",
        )
        .arg(model())
        .arg(
            Arg::new(TOKENS)
                .long(TOKENS)
                .value_name("PROMPTS.json")
                .value_parser(value_parser!(PathBuf))
                .required(true)
                .help("The prompts: a JSON list of lists of token ids"),
        )
        .arg(
            Arg::new(OUT)
                .long(OUT)
                .value_name("OUT.safetensors")
                .value_parser(value_parser!(PathBuf))
                .required(true)
                .help("The file to write; one that exists is replaced"),
        )
        .arg(
            Arg::new(NEW_TOKENS)
                .long(NEW_TOKENS)
                .value_name("N")
                .value_parser(value_parser!(usize))
                .default_value("16")
                .help("How many tokens to continue each prompt with"),
        )
        .arg(quiet("Do not report the start and the speed"))
}

fn explain() -> Command {
    Command::new(EXPLAIN)
        .about("Explains what a run would do, and why")
        .long_about(
            "Explains what a run with the same settings would do, and why: every setting with its value, where the \
             value comes from and the reason; every pass, whether it is on, and what it did to this model; and what a \
             step launches. No weights are loaded.",
        )
        .arg(model())
        .arg(format([TABLE, JSON], TABLE).help("How the explanation is printed"))
        .arg(
            Arg::new(ONLY)
                .long(ONLY)
                .value_name("GROUP")
                .conflicts_with(DIFF)
                .help("Only the settings of one group, such as compilation.pass_config"),
        )
        .arg(
            Arg::new(DIFF)
                .long(DIFF)
                .num_args(2)
                .value_names(["LEVEL", "LEVEL"])
                .value_parser(|text: &str| text.parse::<OptimizationLevel>())
                .conflicts_with("optimization_level")
                .help("Only what differs between two levels, such as O1 O2"),
        )
}

fn graph() -> Command {
    Command::new(GRAPH)
        .about("Prints the graph of a step as it would run: operations, and the launches that they are grouped into")
        .long_about(
            "Prints the graph of a step as it would run with the same settings: the operations, and the launches that the \
             passes grouped them into. -O0 prints it as the model builder wrote it. No weights are loaded.\n\n\
             docs/ir.md says what each operation does. To keep the graph after every pass as files, use --debug-dump-path.",
        )
        .after_help(
            "Examples:\n  \
             allotrope graph --model tiny-chat -O2 --layer 1\n  \
             allotrope graph --model tiny-chat -O2 --format html > passes.html\n  \
             allotrope graph --model tiny-chat -O1 --layer 0 --format dot | dot -Tsvg > layer.svg",
        )
        .arg(model())
        .arg(
            Arg::new(LAYER)
                .long(LAYER)
                .value_name("N")
                .value_parser(value_parser!(usize))
                .help("Only the launches of one decoder layer, from 0"),
        )
        .arg(
            format([AIR, DOT, HTML], AIR)
                .help("How the graph is printed")
                .long_help(
                    "How the graph is printed: air, the text form; dot, for Graphviz; html, a page that shows the graph \
                     before and after each pass side by side.",
                ),
        )
}

fn settings() -> Command {
    Command::new(SETTINGS)
        .about("Lists all settings, begins a settings file, or prints a JSON Schema")
        .long_about(
            "Lists all settings with their defaults, where no model is known; `allotrope explain` shows what would hold for \
             a model. With --init it writes a settings file to begin with, and with --schema it prints a JSON Schema.\n\n\
             Settings are read from the file of --config, or else from the allotrope.toml nearest above the working \
             directory, and then from ~/.config/allotrope/config.toml.",
        )
        .arg(
            Arg::new(INIT)
                .long(INIT)
                .num_args(0..=1)
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .default_missing_value(PROJECT_FILE)
                .conflicts_with(SCHEMA)
                .help("Write a settings file with every setting as a comment; by default allotrope.toml")
                .long_help(
                    "Write a settings file in which every setting stands as a comment, with what it does; by default \
                     allotrope.toml in the working directory. A file that exists is never touched.",
                ),
        )
        .arg(
            Arg::new(SCHEMA)
                .long(SCHEMA)
                .num_args(0..=1)
                .value_name("OF")
                .value_parser(PossibleValuesParser::new([
                    PossibleValue::new(OF_FILES).help("settings files, such as allotrope.toml"),
                    PossibleValue::new(OF_EXPLANATIONS).help("what `allotrope explain --format json` prints, if not with --diff"),
                ]))
                .default_missing_value(OF_FILES)
                .help("Print the JSON Schema of settings files, or that of `allotrope explain --format json`"),
        )
}

fn completions() -> Command {
    Command::new(COMPLETIONS)
        .about("Prints a script that completes commands and flags in a shell")
        .after_help(
            "Examples:\n  \
             source <(allotrope completions bash)\n  \
             allotrope completions fish > ~/.config/fish/completions/allotrope.fish",
        )
        .arg(Arg::new(SHELL).value_name("SHELL").value_parser(value_parser!(Shell)).required(true).help("The shell"))
}

fn model() -> Arg {
    Arg::new(MODEL)
        .long(MODEL)
        .short('m')
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .required(true)
        .help("The folder of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json")
}

fn system(help: &'static str) -> Arg {
    Arg::new(SYSTEM).long(SYSTEM).value_name("TEXT").help(help)
}

fn quiet(help: &'static str) -> Arg {
    Arg::new(QUIET).long(QUIET).short('q').action(ArgAction::SetTrue).help(help)
}

fn format<const N: usize>(values: [&'static str; N], default: &'static str) -> Arg {
    Arg::new(FORMAT)
        .long(FORMAT)
        .value_name("FORMAT")
        .value_parser(PossibleValuesParser::new(values))
        .default_value(default)
        .help("How answers are printed")
}

/// The sampling flags. Their ranges are checked where the engine checks them.
fn sampling() -> Vec<Arg> {
    let number = |name: &'static str, value_name: &'static str, help: &'static str| {
        // A negative number is a value out of range, and not an unknown flag.
        Arg::new(name).long(name).value_name(value_name).allow_negative_numbers(true).help(help).help_heading(SAMPLING)
    };
    vec![
        number(MAX_TOKENS, "N", "The most tokens to generate; by default up to the context length")
            .value_parser(value_parser!(usize)),
        number(TEMPERATURE, "X", "0 takes the most likely token; up to 2, higher is more varied")
            .value_parser(value_parser!(f32)),
        number(TOP_P, "X", "Keep the most likely tokens that together have this probability; 1 keeps all")
            .value_parser(value_parser!(f32)),
        number(TOP_K, "N", "Keep the N most likely tokens; 0 keeps all").value_parser(value_parser!(u32)),
        number(MIN_P, "X", "Keep tokens at least this fraction as likely as the most likely one; 0 keeps all")
            .value_parser(value_parser!(f32)),
        number(REPETITION_PENALTY, "X", "Above 1 makes tokens that occurred before less likely")
            .value_parser(value_parser!(f32)),
        number(SEED, "N", "The same seed gives the same output; without one, every run draws anew")
            .value_parser(value_parser!(u64)),
        Arg::new(STOP)
            .long(STOP)
            .value_name("TEXT")
            .action(ArgAction::Append)
            .allow_hyphen_values(true)
            .help("End the output before this text; may be given several times")
            .help_heading(SAMPLING),
        Arg::new(IGNORE_EOS)
            .long(IGNORE_EOS)
            .action(ArgAction::SetTrue)
            .help("Go on after the model's end-of-sequence token")
            .help_heading(SAMPLING),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        command().debug_assert();
    }
}
