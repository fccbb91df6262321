//! Requests as clients send them, good and bad: which are refused, with what status and for which field.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use allotrope_engine::{LogprobCount, SamplingParams, StructuredOutput};
use allotrope_server::protocol::chat::{ChatRequest, ToolChoice};
use allotrope_server::protocol::completion::{CompletionPrompt, CompletionRequest};
use allotrope_server::protocol::tokenize::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
use allotrope_server::protocol::{ApiError, RequestContext};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A vocabulary of 100 and room for 64 tokens.
fn context() -> RequestContext {
    RequestContext {
        model_names: vec!["tiny".to_owned()],
        vocabulary: 100,
        max_model_len: 64,
        max_logprobs: LogprobCount::Top(20),
        defaults: SamplingParams::default(),
        max_prompt_bytes: 1 << 16,
        max_text_bytes: 1 << 18,
        trust_request_chat_template: false,
    }
}

fn body(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn with(mut request: Value, fields: &Value) -> Vec<u8> {
    for (key, value) in fields.as_object().unwrap() {
        request[key] = value.clone();
    }
    body(&request)
}

fn completion(fields: Value) -> Result<CompletionRequest, ApiError> {
    CompletionRequest::parse(&with(json!({"model": "tiny", "prompt": "a"}), &fields), &context())
}

fn chat(fields: Value) -> Result<ChatRequest, ApiError> {
    let request = json!({"messages": [{"role": "user", "content": "Hi"}]});
    ChatRequest::parse(&with(request, &fields), &context())
}

fn check_refused<T: std::fmt::Debug>(result: Result<T, ApiError>, status: u16, param: &str, fields: &Value) {
    let shown: String = fields.to_string().chars().take(200).collect();
    let error = result.expect_err(&shown);
    assert_eq!((error.status(), error.param().unwrap_or("")), (status, param), "{shown}: {error}");
    assert!(error.to_json().len() <= 16 << 10);
    assert!(!error.message().is_empty());
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }))
}

/// Fields that both kinds of request refuse, with the parameter that is named.
fn refused_by_both() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": 1e9}), "n"),
        (json!({"n": "2"}), "n"),
        (json!({"n": true}), "n"),
        (json!({"temperature": "0.5"}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": 1e300}), "temperature"),
        (json!({"temperature": []}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"top_k": 1_u64 << 32}), "top_k"),
        (json!({"min_p": -0.1}), "min_p"),
        (json!({"min_p": 1.1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"repetition_penalty": 1e39}), "repetition_penalty"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": u64::MAX}), "seed"),
        (json!({"seed": "1"}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 65}), "max_tokens"),
        (json!({"max_tokens": "5"}), "max_tokens"),
        (json!({"max_tokens": 1.0}), "max_tokens"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"min_tokens": 65}), "min_tokens"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": [5]}), "stop[0]"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 1000]}), "stop"),
        (json!({"stop_token_ids": [100]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": ["1"]}), "stop_token_ids[0]"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"skip_special_tokens": "true"}), "skip_special_tokens"),
        (json!({"logit_bias": {"100": 1}}), "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"01": 1}}), "logit_bias"),
        (json!({"logit_bias": {"a\u{1b}": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": "1"}}), "logit_bias.1"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [1, 100]}), "allowed_token_ids[1]"),
        (json!({"bad_words": [""]}), "bad_words[0]"),
        (json!({"bad_words": "x"}), "bad_words"),
        (json!({"bad_words": vec!["x"; 12_000]}), "bad_words"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": -2}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 65}), "truncate_prompt_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream_options": {}, "stream": false}), "stream_options"),
        (json!({"stream_options": 1, "stream": true}), "stream_options"),
        (json!({"stream_options": {"include_usage": 1}, "stream": true}), "stream_options.include_usage"),
        (json!({"guided_regex": "a\u{0}"}), "guided_regex"),
        (json!({"guided_regex": ""}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": ["a", ""]}), "guided_choice"),
        (json!({"guided_grammar": " "}), "guided_grammar"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_json": 7}), "guided_json"),
        (json!({"guided_json": nested(65)}), "guided_json"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"structural_tag": "{}"}}), "structured_outputs.structural_tag"),
        (json!({"structured_outputs": {"json": {"enum": ["x".repeat(2 << 20)]}}}), "structured_outputs.json"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {}}), "response_format.type"),
        (json!({"response_format": "json_object"}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"response_format": {"type": "json_object"}, "guided_choice": ["a"]}), "guided_choice"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"priority": "high"}), "priority"),
        (json!({"user": 5}), "user"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"logits_processors": ["os.system"]}), "logits_processors"),
        (json!({"model": 5}), "model"),
    ]
}

