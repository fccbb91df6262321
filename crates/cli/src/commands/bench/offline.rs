//! What `bench latency` and `bench throughput` share: a model in this process that is given random prompts.

use std::path::PathBuf;
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_engine::{Completion, Llm, Prompt, SamplingParams};
use clap::ArgMatches;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::dataset::{self, Lengths, Vocabulary};
use crate::error::CliError;
use crate::{arguments, model, output};

/// A prompt and how its answer is made.
pub(super) type Task = (Prompt, SamplingParams);

/// A loaded model and what its prompts are made of.
pub(super) struct Bench {
    pub(super) llm: Llm,
    lengths: Lengths,
    vocabulary: Vocabulary,
    random: ChaCha8Rng,
}

impl Bench {
    /// Loads the model.
    ///
    /// # Errors
    ///
    /// If the lengths don't fit into its context, in which case answers would be shorter than was asked for, or the file of
    /// the result can't be written.
    pub(super) fn load(
        matches: &ArgMatches,
        lengths: Lengths,
        started: Instant,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        check_output(matches)?;
        let llm = model::load(matches, started, environment)?;
        let context = *llm.settings().model.max_model_len;
        let longest = lengths.longest();
        if longest > context {
            return Err(CliError::Failure(format!(
                "a prompt and its answer have up to {longest} tokens together, but the context holds {context} \
                 (model.max_model_len); give a smaller --{} or --{}",
                arguments::INPUT_LEN,
                arguments::OUTPUT_LEN
            )));
        }
        let bound = u32::try_from(llm.tokenizer().id_bound()).unwrap_or(u32::MAX);
        let ordinary = (0..bound).filter(|&id| !llm.tokenizer().is_special(id)).collect();
        let seed = matches.get_one(arguments::SEED).copied().unwrap_or_default();
        Ok(Self { llm, lengths, vocabulary: Vocabulary::List(ordinary), random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The next prompts. Answers have the length that was asked for, whatever the model would say.
    pub(super) fn tasks(&mut self, count: usize) -> Vec<Task> {
        let requests = dataset::random(self.lengths, &self.vocabulary, count, &mut self.random);
        let tasks = requests.into_iter().enumerate().map(|(index, request)| {
            let prompt = match request.prompt {
                dataset::Prompt::Tokens(tokens) => Prompt::Tokens(tokens),
                dataset::Prompt::Text(text) => Prompt::Text(text),
            };
            let params = SamplingParams {
                temperature: 1.0,
                seed: Some(index as u64),
                max_tokens: usize::try_from(request.output_tokens).ok(),
                ignore_eos: true,
                ..SamplingParams::default()
            };
            (prompt, params)
        });
        tasks.collect()
    }

    /// Answers all of them. Gives how many seconds that took too.
    pub(super) fn answer(&mut self, tasks: &[Task]) -> Result<(Vec<Completion>, f64), CliError> {
        let began = Instant::now();
        let completions = self.llm.generate_each(tasks)?;
        Ok((completions, began.elapsed().as_secs_f64()))
    }
}

/// Finds out whether the file of `--output-json` can be written, before the work and not after it.
pub(super) fn check_output(matches: &ArgMatches) -> Result<(), CliError> {
    match matches.get_one::<PathBuf>(arguments::OUTPUT_JSON) {
        Some(path) => output::check_writable(path),
        None => Ok(()),
    }
}

/// Writes the result to the file of `--output-json`, if one was named.
pub(super) fn save(matches: &ArgMatches, result: &impl Serialize) -> Result<(), CliError> {
    match matches.get_one::<PathBuf>(arguments::OUTPUT_JSON) {
        Some(path) => output::write_json(path, result),
        None => Ok(()),
    }
}
