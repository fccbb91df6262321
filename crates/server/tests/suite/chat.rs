//! `/v1/chat/completions`: messages, streams, probabilities and tools.

use allotrope_engine::StructuredOutput;
use allotrope_server::tools::ToolFormat;
use allotrope_server::{Server, ServerConfig};
use serde_json::{Value, json};

use crate::support::engine::{says, says_all, script, tokens};
use crate::support::{TestServer, config, text_model};

fn hello() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

fn content(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

fn clock() -> Value {
    json!([{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}])
}

const CALL: &str = "<tool_call>{\"name\": \"clock\", \"arguments\": {\"zone\": \"UTC\"}}</tool_call>";

fn tools_config() -> ServerConfig {
    ServerConfig { enable_auto_tool_choice: true, tool_parser: Some(ToolFormat::Hermes), ..config() }
}

#[test]
fn a_whole_answer_is_a_message() {
    let server = TestServer::with(config(), script(says_all("It lives")));
    let reply = server.post("/v1/chat/completions", &json!({"messages": hello()})).json();
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply["object"], "chat.completion");
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "It lives"}));
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    let prompt = "<|begin|><|start_header|>user<|end_header|>\nHi<|eot|>\n<|start_header|>assistant<|end_header|>\n";
    let request = &server.engine.requests()[0];
    assert_eq!(*request.prompt, *text_model().tokenizer().encode(prompt, false).unwrap());
    assert_eq!(request.max_tokens, 1024 - request.prompt.len(), "all that fits");
}

#[test]
fn a_small_stream_byte_for_byte() {
    let server = TestServer::with(config(), script(says_all("It lives")));
    let body = json!({"messages": hello(), "stream": true, "stream_options": {"include_usage": true}});
    let reply = server.post("/v1/chat/completions", &body);
    let first: Value =
        serde_json::from_str(reply.body.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    let head = format!(
        "{{\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":\"tiny\",\"choices\":",
        first["id"], first["created"]
    );
    let choice = |delta: &str, reason: &str| {
        format!("data: {head}[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n")
    };
    let prompt = server.engine.requests()[0].prompt.len();
    let expected = [
        choice("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
        choice("{\"content\":\"It\"}", "null"),
        choice("{\"content\":\" lives\"}", "null"),
        choice("{}", "\"stop\""),
        format!(
            "data: {head}[],\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":3}}}}\n\n",
            prompt + 3
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(tokens("It lives").len(), 2);
    assert_eq!(reply.body, expected.concat());
}

#[test]
fn several_answers_open_and_end_each_for_itself() {
    let server = TestServer::with(config(), script(says("It lives")));
    let body = json!({"messages": hello(), "n": 3, "temperature": 1, "stream": true});
    let events = server.post("/v1/chat/completions", &body).events();
    for index in 0..3 {
        assert_eq!(content(&events, index), "It lives");
        let own: Vec<&Value> = events.iter().filter(|event| event["choices"][0]["index"] == index).collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        let ends = own.iter().filter(|event| event["choices"][0]["finish_reason"] == "length").count();
        assert_eq!((ends, &own.last().unwrap()["choices"][0]["finish_reason"]), (1, &json!("length")));
    }
    let ids: std::collections::HashSet<String> = events.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn probabilities_have_tokens_with_bytes() {
    let server = TestServer::with(config(), script(says("It lives")));
    let body = json!({"messages": hello(), "logprobs": true, "top_logprobs": 2});
    let whole = server.post("/v1/chat/completions", &body).json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(
        (&whole[0]["token"], &whole[0]["bytes"], &whole[0]["logprob"]),
        (&json!("It"), &json!(b"It"), &json!(-0.5))
    );
    assert_eq!(whole[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &streamed).events();
    let pieces = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(pieces.cloned().collect::<Vec<_>>(), *whole.as_array().unwrap());

    let half = tokens("😀");
    let server = TestServer::with(config(), script(says("😀")));
    let body = json!({"messages": hello(), "logprobs": true});
    let found = server.post("/v1/chat/completions", &body).json()["choices"][0]["logprobs"]["content"].clone();
    assert!(half.len() > 1, "each token is part of a character");
    let bytes: Vec<u64> = found
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap()))
        .collect();
    assert_eq!(bytes, "😀".bytes().map(u64::from).collect::<Vec<_>>());
}

#[test]
fn calls_are_read_out_of_whole_answers_and_of_streams() {
    let server = TestServer::with(tools_config(), script(says_all(CALL)));
    let body = json!({"messages": hello(), "tools": clock()});
    let choice = server.post("/v1/chat/completions", &body).json()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}));
    let prompt = text_model().tokenizer().decode(&server.engine.requests()[0].prompt, false).unwrap();
    assert!(prompt.contains("\"clock\""), "the template knows no tools, so the model is told: {prompt}");

    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &streamed).events();
    let calls: Vec<&Value> =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!((&calls[0]["function"]["name"], &calls[0]["type"]), (&json!("clock"), &json!("function")));
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    let arguments: String = calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(arguments, "{\"zone\": \"UTC\"}");
    assert_eq!(content(&events, 0), "");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn a_forced_call_constrains_the_answer() {
    let server = TestServer::with(config(), script(says_all("{\"zone\": 1}")));
    let choice = json!({"type": "function", "function": {"name": "clock"}});
    let body = json!({"messages": hello(), "tools": clock(), "tool_choice": choice});
    let reply = server.post("/v1/chat/completions", &body).json();
    let call = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(*call, json!({"name": "clock", "arguments": "{\"zone\": 1}"}));
    assert!(matches!(server.engine.requests()[0].params.structured_output, Some(StructuredOutput::Json(_))));
}