#[test]
fn what_both_refuse_is_400_and_names_the_field() {
    for (fields, param) in refused_by_both() {
        check_refused(completion(fields.clone()), 400, param, &fields);
        check_refused(chat(fields.clone()), 400, param, &fields);
    }
    let fields = json!({"model": "other\r\n"});
    check_refused(completion(fields.clone()), 404, "model", &fields);
    check_refused(chat(fields.clone()), 404, "model", &fields);
}

#[test]
fn what_both_accept_is_read() {
    for fields in [
        json!({}),
        json!({"model": null}),
        json!({"best_of": 99, "unknown": {"a": [1]}, "temperature": null, "stop": null, "n": null}),
        json!({"temperature": 0, "top_k": -1, "seed": -1, "min_p": 0, "top_p": 1}),
        json!({"temperature": 2, "seed": i64::MIN, "n": 128}),
        json!({"stop": "\u{0}", "stop_token_ids": [0, 99], "logit_bias": {"0": -1e9, "99": 100}}),
        json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
        json!({"stream": true, "stream_options": null}),
        json!({"response_format": {"type": "text"}, "guided_regex": "(a*)*b"}),
        json!({"structured_outputs": {"json": nested(64)}}),
        json!({"prompt_logprobs": 20, "truncate_prompt_tokens": -1, "max_tokens": 64}),
        json!({"priority": -5, "user": "x\r\n", "cache_salt": "s", "return_token_ids": true}),
    ] {
        assert!(completion(fields.clone()).is_ok(), "{fields}: {:?}", completion(fields.clone()));
        assert!(chat(fields.clone()).is_ok(), "{fields}: {:?}", chat(fields.clone()));
    }
}

#[test]
fn every_parameter_reaches_the_engine() {
    let fields = json!({
        "n": 2, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "seed": 11, "max_tokens": 9, "min_tokens": 3, "stop": "end",
        "include_stop_str_in_output": true, "stop_token_ids": [4], "ignore_eos": true, "prompt_logprobs": 2,
        "logit_bias": {"3": 200, "4": -0.5}, "allowed_token_ids": [3, 4], "bad_words": ["bad"], "skip_special_tokens": false,
        "structured_outputs": {"choice": ["a", "b"]}, "truncate_prompt_tokens": 5,
    });
    let expected = SamplingParams {
        n: 2,
        temperature: 0.5,
        top_p: 0.25,
        top_k: 7,
        min_p: 0.125,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        seed: Some(11),
        max_tokens: Some(9),
        min_tokens: 3,
        stop: vec!["end".to_owned()],
        include_stop_str_in_output: true,
        stop_token_ids: vec![4],
        ignore_eos: true,
        logprobs: None,
        prompt_logprobs: Some(LogprobCount::Top(2)),
        logit_bias: [(3, 100.0), (4, -0.5)].into(),
        allowed_token_ids: Some(vec![3, 4]),
        bad_words: vec!["bad".to_owned()],
        skip_special_tokens: false,
        structured_output: Some(StructuredOutput::Choice(vec!["a".to_owned(), "b".to_owned()])),
        truncate_prompt_tokens: Some(5),
    };
    assert_eq!(completion(fields.clone()).unwrap().options.sampling, expected);
    assert_eq!(chat(fields).unwrap().options.sampling, expected);
}

