//! The benchmarks, with vLLM's names for what both have.

use std::path::PathBuf;

use allotrope_config::OptimizationLevel;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, value_parser};

use super::{IGNORE_EOS, MODEL, SEED, TEMPERATURE, clients, model, with_settings};

pub(crate) const BENCH: &str = "bench";
pub(crate) const SERVE: &str = "serve";
pub(crate) const LATENCY: &str = "latency";
pub(crate) const THROUGHPUT: &str = "throughput";
pub(crate) const STARTUP: &str = "startup";

pub(crate) const BASE_URL: &str = "base-url";
pub(crate) const HOST: &str = "host";
pub(crate) const PORT: &str = "port";
pub(crate) const ENDPOINT: &str = "endpoint";
pub(crate) const BACKEND: &str = "backend";
pub(crate) const OPENAI: &str = "openai";
pub(crate) const OPENAI_CHAT: &str = "openai-chat";

pub(crate) const DATASET_NAME: &str = "dataset-name";
pub(crate) const RANDOM: &str = "random";
pub(crate) const CUSTOM: &str = "custom";
pub(crate) const DATASET_PATH: &str = "dataset-path";
pub(crate) const CUSTOM_OUTPUT_LEN: &str = "custom-output-len";
pub(crate) const RANDOM_INPUT_LEN: &str = "random-input-len";
pub(crate) const RANDOM_OUTPUT_LEN: &str = "random-output-len";
pub(crate) const RANDOM_PREFIX_LEN: &str = "random-prefix-len";
pub(crate) const RANDOM_RANGE_RATIO: &str = "random-range-ratio";
pub(crate) const VOCAB_SIZE: &str = "vocab-size";

pub(crate) const NUM_PROMPTS: &str = "num-prompts";
pub(crate) const NUM_WARMUPS: &str = "num-warmups";
pub(crate) const REQUEST_RATE: &str = "request-rate";
pub(crate) const BURSTINESS: &str = "burstiness";
pub(crate) const MAX_CONCURRENCY: &str = "max-concurrency";

pub(crate) const GOODPUT: &str = "goodput";
pub(crate) const PERCENTILE_METRICS: &str = "percentile-metrics";
pub(crate) const METRIC_PERCENTILES: &str = "metric-percentiles";
pub(crate) const LABEL: &str = "label";
pub(crate) const SAVE_RESULT: &str = "save-result";
pub(crate) const SAVE_DETAILED: &str = "save-detailed";
pub(crate) const RESULT_DIR: &str = "result-dir";
pub(crate) const RESULT_FILENAME: &str = "result-filename";
pub(crate) const OUTPUT_JSON: &str = "output-json";

pub(crate) const INPUT_LEN: &str = "input-len";
pub(crate) const OUTPUT_LEN: &str = "output-len";
pub(crate) const BATCH_SIZE: &str = "batch-size";
pub(crate) const NUM_ITERS: &str = "num-iters";
pub(crate) const NUM_ITERS_WARMUP: &str = "num-iters-warmup";
pub(crate) const NUM_ITERS_COLD: &str = "num-iters-cold";
pub(crate) const NUM_ITERS_WARM: &str = "num-iters-warm";
pub(crate) const LEVELS: &str = "levels";

/// The highest burstiness; the gaps are as good as equal long before.
const MOST_EVEN: f64 = 1e6;

const SERVER: &str = "Server";
const REQUESTS: &str = "Requests";
const ARRIVALS: &str = "Arrivals";
const RESULTS: &str = "Results";

pub(super) fn bench() -> Command {
    Command::new(BENCH)
        .about("Measures a server under load, or a model: latency, throughput, startup")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve())
        .subcommand(with_settings(latency()))
        .subcommand(with_settings(throughput()))
        .subcommand(with_settings(startup()))
}

fn serve() -> Command {
    Command::new(SERVE)
        .about("Puts load on a server and measures how it answers")
        .long_about(
            "Puts load on any OpenAI-compatible server and measures how it answers.\n\n\
             TTFT is the time from sending a request to its first output, ITL the time between two outputs of the stream, \
             E2EL the time from sending to the last output, and TPOT (E2EL - TTFT) / (output tokens - 1), without \
             requests of a single token. A request that fails counts as failed and in nothing else.\n\n\
             The same --seed makes the same prompts: in a second run the server finds them in its prefix cache. Give \
             another seed, or empty the cache, between runs that are to be compared.",
        )
        .after_help(
            "Examples:\n  \
             allotrope bench serve --random-input-len 512 --random-output-len 128 --num-prompts 200 --request-rate 4\n  \
             allotrope bench serve --base-url http://127.0.0.1:8000 --max-concurrency 16 --goodput ttft:200 tpot:50 --save-result",
        )
        .args(of_server())
        .args(of_dataset())
        .args(of_arrivals())
        .args(of_results())
}

