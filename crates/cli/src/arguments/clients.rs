//! The commands that talk to a person: `chat`, with a model in this process or with a server, and `complete`.

use clap::{Arg, ArgAction, ArgGroup, Command};

use super::{MODEL, model, quiet, sampling, system};

pub(crate) const CHAT: &str = "chat";
pub(crate) const COMPLETE: &str = "complete";

pub(crate) const URL: &str = "url";
pub(crate) const MODEL_NAME: &str = "model-name";
pub(crate) const API_KEY: &str = "api-key";
pub(crate) const QUICK: &str = "quick";
pub(crate) const STATS: &str = "stats";

/// Where servers listen by default.
const DEFAULT_URL: &str = "http://127.0.0.1:8000/v1";

pub(super) fn chat() -> Command {
    Command::new(CHAT)
        .about("Holds a conversation in the terminal, with a checkpoint or with a server")
        .long_about(
            "Holds a conversation in the terminal, through the checkpoint's chat template, or with --url with any \
             OpenAI-compatible server.\n\n\
             Ctrl-C stops an answer, Ctrl-D ends the conversation, the arrow keys bring earlier lines back, and /help \
             lists the commands. If standard input is no terminal, every line of it is a message.",
        )
        .after_help(
            "Examples:\n  \
             allotrope chat --model tiny-chat -O2\n  \
             allotrope chat --url http://127.0.0.1:8000/v1 --stats -q \"What is 7 + 8?\"",
        )
        .arg(model().required(false))
        .arg(url().help("Ask the server at this address instead of loading a model"))
        .group(ArgGroup::new("partner").args([MODEL, URL]).required(true))
        .args(of_server().map(|argument| argument.conflicts_with(MODEL)))
        .arg(system("Begin the conversation with a system message").visible_alias("system-prompt"))
        .arg(quick("Send one message, print the answer, and end"))
        .arg(stats())
        .arg(quiet("Print nothing but the answers").short(None))
        .args(sampling())
}

pub(super) fn complete() -> Command {
    Command::new(COMPLETE)
        .about("Completes text through a server")
        .long_about(
            "Completes text through any OpenAI-compatible server.\n\n\
             With --quick it completes one text. Without it, it completes each line that is typed by itself; Ctrl-C \
             stops an answer and Ctrl-D ends. If standard input is no terminal, every line of it is a text.",
        )
        .after_help(
            "Examples:\n  \
             allotrope complete -q \"Once upon a time\" --max-tokens 50 --stats\n  \
             allotrope complete --url http://127.0.0.1:8000/v1 --model-name tiny-chat",
        )
        .arg(url().default_value(DEFAULT_URL).help("The address of the server"))
        .args(of_server())
        .arg(quick("Complete one text, and end"))
        .arg(stats())
        .args(sampling())
}

fn url() -> Arg {
    Arg::new(URL).long(URL).value_name("URL")
}

/// What a server wants to know.
fn of_server() -> [Arg; 2] {
    let model_name = Arg::new(MODEL_NAME)
        .long(MODEL_NAME)
        .value_name("NAME")
        .help("The model, by the server's name for it; by default the first that the server lists");
    [model_name, api_key()]
}

/// The flag of the key.
pub(super) fn api_key() -> Arg {
    Arg::new(API_KEY)
        .long(API_KEY)
        .value_name("KEY")
        .help("The key that the server asks for; by default that of the environment variable ALLOTROPE_API_KEY")
        .long_help(
            "The key that the server asks for; by default that of the environment variable ALLOTROPE_API_KEY, which \
             other users of the machine cannot see in the list of processes.",
        )
}

fn quick(help: &'static str) -> Arg {
    Arg::new(QUICK).long(QUICK).short('q').value_name("TEXT").allow_hyphen_values(true).help(help)
}

fn stats() -> Arg {
    Arg::new(STATS)
        .long(STATS)
        .action(ArgAction::SetTrue)
        .help("After each answer, tell the time to its first token (TTFT) and the speed")
}