#[test]
fn the_models_defaults_hold_where_the_request_says_nothing() {
    let defaults = SamplingParams {
        temperature: 0.25,
        top_k: 40,
        max_tokens: Some(30),
        seed: Some(1),
        ..SamplingParams::default()
    };
    let context = RequestContext { defaults, max_logprobs: LogprobCount::All, ..context() };
    let parsed = |fields: Value| {
        let request = json!({"messages": [{"role": "user", "content": "Hi"}]});
        ChatRequest::parse(&with(request, &fields), &context).unwrap().options.sampling
    };
    let sampling = parsed(json!({}));
    assert_eq!((sampling.temperature, sampling.top_k, sampling.max_tokens), (0.25, 40, Some(30)));
    let sampling =
        parsed(json!({"temperature": 1, "top_k": 0, "max_tokens": 3, "max_completion_tokens": 4, "seed": -1}));
    assert_eq!((sampling.temperature, sampling.top_k, sampling.max_tokens), (1.0, 0, Some(4)));
    assert_eq!(sampling.seed, None);
    assert_eq!(parsed(json!({"logprobs": true, "top_logprobs": -1})).logprobs, Some(LogprobCount::All));
    assert_eq!(parsed(json!({"logprobs": true})).logprobs, Some(LogprobCount::Top(0)));
    assert_eq!(parsed(json!({"seed": -7})).seed, Some(u64::MAX - 6));
}

#[test]
fn prompts_have_four_forms_and_none_is_empty() {
    let text = |text: &str| CompletionPrompt::Text(text.to_owned());
    for (prompt, expected) in [
        (json!("a\u{0}"), vec![text("a\u{0}")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 99]), vec![CompletionPrompt::Tokens(vec![1, 99])]),
        (json!([[1], [2, 3]]), vec![CompletionPrompt::Tokens(vec![1]), CompletionPrompt::Tokens(vec![2, 3])]),
        (json!("<|im_end|>"), vec![text("<|im_end|>")]),
    ] {
        let request = completion(json!({ "prompt": prompt })).unwrap();
        assert_eq!(request.prompts, expected);
        assert_eq!(request.options.sampling.max_tokens, Some(16));
        assert!(request.options.add_special_tokens && !request.echo && !request.prompt_only);
    }
    for (prompt, param) in [
        (json!(null), "prompt"),
        (json!(""), "prompt"),
        (json!([]), "prompt"),
        (json!([[]]), "prompt[0]"),
        (json!(["a", ""]), "prompt[1]"),
        (json!([[1], []]), "prompt[1]"),
        (json!({"a": 1}), "prompt"),
        (json!(5), "prompt"),
        (json!([true]), "prompt[0]"),
        (json!(["a", [1]]), "prompt[1]"),
        (json!([[1], "a"]), "prompt[1]"),
        (json!([1, "a"]), "prompt[1]"),
        (json!([1, 100]), "prompt[1]"),
        (json!([-1]), "prompt[0]"),
        (json!([1.0]), "prompt[0]"),
        (json!([1.0e30]), "prompt[0]"),
        (json!([u64::MAX]), "prompt[0]"),
        (json!([[[1]]]), "prompt[0][0]"),
        (json!(vec!["a"; 1025]), "prompt"),
        (json!(vec![1; 65]), "input_tokens"),
        (json!("a".repeat((1 << 16) + 1)), "input_tokens"),
        (json!(vec!["a".repeat(1 << 16); 5]), "prompt"),
    ] {
        let fields = json!({ "prompt": prompt });
        check_refused(completion(fields.clone()), 400, param, &fields);
    }
    let fields = json!({"prompt": vec!["a"; 1024], "n": 128});
    check_refused(completion(fields.clone()), 400, "n", &fields);
    let huge = format!("{{\"prompt\": [{}]}}", "99999999999999999999999");
    check_refused(CompletionRequest::parse(huge.as_bytes(), &context()), 400, "prompt[0]", &json!("2^64 and more"));
    assert!(completion(json!({"prompt": vec![1; 65], "truncate_prompt_tokens": 5})).is_ok());
    assert!(completion(json!({"prompt": vec!["a"; 1024], "n": 4})).is_ok());
}

#[test]
fn scoring_a_prompt_asks_for_the_log_probabilities_of_its_tokens() {
    let request = completion(json!({"prompt": [[1, 2], [3]], "echo": true, "max_tokens": 1, "logprobs": 1})).unwrap();
    assert!(request.echo && !request.prompt_only);
    let sampling = &request.options.sampling;
    assert_eq!((sampling.logprobs, sampling.prompt_logprobs), (Some(LogprobCount::Top(1)), Some(LogprobCount::Top(1))));
    let request = completion(json!({"echo": true, "max_tokens": 0})).unwrap();
    assert_eq!((request.prompt_only, request.options.sampling.max_tokens), (true, Some(1)));
    assert!(completion(json!({"echo": true, "logprobs": 0, "stream": true})).is_ok());
}

