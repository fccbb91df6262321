//! The sampling flags: what was given, over what the checkpoint asks for.

use allotrope_engine::SamplingParams;
use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Map, Value};

use crate::arguments::{IGNORE_EOS, MAX_TOKENS, MIN_P, REPETITION_PENALTY, SEED, STOP, TEMPERATURE, TOP_K, TOP_P};
use crate::error::CliError;

/// The sampling flags of a command line. What was not given is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SamplingFlags {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    max_tokens: Option<usize>,
    stop: Vec<String>,
    ignore_eos: bool,
    /// The flags that were given and that choose among tokens.
    choosing: Vec<&'static str>,
}

impl SamplingFlags {
    /// Reads and checks the flags, so that a value out of range is refused before a model is loaded.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Result<Self, CliError> {
        let given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let flags = Self {
            temperature: matches.get_one(TEMPERATURE).copied(),
            top_p: matches.get_one(TOP_P).copied(),
            top_k: matches.get_one(TOP_K).copied(),
            min_p: matches.get_one(MIN_P).copied(),
            repetition_penalty: matches.get_one(REPETITION_PENALTY).copied(),
            seed: matches.get_one(SEED).copied(),
            max_tokens: matches.get_one(MAX_TOKENS).copied(),
            stop: matches.get_many(STOP).into_iter().flatten().cloned().collect(),
            ignore_eos: matches.get_flag(IGNORE_EOS),
            choosing: [TOP_P, TOP_K, MIN_P, SEED].into_iter().filter(given).collect(),
        };
        flags.merged(SamplingParams::default()).validate()?;
        Ok(flags)
    }

    /// The parameters of a run: the flags, and for what was not given what the checkpoint asks for.
    ///
    /// # Errors
    ///
    /// If the checkpoint asks for something out of range.
    pub(crate) fn over(&self, asked: SamplingParams) -> Result<SamplingParams, CliError> {
        let params = self.merged(asked);
        // The flags by themselves have been checked.
        params.validate().map_err(|error| {
            CliError::from(error).into_failure().within("generation_config.json, which a flag overrides")
        })?;
        if params.temperature == 0.0 && self.temperature.is_none() && !self.choosing.is_empty() {
            tracing::warn!(
                "--{} changes nothing: the checkpoint asks for the most likely token each time; give --temperature too",
                self.choosing.join(", --")
            );
        }
        Ok(params)
    }

    /// The flags that were given, as members of a request to a server, which knows defaults of its own.
    pub(crate) fn members(&self) -> Map<String, Value> {
        let members = [
            (MAX_TOKENS, self.max_tokens.map(Value::from)),
            (TEMPERATURE, self.temperature.map(decimal)),
            (TOP_P, self.top_p.map(decimal)),
            (TOP_K, self.top_k.map(Value::from)),
            (MIN_P, self.min_p.map(decimal)),
            (REPETITION_PENALTY, self.repetition_penalty.map(decimal)),
            (SEED, self.seed.map(Value::from)),
            (STOP, (!self.stop.is_empty()).then(|| Value::from(self.stop.clone()))),
            (IGNORE_EOS, self.ignore_eos.then_some(Value::Bool(true))),
        ];
        members.into_iter().filter_map(|(name, value)| Some((name.replace('-', "_"), value?))).collect()
    }

    fn merged(&self, asked: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(asked.temperature),
            top_p: self.top_p.unwrap_or(asked.top_p),
            top_k: self.top_k.unwrap_or(asked.top_k),
            min_p: self.min_p.unwrap_or(asked.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(asked.repetition_penalty),
            seed: self.seed.or(asked.seed),
            max_tokens: self.max_tokens.or(asked.max_tokens),
            stop: if self.stop.is_empty() { asked.stop } else { self.stop.clone() },
            ignore_eos: self.ignore_eos || asked.ignore_eos,
            ..asked
        }
    }
}

/// A number as it was written, and not as the nearest one of twice the precision: 0.1 and not 0.10000000149011612.
fn decimal(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;
    use crate::arguments;

    fn flags(given: &[&str]) -> Result<SamplingFlags, CliError> {
        let arguments = ["allotrope", "chat", "--model", "m"].iter().chain(given);
        let matches = arguments::command().try_get_matches_from(arguments).unwrap();
        SamplingFlags::from_matches(matches.subcommand_matches(arguments::CHAT).unwrap())
    }

    fn asked() -> SamplingParams {
        SamplingParams { temperature: 0.6, top_p: 0.9, max_tokens: Some(7), ..SamplingParams::default() }
    }

    #[test]
    fn a_flag_wins_over_the_checkpoint_and_the_checkpoint_over_the_default() {
        let params = flags(&["--top-p", "0.5", "--seed", "3", "--stop", "a", "--stop=-b", "--ignore-eos"]).unwrap();
        let expected = SamplingParams {
            top_p: 0.5,
            seed: Some(3),
            stop: vec!["a".to_owned(), "-b".to_owned()],
            ignore_eos: true,
            ..asked()
        };
        assert_eq!(params.over(asked()).unwrap(), expected);
        assert_eq!(flags(&[]).unwrap().over(asked()).unwrap(), asked());
    }

    #[test]
    fn a_server_is_told_what_was_given_and_nothing_else() {
        let given = ["--top-p", "0.1", "--max-tokens", "5", "--stop", "a", "--ignore-eos"];
        let expected = serde_json::json!({ "max_tokens": 5, "top_p": 0.1, "stop": ["a"], "ignore_eos": true });
        assert_eq!(Value::Object(flags(&given).unwrap().members()), expected);
        assert!(flags(&[]).unwrap().members().is_empty());
    }

    #[test]
    fn a_flag_that_equals_the_default_still_wins() {
        let params = flags(&["--temperature", "1", "--top-p", "1"]).unwrap().over(asked()).unwrap();
        assert_eq!((params.temperature, params.top_p), (1.0, 1.0));
    }

    #[test]
    fn a_flag_out_of_range_is_a_usage_error_and_a_checkpoint_out_of_range_a_failure() {
        for given in [["--temperature", "-1"], ["--top-p", "nan"], ["--min-p", "inf"], ["--max-tokens", "0"]] {
            assert!(matches!(flags(&given), Err(CliError::Usage(_))), "{given:?}");
        }
        let wrong = SamplingParams { temperature: 50.0, ..asked() };
        let error = flags(&[]).unwrap().over(wrong.clone()).unwrap_err();
        assert!(
            matches!(&error, CliError::Failure(message) if message.starts_with("generation_config.json")),
            "{error}"
        );
        assert!(flags(&["--temperature", "1"]).unwrap().over(wrong).is_ok(), "a flag repairs it");
    }
}
