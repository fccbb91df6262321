//! `/v1/completions`: whole and streamed answers.

use allotrope_engine::{FinishReason, LogprobCount};
use allotrope_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::engine::{self, Step, says, says_all, script, tokens};
use crate::support::{TestServer, config, text_model};

fn texts(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn a_whole_answer_has_text_reason_and_usage() {
    let server = TestServer::with(config(), script(says(" city lives all")));
    let reply = server.post("/v1/completions", &json!({"model": "tiny", "prompt": "The", "temperature": 0})).json();
    let prompt = text_model().tokenizer().encode("The", true).unwrap().len();
    let answer = tokens(" city lives all").len();
    assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!("tiny")));
    assert_eq!(
        reply["choices"],
        json!([{"index": 0, "text": " city lives all", "logprobs": null, "finish_reason": "length", "stop_reason": null}])
    );
    let usage = json!({"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer});
    assert_eq!(reply["usage"], usage);
    let request = &server.engine.requests()[0];
    assert_eq!((request.max_tokens, request.params.temperature), (16, 0.0));
}

#[test]
fn a_small_stream_byte_for_byte() {
    let server = TestServer::with(config(), script(says_all(" city lives")));
    let body = json!({"prompt": "The", "stream": true, "stream_options": {"include_usage": true}});
    let reply = server.post("/v1/completions", &body);
    let first: Value =
        serde_json::from_str(reply.body.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    let head = format!(
        "{{\"id\":{},\"object\":\"text_completion\",\"created\":{},\"model\":\"tiny\",\"choices\":",
        first["id"], first["created"]
    );
    let choice = |text: &str, reason: &str| {
        format!(
            "data: {head}[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":{reason},\"stop_reason\":null}}]}}\n\n"
        )
    };
    let prompt = text_model().tokenizer().encode("The", true).unwrap().len();
    let parts = tokens(" city lives").len();
    assert_eq!(parts, 2);
    let expected = [
        choice(" city", "null"),
        choice(" lives", "null"),
        choice("", "\"stop\""),
        format!(
            "data: {head}[],\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":3}}}}\n\n",
            prompt + 3
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(reply.body, expected.concat());
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
}

#[test]
fn prompts_times_answers_are_numbered_by_prompt_then_sample() {
    let server = TestServer::with(
        config(),
        std::sync::Arc::new(|request| says(if request.prompt.len() > 4 { " city lives" } else { " tree" })),
    );
    let long = tokens("The city lives by the river");
    assert!(long.len() > 4);
    let body = json!({"prompt": [[10, 11], long], "n": 2, "temperature": 1, "seed": 7, "max_tokens": 4});
    let reply = server.post("/v1/completions", &body).json();
    let found: Vec<_> = reply["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].clone(), choice["text"].clone()))
        .collect();
    let expected = [(0, " tree"), (1, " tree"), (2, " city lives"), (3, " city lives")];
    assert_eq!(found, expected.map(|(index, text)| (json!(index), json!(text))));
    assert_eq!(reply["usage"]["prompt_tokens"], 2 + long.len());
    let mut seeds: Vec<_> = server.engine.requests().iter().map(|request| Some(request.seed)).collect();
    seeds.sort();
    assert_eq!(seeds, [Some(7), Some(7), Some(8), Some(8)]);

    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = server.post("/v1/completions", &streamed).events();
    for (index, text) in expected {
        assert_eq!(texts(&events, index), text);
        let ends = events
            .iter()
            .filter(|event| event["choices"][0]["index"] == index && event["choices"][0]["finish_reason"] == "length");
        assert_eq!(ends.count(), 1);
    }
}

#[test]
fn echo_with_probabilities_of_token_prompts_as_evaluations_ask() {
    let server = TestServer::with(config(), script(says(" city")));
    let prompts = [tokens("The tree"), tokens("all long")];
    let body = json!({"prompt": prompts, "echo": true, "max_tokens": 1, "logprobs": 1, "temperature": 0});
    let reply = server.post("/v1/completions", &body).json();
    for (index, (prompt, text)) in prompts.iter().zip(["The tree", "all long"]).enumerate() {
        let choice = &reply["choices"][index];
        assert_eq!(choice["text"], format!("{text} city"));
        let logprobs = &choice["logprobs"];
        let expected: Vec<Value> = std::iter::once(Value::Null).chain((0..prompt.len()).map(|_| json!(-0.5))).collect();
        assert_eq!(logprobs["token_logprobs"], json!(expected));
        let pieces: Vec<&str> =
            logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
        assert_eq!(pieces.concat(), format!("{text} city"));
        let mut offset = 0;
        for (piece, found) in pieces.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
            assert_eq!(*found, offset);
            offset += piece.chars().count();
        }
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][1], json!({pieces[1]: -0.5}));
    }
    let asked = &server.engine.requests()[0].params;
    assert_eq!((asked.logprobs, asked.prompt_logprobs), (Some(LogprobCount::Top(1)), Some(LogprobCount::Top(1))));
}