#[test]
fn completions_refuse_what_is_theirs_alone() {
    for (fields, param) in [
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"logprobs": -1}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"prompt_embeds": "AAAA"}), "prompt_embeds"),
        (json!({"echo": "true"}), "echo"),
        (json!({"echo": true, "max_tokens": -1}), "max_tokens"),
    ] {
        check_refused(completion(fields.clone()), 400, param, &fields);
    }
    assert!(completion(json!({"suffix": ""})).is_ok() && completion(json!({"suffix": null})).is_ok());
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

#[test]
fn chats_refuse_what_is_theirs_alone() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let call = |call: Value| json!({"messages": [{"role": "assistant", "tool_calls": [call]}]});
    let tools = |fields: Value| {
        let mut all = json!({"tools": [function("f")]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        all
    };
    let named = |name: Value| json!({"tool_choice": {"type": "function", "function": {"name": name}}});
    let many: Vec<Value> = (0..10_000).map(|index| function(&format!("f{index}"))).collect();
    for (fields, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "Hi"}), "messages"),
        (json!({"messages": ["Hi"]}), "messages[0]"),
        (json!({"messages": vec![json!({"role": "user", "content": ""}); 4097]}), "messages"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "", "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "a\r\n", "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "a", "name": 5}]}), "messages[0].name"),
        (user(json!(5)), "messages[0].content"),
        (user(json!({"text": "a"})), "messages[0].content"),
        (user(json!([5])), "messages[0].content[0]"),
        (user(json!([{"text": "a"}])), "messages[0].content[0].type"),
        (user(json!([{"type": "text"}])), "messages[0].content[0].text"),
        (
            user(json!([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}])),
            "messages[0].content[0].type",
        ),
        (
            user(
                json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
            ),
            "messages[0].content[1].type",
        ),
        (user(json!([{"type": "input_audio", "input_audio": {}}])), "messages[0].content[0].type"),
        (user(json!("a".repeat((1 << 16) + 1))), "input_tokens"),
        (call(json!(5)), "messages[0].tool_calls[0]"),
        (call(json!({"function": {}})), "messages[0].tool_calls[0].function.name"),
        (call(json!({"type": "code"})), "messages[0].tool_calls[0].type"),
        (call(json!({"function": {"name": "f", "arguments": "{"}})), "messages[0].tool_calls[0].function.arguments"),
        (call(json!({"function": {"name": "f", "arguments": "[]"}})), "messages[0].tool_calls[0].function.arguments"),
        (call(json!({"function": {"name": "f", "arguments": 5}})), "messages[0].tool_calls[0].function.arguments"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"max_completion_tokens": 65}), "max_completion_tokens"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"tools": {}}), "tools"),
        (json!({"tools": many}), "tools"),
        (json!({"tools": [5]}), "tools[0]"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [function("a b")]}), "tools[0].function.name"),
        (json!({"tools": [function("a\u{7}")]}), "tools[0].function.name"),
        (json!({"tools": [function("")]}), "tools[0].function.name"),
        (json!({"tools": [function(&"a".repeat(65))]}), "tools[0].function.name"),
        (json!({"tools": [function("f"), function("f")]}), "tools[1].function.name"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(57)}}]}),
            "tools[0].function.parameters",
        ),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice"),
        (tools(json!({"tool_choice": "sometimes"})), "tool_choice"),
        (tools(json!({"tool_choice": 5})), "tool_choice"),
        (tools(named(json!("g"))), "tool_choice.function.name"),
        (tools(named(json!(null))), "tool_choice.function.name"),
        (tools(json!({"tool_choice": {"type": "function"}})), "tool_choice.function"),
        (tools(json!({"tool_choice": "required", "response_format": {"type": "json_object"}})), "tool_choice"),
        (tools(json!({"parallel_tool_calls": 1})), "parallel_tool_calls"),
        (json!({"chat_template": "{{ 1 }}"}), "chat_template"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"a": [1]}}), "chat_template_kwargs.a"),
        (json!({"chat_template_kwargs": {"messages": 1}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"chat_template": "x"}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"a b": 1}}), "chat_template_kwargs"),
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        (json!({"documents": ["a"]}), "documents[0]"),
        (json!({"documents": [{"a": 1}]}), "documents[0].a"),
    ] {
        check_refused(chat(fields.clone()), 400, param, &fields);
    }
}

