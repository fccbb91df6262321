//! `allotrope serve`: listens at once, loads the model on another thread, and serves until it is told to stop.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use allotrope_config::environment::Environment;
use allotrope_config::{Options, SchedulingPolicy};
use allotrope_engine::{AsyncLlm, EngineError, LogprobCount, ModelInfo};
use allotrope_server::tools::ToolFormat;
use allotrope_server::{HttpLimits, Server, ServerConfig, ServerError, ServerHandle, signals};
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use crate::arguments::clients::API_KEY;
use crate::arguments::serve as flags;
use crate::error::CliError;
use crate::{model, output};

/// Why the engine refused the model, for the exit status.
type Refusal = Arc<Mutex<Option<CliError>>>;

/// Threads that speak with clients; the others compute.
const WORKERS: usize = 2;
/// How often the spinner turns.
const SPINNER_INTERVAL: Duration = Duration::from_millis(80);

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let options = model::options(matches, environment)?;
    let by_priority = says_priority(&options);
    let server = Server::bind(config(matches, environment, by_priority)?).map_err(refused)?;
    let address = server.address();
    let folder = model::folder(matches);
    // Where nobody reads standard error the server serves all the same.
    let _ = output::notice(format_args!(
        "allotrope {} serves {}; listening at {address}, not ready yet",
        env!("CARGO_PKG_VERSION"),
        folder.display()
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.map_err(|error| CliError::Failure(format!("starting the threads of the server: {error}")))?;
    finish(runtime, async {
        let handle = server.handle();
        signals(handle.clone()).map_err(refused)?;
        let progress = Progress::new();
        let observer = progress.clone();
        let builder = model::builder(matches, options, started).on_phase(move |phase| observer.show(phase));
        let refusal: Refusal = Arc::default();
        let teller = Arc::clone(&refusal);
        let load = move || present(builder.build_async(), &progress, &handle, &address, &teller);
        let loader = std::thread::Builder::new().name("load".into()).spawn(load);
        loader.map_err(|error| CliError::Failure(format!("starting the thread that loads the model: {error}")))?;
        let ended = server.run().await.map_err(refused);
        // What the engine said of the model has a status of its own, and the server knows only its words.
        let refusal = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended.map_err(|error| refusal.unwrap_or(error))
    })
}

/// Runs what is to be done, and waits for nothing else: work on a thread that may block has no bound on its time, and nobody is left
/// to wait for its result. Dropping the runtime would wait, and signals would be heard no more.
fn finish<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Whether the settings ask for scheduling by priority, which the server needs to know before the model is there.
fn says_priority(options: &Options) -> bool {
    let said = options.get("scheduler.scheduling_policy");
    said.is_some_and(|(value, _)| value.as_str() == Some(&SchedulingPolicy::Priority.to_string()))
}

/// Hands a loaded model to the server and tells of the start, the address last; or why there is none.
fn present(
    loaded: Result<AsyncLlm, EngineError>,
    progress: &Progress,
    handle: &ServerHandle,
    address: &str,
    refusal: &Refusal,
) {
    progress.clear();
    let llm = match loaded {
        Ok(llm) => llm,
        Err(error) => {
            let message = error.to_string();
            *refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
            return handle.fail(&message);
        }
    };
    let text = llm.info().map(summary).unwrap_or_default();
    // A template that can't be used ends the server, which says why.
    if handle.set_model(llm).is_ok() {
        let _ = output::notice(format_args!("{text}ready at {address}"));
    }
}

/// What people want to know of a start.
fn summary(info: &ModelInfo) -> String {
    let settings = &info.settings;
    let mut text = String::new();
    for row in settings.rows().iter().filter(|row| row.source.is_explicit()) {
        text.push_str(&format!("  {} = {} ({})\n", row.setting, row.shown, row.source));
    }
    let context = *settings.model.max_model_len;
    text.push_str(&format!(
        "startup\n{}\ndevice   {} at {}\nKV cache {} tokens in {:.1} MiB: {:.1} requests of {context} tokens at once\n",
        info.startup,
        info.device_name,
        *settings.optimization_level,
        info.kv_cache_tokens,
        info.kv_cache_bytes as f64 / f64::from(1 << 20),
        info.kv_cache_tokens as f64 / context.max(1) as f64,
    ));
    text
}

/// A server that can't listen or was told something wrong, in the terms of the command line.
fn refused(error: ServerError) -> CliError {
    match error {
        ServerError::PublicWithoutKey { .. } => {
            CliError::Usage(format!("{error}: --api-key KEY, --host 127.0.0.1, or --allow-public-without-key"))
        }
        ServerError::Config { .. } => CliError::Usage(error.to_string()),
        error => CliError::Failure(error.to_string()),
    }
}

fn config(matches: &ArgMatches, environment: &Environment, by_priority: bool) -> Result<ServerConfig, CliError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let texts = |name: &str| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    let seconds = |name: &str| Duration::from_secs(matches.get_one::<u64>(name).copied().unwrap_or_default());
    let some_seconds = |name: &str| Some(seconds(name)).filter(|time| !time.is_zero());
    let number = |name: &str| matches.get_one::<u32>(name).map_or(0, |number| *number as usize);
    let defaults = ServerConfig::default();
    let given_keys = texts(API_KEY);
    let api_keys = if given_keys.is_empty() { environment.api_key().into_iter().collect() } else { given_keys };
    let max_logprobs = matches.get_one::<i64>(flags::MAX_LOGPROBS).copied().unwrap_or_default();
    Ok(ServerConfig {
        host: text(flags::HOST).unwrap_or(defaults.host),
        port: matches.get_one(flags::PORT).copied().unwrap_or(defaults.port),
        uds: matches.get_one(flags::UDS).cloned(),
        api_keys,
        allow_public_without_key: matches.get_flag(flags::ALLOW_PUBLIC),
        served_model_names: texts(flags::SERVED_MODEL_NAME),
        max_logprobs: u32::try_from(max_logprobs).map_or(LogprobCount::All, LogprobCount::Top),
        limits: HttpLimits {
            body_bytes: number(flags::MAX_BODY_BYTES),
            connections: number(flags::MAX_CONNECTIONS),
            request_time: some_seconds(flags::REQUEST_TIMEOUT),
            ..defaults.limits
        },
        shutdown_timeout: seconds(flags::SHUTDOWN_TIMEOUT),
        enable_request_id_headers: matches.get_flag(flags::REQUEST_IDS),
        force_include_usage: matches.get_flag(flags::FORCE_USAGE),
        prompt_tokens_details: matches.get_flag(flags::PROMPT_DETAILS),
        sse_keep_alive_interval: some_seconds(flags::KEEP_ALIVE),
        stream_interval: number(flags::STREAM_INTERVAL),
        metrics_prefix: text(flags::METRICS_PREFIX).unwrap_or(defaults.metrics_prefix),
        allowed_origins: texts(flags::ALLOWED_ORIGINS),
        root_path: text(flags::ROOT_PATH).unwrap_or_default(),
        enable_auto_tool_choice: matches.get_flag(flags::AUTO_TOOL_CHOICE),
        tool_parser: text(flags::TOOL_CALL_PARSER).map(|form| match form.as_str() {
            flags::LLAMA3_JSON => ToolFormat::Llama3Json,
            _ => ToolFormat::Hermes,
        }),
        chat_template: text(flags::CHAT_TEMPLATE).map(chat_template).transpose()?,
        trust_request_chat_template: matches.get_flag(flags::TRUST_TEMPLATE),
        priority_scheduling: by_priority,
        disable_log_stats: matches.get_flag(flags::DISABLE_LOG_STATS),
        step_watchdog: seconds(flags::STEP_TIMEOUT),
        ..ServerConfig::default()
    })
}

