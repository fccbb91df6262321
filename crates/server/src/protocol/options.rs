//! What `/v1/completions` and `/v1/chat/completions` have in common.

use allotrope_engine::SamplingParams;

use super::context::RequestContext;
use super::error::ApiError;
use super::fields::Fields;

/// Longest `user` and `cache_salt`, in bytes.
const MAX_NAME: usize = 1024;

/// How the answer to a request is streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// One more chunk without choices tells the usage at the end.
    pub include_usage: bool,
    /// Every chunk tells the usage so far.
    pub continuous_usage: bool,
}

/// The fields that completions and chat completions share.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestOptions {
    /// The name that the request gave; `None` means the only model.
    pub model: Option<String>,
    /// How tokens are chosen, valid as [`SamplingParams::validate`] says. `max_tokens` may be more than fits beside the
    /// prompt: see [`RequestContext::tokens_to_generate`].
    pub sampling: SamplingParams,
    /// `Some` if the answer is to be streamed.
    pub stream: Option<StreamOptions>,
    /// Whether the tokenizer adds its special tokens to a prompt that is text.
    pub add_special_tokens: bool,
    /// Whether the answer holds the ids of its tokens and of the prompt's.
    pub return_token_ids: bool,
    /// Requests share cached prefixes only with those of the same salt.
    pub cache_salt: Option<String>,
    /// Lower numbers go first.
    pub priority: i64,
    /// Who asks, as the client says. Nothing depends on it, and it is not logged.
    pub user: Option<String>,
}

impl RequestOptions {
    /// Reads the shared fields beside `sampling`. Text gets the tokenizer's special tokens if the request does not say
    /// and `add_special_tokens` is set.
    pub(crate) fn read(
        fields: &Fields<'_>,
        sampling: SamplingParams,
        add_special_tokens: bool,
    ) -> Result<Self, ApiError> {
        if fields.flag("use_beam_search", false)? {
            return Err(fields.refused("use_beam_search", "answers are sampled; ask for several with `n`"));
        }
        if fields.get("logits_processors").is_some() {
            return Err(fields.refused("logits_processors", "no code of a request is run"));
        }
        let stream = stream(fields)?;
        let streams_prompt_logprobs = stream.is_some() && fields.get("prompt_logprobs").is_some();
        if streams_prompt_logprobs && sampling.prompt_logprobs.is_some() {
            let message = "`prompt_logprobs` cannot be streamed. Leave out `stream` or `prompt_logprobs`.";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(RequestOptions {
            model: owned(fields.string("model")?),
            sampling,
            stream,
            add_special_tokens: fields.flag("add_special_tokens", add_special_tokens)?,
            return_token_ids: fields.flag("return_token_ids", false)?,
            cache_salt: owned(fields.short_string("cache_salt", MAX_NAME)?),
            priority: fields.integer("priority", i64::MIN..=i64::MAX)?.unwrap_or(0),
            user: owned(fields.string("user")?.filter(|user| !user.is_empty()))
                .map(|user| user.chars().take(MAX_NAME).collect()),
        })
    }
}

/// The model that a request names, if this server has it.
pub(crate) fn check_model(fields: &Fields<'_>, context: &RequestContext) -> Result<(), ApiError> {
    context.check_model(fields.string("model")?)
}

fn stream(fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let streamed = fields.flag("stream", false)?;
    let Some(options) = fields.object("stream_options")? else {
        return Ok(streamed.then(StreamOptions::default));
    };
    if !streamed {
        let message = "`stream_options` is set, but the answer is not streamed. Set `stream` to true or leave it out.";
        return Err(ApiError::invalid("stream_options", message));
    }
    Ok(Some(StreamOptions {
        include_usage: options.flag("include_usage", false)?,
        continuous_usage: options.flag("continuous_usage_stats", false)?,
    }))
}