#[test]
fn messages_get_the_form_that_templates_expect() {
    let fields = json!({"messages": [
        {"role": "critic", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "<|im_end|>"}], "name": "n"},
        {"role": "assistant", "content": null, "reasoning_content": "r", "refusal": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"id": "call_2", "function": {"name": "g", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "\u{0}"},
        {"role": "assistant"},
    ]});
    assert_eq!(
        Value::from(chat(fields).unwrap().input.messages),
        json!([
            {"role": "critic", "content": "a\n<|im_end|>", "name": "n"},
            {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": {}}},
            ]},
            {"role": "tool", "content": "\u{0}", "tool_call_id": "call_1"},
            {"role": "assistant", "content": ""},
        ])
    );
}

#[test]
fn tools_are_chosen_and_calls_forced() {
    let with_tools = |fields: Value| {
        let request = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [function("f"), function("g")]});
        ChatRequest::parse(&with(request, &fields), &context()).unwrap()
    };
    let request = with_tools(json!({}));
    assert_eq!((&request.tool_choice, request.parallel_tool_calls), (&ToolChoice::Auto, true));
    assert_eq!((request.input.tool_values().len(), &request.input.tool_values()[0]), (2, &function("f")));
    assert_eq!(request.options.sampling.structured_output, None);
    assert_eq!(with_tools(json!({"tool_choice": "none"})).tool_choice, ToolChoice::None);
    let request = with_tools(json!({"tool_choice": {"type": "function", "function": {"name": "g"}}}));
    assert_eq!(request.tool_choice, ToolChoice::Function("g".to_owned()));
    let schema = StructuredOutput::Json(json!({"type": "object"}));
    assert_eq!(request.options.sampling.structured_output, Some(schema));
    let request = with_tools(json!({"tool_choice": "required", "parallel_tool_calls": false}));
    let Some(StructuredOutput::Json(schema)) = request.options.sampling.structured_output else { panic!() };
    assert_eq!((&schema["type"], &schema["maxItems"]), (&json!("array"), &json!(1)));
    let deepest = json!({"type": "function", "function": {"name": "f", "parameters": nested(56)}});
    assert!(chat(json!({"tools": [deepest], "tool_choice": "required"})).is_ok());
    assert_eq!(chat(json!({"tools": []})).unwrap().tool_choice, ToolChoice::None);
    assert_eq!(chat(json!({"tools": [], "tool_choice": "auto"})).unwrap().tool_choice, ToolChoice::None);
}

#[test]
fn the_template_gets_its_options() {
    let request =
        chat(json!({"continue_final_message": true, "chat_template_kwargs": {"enable_thinking": false}})).unwrap();
    let input = &request.input;
    assert_eq!((input.add_generation_prompt, input.continue_final_message), (false, true));
    assert_eq!((input.response_role(), &input.template_arguments["enable_thinking"]), ("user", &json!(false)));
    let input = chat(json!({"documents": [{"title": "t"}]})).unwrap().input;
    assert_eq!((input.add_generation_prompt, input.continue_final_message), (true, false));
    assert_eq!((input.response_role(), input.documents.clone()), ("assistant", Some(vec![json!({"title": "t"})])));
    let trusting = RequestContext { trust_request_chat_template: true, ..context() };
    let request = json!({"messages": [{"role": "user", "content": "Hi"}], "chat_template": "{{ 1 }}"});
    let request = ChatRequest::parse(&body(&request), &trusting).unwrap();
    assert_eq!(request.input.chat_template.as_deref(), Some("{{ 1 }}"));
}