fn of_server() -> Vec<Arg> {
    let text = |name: &'static str, value_name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value_name).help(help).help_heading(SERVER)
    };
    vec![
        text(MODEL, "NAME", "The model, by the server's name for it; by default the first that the server lists")
            .short('m'),
        text(BACKEND, "BACKEND", "What is asked: completions, or chat completions")
            .value_parser(PossibleValuesParser::new([OPENAI, OPENAI_CHAT]))
            .default_value(OPENAI),
        text(BASE_URL, "URL", "The address of the server, without the endpoint; else --host and --port make it")
            .conflicts_with_all([HOST, PORT]),
        text(HOST, "HOST", "The host of the server").default_value("127.0.0.1"),
        text(PORT, "PORT", "The port of the server").value_parser(value_parser!(u16)).default_value("8000"),
        text(ENDPOINT, "PATH", "The path; by default /v1/completions, for openai-chat /v1/chat/completions"),
        clients::api_key().help_heading(SERVER),
    ]
}

fn of_dataset() -> Vec<Arg> {
    let argument = |name: &'static str, value_name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value_name).help(help).help_heading(REQUESTS)
    };
    let length = |name, default: &'static str, help| {
        argument(name, "N", help).value_parser(value_parser!(u32)).default_value(default)
    };
    vec![
        argument(DATASET_NAME, "NAME", "Random prompts, or those of a file")
            .value_parser(PossibleValuesParser::new([RANDOM, CUSTOM]))
            .default_value(RANDOM)
            .long_help(
                "random: token ids, so that no tokenizer is needed; for openai-chat as many short words. custom: the lines of \
                 --dataset-path.",
            ),
        argument(DATASET_PATH, "FILE.jsonl", "The prompts of the dataset `custom`")
            .value_parser(value_parser!(PathBuf))
            .required_if_eq(DATASET_NAME, CUSTOM)
            .long_help(
                "The prompts of the dataset `custom`, a JSON object on each line: {\"prompt\": \"TEXT\", \"output_tokens\": N}, \
                 or a conversation {\"conversations\": [{\"value\": \"TEXT\"}, ...]}, whose first turn is the prompt. If there \
                 are too few lines, they are repeated.",
            ),
        length(CUSTOM_OUTPUT_LEN, "256", "Tokens of an answer to a line that does not say how many"),
        length(RANDOM_INPUT_LEN, "1024", "Tokens of a random prompt after the prefix"),
        length(RANDOM_OUTPUT_LEN, "128", "Tokens of an answer to a random prompt"),
        length(RANDOM_PREFIX_LEN, "0", "Tokens that all random prompts begin with"),
        range_ratio().help_heading(REQUESTS),
        length(VOCAB_SIZE, "1000", "Random token ids are below this; keep it below the special tokens")
            .value_parser(value_parser!(u32).range(1..)),
        seed().help_heading(REQUESTS),
        num_prompts("1000").help_heading(REQUESTS),
        length(NUM_WARMUPS, "0", "Requests before the measured ones, one after the other"),
        argument(TEMPERATURE, "X", "The temperature that is asked for").value_parser(value_parser!(f64)).default_value("0"),
        argument(IGNORE_EOS, "", "Ask for answers that go on after the end of the text, for the length that is wanted")
            .action(ArgAction::SetTrue),
    ]
}

fn of_arrivals() -> Vec<Arg> {
    let argument = |name: &'static str, value_name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value_name).help(help).help_heading(ARRIVALS)
    };
    vec![
        argument(REQUEST_RATE, "X", "Requests that are sent per second; inf sends all at once")
            .value_parser(|text: &str| above_zero(text, f64::INFINITY))
            .default_value("inf"),
        argument(BURSTINESS, "X", "Shape of the gamma distribution of the gaps: 1 is Poisson, below 1 comes in bursts")
            .value_parser(|text: &str| above_zero(text, MOST_EVEN))
            .default_value("1"),
        argument(MAX_CONCURRENCY, "N", "The most requests that are open at once; others wait to be sent")
            .value_parser(value_parser!(u32).range(1..)),
    ]
}

fn above_zero(text: &str, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= most => Ok(number),
        _ if most.is_finite() => Err(format!("a number above 0 and at most {most} is needed")),
        _ => Err("a number above 0, or inf, is needed".to_owned()),
    }
}

