//! The flags of `allotrope serve`, with vLLM's names for what both have.

use std::path::PathBuf;

use allotrope_server::MAX_TIME;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{Arg, ArgAction, Command, value_parser};

use super::{MODEL, clients};

pub(crate) const SERVE: &str = "serve";

pub(crate) const HOST: &str = "host";
pub(crate) const PORT: &str = "port";
pub(crate) const UDS: &str = "uds";
pub(crate) const ALLOW_PUBLIC: &str = "allow-public-without-key";
pub(crate) const SERVED_MODEL_NAME: &str = "served-model-name";
pub(crate) const MAX_LOGPROBS: &str = "max-logprobs";
pub(crate) const SHUTDOWN_TIMEOUT: &str = "shutdown-timeout";
pub(crate) const CHAT_TEMPLATE: &str = "chat-template";
pub(crate) const TRUST_TEMPLATE: &str = "trust-request-chat-template";
pub(crate) const AUTO_TOOL_CHOICE: &str = "enable-auto-tool-choice";
pub(crate) const TOOL_CALL_PARSER: &str = "tool-call-parser";
pub(crate) const LLAMA3_JSON: &str = "llama3_json";
pub(crate) const HERMES: &str = "hermes";
pub(crate) const REQUEST_IDS: &str = "enable-request-id-headers";
pub(crate) const FORCE_USAGE: &str = "enable-force-include-usage";
pub(crate) const PROMPT_DETAILS: &str = "enable-prompt-tokens-details";
pub(crate) const KEEP_ALIVE: &str = "sse-keep-alive-interval";
pub(crate) const STREAM_INTERVAL: &str = "stream-interval";
pub(crate) const ALLOWED_ORIGINS: &str = "allowed-origins";
pub(crate) const ROOT_PATH: &str = "root-path";
pub(crate) const METRICS_PREFIX: &str = "metrics-prefix";
pub(crate) const DISABLE_LOG_STATS: &str = "disable-log-stats";
pub(crate) const MAX_CONNECTIONS: &str = "max-connections";
pub(crate) const MAX_BODY_BYTES: &str = "max-body-bytes";
pub(crate) const REQUEST_TIMEOUT: &str = "request-timeout";
pub(crate) const STEP_TIMEOUT: &str = "step-timeout";

const ADDRESS: &str = "Address and access";
const ANSWERS: &str = "Answers";
const OPERATION: &str = "Operation";

pub(super) fn serve() -> Command {
    Command::new(SERVE)
        .about("Serves a model through an OpenAI-compatible interface")
        .long_about(
            "Serves a model through an OpenAI-compatible interface: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, \
             /detokenize, /metrics, /health, /ready, /version and /openapi.json.\n\n\
             It listens at once, and answers 503 until the model is ready; the address is the last line of the start. The first \
             SIGTERM or Ctrl-C lets open requests finish for --shutdown-timeout seconds, a second one ends it now.",
        )
        .after_help(
            "Examples:\n  \
             allotrope serve tiny-chat\n  \
             allotrope serve tiny-chat -O1 --port 8080 --api-key SECRET --host 0.0.0.0 --shutdown-timeout 30",
        )
        .arg(
            Arg::new(MODEL)
                .value_name("MODEL")
                .value_parser(value_parser!(PathBuf))
                .required(true)
                .help("The folder of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json"),
        )
        .args(of_address())
        .args(of_answers())
        .args(of_operation())
}

fn argument(name: &'static str, value_name: &'static str, help: &'static str, heading: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help).help_heading(heading)
}

fn switch(name: &'static str, help: &'static str, heading: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help).help_heading(heading)
}

/// Seconds, as many as the server takes.
fn seconds() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(..=MAX_TIME.as_secs())
}

