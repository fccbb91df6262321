//! `allotrope complete`, and what it makes of servers that do not do what they should.

use serde_json::json;
use tempfile::TempDir;

use crate::scripted_server::{Reply, ScriptedServer, completion, cut, events, text};
use crate::support::{Run, command, run, run_with_input};

fn complete(server: &ScriptedServer, more: &[&str]) -> Run {
    run(&[&["complete", "--url", &server.url("/v1")], more].concat())
}

#[test]
fn the_text_is_the_same_however_the_stream_is_cut() {
    let pieces = completion(&["On", "ce ü", "", "pon → a\n", "time"], 3, 5);
    for length in [1, 2, 3, 7, 64, 100_000] {
        let server = ScriptedServer::answering(Reply::Stream(cut(&pieces, length)));
        let run = complete(&server, &["-q", "-x", "--max-tokens", "5", "--temperature", "0.1"]).ok();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("Once üpon → a\ntime\n", ""), "{length}");
        let requests = server.requests();
        let expected = json!({
            "model": "org/tiny", "stream": true, "stream_options": { "include_usage": true },
            "max_tokens": 5, "temperature": 0.1, "prompt": "-x",
        });
        assert_eq!((requests.len(), requests[0].path.as_str()), (1, "/v1/completions"));
        assert_eq!(requests[0].body, expected);
        assert_eq!(requests[0].authorization, None);
    }
}

#[test]
fn statistics_count_what_the_server_counted() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["a", "b"], 3, 7)));
    let run = complete(&server, &["--quick", "x", "--stats"]).ok();
    assert!(run.stderr.starts_with("TTFT ") && run.stderr.contains(" ms, 7 tokens"), "{}", run.stderr);
}

#[test]
fn each_line_is_completed_by_itself() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["ok"], 1, 1)));
    let run = run_with_input(&["complete", "--url", &server.url("/v1/"), "--model-name", "m"], "one\n\n two \r\n").ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("ok\nok\n", ""));
    let prompts: Vec<_> = server.requests().iter().map(|request| request.body["prompt"].clone()).collect();
    assert_eq!(prompts, ["one", " two "]);
    assert!(server.requests().iter().all(|request| request.body["model"] == "m"));
}

#[test]
fn the_key_comes_from_the_flag_or_else_from_the_environment() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["ok"], 1, 1)));
    let folder = TempDir::new().unwrap();
    for (more, expected) in [(&[][..], "Bearer from-environment"), (&["--api-key", "given"], "Bearer given")] {
        let url = server.url("/v1");
        let arguments = [&["complete", "--url", &url, "-q", "x", "--model-name", "m"], more].concat();
        let output = command(&folder, &arguments).env("ALLOTROPE_API_KEY", "from-environment").output().unwrap();
        let run = Run::from(output).ok();
        assert_eq!(run.stderr, "", "the variable is known");
        assert_eq!(server.requests().last().unwrap().authorization.as_deref(), Some(expected));
    }
}

#[test]
fn an_error_before_the_first_byte_is_told_with_its_status() {
    let body = json!({ "error": { "message": "no such\nmodel \u{1b}[31m", "type": "NotFoundError", "code": 404 } });
    let server = ScriptedServer::answering(Reply::Json(404, body));
    let message = complete(&server, &["-q", "x"]).failed(1);
    assert!(message.contains("/v1/completions answered with status 404: no such model  [31m;"), "{message}");
    let server = ScriptedServer::answering(Reply::Json(401, json!("who?")));
    let message = complete(&server, &["-q", "x"]).failed(1);
    assert!(message.contains("status 401") && message.contains("--api-key"), "{message}");
}

#[test]
fn an_error_after_the_first_byte_ends_the_answer() {
    let mut pieces = events(&[text("Once"), json!({ "error": { "message": "out of memory", "code": 500 } })]);
    pieces.push(b"data: [DONE]\n\n".to_vec());
    let server = ScriptedServer::answering(Reply::Stream(pieces));
    let run = complete(&server, &["-q", "x"]);
    assert_eq!((run.status, run.stdout.as_str()), (1, "Once\n"), "{}", run.stderr);
    assert_eq!(run.stderr, "error: the server ended the answer with an error: out of memory\n");
}

#[test]
fn an_answer_that_breaks_off_is_no_answer() {
    let pieces = events(&[text("Once"), text(" upon")]);
    for reply in [Reply::BrokenStream(pieces.clone()), Reply::Stream(pieces)] {
        let server = ScriptedServer::answering(reply);
        let run = complete(&server, &["-q", "x"]);
        assert_eq!((run.status, run.stdout.as_str()), (1, "Once upon\n"), "{}", run.stderr);
        assert!(run.stderr.contains("the connection was lost in the middle of the answer"), "{}", run.stderr);
    }
    let mut whole = completion(&["Once"], 1, 1);
    whole.pop();
    let server = ScriptedServer::answering(Reply::Stream(whole));
    assert_eq!(complete(&server, &["-q", "x"]).ok().stdout, "Once\n", "only the last event is missing");
}

#[test]
fn what_is_not_a_stream_of_chunks_is_refused() {
    let endless = vec![vec![b'x'; 1 << 16]; 20];
    let cases = [
        (Reply::Json(200, json!({ "choices": [{ "text": "all at once" }] })), "does not stream"),
        (Reply::Stream(vec![b"data: {\"choices\": 7}\n\n".to_vec()]), "not a chunk of an answer"),
        (Reply::Stream(vec![b"data: \xff\n\n".to_vec()]), "not UTF-8"),
        (Reply::Stream(endless), "longer than 1048576 bytes"),
        (
            Reply::Raw(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n".to_vec()),
            "redirects",
        ),
        (Reply::Raw(b"this is no HTTP\r\n\r\n".to_vec()), "cannot reach"),
        (Reply::Raw(Vec::new()), "cannot reach"),
    ];
    for (reply, part) in cases {
        let server = ScriptedServer::answering(reply);
        let message = complete(&server, &["-q", "x"]).failed(1);
        assert!(message.contains(part), "no {part} in {message}");
    }
}

#[test]
fn a_server_without_models_is_asked_with_a_name_only() {
    for body in [json!({ "data": [] }), json!([]), json!({ "data": [{ "id": 7 }] })] {
        let server = ScriptedServer::start(move |_, _| Reply::Json(200, body.clone()));
        let message = complete(&server, &["-q", "x"]).failed(1);
        assert!(message.contains("lists no model; name one"), "{message}");
    }
}

#[test]
fn addresses_that_cannot_be_asked_are_wrong_usage() {
    for (url, part) in [("https://127.0.0.1/v1", "no TLS"), ("127.0.0.1:8000", "http://127.0.0.1:8000/v1")] {
        let message = run(&["complete", "--url", url, "-q", "x"]).failed(2);
        assert!(message.contains(part), "{message}");
    }
}