fn of_results() -> Vec<Arg> {
    let argument = |name: &'static str, value_name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value_name).help(help).help_heading(RESULTS)
    };
    let switch = |name, help| argument(name, "", help).action(ArgAction::SetTrue);
    vec![
        argument(GOODPUT, "METRIC:MS", "Count the requests that keep these limits, such as ttft:200 tpot:50")
            .num_args(1..),
        argument(PERCENTILE_METRICS, "METRICS", "What is reported: of ttft, tpot, itl and e2el")
            .value_delimiter(',')
            .value_parser(PossibleValuesParser::new(["ttft", "tpot", "itl", "e2el"]))
            .default_value("ttft,tpot,itl,e2el"),
        argument(METRIC_PERCENTILES, "PERCENTILES", "Which percentiles are reported")
            .value_delimiter(',')
            .value_parser(percentile)
            .default_value("99"),
        argument(LABEL, "TEXT", "A name of this run, for the result and its file; by default the backend"),
        switch(SAVE_RESULT, "Write the result to a JSON file"),
        switch(SAVE_DETAILED, "Write what came of each request into the file too").requires(SAVE_RESULT),
        argument(RESULT_DIR, "DIR", "The folder of the file; by default the working directory")
            .value_parser(value_parser!(PathBuf)),
        argument(RESULT_FILENAME, "NAME", "The name of the file; by default made of label, rate, model and time"),
    ]
}

fn percentile(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
        _ => Err("a percentile is a number from 0 to 100".to_owned()),
    }
}

fn latency() -> Command {
    Command::new(LATENCY)
        .about("Measures how long a model takes for one batch")
        .long_about(
            "Measures how long a model takes for one batch: all prompts begin together, and the time ends when the last \
             of them has all its tokens. Every batch has new random prompts, so that none is found in a cache.",
        )
        .arg(model())
        .args(lengths("32", "128"))
        .arg(count(BATCH_SIZE, "8", "Prompts of the batch").value_parser(value_parser!(u32).range(1..)))
        .arg(count(NUM_ITERS_WARMUP, "10", "Batches that are not measured, before the others"))
        .arg(count(NUM_ITERS, "30", "Batches that are measured").value_parser(value_parser!(u32).range(1..)))
        .arg(seed())
        .arg(output_json())
}

fn throughput() -> Command {
    Command::new(THROUGHPUT)
        .about("Measures how fast a model answers many prompts")
        .long_about(
            "Measures how fast a model answers many random prompts that are all there at the beginning, as many of them at \
             a time as --max-num-seqs allows.",
        )
        .arg(model())
        .args(lengths("1024", "128"))
        .arg(range_ratio())
        .arg(num_prompts("1000"))
        .arg(seed())
        .arg(output_json())
}

fn startup() -> Command {
    Command::new(STARTUP)
        .about("Measures how long a model takes to be ready, cold and warm, level by level")
        .long_about(
            "Measures how long a model takes to be ready, cold and warm, level by level. Every start is a fresh process of \
             this program that generates one token.\n\n\
             Cold is a start with an empty kernel cache, and warm one with the kernel cache of starts before it. In both, the \
             checkpoint's files stay in the system's page cache: reading them from the disk is not measured.",
        )
        .after_help("Example:\n  allotrope bench startup --model tiny-chat --levels 0,1,2,3 --output-json startup.json")
        .arg(model())
        .arg(
            Arg::new(LEVELS)
                .long(LEVELS)
                .value_name("LEVELS")
                .value_delimiter(',')
                .value_parser(|text: &str| text.parse::<OptimizationLevel>())
                .conflicts_with("optimization_level")
                .help("The optimization levels, such as 0,1,2,3; by default the one of -O"),
        )
        .arg(count(NUM_ITERS_COLD, "3", "Cold starts of each level"))
        .arg(count(NUM_ITERS_WARMUP, "1", "Starts of each level that fill the kernel cache and are not measured"))
        .arg(count(NUM_ITERS_WARM, "3", "Warm starts of each level"))
        .arg(output_json())
}

fn count(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u32)).default_value(default).help(help)
}

fn lengths(input: &'static str, output: &'static str) -> [Arg; 2] {
    let length = |name, default, help| count(name, default, help).value_parser(value_parser!(u32).range(1..));
    [length(INPUT_LEN, input, "Tokens of a prompt"), length(OUTPUT_LEN, output, "Tokens of an answer")]
}

fn num_prompts(default: &'static str) -> Arg {
    count(NUM_PROMPTS, default, "How many prompts there are").value_parser(value_parser!(u32).range(1..))
}

fn seed() -> Arg {
    count(SEED, "0", "The same seed makes the same prompts").value_parser(value_parser!(u64))
}

fn range_ratio() -> Arg {
    let parser = |text: &str| match text.parse::<f64>() {
        Ok(number) if (0.0..1.0).contains(&number) => Ok(number),
        _ => Err("a number from 0 to below 1 is needed".to_owned()),
    };
    Arg::new(RANDOM_RANGE_RATIO)
        .long(RANDOM_RANGE_RATIO)
        .value_name("X")
        .value_parser(parser)
        .default_value("0")
        .help("Lengths are drawn between (1 - X) and (1 + X) times what is given")
}

fn output_json() -> Arg {
    Arg::new(OUTPUT_JSON)
        .long(OUTPUT_JSON)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Write the result to this file too; one that exists is replaced")
}
