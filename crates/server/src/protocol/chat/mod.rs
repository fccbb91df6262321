//! `POST /v1/chat/completions`: the request.

mod input;
mod message;
mod tool;

pub use input::ChatInput;
pub use tool::{ToolChoice, ToolDefinition};

use allotrope_engine::LogprobCount;
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::error::ApiError;
use super::fields::Fields;
use super::options::{self, RequestOptions};
use super::{json, sampling};
use crate::tools;

/// A request for the next message of a conversation, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// What the prompt is made of.
    pub input: ChatInput,
    /// Whether tools may, must or must not be called. For [`ToolChoice::Required`] and [`ToolChoice::Function`]
    /// `options.sampling.structured_output` forces the call, which [`tools::ToolParser::forced`] reads.
    pub tool_choice: ToolChoice,
    /// Whether an answer may call several tools.
    pub parallel_tool_calls: bool,
    /// What completions and chat completions share. `options.sampling.max_tokens` is `None` for all that fit.
    pub options: RequestOptions,
}

impl ChatRequest {
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
        let mut params = sampling::read(&fields, context)?;
        let max_tokens = sampling::max_tokens(&fields, "max_tokens", 1, context)?;
        let max_completion_tokens = sampling::max_tokens(&fields, "max_completion_tokens", 1, context)?;
        params.max_tokens = max_completion_tokens.or(max_tokens).or(params.max_tokens);
        params.logprobs = log_probabilities(&fields, context)?;
        let input = ChatInput::read(&fields, context)?;
        let tool_choice = tool::choice(&fields, &input.tools)?;
        let parallel_tool_calls = fields.flag("parallel_tool_calls", true)?;
        if let Some(output) = tools::forced_output(&tool_choice, &input.tools, parallel_tool_calls) {
            if params.structured_output.is_some() {
                let message = "`tool_choice` forces a call, and the request constrains the answer in another way too. Use one of both.";
                return Err(ApiError::invalid("tool_choice", message));
            }
            params.structured_output = Some(output);
        }
        params.validate()?;
        // The template writes the special tokens itself.
        let options = RequestOptions::read(&fields, params, false)?;
        Ok(ChatRequest { input, tool_choice, parallel_tool_calls, options })
    }
}

fn log_probabilities(fields: &Fields<'_>, context: &RequestContext) -> Result<Option<LogprobCount>, ApiError> {
    let wanted = fields.flag("logprobs", false)?;
    let top = sampling::log_probabilities(fields, "top_logprobs", context)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(LogprobCount::Top(0)))),
        (false, None | Some(LogprobCount::Top(0))) => Ok(None),
        (false, Some(_)) => {
            let message = "`top_logprobs` is set, but `logprobs` is not. Set `logprobs` to true.";
            Err(ApiError::invalid("top_logprobs", message))
        }
    }
}
