//! Server-sent events, as text.

use serde::Serialize;

use super::error::ApiError;

/// The last event of a stream.
pub const DONE: &str = "data: [DONE]\n\n";
/// A comment, which clients skip: sent now and then so that nothing between them and us takes the stream for dead.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// One event with a value as JSON. JSON has no line breaks of its own, so an event is one line.
///
/// # Errors
/// 500 if the value does not serialize, which those of [`super::response`] always do.
pub fn event<T: Serialize>(value: &T) -> Result<String, ApiError> {
    let json = serde_json::to_string(value).map_err(|_| ApiError::internal())?;
    Ok(format!("data: {json}\n\n"))
}

/// The event for an error after the first byte of a stream; [`DONE`] follows it.
pub fn error_event(error: &ApiError) -> String {
    format!("data: {}\n\n", error.to_json())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let text = event(&serde_json::json!({"text": "a\n\ndata: [DONE]\r\n"})).unwrap();
        assert_eq!(text, "data: {\"text\":\"a\\n\\ndata: [DONE]\\r\\n\"}\n\n");
        let text = error_event(&ApiError::internal());
        assert!(text.starts_with("data: {\"error\":{") && text.ends_with("}\n\n"));
    }
}
