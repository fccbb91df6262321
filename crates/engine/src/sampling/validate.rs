//! The ranges of the sampling parameters, and what refuses those out of range.

use serde_json::Value;

use super::params::{GREEDY_BELOW, LEAST_TEMPERATURE};
use super::{LogprobCount, SamplingError, SamplingParams, StructuredOutput};

/// The most answers to one prompt.
const MAX_ANSWERS: usize = 128;
/// The most stop strings one request may name.
const MAX_STOP_STRINGS: usize = 16;
/// The longest stop string or bad word, in bytes of UTF-8.
const MAX_STRING_BYTES: usize = 1024;
/// The most stop tokens one request may name.
const MAX_STOP_TOKENS: usize = 128;
/// The most tokens with a bias.
const MAX_BIASED_TOKENS: usize = 1024;
/// The most tokens in a list of those that are allowed.
const MAX_ALLOWED_TOKENS: usize = 1024;
/// The most words that an output must not hold.
const MAX_BAD_WORDS: usize = 128;
/// Objects and arrays inside each other that a JSON schema may have.
const MAX_SCHEMA_NESTING: usize = 64;

/// How many of the most likely tokens a request may ask for where nobody says otherwise.
pub const DEFAULT_MAX_LOGPROBS: u32 = 20;

impl SamplingParams {
    /// Checks every field against its range. What needs a model to be checked is for [`SamplingParams::validate_for`].
    ///
    /// # Errors
    ///
    /// [`SamplingError::Parameter`] for the first field out of range; NaN and infinities always are.
    pub fn validate(&self) -> Result<(), SamplingError> {
        // Every comparison says what is accepted, so that NaN, which compares false, is refused.
        check("temperature", self.temperature, (0.0..=2.0).contains(&self.temperature), "between 0 (greedy) and 2")?;
        check("n", self.n, (1..=MAX_ANSWERS).contains(&self.n), "between 1 and 128")?;
        let drawn = self.n == 1 || !self.is_greedy();
        check("n", self.n, drawn, "1 with a temperature of 0: all answers would be the same")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1 (off)")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 (off) and 1")?;
        for (name, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check(name, penalty, (-2.0..=2.0).contains(&penalty), "between -2 and 2 (0 is off)")?;
        }
        check(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "above 0 and finite (1 is off)",
        )?;
        self.validate_lengths()?;
        self.validate_tokens()?;
        strings("stop", &self.stop, MAX_STOP_STRINGS)?;
        strings("bad_words", &self.bad_words, MAX_BAD_WORDS)?;
        self.structured_output.as_ref().map_or(Ok(()), validate_structured_output)
    }

    /// Checks every field as [`SamplingParams::validate`] does, and that every token it names has one of the `vocabulary` logits
    /// of the model, and that no more than `max_logprobs` probabilities are asked for with a token. The whole vocabulary is as
    /// many as it has tokens.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Parameter`] for the first field out of range.
    pub fn validate_for(&self, vocabulary: usize, max_logprobs: u32) -> Result<(), SamplingError> {
        self.validate()?;
        let allowed = self.allowed_token_ids.as_deref().unwrap_or_default();
        let biased: Vec<u32> = self.logit_bias.keys().copied().collect();
        let lists: [(&'static str, &[u32]); 3] =
            [("stop_token_ids", &self.stop_token_ids), ("allowed_token_ids", allowed), ("logit_bias", &biased)];
        for (name, tokens) in lists {
            let outside = tokens.iter().find(|token| usize::try_from(**token).is_ok_and(|token| token >= vocabulary));
            if let Some(token) = outside {
                let allowed = format!("made of token ids below {vocabulary}, the number of tokens of the model");
                return Err(refused(name, format!("a list with token {token}"), allowed));
            }
        }
        for (name, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            let (wanted, found) = match count {
                None => continue,
                Some(LogprobCount::Top(count)) => (u64::from(count), count.to_string()),
                Some(LogprobCount::All) => (vocabulary as u64, format!("the whole vocabulary ({vocabulary} tokens)")),
            };
            let allowed = format!("at most {max_logprobs} tokens");
            check(name, found, wanted <= u64::from(max_logprobs), &allowed)?;
        }
        Ok(())
    }

    /// The temperature that tokens are drawn with: 0 where it is too low to draw at all, and never so low that the logits of
    /// different tokens could not be told apart.
    pub(super) fn drawing_temperature(&self) -> f32 {
        if self.is_greedy() {
            0.0
        } else if self.temperature < LEAST_TEMPERATURE {
            tracing::warn!(
                "temperature {} is raised to {LEAST_TEMPERATURE}; below {GREEDY_BELOW} the most likely token is taken",
                self.temperature
            );
            LEAST_TEMPERATURE
        } else {
            self.temperature
        }
    }

    fn validate_lengths(&self) -> Result<(), SamplingError> {
        if let Some(max_tokens) = self.max_tokens {
            check("max_tokens", max_tokens, max_tokens >= 1, "at least 1")?;
            let allowed = format!("at most max_tokens, which is {max_tokens}");
            check("min_tokens", self.min_tokens, self.min_tokens <= max_tokens, &allowed)?;
        }
        match self.truncate_prompt_tokens {
            Some(kept) => check("truncate_prompt_tokens", kept, kept >= 1, "at least 1"),
            None => Ok(()),
        }
    }

    fn validate_tokens(&self) -> Result<(), SamplingError> {
        length("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKENS, "tokens")?;
        length("logit_bias", self.logit_bias.len(), MAX_BIASED_TOKENS, "tokens")?;
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            return Err(refused(
                "logit_bias",
                format!("{bias} for token {token}"),
                "made of finite numbers".to_owned(),
            ));
        }
        match &self.allowed_token_ids {
            Some(allowed) if allowed.is_empty() => Err(refused(
                "allowed_token_ids",
                "an empty list".to_owned(),
                "a list of at least one token; leave it out to allow all".to_owned(),
            )),
            Some(allowed) => length("allowed_token_ids", allowed.len(), MAX_ALLOWED_TOKENS, "tokens"),
            None => Ok(()),
        }
    }
}

/// What can be said of a structured output without compiling it.
///
/// # Errors
///
/// [`SamplingError::Parameter`] if it is empty, no schema, or nested too deep.
pub(crate) fn validate_structured_output(output: &StructuredOutput) -> Result<(), SamplingError> {
    let problem = match output {
        StructuredOutput::Json(schema) if !(schema.is_object() || schema.is_boolean()) => {
            ("a JSON schema that is neither an object nor true or false", "an object, true or false")
        }
        StructuredOutput::Json(schema) if nests_deeper(schema, MAX_SCHEMA_NESTING) => {
            ("a JSON schema that nests more than 64 objects and arrays", "nested 64 deep at most")
        }
        StructuredOutput::Regex(pattern) if pattern.is_empty() => {
            ("an empty regular expression", "one that is not empty")
        }
        StructuredOutput::Regex(pattern) if pattern.contains('\0') => {
            ("a regular expression with a NUL character", "one without; write \\x00 where the text may hold it")
        }
        StructuredOutput::Choice(choices) if choices.is_empty() => ("an empty list of choices", "at least one choice"),
        StructuredOutput::Choice(choices) if choices.iter().any(String::is_empty) => {
            ("a list with an empty choice", "made of choices that are not empty")
        }
        StructuredOutput::Grammar(grammar) if grammar.trim().is_empty() => {
            ("an empty grammar", "one with a rule `start`")
        }
        _ => return Ok(()),
    };
    Err(refused("structured_output", problem.0.to_owned(), problem.1.to_owned()))
}

/// Whether `value` has more than `limit` objects and arrays inside each other. Looks no deeper than that.
fn nests_deeper(value: &Value, limit: usize) -> bool {
    let inner = |value: &Value| limit == 0 || nests_deeper(value, limit - 1);
    match value {
        Value::Array(items) => limit == 0 || items.iter().any(inner),
        Value::Object(members) => limit == 0 || members.values().any(inner),
        _ => false,
    }
}

fn strings(name: &'static str, strings: &[String], most: usize) -> Result<(), SamplingError> {
    length(name, strings.len(), most, "strings")?;
    for (position, string) in strings.iter().enumerate() {
        if string.is_empty() {
            let found = format!("empty at position {position}");
            return Err(refused(name, found, "made of strings that are not empty".to_owned()));
        }
        if string.len() > MAX_STRING_BYTES {
            let found = format!("{} bytes long at position {position}", string.len());
            return Err(refused(name, found, format!("made of strings of at most {MAX_STRING_BYTES} bytes")));
        }
    }
    Ok(())
}

fn length(name: &'static str, found: usize, most: usize, of: &str) -> Result<(), SamplingError> {
    check(name, format!("a list of {found} {of}"), found <= most, &format!("at most {most} {of}"))
}

fn check(name: &'static str, found: impl ToString, accepted: bool, allowed: &str) -> Result<(), SamplingError> {
    if accepted { Ok(()) } else { Err(refused(name, found.to_string(), allowed.to_owned())) }
}

fn refused(name: &'static str, found: String, allowed: String) -> SamplingError {
    SamplingError::Parameter { name, found, allowed }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn refused_field(result: Result<(), SamplingError>) -> Option<&'static str> {
        match result {
            Err(SamplingError::Parameter { name, .. }) => Some(name),
            _ => None,
        }
    }

    fn with(set: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams::default();
        set(&mut params);
        params
    }

    #[test]
    fn the_defaults_and_greedy_are_accepted() {
        assert_eq!(SamplingParams::default().validate_for(1, 0), Ok(()));
        assert_eq!(SamplingParams::greedy().validate_for(1, 0), Ok(()));
    }

    #[test]
    fn the_ends_of_every_range_are_accepted_and_what_lies_beyond_is_refused_by_name() {
        type Field = (&'static str, fn(&mut SamplingParams, f32), &'static [f32], &'static [f32]);
        const FIELDS: [Field; 7] = [
            ("temperature", |p, v| p.temperature = v, &[0.0, -0.0, 1e-30, 2.0], &[-1e-7, 2.000_001]),
            ("top_p", |p, v| p.top_p = v, &[1e-30, 0.5, 1.0], &[0.0, -0.1, 1.000_001]),
            ("min_p", |p, v| p.min_p = v, &[0.0, 0.5, 1.0], &[-1e-7, 1.000_001]),
            ("presence_penalty", |p, v| p.presence_penalty = v, &[-2.0, 0.0, 2.0], &[-2.000_001, 2.000_001]),
            ("frequency_penalty", |p, v| p.frequency_penalty = v, &[-2.0, 0.0, 2.0], &[-2.000_001, 2.000_001]),
            ("repetition_penalty", |p, v| p.repetition_penalty = v, &[1e-30, 1.0, f32::MAX], &[0.0, -1.0]),
            ("logit_bias", |p, v| p.logit_bias = BTreeMap::from([(3, v)]), &[-1e30, 0.0, f32::MAX], &[]),
        ];
        for (name, set, accepted, beyond) in FIELDS {
            for &value in accepted {
                assert_eq!(with(|params| set(params, value)).validate(), Ok(()), "{name} = {value}");
            }
            for &value in beyond.iter().chain(&[f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
                let params = with(|params| set(params, value));
                assert_eq!(refused_field(params.validate()), Some(name), "{name} = {value}");
            }
        }
    }

    #[test]
    fn counts_are_bounded_and_lists_have_a_greatest_length() {
        type Field = (&'static str, fn(&mut SamplingParams, usize), &'static [usize], &'static [usize]);
        let fields: [Field; 8] = [
            ("n", |p, v| p.n = v, &[1, 128], &[0, 129, usize::MAX]),
            ("max_tokens", |p, v| p.max_tokens = Some(v), &[1, usize::MAX], &[0]),
            ("truncate_prompt_tokens", |p, v| p.truncate_prompt_tokens = Some(v), &[1, usize::MAX], &[0]),
            ("stop_token_ids", |p, v| p.stop_token_ids = vec![7; v], &[0, 128], &[129]),
            ("logit_bias", |p, v| p.logit_bias = (0..v as u32).map(|id| (id, 1.0)).collect(), &[0, 1024], &[1025]),
            ("allowed_token_ids", |p, v| p.allowed_token_ids = Some(vec![7; v]), &[1, 1024], &[0, 1025]),
            ("stop", |p, v| p.stop = vec!["x".repeat(1024); v], &[0, 16], &[17]),
            ("bad_words", |p, v| p.bad_words = vec!["x".repeat(1024); v], &[0, 128], &[129]),
        ];
        for (name, set, accepted, beyond) in fields {
            for &value in accepted {
                assert_eq!(with(|params| set(params, value)).validate(), Ok(()), "{name} of {value}");
            }
            for &value in beyond {
                assert_eq!(
                    refused_field(with(|params| set(params, value)).validate()),
                    Some(name),
                    "{name} of {value}"
                );
            }
        }
    }

    #[test]
    fn several_answers_need_a_temperature_and_min_tokens_room() {
        let params = |n, temperature| with(|params| (params.n, params.temperature) = (n, temperature));
        for temperature in [0.0, 9e-6] {
            assert_eq!(refused_field(params(2, temperature).validate()), Some("n"));
            assert_eq!(params(1, temperature).validate(), Ok(()));
        }
        assert_eq!(params(2, 1e-5).validate(), Ok(()));
        let tokens = |least, most| with(|params| (params.min_tokens, params.max_tokens) = (least, most));
        assert_eq!(tokens(5, Some(5)).validate(), Ok(()));
        assert_eq!(tokens(usize::MAX, None).validate(), Ok(()));
        assert_eq!(refused_field(tokens(6, Some(5)).validate()), Some("min_tokens"));
    }

    #[test]
    fn temperatures_too_low_to_draw_with_are_greedy_or_raised() {
        let temperature = |temperature| with(|params| params.temperature = temperature).drawing_temperature();
        for (asked, used) in [(0.0, 0.0), (9.9e-6, 0.0), (1e-5, 0.01), (0.009, 0.01), (0.01, 0.01), (0.011, 0.011)] {
            assert_eq!(temperature(asked), used, "{asked}");
        }
    }

    #[test]
    fn no_string_is_empty_or_long() {
        for (name, set) in [
            ("stop", (|p, v| p.stop = v) as fn(&mut SamplingParams, Vec<String>)),
            ("bad_words", |p, v| p.bad_words = v),
        ] {
            let strings = |strings| with(|params| set(params, strings)).validate();
            assert_eq!(refused_field(strings(vec!["x".repeat(1025)])), Some(name));
            assert_eq!(
                strings(vec!["x".to_owned(), String::new()]).map_err(|error| error.to_string()),
                Err(format!(
                    "sampling parameter `{name}` is empty at position 1, but must be made of strings that are not empty"
                ))
            );
        }
    }

    #[test]
    fn every_token_id_must_have_a_logit() {
        type Set = fn(&mut SamplingParams, u32);
        let sets: [(&'static str, Set); 3] = [
            ("stop_token_ids", |p, v| p.stop_token_ids = vec![0, v]),
            ("allowed_token_ids", |p, v| p.allowed_token_ids = Some(vec![0, v])),
            ("logit_bias", |p, v| p.logit_bias = BTreeMap::from([(0, 1.0), (v, 1.0)])),
        ];
        for (name, set) in sets {
            assert_eq!(with(|params| set(params, 99)).validate_for(100, 20), Ok(()));
            for token in [100, u32::MAX] {
                let params = with(|params| set(params, token));
                assert_eq!(refused_field(params.validate_for(100, 20)), Some(name), "{token}");
                assert_eq!(params.validate(), Ok(()), "without a model nothing is known of it");
            }
        }
    }

    #[test]
    fn no_more_logprobs_than_the_model_allows() {
        for (name, set) in [
            ("logprobs", (|p, v| p.logprobs = v) as fn(&mut SamplingParams, Option<LogprobCount>)),
            ("prompt_logprobs", |p, v| p.prompt_logprobs = v),
        ] {
            let validate = |count, most| with(|params| set(params, Some(count))).validate_for(100, most);
            assert_eq!(validate(LogprobCount::Top(20), DEFAULT_MAX_LOGPROBS), Ok(()));
            assert_eq!(refused_field(validate(LogprobCount::Top(21), DEFAULT_MAX_LOGPROBS)), Some(name));
            assert_eq!(refused_field(validate(LogprobCount::All, 99)), Some(name));
            assert_eq!(validate(LogprobCount::All, 100), Ok(()));
            assert_eq!(validate(LogprobCount::Top(u32::MAX), u32::MAX), Ok(()));
        }
    }

    #[test]
    fn structured_output_that_says_nothing_or_too_much_is_refused() {
        let nested =
            |depth: usize| (1..depth).fold(serde_json::json!({}), |inner, _| serde_json::json!({ "not": inner }));
        let refused = [
            StructuredOutput::Json(Value::Null),
            StructuredOutput::Json(nested(65)),
            StructuredOutput::Regex(String::new()),
            StructuredOutput::Regex("a\0b".to_owned()),
            StructuredOutput::Choice(Vec::new()),
            StructuredOutput::Choice(vec!["a".to_owned(), String::new()]),
            StructuredOutput::Grammar(" \n".to_owned()),
        ];
        for output in refused {
            let params = with(|params| params.structured_output = Some(output.clone()));
            assert_eq!(refused_field(params.validate()), Some("structured_output"), "{output:?}");
        }
        for output in [
            StructuredOutput::Json(nested(64)),
            StructuredOutput::Json(Value::Bool(true)),
            StructuredOutput::JsonObject,
            StructuredOutput::Regex("a".to_owned()),
            StructuredOutput::Choice(vec!["a".to_owned()]),
            StructuredOutput::Grammar("start: \"a\"".to_owned()),
        ] {
            assert_eq!(with(|params| params.structured_output = Some(output)).validate(), Ok(()));
        }
    }
}
