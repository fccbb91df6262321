//! What is counted, in the text form of Prometheus.
//!
//! Names and labels are those that dashboards for vLLM know, behind a prefix of our own. What happens in requests is counted here
//! as it happens; what the engine counts is read when someone asks.

mod engine;
mod exposition;
mod summary;

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use crate::config::ServerConfig;
use crate::lifecycle::Phase;

pub(crate) use summary::Summary;

/// The content type of the text form.
pub(crate) const EXPOSITION_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];
const REQUEST_BUCKETS: [f64; 21] = [
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    960.0,
];
const COUNT_BUCKETS: [f64; 18] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];
const ANSWER_BUCKETS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 128.0];

/// Everything that is counted outside the engine.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    prefix: String,
    http_requests: IntCounterVec,
    http_durations: HistogramVec,
    requests: RequestMetrics,
}

/// What is counted of requests of the model; each has the one label `model_name`.
#[derive(Debug)]
struct RequestMetrics {
    prompt_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    finished: IntCounterVec,
    time_to_first_token: HistogramVec,
    inter_token_latency: HistogramVec,
    time_per_output_token: HistogramVec,
    latency: HistogramVec,
    queue_time: HistogramVec,
    prefill_time: HistogramVec,
    decode_time: HistogramVec,
    inference_time: HistogramVec,
    prompt_lengths: HistogramVec,
    answer_lengths: HistogramVec,
    answers: HistogramVec,
    max_tokens: HistogramVec,
}

/// Makes and registers metrics.
struct Maker<'a> {
    registry: &'a Registry,
    prefix: &'a str,
}

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let counter = IntCounterVec::new(Opts::new(format!("{}{name}", self.prefix), help), labels)?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
        self.labelled_histogram(name, help, buckets, &[MODEL])
    }

    fn labelled_histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(format!("{}{name}", self.prefix), help).buckets(buckets.to_vec());
        let histogram = HistogramVec::new(options, labels)?;
        self.registry.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}

/// The label with the model's name.
const MODEL: &str = "model_name";

impl RequestMetrics {
    fn new(make: &Maker<'_>) -> Result<Self, prometheus::Error> {
        Ok(RequestMetrics {
            prompt_tokens: make.counter("prompt_tokens_total", "Tokens of prompts that were answered.", &[MODEL])?,
            cached_tokens: make.counter("prompt_tokens_cached_total", "Those in the prefix cache.", &[MODEL])?,
            generation_tokens: make.counter("generation_tokens_total", "Tokens that were generated.", &[MODEL])?,
            finished: make.counter(
                "request_success_total",
                "Answers by why they ended.",
                &[MODEL, "finished_reason"],
            )?,
            time_to_first_token: make.histogram(
                "time_to_first_token_seconds",
                "From the request to the first token of an answer.",
                &FIRST_TOKEN_BUCKETS,
            )?,
            inter_token_latency: make.histogram(
                "inter_token_latency_seconds",
                "From one token of an answer to the next.",
                &TOKEN_BUCKETS,
            )?,
            time_per_output_token: make.histogram(
                "request_time_per_output_token_seconds",
                "The mean of that over an answer; 0 for one of a single token.",
                &TOKEN_BUCKETS,
            )?,
            latency: make.histogram("e2e_request_latency_seconds", "From request to last token.", &REQUEST_BUCKETS)?,
            queue_time: make.histogram("request_queue_time_seconds", "Until the first step.", &REQUEST_BUCKETS)?,
            prefill_time: make.histogram(
                "request_prefill_time_seconds",
                "From the first step to the first token.",
                &REQUEST_BUCKETS,
            )?,
            decode_time: make.histogram(
                "request_decode_time_seconds",
                "From the first token to the last.",
                &REQUEST_BUCKETS,
            )?,
            inference_time: make.histogram(
                "request_inference_time_seconds",
                "From the first step to the last token.",
                &REQUEST_BUCKETS,
            )?,
            prompt_lengths: make.histogram("request_prompt_tokens", "Tokens of a prompt.", &COUNT_BUCKETS)?,
            answer_lengths: make.histogram("request_generation_tokens", "Tokens of an answer.", &COUNT_BUCKETS)?,
            answers: make.histogram("request_params_n", "Answers that were asked for.", &ANSWER_BUCKETS)?,
            max_tokens: make.histogram("request_params_max_tokens", "The most tokens asked for.", &COUNT_BUCKETS)?,
        })
    }
}

