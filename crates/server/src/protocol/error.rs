//! The error of the HTTP interface, and its JSON form.
//!
//! Messages may quote what a client sent, so they are bounded and free of control characters whatever came in: an
//! answer to a bad request has at most 16 kB.

use std::time::Duration;

use allotrope_engine::SamplingError;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Longest message, in bytes. Escaping at most doubles it.
const MAX_MESSAGE: usize = 4096;
/// Longest name of a parameter, in bytes.
const MAX_PARAM: usize = 256;
/// Longest piece of a client's text that a message quotes, in characters.
const MAX_QUOTED: usize = 200;

/// Why a request was not answered. Serializes as `{"error": {"message", "type", "param", "code"}}`.
///
/// ```
/// use allotrope_server::protocol::ApiError;
///
/// let error = ApiError::invalid("top_p", "`top_p` is 2; expected a number above 0 and at most 1");
/// assert_eq!(
///     error.to_json(),
///     r#"{"error":{"message":"`top_p` is 2; expected a number above 0 and at most 1","type":"BadRequestError","param":"top_p","code":400}}"#,
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: u16,
    kind: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: &str, param: Option<&str>) -> Self {
        ApiError {
            status,
            kind,
            message: scrub(message, MAX_MESSAGE),
            param: param.map(|param| scrub(param, MAX_PARAM)),
            retry_after: None,
        }
    }

    /// 400: the body is no JSON object that can be read.
    pub fn malformed_body(message: &str) -> Self {
        Self::new(400, "Bad Request", message, None)
    }

    /// 400: the request as a whole makes no sense.
    pub fn bad_request(message: &str) -> Self {
        Self::new(400, "BadRequestError", message, None)
    }

    /// 400: one field is wrong; `param` names it, dotted where it is nested.
    pub fn invalid(param: &str, message: &str) -> Self {
        Self::new(400, "BadRequestError", message, Some(param))
    }

    /// 400: a prompt that leaves no room for an answer. Clients look for the words "maximum context length".
    pub fn prompt_too_long(prompt_tokens: usize, max_model_len: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens, but the prompt has {prompt_tokens} tokens and an answer needs at least one more. Shorten the prompt or set `truncate_prompt_tokens`."
        );
        Self::invalid("input_tokens", &message)
    }

    /// 400: a text that is too long whatever tokens it has, found before it was tokenized.
    pub fn text_too_long(bytes: usize, max_bytes: usize, max_model_len: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens, for which text of {max_bytes} bytes is accepted, but the prompt has {bytes} bytes. Shorten the prompt."
        );
        Self::invalid("input_tokens", &message)
    }

    /// 401: no key, or the wrong one. The message says nothing about the key that was sent.
    pub fn unauthorized() -> Self {
        let message = "The API key is missing or wrong. Send `Authorization: Bearer KEY` with the key of this server.";
        Self::new(401, "AuthenticationError", message, None)
    }

    /// 404: a model that this server does not have.
    pub fn model_not_found(model: &str) -> Self {
        let message =
            format!("The model {} does not exist. GET /v1/models lists the models of this server.", quote(model));
        Self::new(404, "NotFoundError", &message, Some("model"))
    }

    /// 404: no such route.
    pub fn route_not_found(path: &str) -> Self {
        Self::new(404, "NotFoundError", &format!("There is no route {}.", quote(path)), None)
    }

    /// 405: a route that exists, asked with another method; `allowed` as in the `Allow` header.
    pub fn method_not_allowed(method: &str, allowed: &str) -> Self {
        let message = format!("This route does not accept {}; it accepts {allowed}.", quote(method));
        Self::new(405, "MethodNotAllowedError", &message, None)
    }

    /// 408: the client took too long to send its request.
    pub fn request_timeout() -> Self {
        Self::new(408, "RequestTimeoutError", "The request did not arrive in time. Send it again.", None)
    }

    /// 413: a body above the server's limit.
    pub fn payload_too_large(max_bytes: usize) -> Self {
        let message =
            format!("The body is larger than {max_bytes} bytes. Send less, or raise the limit of this server.");
        Self::new(413, "PayloadTooLargeError", &message, None)
    }

    /// 415: the body is said to be something else than JSON.
    pub fn unsupported_media_type(found: &str) -> Self {
        let message = format!("The content type is {}; expected application/json.", quote(found));
        Self::new(415, "UnsupportedMediaTypeError", &message, None)
    }

    /// 431: more or larger headers than the server reads.
    pub fn headers_too_large() -> Self {
        Self::new(431, "HeadersTooLargeError", "The request's headers are too many or too large.", None)
    }

    /// 422: the request can be read and its content cannot be used.
    pub fn unprocessable(param: &str, message: &str) -> Self {
        Self::new(422, "UnprocessableEntityError", message, Some(param))
    }

    /// 500: this server's fault. The message is fixed, because the cause may name addresses, paths or other requests:
    /// it belongs into the log.
    pub fn internal() -> Self {
        Self::new(500, "InternalServerError", "The server failed to answer this request; its log says why.", None)
    }

    /// 501: something that this server does not do.
    pub fn not_implemented(message: &str) -> Self {
        Self::new(501, "NotImplementedError", message, None)
    }

    /// 503: too many requests wait, or the server does not take requests now; try again after `retry_after` seconds.
    pub fn overloaded(retry_after: u64) -> Self {
        let message = "The server has no room for this request now. Try again later.";
        Self { retry_after: Some(retry_after), ..Self::new(503, "ServiceUnavailableError", message, None) }
    }

    /// 503: the engine is not there (still loading, draining or dead); `reason` in a few fixed words.
    pub fn unavailable(reason: &'static str, retry_after: Option<u64>) -> Self {
        Self {
            retry_after,
            ..Self::new(503, "ServiceUnavailableError", &format!("The server is not ready: {reason}."), None)
        }
    }

    /// 503: the answer took longer than `limit`, which the server allows for one. Asking the same again takes as long.
    pub fn answer_too_slow(limit: Duration) -> Self {
        let message = format!(
            "The answer was not finished within {limit:?}, which is the longest that this server allows for one (--request-timeout). Ask for fewer tokens, or raise the limit of this server."
        );
        Self::new(503, "ServiceUnavailableError", &message, None)
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The `type` of the body.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// What was wrong and what to do, without control characters.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The field that is wrong, if one is.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// Seconds for the header `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// The body, at most 16 kB.
    pub fn to_json(&self) -> String {
        // Strings, integers and fixed keys always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            message: &'a str,
            r#type: &'static str,
            param: Option<&'a str>,
            code: u16,
        }
        let mut outer = serializer.serialize_struct("ApiError", 1)?;
        let param = self.param.as_deref();
        outer
            .serialize_field("error", &Body { message: &self.message, r#type: self.kind, param, code: self.status })?;
        outer.end()
    }
}

impl From<SamplingError> for ApiError {
    /// A parameter out of range is the client's fault; whatever else goes wrong while sampling is the model's or ours.
    fn from(error: SamplingError) -> Self {
        match &error {
            SamplingError::Parameter { name, .. } => Self::invalid(name, &error.to_string()),
            _ => Self::internal(),
        }
    }
}

/// A client's text as a message quotes it: in quotes, escaped, and shortened.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A text for the log: with an escape in place of each character that could confuse a terminal or look like another line, and all
/// others, quotes among them, as they are.
pub(crate) fn for_log(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_unsafe(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// Whether a character could confuse a terminal or a log: control characters, line separators, and those that turn the
/// direction of writing.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` in at most `max_bytes`, with a mark in place of each character that is unsafe to show.
fn scrub(text: &str, max_bytes: usize) -> String {
    const ELLIPSIS: char = '…';
    let mut clean = String::with_capacity(text.len().min(max_bytes));
    for character in text.chars() {
        let character = if is_unsafe(character) { char::REPLACEMENT_CHARACTER } else { character };
        if clean.len() + character.len_utf8() + ELLIPSIS.len_utf8() > max_bytes {
            clean.push(ELLIPSIS);
            break;
        }
        clean.push(character);
    }
    clean
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn every_error_has_the_same_shape_and_its_status_as_code() {
        let errors = [
            (ApiError::malformed_body("m"), 400, "Bad Request"),
            (ApiError::bad_request("m"), 400, "BadRequestError"),
            (ApiError::invalid("n", "m"), 400, "BadRequestError"),
            (ApiError::prompt_too_long(9, 8), 400, "BadRequestError"),
            (ApiError::unauthorized(), 401, "AuthenticationError"),
            (ApiError::model_not_found("x"), 404, "NotFoundError"),
            (ApiError::route_not_found("/x"), 404, "NotFoundError"),
            (ApiError::method_not_allowed("GET", "POST"), 405, "MethodNotAllowedError"),
            (ApiError::request_timeout(), 408, "RequestTimeoutError"),
            (ApiError::payload_too_large(1), 413, "PayloadTooLargeError"),
            (ApiError::unsupported_media_type("text/plain"), 415, "UnsupportedMediaTypeError"),
            (ApiError::unprocessable("p", "m"), 422, "UnprocessableEntityError"),
            (ApiError::headers_too_large(), 431, "HeadersTooLargeError"),
            (ApiError::internal(), 500, "InternalServerError"),
            (ApiError::not_implemented("m"), 501, "NotImplementedError"),
            (ApiError::overloaded(1), 503, "ServiceUnavailableError"),
            (ApiError::unavailable("it is loading", None), 503, "ServiceUnavailableError"),
            (ApiError::answer_too_slow(Duration::from_secs(9)), 503, "ServiceUnavailableError"),
        ];
        for (error, status, kind) in errors {
            let body: Value = serde_json::from_str(&error.to_json()).unwrap();
            let error_object = body["error"].as_object().unwrap();
            let keys: Vec<&str> = error_object.keys().map(String::as_str).collect();
            assert_eq!(keys, ["message", "type", "param", "code"]);
            assert_eq!((error.status(), &body["error"]["code"]), (status, &Value::from(status)));
            assert_eq!(body["error"]["type"], kind);
        }
    }

    #[test]
    fn a_long_prompt_is_told_in_the_words_that_clients_look_for() {
        let error = ApiError::prompt_too_long(5000, 4096);
        assert!(error.message().contains("maximum context length is 4096 tokens"));
        assert_eq!(error.param(), Some("input_tokens"));
    }

    #[test]
    fn a_sampling_parameter_names_its_field_and_a_fault_of_the_model_tells_nothing() {
        let wrong = allotrope_engine::SamplingParams { top_p: 0.0, ..Default::default() };
        let error = ApiError::from(wrong.validate().unwrap_err());
        assert_eq!((error.status(), error.param()), (400, Some("top_p")));
        let error = ApiError::from(SamplingError::Logit { token: 77, value: f32::NAN });
        assert_eq!((error.status(), error.message().contains("77")), (500, false));
    }

    #[test]
    fn log_injection_and_amplification_end_here() {
        let error = ApiError::model_not_found("a\r\n\u{1b}[31mFAKE\u{202e}\u{2028}");
        assert!(!error.message().chars().any(|character| character.is_control() || character == '\u{202e}'));
        let error = ApiError::invalid(&"\\\"".repeat(1 << 20), &"\u{1}\"\\".repeat(1 << 20));
        assert!(error.to_json().len() <= 16 << 10, "{}", error.to_json().len());
    }

    #[test]
    fn a_text_in_the_log_stays_readable_and_on_its_line() {
        assert_eq!(for_log("can't read \"é\\\""), "can't read \"é\\\"");
        assert_eq!(for_log("a\r\nINFO b\u{1b}[31m\u{202e}\u{2028}"), "a\\r\\nINFO b\\u{1b}[31m\\u{202e}\\u{2028}");
    }

    proptest! {
        #[test]
        fn any_text_gives_a_small_body_of_valid_json(message in ".*", param in "\\PC*", model in any::<String>()) {
            for error in [ApiError::invalid(&param, &message.repeat(50)), ApiError::model_not_found(&model)] {
                let body = error.to_json();
                prop_assert!(body.len() <= 16 << 10);
                prop_assert!(serde_json::from_str::<Value>(&body).is_ok());
            }
        }
    }
}
