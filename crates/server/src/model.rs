//! The model that a server serves, with what requests are read against.

use std::time::Duration;

use allotrope_engine::{AsyncLlm, EngineError, EngineState, SamplingParams, StructuredOutputError};
use allotrope_model::{ChatTemplate, GenerationConfig, ModelError, Tokenizer};
use tokio::time::Instant;

use crate::config::ServerConfig;
use crate::protocol::{ApiError, RequestContext, for_log, identifiers};
use crate::tools::ToolFormat;

/// The least that a prompt may have in bytes, whatever the model: short contexts of short tokens get readable errors.
const MIN_PROMPT_BYTES: usize = 4096;
/// A token that is longer than this counts as so long: vocabularies have a few long runs of spaces or dashes.
const MAX_TOKEN_BYTES: usize = 256;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct ServedModel {
    pub(crate) llm: AsyncLlm,
    pub(crate) context: RequestContext,
    /// The name of what was loaded.
    pub(crate) root: String,
    pub(crate) created: u64,
    /// In place of the checkpoint's.
    template: Option<ChatTemplate>,
    /// How the model writes calls; where its template shows none it is told to write the most common form.
    pub(crate) tool_format: ToolFormat,
}

impl ServedModel {
    pub(crate) fn new(llm: AsyncLlm, config: &ServerConfig) -> Result<Self, ModelError> {
        let text = llm.text();
        let folder = llm.folder();
        let root = folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let template =
            config.chat_template.as_ref().map(|source| ChatTemplate::open_with_source(folder, source)).transpose()?;
        let max_prompt_bytes =
            config.max_prompt_bytes.unwrap_or_else(|| longest_prompt(text.tokenizer(), text.max_model_len()));
        let model_names = match config.served_model_names.as_slice() {
            [] => vec![root.clone()],
            names => names.to_vec(),
        };
        let context = RequestContext {
            model_names,
            vocabulary: text.vocabulary(),
            max_model_len: text.max_model_len(),
            max_logprobs: config.max_logprobs,
            defaults: defaults(text.checkpoint().generation()),
            max_prompt_bytes,
            max_text_bytes: config.limits.body_bytes,
            trust_request_chat_template: config.trust_request_chat_template,
        };
        let source = template.as_ref().or(text.chat_template().ok()).map_or("", ChatTemplate::source);
        let tool_format = config.tool_parser.unwrap_or_else(|| format_of(source));
        let created = identifiers::created_now();
        Ok(ServedModel { context, root, created, template, tool_format, llm })
    }

    /// The name that answers give.
    pub(crate) fn name(&self) -> &str {
        self.context.model_names.first().map_or("", String::as_str)
    }

    /// The chat template in use.
    pub(crate) fn template(&self) -> Result<&ChatTemplate, ApiError> {
        match &self.template {
            Some(template) => Ok(template),
            None => self.llm.text().chat_template().map_err(|error| {
                tracing::debug!("a chat was refused: {error}");
                ApiError::bad_request(
                    "This model has no usable chat template. Use /v1/completions, or give the server a template.",
                )
            }),
        }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        self.llm.text().tokenizer()
    }

    /// Why the engine is dead, if it is.
    pub(crate) fn death(&self) -> Option<String> {
        match self.llm.engine().status().state() {
            EngineState::Dead(reason) => Some(reason),
            EngineState::Running | EngineState::Draining | EngineState::Stopped => None,
        }
    }
}

/// How a model writes calls, from its chat template: what writes the calls of past messages shows it.
fn format_of(template: &str) -> ToolFormat {
    let is_llama = template.contains("<|python_tag|>") || template.contains("<|start_header_id|>");
    if is_llama && !template.contains("<tool_call>") { ToolFormat::Llama3Json } else { ToolFormat::Hermes }
}

/// What holds where a request says nothing. Clients of this interface expect answers that are drawn unless they say otherwise, so
/// `do_sample` does not count here, which is false in many checkpoints for no reason but that it is the default.
fn defaults(said: &GenerationConfig) -> SamplingParams {
    let defaults = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    SamplingParams {
        temperature: said.temperature.unwrap_or(defaults.temperature),
        top_p: said.top_p.unwrap_or(defaults.top_p),
        top_k: said.top_k.and_then(|count| u32::try_from(count).ok()).unwrap_or(defaults.top_k),
        min_p: said.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: said.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        max_tokens: said.max_new_tokens,
        ..defaults
    }
}

