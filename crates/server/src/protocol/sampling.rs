//! The sampling parameters of a request, over the model's defaults.

use std::collections::BTreeMap;

use allotrope_engine::{LogprobCount, SamplingParams};

use super::MAX_ANSWERS;
use super::context::RequestContext;
use super::error::{ApiError, quote};
use super::fields::{Fields, unexpected};
use super::structured;

/// The most stop strings that are read; the engine's own bound is lower.
const MAX_STOPS: usize = 128;
/// The most ids and words in a list; the engine's own bounds are lower.
const MAX_ENTRIES: usize = 1024;

/// Every sampling parameter that is spelled alike for completions and chat: all but the count of log-probabilities and
/// the greatest number of tokens. Not validated yet.
pub(crate) fn read(fields: &Fields<'_>, context: &RequestContext) -> Result<SamplingParams, ApiError> {
    let mut params = context.defaults.clone();
    set(&mut params.temperature, fields.number("temperature")?);
    set(&mut params.top_p, fields.number("top_p")?);
    set(&mut params.min_p, fields.number("min_p")?);
    set(&mut params.presence_penalty, fields.number("presence_penalty")?);
    set(&mut params.frequency_penalty, fields.number("frequency_penalty")?);
    set(&mut params.repetition_penalty, fields.number("repetition_penalty")?);
    if let Some(top_k) = fields.integer("top_k", -1..=i64::from(u32::MAX))? {
        // -1 and 0 are both off.
        params.top_k = u32::try_from(top_k).unwrap_or(0);
    }
    if let Some(n) = fields.integer("n", 1..=MAX_ANSWERS as i64)? {
        params.n = usize::try_from(n).unwrap_or(1);
    }
    if let Some(seed) = fields.integer("seed", i64::MIN..=i64::MAX)? {
        // The engine's seed is 64 bits without a sign; which ones does not matter as long as they differ.
        params.seed = (seed != -1).then_some(seed.cast_unsigned());
    }
    set(&mut params.min_tokens, fields.count("min_tokens", context.max_model_len)?);
    set(&mut params.ignore_eos, fields.boolean("ignore_eos")?);
    set(&mut params.include_stop_str_in_output, fields.boolean("include_stop_str_in_output")?);
    set(&mut params.skip_special_tokens, fields.boolean("skip_special_tokens")?);
    set(&mut params.stop, stop(fields)?);
    set(&mut params.stop_token_ids, fields.token_ids("stop_token_ids", MAX_ENTRIES, context.vocabulary)?);
    set(&mut params.logit_bias, logit_bias(fields, context.vocabulary)?);
    if let Some(ids) = fields.token_ids("allowed_token_ids", context.vocabulary, context.vocabulary)? {
        if ids.is_empty() {
            return Err(fields.error("allowed_token_ids", "at least one token id, or leave it out"));
        }
        params.allowed_token_ids = Some(ids);
    }
    if let Some(words) = fields.strings("bad_words", MAX_ENTRIES)? {
        if let Some(index) = words.iter().position(String::is_empty) {
            let path = format!("bad_words[{index}]");
            return Err(ApiError::invalid(&path, &format!("`{path}` is an empty string; expected a word.")));
        }
        params.bad_words = words;
    }
    if let Some(count) = log_probabilities(fields, "prompt_logprobs", context)? {
        params.prompt_logprobs = Some(count);
    }
    let max_length = context.max_model_len as i64;
    if let Some(kept) = fields.integer("truncate_prompt_tokens", -1..=max_length)? {
        if kept == 0 {
            return Err(fields.error("truncate_prompt_tokens", "-1 for all that fit, or at least 1"));
        }
        // An answer needs room for a token of its own.
        let most = context.max_model_len.saturating_sub(1).max(1);
        params.truncate_prompt_tokens = Some(usize::try_from(kept).unwrap_or(most));
    }
    if let Some(output) = structured::read(fields)? {
        params.structured_output = Some(output);
    }
    Ok(params)
}

/// A count of log-probabilities: 0 to the greatest that the server gives, or -1 for the whole vocabulary where it gives it.
pub(crate) fn log_probabilities(
    fields: &Fields<'_>,
    name: &str,
    context: &RequestContext,
) -> Result<Option<LogprobCount>, ApiError> {
    let range = match context.max_logprobs {
        LogprobCount::Top(most) => 0..=i64::from(most),
        LogprobCount::All => -1..=context.vocabulary as i64,
    };
    let count = fields.integer(name, range)?;
    Ok(count.map(|count| u32::try_from(count).map_or(LogprobCount::All, LogprobCount::Top)))
}

/// The most tokens of an answer from the field `name`, at least `least`.
pub(crate) fn max_tokens(
    fields: &Fields<'_>,
    name: &str,
    least: usize,
    context: &RequestContext,
) -> Result<Option<usize>, ApiError> {
    let range = least as i64..=context.max_model_len as i64;
    Ok(fields.integer(name, range)?.and_then(|count| usize::try_from(count).ok()))
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn stop(fields: &Fields<'_>) -> Result<Option<Vec<String>>, ApiError> {
    match fields.get("stop") {
        Some(value) if value.is_string() => Ok(fields.string("stop")?.map(|stop| vec![stop.to_owned()])),
        Some(value) if !value.is_array() => Err(unexpected("stop", value, "a string or a list of strings")),
        _ => fields.strings("stop", MAX_STOPS),
    }
}

fn logit_bias(fields: &Fields<'_>, vocabulary: usize) -> Result<Option<BTreeMap<u32, f32>>, ApiError> {
    let Some(entries) = fields.object("logit_bias")? else { return Ok(None) };
    if entries.entries().count() > MAX_ENTRIES {
        return Err(fields.error("logit_bias", &format!("an object with at most {MAX_ENTRIES} keys")));
    }
    let mut bias = BTreeMap::new();
    for (key, value) in entries.entries() {
        // Only the plain spelling: with `+1` or `01` two keys could mean one token.
        let id = key.parse::<u32>().ok().filter(|id| id.to_string() == *key && (*id as usize) < vocabulary);
        let Some(id) = id else {
            let message = format!(
                "`logit_bias` has the key {}; expected token ids below the vocabulary's size, {vocabulary}, as strings.",
                quote(key)
            );
            return Err(ApiError::invalid("logit_bias", &message));
        };
        let Some(value) = value.as_f64() else { return Err(unexpected(&entries.path(key), value, "a number")) };
        bias.insert(id, (value as f32).clamp(-100.0, 100.0));
    }
    Ok(Some(bias))
}
