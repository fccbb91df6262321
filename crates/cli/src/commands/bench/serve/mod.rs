//! `allotrope bench serve`: a server under load.

mod arrivals;
mod load;
mod metrics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use clap::parser::ValueSource;
use jiff::Timestamp;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use self::load::{Form, Outcome, Schedule};
use self::metrics::{Goodput, Metric, Wanted};
use super::dataset::{self, Lengths, Request, Vocabulary};
use super::{count, numbers, progress};
use crate::client::{Client, api_key};
use crate::error::CliError;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches, environment: &Environment) -> Result<(), CliError> {
    let client = Arc::new(Client::new(&base_url(matches), api_key(matches, environment).as_deref())?);
    let wanted = wanted(matches)?;
    let mut requests = requests(matches)?;
    let warmups = requests.split_off(count(matches, arguments::NUM_PROMPTS).min(requests.len()));
    warn_of_caches(matches);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::Failure(format!("cannot start the client: {error}")))?;
    let model = match matches.get_one::<String>(arguments::MODEL) {
        Some(name) => name.clone(),
        None => runtime.block_on(client.first_model("/v1/models"))?,
    };
    let form = Arc::new(form(matches, model, wanted.detailed));
    let schedule = schedule(matches, requests.len());
    let total = requests.len();
    let mut result = described(matches, &form.model, total);
    let path = result_path(matches, &result)?;
    let (outcomes, duration) = runtime.block_on(async {
        for request in &warmups {
            let outcome = load::ask(&client, &form, request, Instant::now()).await;
            if let Some(error) = outcome.error {
                return Err(CliError::Failure(format!("a request of --num-warmups failed: {error}")));
            }
        }
        let progress = progress(total, "requests");
        let result = load::run(Arc::clone(&client), Arc::clone(&form), requests, schedule, &progress).await;
        progress.finish_and_clear();
        Ok(result)
    })?;
    if outcomes.iter().any(|outcome| outcome.error.is_none() && !outcome.counted) {
        tracing::warn!(
            "the server does not tell how many tokens its answers have (usage): every part of the stream counts as a token"
        );
    }
    result.extend(metrics::measure(&outcomes, duration, &wanted));
    output::show(table(&result, &wanted))?;
    if let Some(path) = path {
        output::write_json(&path, &result)?;
        // The file is there, whether or not anybody reads that it is.
        let _ = output::notice(format_args!("wrote {}", path.display()));
    }
    tell_failures(&outcomes)
}

/// The address without the endpoint.
fn base_url(matches: &ArgMatches) -> String {
    let (host, port) = (matches.get_one::<String>(arguments::HOST), matches.get_one::<u16>(arguments::PORT));
    match matches.get_one::<String>(arguments::BASE_URL) {
        Some(url) => url.clone(),
        None => {
            let host = host.map_or("", String::as_str);
            // An IPv6 address stands in brackets before a port.
            let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
            format!("http://{host}:{}", port.copied().unwrap_or_default())
        }
    }
}

fn wanted(matches: &ArgMatches) -> Result<Wanted, CliError> {
    let names: Vec<&String> = matches.get_many(arguments::PERCENTILE_METRICS).into_iter().flatten().collect();
    Ok(Wanted {
        metrics: Metric::ALL.into_iter().filter(|metric| names.iter().any(|name| *name == metric.name())).collect(),
        percentiles: matches.get_many(arguments::METRIC_PERCENTILES).into_iter().flatten().copied().collect(),
        goodput: Goodput::parse(matches.get_many::<String>(arguments::GOODPUT).into_iter().flatten())?,
        detailed: matches.get_flag(arguments::SAVE_DETAILED),
    })
}

