//! From the times of requests to the numbers of the result.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::load::Outcome;
use crate::commands::bench::numbers::{Sample, name};
use crate::error::CliError;

/// Something that is measured of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Time to the first output.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// Time between outputs.
    Itl,
    /// Time from end to end.
    E2el,
}

impl Metric {
    pub(super) const ALL: [Metric; 4] = [Metric::Ttft, Metric::Tpot, Metric::Itl, Metric::E2el];

    pub(super) fn name(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Tpot => "tpot",
            Metric::Itl => "itl",
            Metric::E2el => "e2el",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Metric::Ttft => "Time to first token (TTFT)",
            Metric::Tpot => "Time per output token after the first (TPOT)",
            Metric::Itl => "Inter-token latency (ITL)",
            Metric::E2el => "End-to-end latency (E2EL)",
        }
    }
}

/// The times of one request that succeeded.
#[derive(Debug, Clone, PartialEq)]
struct Times {
    ttft: Duration,
    itl: Vec<Duration>,
    e2el: Duration,
    /// `None` of a request with one token or none: it has no time after the first.
    tpot: Option<f64>,
}

impl Times {
    fn of(outcome: &Outcome) -> Self {
        let first = outcome.outputs.first().copied().unwrap_or(outcome.sent);
        let last = outcome.outputs.last().copied().unwrap_or(outcome.sent);
        let (ttft, e2el) = (first.saturating_sub(outcome.sent), last.saturating_sub(outcome.sent));
        let itl = outcome.outputs.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        let after_first = outcome.output_tokens.saturating_sub(1);
        let tpot = (after_first > 0).then(|| (e2el - ttft).as_secs_f64() / after_first as f64);
        Self { ttft, itl, e2el, tpot }
    }
}

/// The limits of `--goodput`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Goodput(Vec<(Metric, f64)>);

impl Goodput {
    /// Reads `ttft:200 tpot:50`, in milliseconds.
    pub(super) fn parse<'a>(limits: impl Iterator<Item = &'a String>) -> Result<Self, CliError> {
        let parse = |limit: &String| {
            let (name, number) = limit.split_once(':')?;
            // ITL has many values of one request, and so is none of those that a request can keep.
            let metric = Metric::ALL.into_iter().find(|metric| metric.name() == name && *metric != Metric::Itl)?;
            let number = number.parse::<f64>().ok().filter(|number| *number >= 0.0)?;
            Some((metric, number / 1e3))
        };
        let limits = limits.map(|limit| {
            parse(limit).ok_or_else(|| {
                CliError::Usage(format!(
                    "--goodput {limit}: write a metric (ttft, tpot, e2el) and milliseconds, such as ttft:200"
                ))
            })
        });
        Ok(Self(limits.collect::<Result<_, _>>()?))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_kept(&self, times: &Times) -> bool {
        self.0.iter().all(|&(metric, limit)| match metric {
            Metric::Ttft => times.ttft.as_secs_f64() <= limit,
            Metric::Tpot => times.tpot.unwrap_or(0.0) <= limit,
            Metric::E2el => times.e2el.as_secs_f64() <= limit,
            Metric::Itl => true,
        })
    }
}

/// Which numbers are wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) metrics: Vec<Metric>,
    pub(super) percentiles: Vec<f64>,
    pub(super) goodput: Goodput,
    /// Lists with an entry for each request.
    pub(super) detailed: bool,
}

/// The measured members of a result.
pub(super) fn measure(outcomes: &[Outcome], duration: Duration, wanted: &Wanted) -> Map<String, Value> {
    let succeeded: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
    let times: Vec<Times> = succeeded.iter().map(|outcome| Times::of(outcome)).collect();
    let sum =
        |tokens: fn(&Outcome) -> u64| succeeded.iter().fold(0_u64, |sum, outcome| sum.saturating_add(tokens(outcome)));
    let (input, output) = (sum(|outcome| outcome.input_tokens), sum(|outcome| outcome.output_tokens));
    let seconds = duration.as_secs_f64();
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let good = times.iter().filter(|times| wanted.goodput.is_kept(times)).count() as u64;
    let goodput = if wanted.goodput.is_empty() { Value::Null } else { per_second(good).into() };
    let mut members = Map::new();
    let mut add = |name: &str, value: Value| members.insert(name.to_owned(), value);
    add("duration", seconds.into());
    add("completed", succeeded.len().into());
    add("failed", (outcomes.len() - succeeded.len()).into());
    add("total_input_tokens", input.into());
    add("total_output_tokens", output.into());
    add("request_throughput", per_second(succeeded.len() as u64).into());
    add("request_goodput", goodput);
    add("output_throughput", per_second(output).into());
    add("total_token_throughput", per_second(input.saturating_add(output)).into());
    if wanted.detailed {
        add_details(outcomes, &mut add);
    }
    add("max_output_tokens_per_s", busiest_second(&succeeded).into());
    add("max_concurrent_requests", most_at_once(&succeeded).into());
    for &metric in &wanted.metrics {
        let sample = Sample::new(milliseconds(metric, &times));
        let name_of = |statistic: &str| format!("{statistic}_{}_ms", metric.name());
        add(&name_of("mean"), sample.mean().into());
        add(&name_of("median"), sample.percentile(50.0).into());
        add(&name_of("std"), sample.standard_deviation().into());
        for &percentile in &wanted.percentiles {
            add(&name_of(&format!("p{}", name(percentile))), sample.percentile(percentile).into());
        }
    }
    members
}

