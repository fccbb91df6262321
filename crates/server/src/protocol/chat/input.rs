//! What the prompt of a chat is made of: for chat completions and for `/tokenize`.

use serde_json::{Map, Value};

use super::super::context::RequestContext;
use super::super::error::{ApiError, quote};
use super::super::fields::{Fields, unexpected};
use super::super::json;
use super::message;
use super::tool::{self, ToolDefinition};

/// The most documents.
const MAX_DOCUMENTS: usize = 1024;
/// The most arguments for the template.
const MAX_ARGUMENTS: usize = 32;
/// Longest name of an argument for the template, in bytes.
const MAX_ARGUMENT_NAME: usize = 64;
/// Longest text of an argument for the template, in bytes.
const MAX_ARGUMENT_TEXT: usize = 4096;
/// What a template is given by the server.
const RESERVED_ARGUMENTS: [&str; 17] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "conversation",
    "tokenize",
    "strftime_now",
    "raise_exception",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A conversation and what else the chat template gets.
///
/// The template makes one text of it, so what looks like a special token in a message becomes one. Who puts text of others
/// into messages must take such marks out first.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatInput {
    /// The messages as the template gets them: `role` and `content` are text, the arguments of calls are objects, other
    /// fields are as they came.
    pub messages: Vec<Value>,
    /// The tools; their names are unique. Where the template knows no tools, [`crate::tools::describe_in_messages`] tells the
    /// model about them.
    pub tools: Vec<ToolDefinition>,
    /// Documents for templates that quote some.
    pub documents: Option<Vec<Value>>,
    /// More arguments for the template: plain values under names that the server does not use.
    pub template_arguments: Map<String, Value>,
    /// A template in place of the checkpoint's; only if the server trusts those of requests.
    pub chat_template: Option<String>,
    /// The prompt ends with the opening of an answer.
    pub add_generation_prompt: bool,
    /// The prompt ends inside the last message, which the answer continues.
    pub continue_final_message: bool,
}

impl ChatInput {
    pub(crate) fn read(fields: &Fields<'_>, context: &RequestContext) -> Result<Self, ApiError> {
        if fields.get("chat_template").is_some() && !context.trust_request_chat_template {
            let reason = "a template is a program, and this server runs only that of its model";
            return Err(fields.refused("chat_template", reason));
        }
        let continue_final_message = fields.flag("continue_final_message", false)?;
        let add_generation_prompt = fields.flag("add_generation_prompt", !continue_final_message)?;
        if add_generation_prompt && continue_final_message {
            let message =
                "`continue_final_message` and `add_generation_prompt` contradict each other. Set one of both.";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let messages = message::read(fields)?;
        let input = ChatInput {
            messages,
            tools: tool::read(fields)?,
            documents: documents(fields)?,
            template_arguments: template_arguments(fields)?,
            chat_template: fields.string("chat_template")?.map(str::to_owned),
            add_generation_prompt,
            continue_final_message,
        };
        input.check_bytes(context)?;
        Ok(input)
    }

    /// Who speaks in the answer: the assistant, or whoever's message is continued.
    pub fn response_role(&self) -> &str {
        let last = self.messages.last().filter(|_| self.continue_final_message);
        last.and_then(|message| message.get("role")).and_then(Value::as_str).unwrap_or("assistant")
    }

    /// The tools as templates expect them.
    pub fn tool_values(&self) -> Vec<Value> {
        self.tools.iter().map(ToolDefinition::to_value).collect()
    }

    fn check_bytes(&self, context: &RequestContext) -> Result<(), ApiError> {
        let messages: usize = self.messages.iter().map(json::text_bytes).sum();
        let tools: usize = self.tools.iter().map(ToolDefinition::text_bytes).sum();
        let documents: usize = self.documents.iter().flatten().map(json::text_bytes).sum();
        let bytes = messages.saturating_add(tools).saturating_add(documents);
        context.check_prompt_bytes(bytes)?;
        if bytes > context.max_text_bytes {
            let message = format!("The conversation has {bytes} bytes; expected at most {}.", context.max_text_bytes);
            return Err(ApiError::invalid("messages", &message));
        }
        Ok(())
    }
}

fn documents(fields: &Fields<'_>) -> Result<Option<Vec<Value>>, ApiError> {
    let Some(documents) = fields.list("documents", MAX_DOCUMENTS)? else { return Ok(None) };
    for (index, document) in documents.iter().enumerate() {
        let path = format!("documents[{index}]");
        let Value::Object(entries) = document else { return Err(unexpected(&path, document, "an object of texts")) };
        if let Some((key, value)) = entries.iter().find(|(_, value)| !value.is_string()) {
            return Err(unexpected(&format!("{path}.{key}"), value, "a string"));
        }
    }
    Ok(Some(documents.to_vec()))
}

fn template_arguments(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let Some(given) = fields.object(NAME)? else { return Ok(Map::new()) };
    let mut arguments = Map::new();
    for (name, value) in given.entries() {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let is_name = starts_well
            && name.len() <= MAX_ARGUMENT_NAME
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || RESERVED_ARGUMENTS.contains(&name.as_str()) {
            let message = format!(
                "`{NAME}` has the key {}; expected names of letters, digits and `_` that the server does not set itself.",
                quote(name)
            );
            return Err(ApiError::invalid(NAME, &message));
        }
        let is_plain = match value {
            Value::String(text) => text.len() <= MAX_ARGUMENT_TEXT,
            Value::Null | Value::Bool(_) | Value::Number(_) => true,
            Value::Array(_) | Value::Object(_) => false,
        };
        if !is_plain {
            let expected = format!("a boolean, a number, null or a string of at most {MAX_ARGUMENT_TEXT} bytes");
            return Err(unexpected(&given.path(name), value, &expected));
        }
        arguments.insert(name.clone(), value.clone());
    }
    if arguments.len() > MAX_ARGUMENTS {
        return Err(fields.error(NAME, &format!("an object with at most {MAX_ARGUMENTS} keys")));
    }
    Ok(arguments)
}
