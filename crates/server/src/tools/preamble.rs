//! Telling a model of tools whose chat template knows none.

use serde_json::{Value, json};

use super::ToolFormat;
use crate::protocol::chat::ToolDefinition;

/// Puts a description of the tools, and of how to call them in `format`, into the system message: before its text, or into
/// a new one at the front. Only for templates that do not take `tools` themselves.
///
/// ```
/// use allotrope_server::protocol::chat::ToolDefinition;
/// use allotrope_server::tools::{ToolFormat, describe_in_messages};
/// use serde_json::json;
///
/// let tools = [ToolDefinition { name: "clock".into(), description: None, parameters: None }];
/// let mut messages = vec![json!({"role": "user", "content": "What time is it?"})];
/// describe_in_messages(&mut messages, &tools, ToolFormat::Hermes);
/// assert_eq!(messages[0]["role"], "system");
/// assert!(messages[0]["content"].as_str().is_some_and(|text| text.contains("\"clock\"")));
/// ```
pub fn describe_in_messages(messages: &mut Vec<Value>, tools: &[ToolDefinition], format: ToolFormat) {
    if tools.is_empty() {
        return;
    }
    let text = description(tools, format);
    match messages.first_mut() {
        Some(first) if first.get("role").is_some_and(|role| role == "system") => {
            let own = first.get("content").and_then(Value::as_str).unwrap_or_default();
            first["content"] = if own.is_empty() { Value::from(text) } else { Value::from(format!("{text}\n\n{own}")) };
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

fn description(tools: &[ToolDefinition], format: ToolFormat) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool.to_value().to_string()).collect();
    let how = match format {
        ToolFormat::Llama3Json => {
            "To call a function, answer with nothing but a JSON object of this form:\n{\"name\": \"NAME\", \"parameters\": {\"ARGUMENT\": VALUE}}"
        }
        ToolFormat::Hermes => {
            "To call a function, write a JSON object in tags, in this form:\n<tool_call>\n{\"name\": \"NAME\", \"arguments\": {\"ARGUMENT\": VALUE}}\n</tool_call>"
        }
    };
    format!(
        "You can call these functions, each given as JSON with a schema of its arguments:\n{}\n\n{how}\nAnswer in plain text if no function is needed.",
        list.join("\n")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_description_stands_before_the_system_message_or_becomes_one() {
        let tools = [ToolDefinition { name: "f".into(), description: Some("Does \"it\".".into()), parameters: None }];
        let user = json!({"role": "user", "content": "Hi"});
        for format in [ToolFormat::Hermes, ToolFormat::Llama3Json] {
            let mut messages = vec![json!({"role": "system", "content": "Be brief."}), user.clone()];
            describe_in_messages(&mut messages, &tools, format);
            let text = messages[0]["content"].as_str().unwrap();
            assert!(text.contains(&tools[0].to_value().to_string()) && text.ends_with("\n\nBe brief."), "{text}");
            assert_eq!(messages.len(), 2);
            let mut messages = vec![user.clone()];
            describe_in_messages(&mut messages, &tools, format);
            assert_eq!((messages.len(), &messages[1]), (2, &user));
        }
        let mut messages = vec![user.clone()];
        describe_in_messages(&mut messages, &[], ToolFormat::Hermes);
        assert_eq!(messages, [user]);
    }
}