/// Lists with an entry for each request, with zeros for what a failed one has not.
fn add_details(outcomes: &[Outcome], add: &mut impl FnMut(&str, Value) -> Option<Value>) {
    let list = |entry: &dyn Fn(&Outcome) -> Value| Value::Array(outcomes.iter().map(entry).collect());
    let of_success = |value: &dyn Fn(&Times) -> Value, otherwise: Value| {
        list(&|outcome| match outcome.error {
            None => value(&Times::of(outcome)),
            Some(_) => otherwise.clone(),
        })
    };
    add("input_lens", list(&|outcome| outcome.input_tokens.into()));
    add("output_lens", list(&|outcome| if outcome.error.is_none() { outcome.output_tokens.into() } else { 0.into() }));
    add("start_times", list(&|outcome| outcome.sent.as_secs_f64().into()));
    add("ttfts", of_success(&|times| times.ttft.as_secs_f64().into(), json!(0.0)));
    let gaps = |times: &Times| times.itl.iter().map(Duration::as_secs_f64).collect::<Vec<f64>>().into();
    add("itls", of_success(&gaps, json!([])));
    add("generated_texts", list(&|outcome| outcome.text.as_str().into()));
    add("errors", list(&|outcome| outcome.error.clone().unwrap_or_default().into()));
}

fn milliseconds(metric: Metric, times: &[Times]) -> Vec<f64> {
    let seconds: Vec<f64> = match metric {
        Metric::Ttft => times.iter().map(|times| times.ttft.as_secs_f64()).collect(),
        Metric::Tpot => times.iter().filter_map(|times| times.tpot).collect(),
        Metric::Itl => times.iter().flat_map(|times| &times.itl).map(Duration::as_secs_f64).collect(),
        Metric::E2el => times.iter().map(|times| times.e2el.as_secs_f64()).collect(),
    };
    seconds.iter().map(|seconds| seconds * 1e3).collect()
}

/// The most outputs of one second, counted from the first request.
fn busiest_second(succeeded: &[&Outcome]) -> f64 {
    let began = succeeded.iter().map(|outcome| outcome.sent).min().unwrap_or_default();
    let outputs = succeeded.iter().flat_map(|outcome| &outcome.outputs);
    let mut seconds: Vec<u64> = outputs.map(|output| output.saturating_sub(began).as_secs()).collect();
    seconds.sort_unstable();
    seconds.chunk_by(|one, other| one == other).map(<[u64]>::len).max().unwrap_or(0) as f64
}