/// A template that was given as a file, or as its text, which has marks that no name of a file has.
fn chat_template(given: String) -> Result<String, CliError> {
    if given.contains("{{") || given.contains("{%") {
        return Ok(given);
    }
    let path = Path::new(&given);
    std::fs::read_to_string(path).map_err(|error| CliError::file("read", path, &error).within("--chat-template"))
}

/// Shows which phase of the start runs: a spinner on a terminal, a line each elsewhere.
#[derive(Clone)]
struct Progress {
    spinner: Option<ProgressBar>,
    /// The last phase, which may come in several parts.
    shown: Arc<Mutex<String>>,
}

impl Progress {
    fn new() -> Self {
        let spinner = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.enable_steady_tick(SPINNER_INTERVAL);
            spinner
        });
        Progress { spinner, shown: Arc::default() }
    }

    fn show(&self, phase: &str) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown == phase {
            return;
        }
        phase.clone_into(&mut shown);
        match &self.spinner {
            Some(spinner) => spinner.set_message(phase.to_owned()),
            None => drop(output::notice(format_args!("start: {phase}"))),
        }
    }

    fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_end_does_not_wait_for_work_that_never_ends() {
        for result in [Ok(()), Err("the engine died")] {
            let (ended, wait) = mpsc::channel();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
                let given = finish(runtime, async {
                    let (began, begins) = tokio::sync::oneshot::channel();
                    tokio::task::spawn_blocking(move || {
                        began.send(()).unwrap();
                        loop {
                            std::thread::park();
                        }
                    });
                    begins.await.unwrap();
                    result
                });
                ended.send(given).unwrap();
            });
            assert_eq!(wait.recv_timeout(Duration::from_secs(60)), Ok(result));
        }
    }
}
