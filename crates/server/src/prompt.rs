//! From what clients write to requests of the engine. All of it may take a while, and runs where that hurts nobody.

use std::sync::Arc;

use allotrope_engine::{EngineError, RequestMaker, TokenRequest};
use allotrope_model::Conversation;

use crate::config::ServerConfig;
use crate::model::{ServedModel, api_error};
use crate::protocol::chat::{ChatInput, ChatRequest, ToolChoice};
use crate::protocol::completion::{CompletionPrompt, CompletionRequest};
use crate::protocol::{ApiError, RequestOptions};
use crate::tools;

/// The most bytes that the constraints of all answers to a request may have together, as each that runs has a state of its own.
const MAX_CONSTRAINTS: usize = 64 << 20;

/// One prompt, ready for the engine.
#[derive(Debug)]
pub(crate) struct ReadyPrompt {
    /// Its tokens, after truncation.
    pub(crate) tokens: Arc<[u32]>,
    /// Its text, where the answer is to begin with it.
    pub(crate) text: Option<String>,
}

/// The prompts of a request and what the engine is to run for them: for each prompt as many requests as it has answers.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompts: Vec<ReadyPrompt>,
    pub(crate) requests: Vec<TokenRequest>,
}

/// Prepares a completion.
pub(crate) fn of_completion(
    model: &ServedModel,
    config: &ServerConfig,
    request: &CompletionRequest,
) -> Result<Job, ApiError> {
    let mut job = Job { prompts: Vec::new(), requests: Vec::new() };
    let options = &request.options;
    check(config, options, request.prompts.len())?;
    let maker = model.llm.text().request_maker(&options.sampling).map_err(api_error)?;
    for prompt in &request.prompts {
        let tokens = match prompt {
            CompletionPrompt::Text(text) => encode(model, text, options.add_special_tokens)?,
            CompletionPrompt::Tokens(tokens) => tokens.clone(),
        };
        let whole = tokens.len();
        let kept = add(&maker, model, options, &tokens, &mut job)?;
        let text = match prompt {
            _ if !request.echo => None,
            CompletionPrompt::Text(text) if kept.len() == whole => Some(text.clone()),
            _ => Some(model.tokenizer().decode(&kept, false).map_err(|error| api_error(error.into()))?),
        };
        job.prompts.push(ReadyPrompt { tokens: kept, text });
    }
    Ok(job)
}

/// Prepares the next message of a conversation.
pub(crate) fn of_chat(model: &ServedModel, config: &ServerConfig, request: &ChatRequest) -> Result<Job, ApiError> {
    if request.tool_choice == ToolChoice::Auto && !config.enable_auto_tool_choice {
        let message = "This server does not let the model call tools by itself. Set `tool_choice` to \"none\", \"required\" or a \
                       function, or start the server with automatic tool choice enabled.";
        return Err(ApiError::invalid("tool_choice", message));
    }
    check(config, &request.options, 1)?;
    let text = render(model, &request.input)?;
    let tokens = encode(model, &text, request.options.add_special_tokens)?;
    let mut job = Job { prompts: Vec::new(), requests: Vec::new() };
    let maker = model.llm.text().request_maker(&request.options.sampling).map_err(api_error)?;
    let tokens = add(&maker, model, &request.options, &tokens, &mut job)?;
    job.prompts.push(ReadyPrompt { tokens, text: None });
    Ok(job)
}

/// The text of a conversation, no longer than a prompt may be.
pub(crate) fn render(model: &ServedModel, input: &ChatInput) -> Result<String, ApiError> {
    let refused = |error: allotrope_model::ModelError| api_error(error.into());
    let own;
    let template = match &input.chat_template {
        Some(source) => {
            own = model.template()?.with_source(source).map_err(refused)?;
            &own
        }
        None => model.template()?,
    };
    let tools = input.tool_values();
    let mut messages = input.messages.clone();
    if !template.takes_tools() {
        tools::describe_in_messages(&mut messages, &input.tools, model.tool_format);
    }
    let conversation = Conversation {
        messages: &messages,
        tools: &tools,
        documents: input.documents.as_deref().unwrap_or_default(),
        arguments: Some(&input.template_arguments),
        add_generation_prompt: input.add_generation_prompt,
        continue_final_message: input.continue_final_message,
    };
    let text = template.render_conversation(&conversation).map_err(refused)?;
    // What was read is bounded by its texts, but numbers and marks become text too.
    model.context.check_prompt_bytes(text.len())?;
    Ok(text)
}

/// The tokens of a text.
pub(crate) fn encode(model: &ServedModel, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ApiError> {
    model.tokenizer().encode(text, add_special_tokens).map_err(|error| api_error(error.into()))
}

/// What the types of a request can't say.
fn check(config: &ServerConfig, options: &RequestOptions, prompts: usize) -> Result<(), ApiError> {
    if options.priority != 0 && !config.priority_scheduling {
        let message = "`priority` is set, but this server runs requests in the order in which they come. Leave it out.";
        return Err(ApiError::invalid("priority", message));
    }
    let sequences = prompts.saturating_mul(options.sampling.n);
    let constraint = match &options.sampling.structured_output {
        Some(output) if sequences > 1 => serde_json::to_string(output).map_or(usize::MAX, |text| text.len()),
        _ => 0,
    };
    if constraint.saturating_mul(sequences) > MAX_CONSTRAINTS {
        let message = format!(
            "{sequences} answers with a constraint of {constraint} bytes are too much. Send fewer prompts or lower `n`."
        );
        return Err(ApiError::invalid("n", &message));
    }
    Ok(())
}

/// Adds the requests for the answers to one prompt. Gives its tokens, which the requests share.
fn add(
    maker: &RequestMaker<'_>,
    model: &ServedModel,
    options: &RequestOptions,
    tokens: &[u32],
    job: &mut Job,
) -> Result<Arc<[u32]>, ApiError> {
    let made = maker.requests(tokens).map_err(|error| match error {
        // A truncated prompt is told as it came.
        EngineError::PromptTooLong { .. } => ApiError::prompt_too_long(tokens.len(), model.context.max_model_len),
        error => api_error(error),
    })?;
    let shared = made.first().map(|request| Arc::clone(&request.prompt)).unwrap_or_default();
    let salt: Option<Arc<str>> = options.cache_salt.as_deref().map(Arc::from);
    let ours = |request| TokenRequest { priority: options.priority, cache_salt: salt.clone(), ..request };
    job.requests.extend(made.into_iter().map(ours));
    Ok(shared)
}
