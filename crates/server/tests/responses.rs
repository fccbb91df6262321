//! The JSON of answers, field by field, as clients of the OpenAI interface expect it.

#![allow(clippy::unwrap_used)]

use allotrope_engine::StopReason;
use allotrope_server::protocol::response::*;
use allotrope_server::protocol::{identifiers, sse};
use allotrope_server::tools::ParsedAnswer;
use serde::Serialize;
use serde_json::{Value, json, to_value};

fn check(found: &impl Serialize, expected: &Value) {
    assert_eq!(&to_value(found).unwrap(), expected);
}

#[test]
fn completions_and_their_chunks() {
    let choice = CompletionChoice {
        index: 3,
        text: "a".to_owned(),
        finish_reason: Some(allotrope_engine::FinishReason::Length.into()),
        stop_reason: Some(StopReason::Token(7)),
        ..CompletionChoice::default()
    };
    let response = CompletionResponse::new("cmpl-1", 5, "tiny", vec![choice], Some(Usage::new(2, 3, None)));
    check(
        &response,
        &json!({
            "id": "cmpl-1", "object": "text_completion", "created": 5, "model": "tiny",
            "choices": [{"index": 3, "text": "a", "logprobs": null, "finish_reason": "length", "stop_reason": 7}],
            "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3},
        }),
    );
    let last = CompletionResponse::new("cmpl-1", 5, "tiny", vec![], Some(Usage::new(2, 3, Some(1))));
    let expected = json!({
        "id": "cmpl-1", "object": "text_completion", "created": 5, "model": "tiny", "choices": [],
        "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    });
    check(&last, &expected);
    let text = sse::event(&last).unwrap();
    let data = text.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(data).unwrap(), expected);
}

#[test]
fn chats_with_and_without_calls() {
    let call = ToolCall::new("call_1".to_owned(), "f".to_owned(), "{}".to_owned());
    let message = ParsedAnswer { content: None, calls: vec![call] }.into_message("assistant");
    let choice = ChatChoice {
        index: 0,
        message,
        logprobs: None,
        finish_reason: Some(FinishReason::ToolCalls),
        stop_reason: Some(StopReason::String("x".to_owned())),
        token_ids: Some(vec![1]),
    };
    let response = ChatCompletionResponse::new("chatcmpl-1", 5, "tiny", vec![choice], Usage::new(1, 1, None));
    check(
        &response,
        &json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "tiny",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ]},
                "logprobs": null, "finish_reason": "tool_calls", "stop_reason": "x", "token_ids": [1],
            }],
            "usage": {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1},
        }),
    );
    let message = ParsedAnswer { content: Some("Hi".to_owned()), calls: vec![] }.into_message("critic");
    check(&message, &json!({"role": "critic", "content": "Hi"}));
}

#[test]
fn chunks_of_chats_say_only_what_is_new() {
    let chunk = |delta: ChatDelta, finish_reason| {
        let choice = ChatChunkChoice { delta, finish_reason, ..ChatChunkChoice::default() };
        to_value(ChatCompletionChunk::new("chatcmpl-1", 5, "tiny", vec![choice], None)).unwrap()
    };
    let first = chunk(ChatDelta::opening("assistant"), None);
    assert_eq!(
        first,
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "tiny",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}],
        })
    );
    assert_eq!(chunk(ChatDelta::text("Hi".to_owned()), None)["choices"][0]["delta"], json!({"content": "Hi"}));
    let last = chunk(ChatDelta::default(), Some(FinishReason::Stop));
    assert_eq!((&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
    let usage = ChatCompletionChunk::new("chatcmpl-1", 5, "tiny", vec![], Some(Usage::new(1, 2, None)));
    let usage = to_value(usage).unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(3)));
}

#[test]
fn models_and_tokens() {
    check(
        &ModelList::new(&["tiny".to_owned()], "org/tiny", 5, 64),
        &json!({"object": "list", "data": [{
            "id": "tiny", "object": "model", "created": 5, "owned_by": "allotrope", "root": "org/tiny", "parent": null,
            "max_model_len": 64, "permission": [],
        }]}),
    );
    check(
        &TokenizeResponse::new(vec![1, 2], None, 64),
        &json!({"count": 2, "max_model_len": 64, "tokens": [1, 2], "token_strs": null}),
    );
    check(
        &TokenizeResponse::new(vec![1], Some(vec!["a".to_owned()]), 64),
        &json!({"count": 1, "max_model_len": 64, "tokens": [1], "token_strs": ["a"]}),
    );
    check(&DetokenizeResponse { prompt: "a".to_owned() }, &json!({"prompt": "a"}));
    assert_ne!(identifiers::completion_id(), identifiers::completion_id());
}