/// The measured requests, then those that come before them.
fn requests(matches: &ArgMatches) -> Result<Vec<Request>, CliError> {
    let all = count(matches, arguments::NUM_PROMPTS).saturating_add(count(matches, arguments::NUM_WARMUPS));
    if let Some(path) = matches.get_one::<PathBuf>(arguments::DATASET_PATH).filter(|_| is(matches, arguments::CUSTOM)) {
        return dataset::from_file(path, count(matches, arguments::CUSTOM_OUTPUT_LEN) as u64, all);
    }
    let lengths = Lengths {
        prefix: count(matches, arguments::RANDOM_PREFIX_LEN),
        input: count(matches, arguments::RANDOM_INPUT_LEN),
        output: count(matches, arguments::RANDOM_OUTPUT_LEN),
        range_ratio: matches.get_one(arguments::RANDOM_RANGE_RATIO).copied().unwrap_or_default(),
    };
    let vocabulary = Vocabulary::below(matches.get_one(arguments::VOCAB_SIZE).copied().unwrap_or(1));
    Ok(dataset::random(lengths, &vocabulary, all, &mut random(matches)))
}

fn is(matches: &ArgMatches, dataset: &str) -> bool {
    matches.get_one::<String>(arguments::DATASET_NAME).is_some_and(|name| name == dataset)
}

fn random(matches: &ArgMatches) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(matches.get_one(arguments::SEED).copied().unwrap_or_default())
}

fn warn_of_caches(matches: &ArgMatches) {
    let chosen = matches.value_source(arguments::SEED) == Some(ValueSource::CommandLine);
    if is(matches, arguments::RANDOM) && !chosen {
        tracing::warn!(
            "every run with this --seed sends the same prompts, and a second one finds them in the server's prefix cache; give \
             another --seed, or empty the cache, between runs"
        );
    }
}

fn form(matches: &ArgMatches, model: String, keep_text: bool) -> Form {
    let chat = backend(matches) == arguments::OPENAI_CHAT;
    let usual = if chat { "/v1/chat/completions" } else { "/v1/completions" };
    let endpoint = matches.get_one::<String>(arguments::ENDPOINT).map_or(usual, String::as_str);
    Form {
        endpoint: if endpoint.starts_with('/') { endpoint.to_owned() } else { format!("/{endpoint}") },
        chat,
        model,
        temperature: matches.get_one(arguments::TEMPERATURE).copied().unwrap_or_default(),
        ignore_eos: matches.get_flag(arguments::IGNORE_EOS),
        keep_text,
    }
}

fn backend(matches: &ArgMatches) -> &str {
    matches.get_one::<String>(arguments::BACKEND).map_or(arguments::OPENAI, String::as_str)
}

fn rate(matches: &ArgMatches) -> f64 {
    matches.get_one(arguments::REQUEST_RATE).copied().unwrap_or(f64::INFINITY)
}

fn burstiness(matches: &ArgMatches) -> f64 {
    matches.get_one(arguments::BURSTINESS).copied().unwrap_or(1.0)
}

fn schedule(matches: &ArgMatches, requests: usize) -> Schedule {
    // The moments do not depend on how many random numbers the prompts took.
    let mut random = random(matches);
    random.set_stream(1);
    let concurrency = matches.get_one::<u32>(arguments::MAX_CONCURRENCY);
    Schedule {
        arrivals: arrivals::arrivals(requests, rate(matches), burstiness(matches), &mut random),
        max_concurrency: concurrency.and_then(|&most| usize::try_from(most).ok()),
    }
}

