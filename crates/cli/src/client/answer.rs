//! A streamed answer, part by part.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::Value;

use super::ClientError;
use super::error::clean;
use super::events::EventDecoder;

/// The most that is read of one answer, in bytes.
const LARGEST_ANSWER: u64 = 1 << 28;

/// The event after the last part of an answer.
const DONE: &str = "[DONE]";

/// One event of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Text that is to be added to the answer.
    pub(crate) text: String,
    /// Whether it has output of the model: text, or in a completion a token without any. The first chunk of a chat, which
    /// has nothing but the role, is none.
    pub(crate) is_output: bool,
    /// Why the answer ends here.
    pub(crate) finish_reason: Option<String>,
    /// How many tokens it took.
    pub(crate) usage: Option<Usage>,
}

/// Tokens as the server counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
}

/// An answer that is on its way.
#[derive(Debug)]
pub(crate) struct Answer {
    response: reqwest::Response,
    decoder: EventDecoder,
    events: VecDeque<String>,
    received: u64,
    /// Whether a part has said why the answer ends.
    finished: bool,
    ended: bool,
}

impl Answer {
    /// The answer in the body of a response.
    pub(super) fn new(response: reqwest::Response) -> Self {
        Self {
            response,
            decoder: EventDecoder::default(),
            events: VecDeque::new(),
            received: 0,
            finished: false,
            ended: false,
        }
    }

    /// The next part; `None` after the last.
    ///
    /// # Errors
    ///
    /// If the server ends the answer with an error, sends what can't be read, or goes away before the answer is whole.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, ClientError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            if let Some(event) = self.events.pop_front() {
                if event == DONE {
                    self.ended = true;
                    continue;
                }
                let part = parse(&event)?;
                self.finished |= part.finish_reason.is_some();
                return Ok(Some(part));
            }
            let bytes = self.response.chunk().await;
            match bytes.map_err(|error| ClientError::Disconnected(super::reason(error)))? {
                Some(bytes) => {
                    self.received = self.received.saturating_add(bytes.len() as u64);
                    if self.received > LARGEST_ANSWER {
                        let message = format!("the answer is longer than {LARGEST_ANSWER} bytes");
                        return Err(ClientError::Protocol(message));
                    }
                    self.decoder.push(&bytes, &mut self.events)?;
                }
                // Some servers leave the last event out.
                None if self.finished => self.ended = true,
                None => return Err(ClientError::Disconnected("the server closed it".to_owned())),
            }
        }
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// What a reasoning model thinks, under the two names that are in use.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

/// Reads the data of one event.
fn parse(event: &str) -> Result<Part, ClientError> {
    let unreadable = |error: serde_json::Error| {
        ClientError::Protocol(format!("an event is not a chunk of an answer: {error}: {}", clean(event)))
    };
    let value: Value = serde_json::from_str(event).map_err(unreadable)?;
    if let Some(message) = error_message(&value) {
        return Err(ClientError::Server(message));
    }
    let chunk = Chunk::deserialize(value).map_err(unreadable)?;
    let mut part = Part { usage: chunk.usage, ..Part::default() };
    let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(part) };
    part.finish_reason = choice.finish_reason;
    match choice.delta {
        None => {
            part.is_output = choice.text.is_some();
            part.text = choice.text.unwrap_or_default();
        }
        Some(delta) => {
            part.text = delta.content.unwrap_or_default();
            let thought = [delta.reasoning, delta.reasoning_content].into_iter().flatten().any(|text| !text.is_empty());
            part.is_output = thought || !part.text.is_empty();
        }
    }
    Ok(part)
}

/// The message of an error object, if it is one.
pub(super) fn error_message(value: &Value) -> Option<String> {
    let error = match value.get("error") {
        Some(error) if !error.is_null() => error,
        _ if value.get("object").is_some_and(|object| object == "error") => value,
        _ => return None,
    };
    let message = error.get("message").unwrap_or(error);
    Some(clean(&message.as_str().map_or_else(|| message.to_string(), str::to_owned)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn output_is_told_from_what_surrounds_it() {
        let cases = [
            (r#"{"choices":[{"text":"a","finish_reason":null}]}"#, "a", true, None),
            (r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, "", true, Some("length")),
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, "", false, None),
            (r#"{"choices":[{"delta":{"content":"b"}}]}"#, "b", true, None),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, "", true, None),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, "", false, Some("stop")),
            (r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#, "", false, None),
            (r#"{"choices":null,"error":null}"#, "", false, None),
        ];
        for (event, text, is_output, finish_reason) in cases {
            let part = parse(event).unwrap();
            assert_eq!((part.text.as_str(), part.is_output), (text, is_output), "{event}");
            assert_eq!(part.finish_reason.as_deref(), finish_reason, "{event}");
        }
        let usage = parse(cases[6].0).unwrap().usage;
        assert_eq!(usage, Some(Usage { prompt_tokens: 3, completion_tokens: 2 }));
    }

    #[test]
    fn errors_are_found_in_each_form() {
        for event in [
            r#"{"error":{"message":"out of\nmemory","code":500}}"#,
            r#"{"error":"out of memory"}"#,
            r#"{"object":"error","message":"out of memory"}"#,
        ] {
            assert_eq!(parse(event), Err(ClientError::Server("out of memory".to_owned())), "{event}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let deep = "[".repeat(100_000);
        for event in ["", "x", "7", "[]", "{\"choices\":7}", "{\"usage\":{\"prompt_tokens\":-1}}", deep.as_str()] {
            assert!(matches!(parse(event), Err(ClientError::Protocol(_))), "{event}");
        }
    }
}
