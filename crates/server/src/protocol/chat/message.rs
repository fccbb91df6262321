//! The messages of a conversation, from the many forms that clients send to the one that templates expect.

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::fields::{Fields, unexpected};
use super::super::{MAX_MESSAGES, MAX_TOOLS, json};

/// Longest role, name or id, in bytes.
const MAX_NAME: usize = 256;
/// The most parts of one message.
const MAX_PARTS: usize = 4096;

/// The field `messages`: at least one.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    const EXPECTED: &str = "a list of at least one message";
    let Some(messages) = fields.list("messages", MAX_MESSAGES)? else { return Err(fields.error("messages", EXPECTED)) };
    if messages.is_empty() {
        return Err(fields.error("messages", EXPECTED));
    }
    messages.iter().enumerate().map(|(index, value)| message(value, &format!("messages[{index}]"))).collect()
}

fn message(value: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::of_value(value, path)?;
    let Some(role) = fields.short_string("role", MAX_NAME)? else { return Err(fields.error("role", "a string")) };
    if role.chars().any(char::is_control) {
        return Err(fields.error("role", "a name without control characters"));
    }
    fields.string("name")?;
    fields.string("tool_call_id")?;
    let calls = calls(&fields)?;
    let may_lack_content = calls.is_some() || role == "assistant";
    if !fields.has("content") && !may_lack_content {
        return Err(fields.error("content", "a string or a list of text parts"));
    }
    let mut normal = Map::new();
    normal.insert("role".to_owned(), Value::from(role));
    // Templates treat empty text alike everywhere, but many print a null as a word.
    normal.insert("content".to_owned(), Value::String(content(&fields)?));
    for (key, value) in fields.entries().filter(|(key, value)| !is_normalized(key) && !value.is_null()) {
        normal.insert(key.clone(), value.clone());
    }
    if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
        normal.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(Value::Object(normal))
}

/// Whether a field is not copied as it came.
fn is_normalized(key: &str) -> bool {
    ["role", "content", "tool_calls"].contains(&key)
}

/// The content as one text: parts are put on lines of their own.
fn content(fields: &Fields<'_>) -> Result<String, ApiError> {
    match fields.get("content") {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(_)) => {
            let parts = fields.list("content", MAX_PARTS)?.unwrap_or_default();
            let path = fields.path("content");
            let texts: Result<Vec<&str>, ApiError> =
                parts.iter().enumerate().map(|(index, value)| part(value, &format!("{path}[{index}]"))).collect();
            Ok(texts?.join("\n"))
        }
        Some(value) => Err(unexpected(&fields.path("content"), value, "a string or a list of text parts")),
    }
}

/// The text of one part. Media are refused by their type, before anything looks at where they are.
fn part<'a>(value: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    if let Value::String(text) = value {
        return Ok(text);
    }
    let fields = Fields::of_value(value, path)?;
    let kind = fields.string("type")?;
    let name = match kind {
        Some("text") => "text",
        Some("refusal") => "refusal",
        Some(_) => {
            let message = "a part of type \"text\": this model reads text alone, and nothing is fetched for it";
            return Err(fields.error("type", message));
        }
        None => return Err(fields.error("type", "\"text\"")),
    };
    fields.string(name)?.ok_or_else(|| fields.error(name, "a string"))
}

/// The calls of a message, their arguments as objects; `None` if it has no such field.
fn calls(fields: &Fields<'_>) -> Result<Option<Vec<Value>>, ApiError> {
    let Some(calls) = fields.list("tool_calls", MAX_TOOLS)? else { return Ok(None) };
    let path = fields.path("tool_calls");
    calls
        .iter()
        .enumerate()
        .map(|(index, value)| call(value, &format!("{path}[{index}]")))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn call(value: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::of_value(value, path)?;
    fields.string("id")?;
    if fields.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(fields.error("type", "\"function\""));
    }
    let Some(function) = fields.object("function")? else {
        return Err(fields.error("function", "an object with `name` and `arguments`"));
    };
    let Some(name) = function.short_string("name", MAX_NAME)? else { return Err(function.error("name", "a string")) };
    let arguments = match function.get("arguments") {
        None => Value::Object(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        Some(Value::String(text)) => json::parse(text)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| function.error("arguments", "a JSON object, as text"))?,
        Some(Value::Object(arguments)) => Value::Object(arguments.clone()),
        Some(_) => return Err(function.error("arguments", "a JSON object, as text")),
    };
    let mut normal = Map::new();
    for (key, value) in fields.entries().filter(|(key, value)| *key != "function" && !value.is_null()) {
        normal.insert(key.clone(), value.clone());
    }
    normal.entry("type").or_insert_with(|| Value::from("function"));
    normal.insert("function".to_owned(), serde_json::json!({"name": name, "arguments": arguments}));
    Ok(Value::Object(normal))
}