/// The most requests that were open at one moment.
fn most_at_once(succeeded: &[&Outcome]) -> usize {
    let mut changes: Vec<(Duration, bool)> = succeeded
        .iter()
        .flat_map(|outcome| [(outcome.sent, true), (outcome.outputs.last().copied().unwrap_or(outcome.sent), false)])
        .collect();
    // A request that ends at the moment at which another begins was not open together with it.
    changes.sort_unstable();
    let (mut open, mut most) = (0_usize, 0);
    for (_, begins) in changes {
        open = if begins { open.saturating_add(1) } else { open.saturating_sub(1) };
        most = most.max(open);
    }
    most
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn outcome(sent: u64, outputs: &[u64], output_tokens: u64) -> Outcome {
        Outcome {
            input_tokens: 10,
            output_tokens,
            sent: Duration::from_millis(sent),
            outputs: outputs.iter().copied().map(Duration::from_millis).collect(),
            text: "t".to_owned(),
            error: None,
            counted: true,
        }
    }

    fn failed() -> Outcome {
        Outcome { error: Some("gone".to_owned()), ..outcome(5, &[900], 4) }
    }

    fn goodput(limits: &[&str]) -> Result<Goodput, CliError> {
        let limits: Vec<String> = limits.iter().map(|&limit| limit.to_owned()).collect();
        Goodput::parse(limits.iter())
    }

    fn wanted(limits: &[&str], detailed: bool) -> Wanted {
        let goodput = goodput(limits).unwrap();
        Wanted { metrics: Metric::ALL.to_vec(), percentiles: vec![50.0, 99.9], goodput, detailed }
    }

    #[test]
    fn times_of_a_request_follow_the_definitions() {
        // Two of the five tokens came in one chunk: ITL is by chunk, TPOT by token.
        let times = Times::of(&outcome(100, &[350, 400, 500, 550], 5));
        assert_eq!((times.ttft, times.e2el), (Duration::from_millis(250), Duration::from_millis(450)));
        assert_eq!(times.itl, [50, 100, 50].map(Duration::from_millis));
        assert_eq!(times.tpot, Some(0.05));
        assert_eq!(Times::of(&outcome(0, &[200], 1)).tpot, None);
    }

    #[test]
    fn failed_requests_count_in_nothing_but_their_number() {
        let outcomes = [outcome(0, &[100, 200], 2), failed(), outcome(0, &[300], 1)];
        let members = measure(&outcomes, Duration::from_secs(2), &wanted(&[], false));
        let expected = [
            ("duration", json!(2.0)),
            ("completed", json!(2)),
            ("failed", json!(1)),
            ("total_input_tokens", json!(20)),
            ("total_output_tokens", json!(3)),
            ("request_throughput", json!(1.0)),
            ("request_goodput", Value::Null),
            ("output_throughput", json!(1.5)),
            ("total_token_throughput", json!(11.5)),
            ("max_output_tokens_per_s", json!(3.0)),
            ("max_concurrent_requests", json!(2)),
            ("mean_ttft_ms", json!(200.0)),
            ("median_ttft_ms", json!(200.0)),
            ("std_ttft_ms", json!(100.0)),
            ("mean_tpot_ms", json!(100.0)),
            ("mean_itl_ms", json!(100.0)),
            ("mean_e2el_ms", json!(250.0)),
            ("p50_e2el_ms", json!(250.0)),
        ];
        for (name, value) in expected {
            assert_eq!(members.get(name), Some(&value), "{name}");
        }
        assert!(members.contains_key("p99.9_itl_ms"));
        assert!(!members.contains_key("ttfts"), "only with details");
    }

    #[test]
    fn details_have_an_entry_for_each_request() {
        let outcomes = [outcome(0, &[100, 200], 2), failed()];
        let members = measure(&outcomes, Duration::from_secs(1), &wanted(&[], true));
        let expected = [
            ("input_lens", json!([10, 10])),
            ("output_lens", json!([2, 0])),
            ("start_times", json!([0.0, 0.005])),
            ("ttfts", json!([0.1, 0.0])),
            ("itls", json!([[0.1], []])),
            ("generated_texts", json!(["t", "t"])),
            ("errors", json!(["", "gone"])),
        ];
        for (name, value) in expected {
            assert_eq!(members.get(name), Some(&value), "{name}");
        }
    }

    #[test]
    fn goodput_counts_the_requests_that_keep_all_limits() {
        let outcomes = [outcome(0, &[100, 200], 2), outcome(0, &[100, 400], 2), outcome(0, &[500], 1)];
        let rate = |limits: &[&str]| {
            measure(&outcomes, Duration::from_secs(1), &wanted(limits, false))["request_goodput"].clone()
        };
        assert_eq!(rate(&["ttft:100"]), json!(2.0));
        assert_eq!(rate(&["ttft:100", "tpot:100"]), json!(1.0));
        assert_eq!(rate(&["tpot:100"]), json!(2.0), "a single token keeps every limit of TPOT");
        assert_eq!(rate(&["e2el:1000"]), json!(3.0));
        for wrong in ["ttft", "itl:3", "x:3", "ttft:-1", "ttft:nan"] {
            assert!(matches!(goodput(&[wrong]), Err(CliError::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn peaks_are_those_of_one_second_and_of_one_moment() {
        let outcomes = [outcome(500, &[600, 1400, 1500], 3), outcome(600, &[1600], 1), outcome(1500, &[1700], 1)];
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        assert_eq!(busiest_second(&outcomes), 3.0, "the seconds begin with the first request");
        assert_eq!(most_at_once(&outcomes), 2, "the first had ended when the third began");
        assert_eq!((busiest_second(&[]), most_at_once(&[])), (0.0, 0));
    }

    #[test]
    fn no_success_is_measured_as_zero() {
        let members = measure(&[failed()], Duration::ZERO, &wanted(&["ttft:1"], false));
        for name in
            ["request_throughput", "request_goodput", "mean_ttft_ms", "p99.9_tpot_ms", "max_output_tokens_per_s"]
        {
            assert_eq!(members[name], json!(0.0), "{name}");
        }
    }
}