impl Metrics {
    pub(crate) fn new(config: &ServerConfig) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let plain = Maker { registry: &registry, prefix: "" };
        let http_requests = plain.counter("http_requests_total", "HTTP requests.", &["method", "handler", "status"])?;
        let http_durations = plain.labelled_histogram(
            "http_request_duration_seconds",
            "From the headers of a request to the last byte of its answer.",
            &REQUEST_BUCKETS,
            &["method", "handler", "status"],
        )?;
        let requests = RequestMetrics::new(&Maker { registry: &registry, prefix: &config.metrics_prefix })?;
        Ok(Metrics { registry, prefix: config.metrics_prefix.clone(), http_requests, http_durations, requests })
    }

    /// Counts an HTTP request. All labels are from small sets.
    pub(crate) fn http_request(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        let status = status.to_string();
        let labels = [method, route, &status];
        self.http_requests.with_label_values(&labels).inc();
        self.http_durations.with_label_values(&labels).observe(elapsed.as_secs_f64());
    }

    /// The counters of requests for the model `name`, found once for all their tokens.
    pub(crate) fn of_model(&self, name: &str) -> ModelMetrics {
        let requests = &self.requests;
        let labels = [name];
        let counter = |counter: &IntCounterVec| counter.with_label_values(&labels);
        let histogram = |histogram: &HistogramVec| histogram.with_label_values(&labels);
        ModelMetrics {
            prompt_tokens: counter(&requests.prompt_tokens),
            cached_tokens: counter(&requests.cached_tokens),
            generation_tokens: counter(&requests.generation_tokens),
            stopped: requests.finished.with_label_values(&[name, "stop"]),
            exhausted: requests.finished.with_label_values(&[name, "length"]),
            aborted: requests.finished.with_label_values(&[name, "abort"]),
            failed: requests.finished.with_label_values(&[name, "error"]),
            time_to_first_token: histogram(&requests.time_to_first_token),
            inter_token_latency: histogram(&requests.inter_token_latency),
            time_per_output_token: histogram(&requests.time_per_output_token),
            latency: histogram(&requests.latency),
            queue_time: histogram(&requests.queue_time),
            prefill_time: histogram(&requests.prefill_time),
            decode_time: histogram(&requests.decode_time),
            inference_time: histogram(&requests.inference_time),
            prompt_lengths: histogram(&requests.prompt_lengths),
            answer_lengths: histogram(&requests.answer_lengths),
            answers: histogram(&requests.answers),
            max_tokens: histogram(&requests.max_tokens),
        }
    }

    /// Everything that is counted, as text.
    pub(crate) fn expose(&self, phase: &Phase) -> Result<String, prometheus::Error> {
        let mut text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        if let Phase::Ready(model) = phase {
            text.push_str(&engine::exposition(model, &self.prefix));
        }
        Ok(text)
    }
}

/// The counters of one model.
#[derive(Debug, Clone)]
pub(crate) struct ModelMetrics {
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) cached_tokens: IntCounter,
    pub(crate) generation_tokens: IntCounter,
    pub(crate) stopped: IntCounter,
    pub(crate) exhausted: IntCounter,
    pub(crate) aborted: IntCounter,
    pub(crate) failed: IntCounter,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token_latency: Histogram,
    pub(crate) time_per_output_token: Histogram,
    pub(crate) latency: Histogram,
    pub(crate) queue_time: Histogram,
    pub(crate) prefill_time: Histogram,
    pub(crate) decode_time: Histogram,
    pub(crate) inference_time: Histogram,
    pub(crate) prompt_lengths: Histogram,
    pub(crate) answer_lengths: Histogram,
    pub(crate) answers: Histogram,
    pub(crate) max_tokens: Histogram,
}