#[test]
fn a_model_calls_by_itself_only_where_the_server_lets_it() {
    let server = TestServer::with(config(), script(says_all(CALL)));
    let reply = server.post("/v1/chat/completions", &json!({"messages": hello(), "tools": clock()}));
    assert!(reply.error(400).contains("automatic tool choice"));
    let body = json!({"messages": hello(), "tools": clock(), "tool_choice": "none"});
    let reply = server.post("/v1/chat/completions", &body).json();
    assert_eq!(reply["choices"][0]["message"]["content"], CALL);
}

#[test]
fn the_server_can_bring_a_template_and_requests_can_where_they_are_trusted() {
    let own = ServerConfig { chat_template: Some("{{ messages[0].content }}!".to_owned()), ..config() };
    let server = TestServer::with(own, script(says("It")));
    server.post("/v1/chat/completions", &json!({"messages": hello()})).json();
    assert_eq!(*server.engine.requests()[0].prompt, *tokens("Hi!"));
    let theirs = json!({"messages": hello(), "chat_template": "{% for i in range(10) %}a{% endfor %}"});
    assert!(server.post("/v1/chat/completions", &theirs).error(400).contains("chat_template"));

    let trusting = ServerConfig { trust_request_chat_template: true, ..config() };
    let server = TestServer::with(trusting, script(says("It")));
    server.post("/v1/chat/completions", &theirs).json();
    assert_eq!(*server.engine.requests()[0].prompt, *tokens("aaaaaaaaaa"));
    let endless = json!({"messages": hello(), "chat_template": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"});
    server.post("/v1/chat/completions", &endless).error(400);
}

#[test]
fn a_template_that_can_not_be_used_ends_the_start() {
    let config = ServerConfig { chat_template: Some("{% if %}".to_owned()), ..config() };
    let (server, llm) = TestServer::without_model(config, script(says("It")), allotrope_engine::QueueLimits::UNLIMITED);
    assert!(server.handle.set_model(llm).unwrap_err().to_string().contains("template"));
    assert!(server.join().unwrap_err().to_string().contains("template"));
    assert!(Server::routes().iter().any(|(path, _)| *path == "/v1/chat/completions"));
}

#[test]
fn a_refused_conversation_is_the_clients_fault_and_names_no_path() {
    let source = "{{ raise_exception('roles must alternate') }}".to_owned();
    let server = TestServer::with(ServerConfig { chat_template: Some(source), ..config() }, script(says("It")));
    let message = server.post("/v1/chat/completions", &json!({"messages": hello()})).error(400);
    assert!(message.contains("roles must alternate") && !message.contains("tiny-chat"), "{message}");
}

#[test]
fn a_message_is_continued_in_its_role() {
    let server = TestServer::with(config(), script(says(" city")));
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "narrator", "content": "The"}]);
    let body = json!({"messages": messages, "continue_final_message": true});
    let reply = server.post("/v1/chat/completions", &body).json();
    assert_eq!(reply["choices"][0]["message"]["role"], "narrator");
    let prompt = text_model().tokenizer().decode(&server.engine.requests()[0].prompt, false).unwrap();
    assert!(prompt.ends_with("narrator<|end_header|>\nThe"), "{prompt}");
}

#[test]
fn pictures_are_refused_and_nothing_is_fetched() {
    let server = TestServer::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let local = format!("http://{}/x.png", listener.local_addr().unwrap());
    for url in
        [local.as_str(), "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "data:image/png;base64,AA=="]
    {
        let part = json!({"type": "image_url", "image_url": {"url": url}});
        let body = json!({"messages": [{"role": "user", "content": [part]}]});
        server.post("/v1/chat/completions", &body).error(400);
    }
    assert!(listener.accept().is_err(), "nobody came");
}

#[test]
fn what_a_template_makes_long_is_refused_before_it_is_tokenized() {
    let server = TestServer::start();
    // Numbers are no text before they are written.
    let parameters = json!({"type": "object", "properties": {"a": {"enum": (0..200_000).collect::<Vec<u32>>()}}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let body = json!({"messages": hello(), "tools": tools, "tool_choice": "none"});
    for path in ["/v1/chat/completions", "/tokenize"] {
        let reply = server.post(path, &body);
        let message = reply.error(400);
        assert!(message.contains("maximum context length") && message.contains("bytes"), "{path}: {message}");
        assert_eq!(reply.json()["error"]["param"], "input_tokens");
    }
    assert!(server.engine.requests().is_empty());
}