fn of_address() -> Vec<Arg> {
    vec![
        argument(HOST, "HOST", "The name or address to listen at; others can reach 0.0.0.0", ADDRESS).default_value("127.0.0.1"),
        argument(PORT, "PORT", "The port; 0 takes any that is free", ADDRESS)
            .value_parser(value_parser!(u16))
            .default_value("8000"),
        argument(UDS, "PATH", "Listen at a Unix socket instead", ADDRESS)
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all([HOST, PORT]),
        clients::api_key()
            .action(ArgAction::Append)
            .help("A key that requests must give; may be given several times; by default that of ALLOTROPE_API_KEY")
            .long_help(
                "A key that requests must give as `Authorization: Bearer KEY`; may be given several times. By default that of the \
                 environment variable ALLOTROPE_API_KEY, which other users of the machine cannot see in the list of processes. \
                 Without any, everyone is served who can reach the address.",
            )
            .help_heading(ADDRESS),
        switch(ALLOW_PUBLIC, "Listen at an address that others can reach although there is no key", ADDRESS),
        argument(ALLOWED_ORIGINS, "ORIGIN", "Origins of pages whose scripts may use the server; * for all", ADDRESS).num_args(1..),
        argument(ROOT_PATH, "PATH", "What a proxy puts before all paths", ADDRESS).default_value(""),
    ]
}

fn of_answers() -> Vec<Arg> {
    vec![
        argument(SERVED_MODEL_NAME, "NAME", "Names of the model; by default that of its folder", ANSWERS).num_args(1..),
        argument(
            MAX_LOGPROBS,
            "N",
            "The most alternatives that a request may ask for with each token; -1 for all",
            ANSWERS,
        )
        .value_parser(value_parser!(i64).range(-1..=1 << 20))
        .allow_negative_numbers(true)
        .default_value("20"),
        argument(
            CHAT_TEMPLATE,
            "FILE|TEXT",
            "A chat template in place of the checkpoint's: a file, or the text itself",
            ANSWERS,
        ),
        switch(TRUST_TEMPLATE, "Let requests bring chat templates, which are programs", ANSWERS),
        switch(AUTO_TOOL_CHOICE, "Let the model decide whether it calls a tool (tool_choice auto)", ANSWERS),
        argument(
            TOOL_CALL_PARSER,
            "FORM",
            "How the model writes calls of tools; by default as its template shows",
            ANSWERS,
        )
        .value_parser(PossibleValuesParser::new([LLAMA3_JSON, HERMES])),
        switch(REQUEST_IDS, "Give every answer an X-Request-Id, that of the request if it has one", ANSWERS),
        switch(FORCE_USAGE, "Tell the usage at the end of every stream", ANSWERS),
        switch(PROMPT_DETAILS, "Tell in the usage how many tokens of the prompt were in the prefix cache", ANSWERS),
        argument(KEEP_ALIVE, "SECONDS", "Send a comment where a stream is silent for so long; 0 never", ANSWERS)
            .value_parser(seconds())
            .default_value("15"),
        argument(STREAM_INTERVAL, "N", "Tokens of a chunk of a stream", ANSWERS)
            .value_parser(value_parser!(u32).range(1..))
            .default_value("1"),
    ]
}

fn of_operation() -> Vec<Arg> {
    let time = |name, default: &'static str, help| {
        argument(name, "SECONDS", help, OPERATION).value_parser(seconds()).default_value(default)
    };
    vec![
        time(SHUTDOWN_TIMEOUT, "0", "How long open requests may go on after SIGTERM; 0 aborts them at once"),
        time(REQUEST_TIMEOUT, "0", "How long one answer may take; 0 is no bound"),
        time(
            STEP_TIMEOUT,
            "60",
            "How long requests may run without a step before /health says that something is wrong",
        ),
        argument(MAX_CONNECTIONS, "N", "Connections that may be open; others wait", OPERATION)
            .value_parser(value_parser!(u32).range(1..))
            .default_value("4096"),
        argument(MAX_BODY_BYTES, "BYTES", "The longest body of a request", OPERATION)
            .value_parser(value_parser!(u32).range(1..))
            .default_value("33554432"),
        argument(
            METRICS_PREFIX,
            "PREFIX",
            "What the names of metrics begin with; vllm: for boards that know vLLM's",
            OPERATION,
        )
        .default_value("allotrope:"),
        switch(DISABLE_LOG_STATS, "Leave the regular summary out of the log", OPERATION),
    ]
}