#[test]
fn probabilities_of_a_prompt_are_told_beside_its_echo_each_as_many_as_asked_for() {
    let server = TestServer::with(config(), script(says(" city")));
    for (logprobs, prompt_logprobs, engine) in [(json!(1), 5, 5), (json!(4), 2, 4), (Value::Null, 3, 3)] {
        let body =
            json!({"prompt": [8, 9, 10], "echo": true, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs});
        let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
        let prompt = choice["prompt_logprobs"].as_array().unwrap();
        assert_eq!((prompt.len(), &prompt[0]), (3, &Value::Null));
        assert_eq!(prompt[1].as_object().unwrap().len(), prompt_logprobs, "{choice}");
        let top = &choice["logprobs"]["top_logprobs"];
        match logprobs.as_u64() {
            Some(count) => {
                let counts: Vec<usize> =
                    top.as_array().unwrap()[1..].iter().map(|top| top.as_object().unwrap().len()).collect();
                assert_eq!(counts, vec![count as usize; 3], "two of the prompt and one of the answer: {choice}");
            }
            None => assert_eq!(choice["logprobs"], Value::Null),
        }
        let asked = server.engine.requests().pop().unwrap().params.prompt_logprobs;
        assert_eq!(asked, Some(LogprobCount::Top(engine)));
    }
}

#[test]
fn only_the_prompt_is_echoed_where_no_token_is_wanted() {
    let server = TestServer::with(config(), script(says(" city")));
    let body = json!({"prompt": "The tree", "echo": true, "max_tokens": 0, "logprobs": 0});
    let reply = server.post("/v1/completions", &body).json();
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("The tree"), &json!("length")));
    assert_eq!(choice["logprobs"]["token_logprobs"][0], Value::Null);
    assert_eq!(reply["usage"]["completion_tokens"], 0);
}

#[test]
fn an_echoed_stream_begins_with_the_prompt_and_offsets_go_on() {
    let server = TestServer::with(config(), script(says(" city lives")));
    let body = json!({"prompt": "The tree", "echo": true, "logprobs": 2, "stream": true});
    let events = server.post("/v1/completions", &body).events();
    assert_eq!(events[0]["choices"][0]["text"], "The tree city");
    assert_eq!(texts(&events, 0), "The tree city lives");
    let mut offsets = Vec::new();
    let mut pieces = Vec::new();
    for event in &events {
        let logprobs = &event["choices"][0]["logprobs"];
        offsets.extend(logprobs["text_offset"].as_array().unwrap().clone());
        pieces.extend(logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap().to_owned()));
    }
    let mut expected = 0;
    for (offset, piece) in offsets.iter().zip(&pieces) {
        assert_eq!(*offset, expected);
        expected += piece.chars().count();
    }
}

#[test]
fn characters_that_several_tokens_share_come_whole() {
    let text = "a😀本é";
    let steps = says_all(text);
    assert!(steps.len() > 6, "the small vocabulary spells these bytes one by one");
    let server = TestServer::with(config(), script(steps));
    let whole = server.post("/v1/completions", &json!({"prompt": "The"})).json();
    assert_eq!(whole["choices"][0]["text"], text);
    let events = server.post("/v1/completions", &json!({"prompt": "The", "stream": true})).events();
    assert_eq!(texts(&events, 0), text);
    assert!(events.iter().all(|event| !event["choices"][0]["text"].as_str().unwrap().contains('\u{fffd}')));

    let mut broken: Vec<Step> = tokens("😀").into_iter().map(Step::Token).collect();
    broken.truncate(2);
    broken.push(Step::Last(engine::END, FinishReason::Stop));
    let server = TestServer::with(config(), script(broken));
    let whole = server.post("/v1/completions", &json!({"prompt": "The"})).json();
    let events = server.post("/v1/completions", &json!({"prompt": "The", "stream": true})).events();
    assert_eq!(whole["choices"][0]["text"], texts(&events, 0), "what is missing is told alike");
    assert!(texts(&events, 0).contains('\u{fffd}'));
}

#[test]
fn a_stop_string_over_several_tokens_is_cut_exactly_and_ends_the_request() {
    let mut steps: Vec<Step> = tokens("The city lives all long").into_iter().map(Step::Token).collect();
    steps.push(Step::Hang);
    let server = TestServer::with(config(), script(steps));
    for stream in [false, true] {
        let body = json!({"prompt": "city lives", "stop": ["y lives al"], "echo": true, "stream": stream});
        let reply = server.post("/v1/completions", &body);
        let (text, last) = if stream {
            let events = reply.events();
            (texts(&events, 0), events.last().unwrap()["choices"][0].clone())
        } else {
            let choice = reply.json()["choices"][0].clone();
            (choice["text"].as_str().unwrap().to_owned(), choice)
        };
        assert_eq!(text, "city livesThe cit", "the prompt's own is no stop string");
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("y lives al")));
    }
    crate::support::until("both requests are cancelled", || server.engine.cancelled() == 2);
}