/// The members of the result that say what was run.
fn described(matches: &ArgMatches, model: &str, total: usize) -> Map<String, Value> {
    let rate = rate(matches);
    let members = [
        ("date", json!(Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string())),
        ("backend", json!(backend(matches))),
        ("endpoint_type", json!(backend(matches))),
        ("label", json!(matches.get_one::<String>(arguments::LABEL))),
        ("model_id", json!(model)),
        ("tokenizer_id", json!(model)),
        ("num_prompts", json!(total)),
        ("request_rate", if rate.is_finite() { json!(rate) } else { json!("inf") }),
        ("burstiness", json!(burstiness(matches))),
        ("max_concurrency", json!(matches.get_one::<u32>(arguments::MAX_CONCURRENCY))),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn table(result: &Map<String, Value>, wanted: &Wanted) -> String {
    let number = |name: &str| result.get(name).and_then(Value::as_f64).unwrap_or_default();
    let mut text = String::new();
    let mut line = |title: &str, number: f64, decimals: usize| {
        text.push_str(&format!("{title:<42}{number:>14.decimals$}\n"));
    };
    line("Successful requests", number("completed"), 0);
    line("Failed requests", number("failed"), 0);
    line("Benchmark duration (s)", number("duration"), 2);
    line("Total input tokens", number("total_input_tokens"), 0);
    line("Total generated tokens", number("total_output_tokens"), 0);
    line("Request throughput (req/s)", number("request_throughput"), 2);
    if !wanted.goodput.is_empty() {
        line("Request goodput (req/s)", number("request_goodput"), 2);
    }
    line("Output token throughput (tok/s)", number("output_throughput"), 2);
    line("Peak output token throughput (tok/s)", number("max_output_tokens_per_s"), 2);
    line("Peak concurrent requests", number("max_concurrent_requests"), 0);
    line("Total token throughput (tok/s)", number("total_token_throughput"), 2);
    for metric in &wanted.metrics {
        text.push_str(&format!("\n{}\n", metric.title()));
        let percentiles = wanted.percentiles.iter().map(|&percentile| format!("p{}", numbers::name(percentile)));
        for statistic in ["mean", "median", "std"].map(str::to_owned).into_iter().chain(percentiles) {
            let value = number(&format!("{statistic}_{}_ms", metric.name()));
            text.push_str(&format!("{:<42}{value:>14.2}\n", format!("  {statistic} (ms)")));
        }
    }
    text
}

/// The file that the result goes to, if it is to be saved, after it was tried whether it can be written.
fn result_path(matches: &ArgMatches, result: &Map<String, Value>) -> Result<Option<PathBuf>, CliError> {
    if !matches.get_flag(arguments::SAVE_RESULT) {
        return Ok(None);
    }
    let folder = matches.get_one::<PathBuf>(arguments::RESULT_DIR).cloned().unwrap_or_default();
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(&folder).map_err(|error| CliError::file("create", &folder, &error))?;
    }
    let name = matches.get_one::<String>(arguments::RESULT_FILENAME).cloned();
    let path = folder.join(name.unwrap_or_else(|| file_name(matches, result)));
    output::check_writable(&path)?;
    Ok(Some(path))
}

/// A name of the file that says what was run.
fn file_name(matches: &ArgMatches, result: &Map<String, Value>) -> String {
    let text = |name: &str| result.get(name).and_then(Value::as_str).unwrap_or_default();
    let label = matches.get_one::<String>(arguments::LABEL).map_or_else(|| backend(matches), String::as_str);
    let concurrency = matches.get_one::<u32>(arguments::MAX_CONCURRENCY);
    let concurrency = concurrency.map_or_else(String::new, |most| format!("-concurrency{most}"));
    let model = text("model_id").rsplit('/').next().unwrap_or_default();
    let name = format!("{label}-{}qps{concurrency}-{model}-{}.json", rate(matches), text("date"));
    // The server chose the model's name: it must not choose a folder with it, nor more than a name can hold.
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let name: String = name.chars().map(|character| if allowed(character) { character } else { '_' }).collect();
    if name.len() > 200 { format!("{label}-{}.json", text("date")) } else { name }
}

/// Says how many requests failed and why the first of them did.
///
/// # Errors
///
/// If no request succeeded.
fn tell_failures(outcomes: &[Outcome]) -> Result<(), CliError> {
    let mut errors = outcomes.iter().filter_map(|outcome| outcome.error.as_ref());
    let Some(first) = errors.next() else { return Ok(()) };
    let failed = errors.count() + 1;
    if failed == outcomes.len() {
        return Err(CliError::Failure(format!("all {failed} requests failed; the first: {first}")));
    }
    tracing::warn!("{failed} of {} requests failed; the first: {first}", outcomes.len());
    Ok(())
}
