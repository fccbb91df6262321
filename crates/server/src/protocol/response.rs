//! The bodies of answers.

use std::collections::BTreeMap;

use allotrope_engine::{FinishReason as EngineFinishReason, StopReason};
use serde::Serialize;

use super::logprobs::{ChatLogprobs, CompletionLogprobs, PromptLogprob};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string or stop token did.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The answer is a call of tools.
    ToolCalls,
}

impl From<EngineFinishReason> for FinishReason {
    fn from(reason: EngineFinishReason) -> Self {
        match reason {
            EngineFinishReason::Stop => FinishReason::Stop,
            EngineFinishReason::Length => FinishReason::Length,
        }
    }
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// More about the prompt, where the server is told to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Where the tokens of the prompts came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens found in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// The usage of so many tokens; `cached_tokens` if they are to be told.
    pub fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: Option<usize>) -> Self {
        Usage {
            prompt_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            completion_tokens,
            prompt_tokens_details: cached_tokens.map(|cached_tokens| PromptTokensDetails { cached_tokens }),
        }
    }
}

/// The answer of `/v1/completions`, and each chunk of a streamed one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-…`; the same in all chunks.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// By prompt, then by sample. Empty in the chunk that tells the usage.
    pub choices: Vec<CompletionChoice>,
    /// Absent from chunks unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl CompletionResponse {
    /// An answer or a chunk.
    pub fn new(id: &str, created: u64, model: &str, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Self {
        let (id, model) = (id.to_owned(), model.to_owned());
        CompletionResponse { id, object: "text_completion", created, model, choices, usage }
    }
}

/// One answer of a completion, or the next part of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// prompt × n + sample.
    pub index: usize,
    /// The text, or the next part of it.
    pub text: String,
    /// If asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// In a stream, set in the last part.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
    /// Of the prompt, if asked for; the first is null. Keys are token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<BTreeMap<u32, PromptLogprob>>>>,
    /// The tokens of this part, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The tokens of the prompt, if asked for; in a stream, in the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// The answer of `/v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletionResponse {
    /// `chatcmpl-…`
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens taken.
    pub usage: Usage,
    /// Of the prompt, if asked for; the first is null. Keys are token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<BTreeMap<u32, PromptLogprob>>>>,
    /// The tokens of the prompt, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

impl ChatCompletionResponse {
    /// An answer.
    pub fn new(id: &str, created: u64, model: &str, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        let (id, model) = (id.to_owned(), model.to_owned());
        ChatCompletionResponse {
            id,
            object: "chat.completion",
            created,
            model,
            choices,
            usage,
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }
}

/// One answer of a chat.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Which sample.
    pub index: usize,
    /// What the model says.
    pub message: AssistantMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
    /// The tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The message of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AssistantMessage {
    /// `assistant`, or the role of the message that was continued.
    pub role: String,
    /// The text; null if the answer is nothing but calls.
    pub content: Option<String>,
    /// Calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    /// `call_…`
    pub id: String,
    /// `function`.
    pub r#type: &'static str,
    /// What is called.
    pub function: FunctionCall,
}

impl ToolCall {
    /// A call.
    pub fn new(id: String, name: String, arguments: String) -> Self {
        ToolCall { id, r#type: "function", function: FunctionCall { name, arguments } }
    }
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// JSON as the model wrote it, so not always valid.
    pub arguments: String,
}

/// A chunk of a streamed chat completion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletionChunk {
    /// `chatcmpl-…`; the same in all chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970; the same in all chunks.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Empty in the chunk that tells the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The tokens of the prompt, if asked for; in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

impl ChatCompletionChunk {
    /// A chunk.
    pub fn new(id: &str, created: u64, model: &str, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> Self {
        let (id, model) = (id.to_owned(), model.to_owned());
        let object = "chat.completion.chunk";
        ChatCompletionChunk { id, object, created, model, choices, usage, prompt_token_ids: None }
    }
}

/// The next part of an answer of a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatChunkChoice {
    /// Which sample.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the last part.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it; in the last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// The tokens of this part, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What a chunk adds to a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChatDelta {
    /// In the first chunk of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// New calls, and more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

impl ChatDelta {
    /// The first part of an answer: a role, and no text yet.
    pub fn opening(role: &str) -> Self {
        ChatDelta { role: Some(role.to_owned()), content: Some(String::new()), tool_calls: Vec::new() }
    }

    /// More text.
    pub fn text(text: String) -> Self {
        ChatDelta { content: Some(text), ..ChatDelta::default() }
    }
}

/// What a chunk adds to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta {
    /// Which call of the message.
    pub index: usize,
    /// With the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, with the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// What is new.
    pub function: FunctionCallDelta,
}

/// What a chunk adds to the function of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FunctionCallDelta {
    /// In the first part of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// The answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// One entry for each name of the model in `root`.
    pub fn new(names: &[String], root: &str, created: u64, max_model_len: usize) -> Self {
        ModelList {
            object: "list",
            data: names.iter().map(|name| ModelCard::new(name, root, created, max_model_len)).collect(),
        }
    }
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelCard {
    /// The name that requests give.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// This engine.
    pub owned_by: &'static str,
    /// What was loaded.
    pub root: String,
    /// The model that this one adapts.
    pub parent: Option<String>,
    /// The most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Nothing: there is one kind of user.
    pub permission: Vec<String>,
}

impl ModelCard {
    /// The model `id`, loaded from `root`.
    pub fn new(id: &str, root: &str, created: u64, max_model_len: usize) -> Self {
        ModelCard {
            id: id.to_owned(),
            object: "model",
            created,
            owned_by: "allotrope",
            root: root.to_owned(),
            parent: None,
            max_model_len,
            permission: Vec::new(),
        }
    }
}

/// The answer of `/tokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizeResponse {
    /// How many tokens.
    pub count: usize,
    /// The most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, if asked for.
    pub token_strs: Option<Vec<String>>,
}

impl TokenizeResponse {
    /// The answer for these tokens.
    pub fn new(tokens: Vec<u32>, token_strs: Option<Vec<String>>, max_model_len: usize) -> Self {
        TokenizeResponse { count: tokens.len(), max_model_len, tokens, token_strs }
    }
}

/// The answer of `/detokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
