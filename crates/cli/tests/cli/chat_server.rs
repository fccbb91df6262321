//! `allotrope chat` with a server.

use serde_json::{Value, json};

use crate::scripted_server::{Reply, ScriptedServer, ending, events, models};
use crate::support::{Run, run, run_with_input, with_model};

/// The pieces of an answer of a chat.
fn answer(parts: &[&str], reason: &str) -> Vec<Vec<u8>> {
    let mut data = vec![json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] })];
    data.extend(parts.iter().map(|part| json!({ "choices": [{ "index": 0, "delta": { "content": part } }] })));
    data.extend(ending(reason, 9, parts.len() as u64));
    let mut pieces = events(&data);
    pieces.push(b"data: [DONE]\n\n".to_vec());
    pieces
}

/// A server that numbers its answers.
fn server() -> ScriptedServer {
    ScriptedServer::start(|request, number| match request.path.as_str() {
        "/v1/models" => models(),
        "/v1/chat/completions" => Reply::Stream(answer(&["answer", &format!(" {number}")], "stop")),
        _ => Reply::Json(404, Value::Null),
    })
}

fn chat(server: &ScriptedServer, more: &[&str], input: &str) -> Run {
    run_with_input(&[&["chat", "--url", &server.url("/v1")], more].concat(), input)
}

#[test]
fn the_history_goes_along_until_it_is_reset() {
    let server = server();
    let run = chat(&server, &["--quiet", "--system-prompt", "be brief", "--seed", "3"], "a\nb\n/reset\nc\n").ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("answer 1\nanswer 2\nanswer 3\n", ""));
    let requests = server.requests();
    let system = json!({ "role": "system", "content": "be brief" });
    let user = |text: &str| json!({ "role": "user", "content": text });
    let first = json!({ "role": "assistant", "content": "answer 1" });
    assert_eq!(requests[0].body["messages"], json!([system, user("a")]));
    assert_eq!(requests[1].body["messages"], json!([system, user("a"), first, user("b")]));
    assert_eq!(requests[2].body["messages"], json!([system, user("c")]));
    assert!(requests.iter().all(|request| request.body["seed"] == 3 && request.body["model"] == "org/tiny"));
}

#[test]
fn quick_sends_one_message() {
    let server = server();
    let more = ["-q", "a", "--model-name", "m", "--stats", "--api-key", "k"];
    let run = chat(&server, &more, "not read\n").ok();
    assert_eq!(run.stdout, "answer 0\n");
    assert!(run.stderr.contains("TTFT") && run.stderr.contains("2 tokens"), "{}", run.stderr);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].authorization.as_deref(), Some("Bearer k"));
}

#[test]
fn an_answer_that_was_cut_off_says_so() {
    let server = ScriptedServer::answering(Reply::Stream(answer(&["a"], "length")));
    let run = chat(&server, &[], "x\n").ok();
    assert!(run.stderr.contains("org/tiny at http://"), "{}", run.stderr);
    assert!(run.stderr.contains("The answer was cut off"), "{}", run.stderr);
}

#[test]
fn a_refused_message_ends_a_script() {
    let body = json!({ "error": { "message": "too long" } });
    let server = ScriptedServer::answering(Reply::Json(400, body));
    let message = chat(&server, &["--quiet"], "a\nb\n").failed(1);
    assert!(message.contains("status 400: too long"), "{message}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_model_and_a_server_exclude_each_other() {
    let url = "http://127.0.0.1:1/v1";
    let cases = [
        vec!["chat"],
        vec!["chat", "--url", url, "--model", "m"],
        vec!["chat", "--url", url, "-O1"],
        vec!["chat", "--url", url, "-cc.mode=none"],
        vec!["chat", "--model", "m", "--model-name", "x"],
        vec!["chat", "--model", "m", "--api-key", "x"],
        vec!["chat", "--url", "https://127.0.0.1/v1"],
    ];
    for case in cases {
        let message = run(&case).failed(2);
        assert!(message.starts_with("error: "), "{case:?}: {message}");
    }
}

#[test]
fn quick_and_statistics_are_for_a_model_too() {
    let run = run_with_input(&with_model("chat", &["-q", "What is 7 + 8?", "--stats"]), "not read\n").ok();
    assert_eq!(run.stdout, "7 + 8 = 15.\n");
    assert!(run.stderr.starts_with("TTFT "), "{}", run.stderr);
}
