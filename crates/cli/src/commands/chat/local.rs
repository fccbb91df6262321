//! Answers of a model in this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_engine::{FinishReason, Llm, Message, Prompt, SamplingParams};
use clap::ArgMatches;

use super::{Partner, Turn};
use crate::error::CliError;
use crate::sampling::SamplingFlags;
use crate::speed::Speed;
use crate::{model, output, prompts};

/// A loaded model.
pub(super) struct Local {
    llm: Llm,
    params: SamplingParams,
    name: String,
}

impl Local {
    pub(super) fn load(
        matches: &ArgMatches,
        flags: &SamplingFlags,
        started: Instant,
        environment: &Environment,
    ) -> Result<Self, CliError> {
        let llm = model::load(matches, started, environment)?;
        if let Some(reason) = prompts::missing_template(&llm) {
            return Err(CliError::Failure(format!(
                "chat needs a chat template: {reason}; `allotrope generate --raw` completes text without one"
            )));
        }
        let params = flags.over(llm.default_sampling_params())?;
        Ok(Self { llm, params, name: model::folder(matches).display().to_string() })
    }
}

impl Partner for Local {
    fn introduction(&self) -> String {
        format!(
            "{} at {}, ready after {:.2} s",
            self.name,
            self.llm.settings().optimization_level.get(),
            self.llm.startup().total.as_secs_f64()
        )
    }

    fn answer(&mut self, messages: Vec<Message>, interrupted: &AtomicBool) -> Result<Turn, CliError> {
        let tokens = self.llm.tokenize(&Prompt::Chat(messages))?;
        let context = *self.llm.settings().model.max_model_len;
        if tokens.len() >= context {
            return Err(CliError::Failure(format!(
                "with this message the conversation has {} tokens, but the context holds {context} (model.max_model_len) and \
                 the answer needs room too; /reset begins a new conversation",
                tokens.len()
            )));
        }
        let room = context - tokens.len();
        let mut speed = Speed::begin();
        let mut text = String::new();
        let mut finished = None;
        for part in self.llm.stream(&Prompt::Tokens(tokens), &self.params)? {
            let part = part?;
            speed.output();
            output::show(&part.text)?;
            text.push_str(&part.text);
            finished = part.finish_reason;
            if interrupted.swap(false, Ordering::Relaxed) {
                break;
            }
        }
        let remark = match (finished, self.params.max_tokens.filter(|&limit| limit < room)) {
            (Some(FinishReason::Length), Some(limit)) => {
                Some(format!("(The answer was cut off after {limit} tokens: --max-tokens.)"))
            }
            (Some(FinishReason::Length), None) => Some(format!(
                "(The answer was cut off: the context of {context} tokens is full. /reset begins a new conversation.)"
            )),
            (None, _) => Some("(Stopped.)".to_owned()),
            (Some(_), _) => None,
        };
        Ok(Turn { text, remark, speed })
    }
}