#[test]
fn tokenizing_takes_a_prompt_or_a_conversation() {
    let tokenize = |value: Value| TokenizeRequest::parse(&body(&value), &context());
    let request = tokenize(json!({"prompt": "", "return_token_strs": true})).unwrap();
    assert_eq!(request.input, TokenizeInput::Prompt(String::new()));
    assert!(request.add_special_tokens && request.return_token_strs);
    let request = tokenize(json!({"messages": [{"role": "user", "content": "Hi"}]})).unwrap();
    assert!(matches!(request.input, TokenizeInput::Chat(_)) && !request.add_special_tokens);
    for (value, status, param) in [
        (json!({}), 400, "prompt"),
        (json!({"prompt": "a", "messages": []}), 400, "prompt"),
        (json!({"prompt": ["a"]}), 400, "prompt"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"prompt": "a", "model": "x"}), 404, "model"),
        (json!({"prompt": "a".repeat((1 << 16) + 1)}), 400, "input_tokens"),
    ] {
        check_refused(tokenize(value.clone()), status, param, &value);
    }
    let detokenize = |value: Value| DetokenizeRequest::parse(&body(&value), &context());
    assert_eq!(detokenize(json!({"tokens": [0, 99]})).unwrap().tokens, [0, 99]);
    assert_eq!(detokenize(json!({"tokens": []})).unwrap().tokens, [0_u32; 0]);
    for (value, param) in [
        (json!({}), "tokens"),
        (json!({"tokens": "a"}), "tokens"),
        (json!({"tokens": [100]}), "tokens[0]"),
        (json!({"tokens": [1, -1]}), "tokens[1]"),
        (json!({"tokens": [1_u64 << 63]}), "tokens[0]"),
    ] {
        check_refused(detokenize(value.clone()), 400, param, &value);
    }
}

#[test]
fn errors_stay_small_however_much_is_wrong() {
    let items: Vec<Value> = (0..12_000).map(|index| json!({"bad": "\u{1b}\"".repeat(20), "index": index})).collect();
    for fields in [
        json!({"messages": items[..4000]}),
        json!({"prompt": items}),
        json!({"model": "x".repeat(1 << 20)}),
        json!({"temperature": "\"".repeat(1 << 20)}),
        json!({"logit_bias": {"k".repeat(1 << 20): 1}}),
        json!({"chat_template_kwargs": {"k".repeat(1 << 20): 1}}),
    ] {
        for error in [completion(fields.clone()).err(), chat(fields.clone()).err()].into_iter().flatten() {
            assert!(error.to_json().len() <= 16 << 10);
            assert!(!error.message().chars().any(char::is_control));
        }
    }
}

/// JSON with the names and values of real requests in wrong places.
fn any_request() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..130_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "assistant",
            "function",
            "text",
            "required",
            "auto",
            "json_schema",
            "f",
            "{}"
        ])
        .prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "model",
        "prompt",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "tools",
        "function",
        "name",
        "parameters",
        "tool_choice",
        "tool_calls",
        "arguments",
        "n",
        "temperature",
        "top_k",
        "seed",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "response_format",
        "json_schema",
        "schema",
        "structured_outputs",
        "json",
        "regex",
        "choice",
        "guided_json",
        "chat_template_kwargs",
        "documents",
        "echo",
        "tokens",
        "allowed_token_ids",
        "truncate_prompt_tokens",
        "5",
        "include_usage",
        "continue_final_message",
    ]);
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_json_is_read_or_refused_and_what_is_read_is_in_range(fields in any_request()) {
        let context = context();
        let defaults = json!({"prompt": "a", "messages": [{"role": "user", "content": "Hi"}]});
        let bodies = [body(&fields), if fields.is_object() { with(defaults, &fields) } else { body(&defaults) }];
        for body in bodies {
            let results = [
                CompletionRequest::parse(&body, &context).map(|request| request.options.sampling),
                ChatRequest::parse(&body, &context).map(|request| request.options.sampling),
                TokenizeRequest::parse(&body, &context).map(|_| SamplingParams::default()),
                DetokenizeRequest::parse(&body, &context).map(|_| SamplingParams::default()),
            ];
            for result in results {
                match result {
                    Ok(sampling) => {
                        prop_assert_eq!(sampling.validate(), Ok(()));
                        prop_assert!((1..=128).contains(&sampling.n));
                        let ids = sampling.stop_token_ids.iter().chain(sampling.allowed_token_ids.iter().flatten());
                        prop_assert!(ids.chain(sampling.logit_bias.keys()).all(|id| *id < 100));
                    }
                    Err(error) => {
                        prop_assert!([400, 404].contains(&error.status()), "{}", error);
                        prop_assert!(error.to_json().len() <= 16 << 10);
                    }
                }
            }
        }
    }
}