/// As many bytes as the longest tokens could have in a context of `max_model_len`.
fn longest_prompt(tokenizer: &Tokenizer, max_model_len: usize) -> usize {
    let bound = u32::try_from(tokenizer.id_bound()).unwrap_or(u32::MAX);
    let longest = (0..bound).filter_map(|id| tokenizer.token(id)).map(|token| token.len()).max().unwrap_or(1);
    max_model_len.saturating_mul(longest.min(MAX_TOKEN_BYTES)).max(MIN_PROMPT_BYTES)
}

/// The error that a client gets for one of the engine.
pub(crate) fn api_error(error: EngineError) -> ApiError {
    use allotrope_engine::{RequestFailure, SubmitError};
    /// A queue empties within seconds.
    const RETRY_AFTER: u64 = 1;
    match error {
        EngineError::PromptTooLong { tokens, context, .. } => ApiError::prompt_too_long(tokens, context),
        EngineError::Sampling(error) => error.into(),
        EngineError::Request(message) => ApiError::bad_request(&message),
        EngineError::Submit(SubmitError::Overloaded { .. }) => ApiError::overloaded(RETRY_AFTER),
        EngineError::Submit(SubmitError::ShuttingDown) | EngineError::Failure(RequestFailure::ShuttingDown) => {
            ApiError::unavailable("it is shutting down", Some(RETRY_AFTER))
        }
        EngineError::StructuredOutput(
            error @ (StructuredOutputError::Refused { .. } | StructuredOutputError::Vocabulary { .. }),
        ) => ApiError::invalid("structured_outputs", &error.to_string()),
        // What it asks for can't be had together, which nobody could know before.
        EngineError::Failure(RequestFailure::Masked(message)) => ApiError::bad_request(&message),
        EngineError::Failure(error @ RequestFailure::Grammar(_)) => {
            ApiError::invalid("structured_outputs", &error.to_string())
        }
        EngineError::StructuredOutput(StructuredOutputError::Busy { .. }) => ApiError::overloaded(RETRY_AFTER),
        // Its path is nobody's business, what the template says is.
        EngineError::Model(ModelError::Template { problem, .. }) => {
            ApiError::invalid("messages", &format!("The chat template refuses this conversation: {problem}"))
        }
        error => {
            tracing::error!("a request failed: {}", for_log(&error.to_string()));
            ApiError::internal()
        }
    }
}

/// Whether an engine that has something to do does it.
#[derive(Debug)]
pub(crate) struct Progress {
    steps: u64,
    /// When it last made a step, or had nothing to do.
    since: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Progress { steps: 0, since: Instant::now() }
    }

    /// Looks at the engine; says how long it has had work without doing any.
    pub(crate) fn look(&mut self, model: &ServedModel) -> Duration {
        let status = model.llm.engine().status();
        let steps = status.steps();
        let is_busy = status.running() > 0 || status.waiting().0 > 0;
        if !is_busy || steps != self.steps {
            (self.steps, self.since) = (steps, Instant::now());
        }
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_the_model_names_whether_or_not_it_says_to_sample() {
        let unnamed = defaults(&GenerationConfig::default());
        assert_eq!(unnamed, SamplingParams { temperature: 1.0, max_tokens: None, ..SamplingParams::default() });
        for do_sample in [None, Some(false), Some(true)] {
            let said = GenerationConfig {
                do_sample,
                temperature: Some(0.5),
                top_p: Some(0.75),
                top_k: Some(40),
                min_p: Some(0.125),
                repetition_penalty: Some(1.5),
                max_new_tokens: Some(30),
                ..GenerationConfig::default()
            };
            let expected = SamplingParams {
                temperature: 0.5,
                top_p: 0.75,
                top_k: 40,
                min_p: 0.125,
                repetition_penalty: 1.5,
                max_tokens: Some(30),
                ..SamplingParams::default()
            };
            assert_eq!(defaults(&said), expected, "{do_sample:?}");
        }
        let greedy = defaults(&GenerationConfig { temperature: Some(0.0), ..GenerationConfig::default() });
        assert!(greedy.temperature == 0.0 && greedy.validate().is_ok());
    }
}