#[test]
fn chunks_can_hold_several_tokens_and_usage_all_along() {
    let config =
        ServerConfig { stream_interval: 3, prompt_tokens_details: true, force_include_usage: true, ..config() };
    let server = TestServer::with(config, script(says(" city city city city city city city")));
    let body = json!({"prompt": [8, 9, 10, 11], "stream": true, "stream_options": {"continuous_usage_stats": true}});
    let events = server.post("/v1/completions", &body).events();
    let counts: Vec<_> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 4, 7, 7]);
    assert_eq!(events[0]["choices"][0]["text"], " city");
    assert_eq!(events[1]["choices"][0]["text"], " city city city");
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["prompt_tokens_details"]["cached_tokens"]), (&json!([]), &json!(2)));
}

#[test]
fn token_ids_and_probabilities_of_prompts_are_told_if_asked_for() {
    let server = TestServer::with(config(), script(says(" city")));
    let body = json!({"prompt": [8, 9, 10], "prompt_logprobs": 1, "return_token_ids": true});
    let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&json!([8, 9, 10]), &json!(tokens(" city"))));
    let prompt = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((prompt.len(), &prompt[0]), (3, &Value::Null));
    assert_eq!((&prompt[1]["9"]["logprob"], &prompt[1]["9"]["rank"]), (&json!(-0.5), &json!(1)));
}

#[test]
fn a_prompt_must_leave_room_for_a_token() {
    let server = TestServer::start();
    let ask = |length: usize| server.post("/v1/completions", &json!({"prompt": vec![10; length], "max_tokens": 500}));
    assert_eq!(ask(1023).json()["usage"]["completion_tokens"], 1);
    assert_eq!(ask(600).json()["usage"]["completion_tokens"], 424, "clamped");
    for length in [1024, 1025, 5000] {
        let reply = ask(length);
        assert!(reply.error(400).contains("maximum context length is 1024"));
        assert_eq!(reply.json()["error"]["param"], "input_tokens");
    }
    let truncated = json!({"prompt": vec![10; 3000], "truncate_prompt_tokens": 5, "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &truncated).json()["usage"]["prompt_tokens"], 5);
    let long = server.post("/v1/completions", &json!({"prompt": "x".repeat(10_000_000)}));
    assert!(long.error(400).contains("maximum context length"), "refused before it is tokenized");
}

#[test]
fn bad_requests_are_refused_with_their_field() {
    let server = TestServer::start();
    let many = json!(vec!["a"; 1024]);
    for (body, param) in [
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [1024]}), "prompt[0]"),
        (json!({"prompt": "a", "n": 129}), "n"),
        (json!({"prompt": many, "n": 128}), "n"),
        (json!({"prompt": "a", "temperature": 9}), "temperature"),
        (json!({"prompt": "a", "priority": 3}), "priority"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "a", "stream_options": {}}), "stream_options"),
    ] {
        let reply = server.post("/v1/completions", &body);
        reply.error(400);
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.body);
    }
    let unknown = server.post("/v1/completions", &json!({"prompt": "a", "model": "other"}));
    assert!(unknown.error(404).contains("other"));
    for (kind, body) in [("text/plain", "{}"), ("multipart/form-data; boundary=x", "{}")] {
        let request =
            Request::new("POST", "/v1/completions").header(&format!("content-type: {kind}")).body(body.as_bytes());
        request.send(server.address).error(415);
    }
    let zipped = Request::post("/v1/completions", "{}").header("content-encoding: gzip");
    zipped.send(server.address).error(415);
    assert!(server.engine.requests().is_empty());
}

#[test]
fn answers_are_drawn_unless_the_request_or_the_model_says_otherwise() {
    // The model's own settings have `do_sample` false, and name no temperature.
    let server = TestServer::with(config(), script(says(" city")));
    for (body, temperature) in [(json!({"prompt": "a", "n": 2}), 1.0), (json!({"prompt": "a", "temperature": 0}), 0.0)]
    {
        server.post("/v1/completions", &body).json();
        assert_eq!(server.engine.requests().pop().unwrap().params.temperature, temperature);
    }
}

#[test]
fn salts_reach_the_engine_and_so_do_priorities_where_they_count() {
    let server = TestServer::with(ServerConfig { priority_scheduling: true, ..config() }, script(says(" city")));
    server
        .post("/v1/completions", &json!({"prompt": "a", "n": 2, "temperature": 1, "priority": -3, "cache_salt": "s"}))
        .json();
    let requests = server.engine.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!((request.priority, request.cache_salt.as_deref()), (-3, Some("s")));
    }
}

#[test]
fn probabilities_of_a_long_prompt_come_whole() {
    let server = TestServer::with(config(), script(says(" city")));
    let prompt: Vec<u32> = (0..1000).map(|place| 10 + place % 900).collect();
    for echo in [false, true] {
        let mut body = json!({"prompt": prompt, "prompt_logprobs": 20, "logprobs": 20, "echo": echo, "max_tokens": 1});
        let choice = server.post("/v1/completions", &body).json()["choices"][0].clone();
        match echo {
            true => assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 1001),
            false => assert_eq!(choice["prompt_logprobs"].as_array().unwrap().len(), 1000),
        }
        body["stream"] = json!(true);
        if !echo {
            assert!(server.post("/v1/completions", &body).error(400).contains("prompt_logprobs"));
        }
    }
}
