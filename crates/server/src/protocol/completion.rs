//! `POST /v1/completions`: the request.

use allotrope_engine::LogprobCount;
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::error::ApiError;
use super::fields::{self, Fields, unexpected};
use super::options::{self, RequestOptions};
use super::{MAX_PROMPTS, MAX_SEQUENCES, json, sampling};

/// Tokens of an answer where the request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;
/// What `prompt` may be.
const PROMPT_FORMS: &str =
    "a string, a list of strings, a list of token ids or a list of lists of token ids, none empty";

/// One prompt of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletionPrompt {
    /// Text. What looks like a special token in it becomes one, as in other servers: a prompt is the client's own.
    Text(String),
    /// Token ids, each inside the vocabulary.
    Tokens(Vec<u32>),
}

/// A request for completions, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The prompts, at least one and none empty. The answers to prompt `p` have the indices `p × n` to `p × n + n − 1`.
    pub prompts: Vec<CompletionPrompt>,
    /// The text begins with the prompt. With log-probabilities this asks for those of the prompt too, so that
    /// `sampling.prompt_logprobs` is the greater of `logprobs` and `prompt_logprobs`.
    pub echo: bool,
    /// How many log-probabilities of the prompt the answer tells by themselves; `None` if it does not.
    pub prompt_logprobs: Option<LogprobCount>,
    /// The answer is the prompt alone (`max_tokens` 0 with `echo`); `sampling.max_tokens` is 1, because the engine
    /// generates at least one token, which is to be left out.
    pub prompt_only: bool,
    /// What completions and chat completions share.
    pub options: RequestOptions,
}

impl CompletionRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// 400 with the field that is wrong; 404 for a model that this server does not have.
    pub fn parse(body: &[u8], context: &RequestContext) -> Result<Self, ApiError> {
        Self::from_object(&json::parse_body(body)?, context)
    }

    fn from_object(object: &Map<String, Value>, context: &RequestContext) -> Result<Self, ApiError> {
        let fields = Fields::of_body(object);
        options::check_model(&fields, context)?;
        if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(fields.refused("suffix", "the model does not fill in text between two others"));
        }
        if fields.get("prompt_embeds").is_some() {
            return Err(fields.refused("prompt_embeds", "give text or token ids as `prompt`"));
        }
        let echo = fields.flag("echo", false)?;
        let mut params = sampling::read(&fields, context)?;
        let least = if echo { 0 } else { 1 };
        let max_tokens = sampling::max_tokens(&fields, "max_tokens", least, context)?
            .unwrap_or(DEFAULT_MAX_TOKENS.min(context.max_model_len));
        let prompt_only = max_tokens == 0;
        params.max_tokens = Some(max_tokens.max(1));
        params.logprobs = sampling::log_probabilities(&fields, "logprobs", context)?;
        let prompt_logprobs = params.prompt_logprobs;
        if echo {
            params.prompt_logprobs = greater(prompt_logprobs, params.logprobs);
        }
        params.validate()?;
        let prompts = prompts(&fields, params.truncate_prompt_tokens.is_some(), context)?;
        if prompts.len().saturating_mul(params.n) > MAX_SEQUENCES {
            let message = format!(
                "{} prompts with {} answers each are more than {MAX_SEQUENCES} answers. Send fewer prompts or lower `n`.",
                prompts.len(),
                params.n
            );
            return Err(ApiError::invalid("n", &message));
        }
        let options = RequestOptions::read(&fields, params, true)?;
        Ok(CompletionRequest { prompts, echo, prompt_logprobs, prompt_only, options })
    }
}

/// The count that asks for more.
fn greater(one: Option<LogprobCount>, other: Option<LogprobCount>) -> Option<LogprobCount> {
    match (one, other) {
        (Some(LogprobCount::Top(one)), Some(LogprobCount::Top(other))) => Some(LogprobCount::Top(one.max(other))),
        (Some(_), Some(_)) => Some(LogprobCount::All),
        (one, other) => one.or(other),
    }
}

fn prompts(
    fields: &Fields<'_>,
    is_truncated: bool,
    context: &RequestContext,
) -> Result<Vec<CompletionPrompt>, ApiError> {
    let Some(value) = fields.get("prompt") else { return Err(fields.error("prompt", PROMPT_FORMS)) };
    let prompts = match value {
        Value::String(_) => vec![one_prompt(value, "prompt", context)?],
        Value::Array(values) => match values.first() {
            Some(Value::Number(_)) => vec![one_prompt(value, "prompt", context)?],
            Some(Value::String(_) | Value::Array(_)) => {
                if values.len() > MAX_PROMPTS {
                    return Err(fields.error("prompt", &format!("at most {MAX_PROMPTS} prompts")));
                }
                let is_text = values.first().is_some_and(Value::is_string);
                let prompt = |(index, value): (usize, &Value)| {
                    let path = format!("prompt[{index}]");
                    if value.is_string() != is_text {
                        return Err(unexpected(&path, value, "prompts that are all text or all token ids"));
                    }
                    one_prompt(value, &path, context)
                };
                values.iter().enumerate().map(prompt).collect::<Result<_, _>>()?
            }
            Some(value) => return Err(unexpected("prompt[0]", value, "a string, a token id or a list of token ids")),
            None => return Err(fields.error("prompt", PROMPT_FORMS)),
        },
        _ => return Err(fields.error("prompt", PROMPT_FORMS)),
    };
    let mut bytes = 0;
    for prompt in &prompts {
        match prompt {
            CompletionPrompt::Text(text) => {
                bytes += text.len();
                if !is_truncated {
                    context.check_prompt_bytes(text.len())?;
                }
            }
            // With room for no token at all the prompt is too long however it is meant.
            CompletionPrompt::Tokens(ids) if !is_truncated && ids.len() > context.max_model_len => {
                return Err(ApiError::prompt_too_long(ids.len(), context.max_model_len));
            }
            CompletionPrompt::Tokens(_) => {}
        }
    }
    if bytes > context.max_text_bytes {
        let message = format!("The prompts have {bytes} bytes; expected at most {}.", context.max_text_bytes);
        return Err(ApiError::invalid("prompt", &message));
    }
    Ok(prompts)
}

fn one_prompt(value: &Value, path: &str, context: &RequestContext) -> Result<CompletionPrompt, ApiError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(CompletionPrompt::Text(text.clone())),
        Value::Array(values) if !values.is_empty() => {
            Ok(CompletionPrompt::Tokens(fields::token_ids(values, path, context.vocabulary)?))
        }
        _ => Err(unexpected(path, value, "text or a list of token ids that is not empty")),
    }
}
