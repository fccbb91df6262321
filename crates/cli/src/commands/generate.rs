//! `allotrope generate`: one prompt, streamed, or a file of prompts, several at a time.

use std::time::{Duration, Instant};

use allotrope_config::environment::Environment;
use allotrope_engine::{Completion, FinishReason, Llm, Prompt, SamplingParams};
use clap::ArgMatches;
use serde::Serialize;
use serde_json::Value;

use crate::error::CliError;
use crate::prompts::{Given, Wrapping};
use crate::sampling::SamplingFlags;
use crate::{arguments, model, output, prompts, report};

/// How many times more prompts than run at once are handed to the engine together. Answers are printed after each such
/// portion; a large one keeps the batch full, a small one loses less when the run is stopped.
const PORTION: usize = 8;

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let flags = SamplingFlags::from_matches(matches)?;
    let given = prompts::from_matches(matches)?;
    let as_json = matches.get_one::<String>(arguments::FORMAT).is_some_and(|format| format == arguments::JSON);
    let mut llm = model::load(matches, started, environment)?;
    let params = flags.over(llm.default_sampling_params())?;
    let wrapping = Wrapping::from_matches(matches, &llm)?;
    match given.as_slice() {
        [only] if !as_json => stream(&mut llm, &wrapping, only, &params)?,
        several => answer(&mut llm, &wrapping, several, &params, as_json)?,
    }
    if !matches.get_flag(arguments::QUIET) {
        report::write(&llm, as_json);
    }
    Ok(())
}

/// Prints one answer while it is made.
fn stream(llm: &mut Llm, wrapping: &Wrapping, given: &Given, params: &SamplingParams) -> Result<(), CliError> {
    let located = |error: CliError| located(error, given);
    let parts = llm.stream(&wrapping.prompt(given), params).map_err(|error| located(error.into()))?;
    for part in parts {
        let part = part.map_err(|error| located(error.into()))?;
        if !part.text.is_empty() {
            output::show(&part.text)?;
        }
    }
    output::show("\n")
}

/// Answers prompts together and prints the answers in their order.
fn answer(
    llm: &mut Llm,
    wrapping: &Wrapping,
    given: &[Given],
    params: &SamplingParams,
    as_json: bool,
) -> Result<(), CliError> {
    let mut checked = Vec::with_capacity(given.len());
    for one in given {
        checked.push(check(llm, &wrapping.prompt(one), params).map_err(|error| located(error, one))?);
    }
    let portion = llm.settings().scheduler.max_num_seqs.saturating_mul(PORTION).max(1);
    for (given, prompts) in given.chunks(portion).zip(checked.chunks(portion)) {
        for (given, completion) in given.iter().zip(llm.generate(prompts, params)?) {
            print(given, &completion, as_json)?;
        }
    }
    Ok(())
}

/// Makes token ids of a prompt, after the engine has checked it, so that a wrong line of a file is found before the
/// first answer and not after hours.
fn check(llm: &Llm, prompt: &Prompt, params: &SamplingParams) -> Result<Prompt, CliError> {
    let prompt = Prompt::Tokens(llm.tokenize(prompt)?);
    llm.check(&prompt, params)?;
    Ok(prompt)
}

fn located(error: CliError, given: &Given) -> CliError {
    match &given.place {
        Some(place) => error.within(place),
        None => error,
    }
}

fn print(given: &Given, completion: &Completion, as_json: bool) -> Result<(), CliError> {
    if !as_json {
        return output::show(format_args!("{}\n", completion.text));
    }
    let after_first = completion.tokens.len().saturating_sub(1) as u64;
    output::show_json(&Answer {
        id: given.id.as_ref(),
        text: &completion.text,
        tokens: &completion.tokens,
        finish_reason: completion.finish_reason,
        prompt_tokens: completion.prompt_tokens,
        timings: Timings {
            prefill_seconds: completion.prefill.as_secs_f64(),
            decode_seconds: completion.decode.as_secs_f64(),
            prefill_tokens_per_second: report::rate(completion.prompt_tokens as u64, completion.prefill),
            decode_tokens_per_second: report::rate(after_first, completion.decode),
            inter_token_seconds: completion.inter_token.iter().map(Duration::as_secs_f64).collect(),
        },
    })
}

/// An answer in JSON.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    text: &'a str,
    tokens: &'a [u32],
    finish_reason: FinishReason,
    prompt_tokens: usize,
    timings: Timings,
}

#[derive(Serialize)]
struct Timings {
    /// From the first step with a part of the prompt to the first token.
    prefill_seconds: f64,
    /// From the first token to the last.
    decode_seconds: f64,
    prefill_tokens_per_second: Option<f64>,
    /// Tokens after the first, over the time after the first.
    decode_tokens_per_second: Option<f64>,
    /// From each token to the next.
    inter_token_seconds: Vec<f64>,
}
