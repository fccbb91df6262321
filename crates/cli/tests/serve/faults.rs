//! Signals, addresses and broken pipes; and how soon a server is ready.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::process::{PATIENCE, Server, model, settle, text};

fn endless(stream: bool) -> Value {
    json!({ "prompt": "Once upon a time", "max_tokens": 1000, "temperature": 0, "ignore_eos": true, "stream": stream })
}

/// Opens a stream and waits for its first bytes.
async fn stream(url: &str, body: &Value) -> impl StreamExt<Item = reqwest::Result<bytes::Bytes>> + Unpin + use<> {
    let answer = reqwest::Client::new().post(format!("{url}/v1/completions")).json(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    Box::pin(answer.bytes_stream())
}

async fn rest(mut parts: impl StreamExt<Item = reqwest::Result<bytes::Bytes>> + Unpin) -> String {
    let mut text = Vec::new();
    while let Some(Ok(part)) = parts.next().await {
        text.extend_from_slice(&part);
    }
    String::from_utf8(text).unwrap()
}

async fn status(url: &str, path: &str) -> Option<u16> {
    reqwest::get(format!("{url}{path}")).await.ok().map(|answer| answer.status().as_u16())
}

#[tokio::test]
async fn sigterm_lets_open_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::start(&["--shutdown-timeout", "60"]);
    let mut open = stream(&server.url, &endless(true)).await;
    open.next().await.unwrap().unwrap();
    server.signal("TERM");
    let started = Instant::now();
    // Connections that are open may still ask; new ones find nobody or are told to go elsewhere.
    while status(&server.url, "/ready").await == Some(200) {
        assert!(started.elapsed() < PATIENCE, "it is still ready");
    }
    let text = rest(open).await;
    assert!(text.trim_end().ends_with("data: [DONE]") && text.contains("\"length\""), "{text}");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn without_time_to_finish_requests_are_aborted_and_a_second_signal_is_the_same() {
    for (arguments, signals) in [(["--shutdown-timeout", "0"], 1), (["--shutdown-timeout", "600"], 2)] {
        let mut server = Server::start(&[&arguments[..], &["--max-num-seqs", "1"]].concat());
        let mut running = stream(&server.url, &endless(true)).await;
        running.next().await.unwrap().unwrap();
        let waiting = tokio::spawn(
            reqwest::Client::new().post(format!("{}/v1/completions", server.url)).json(&endless(false)).send(),
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let started = Instant::now();
        for _ in 0..signals {
            server.signal("INT");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(server.wait().code(), Some(0), "{arguments:?}");
        assert!(started.elapsed() < Duration::from_secs(30), "{arguments:?}");
        // Whatever they hear, they hear of the end.
        rest(running).await;
        assert!(
            waiting.await.unwrap().map_or(true, |answer| answer.status().as_u16() >= 500 || answer.status() == 200)
        );
    }
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    std::fs::write(&socket, "").unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_allotrope"))
            .arg("serve")
            .arg(model())
            .args(arguments)
            .output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, words, code) in [
        (vec!["--port", &port], "in use", 1),
        (vec!["--uds", socket.to_str().unwrap()], "exists", 1),
        (vec!["--host", "no.such.host.invalid"], "no.such.host.invalid", 1),
        (vec!["--host", "0.0.0.0", "--port", "0"], "--allow-public-without-key", 2),
        (vec!["--port", "70000"], "70000", 2),
        (vec!["--request-timeout", "18446744073709551615"], "1000000000", 2),
        (vec!["--sse-keep-alive-interval", "1000000001"], "1000000000", 2),
    ] {
        let (status, stderr) = run(&arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("start:"), "the model was loaded: {stderr}");
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_allotrope"))
        .args(["serve", "/no/such/model", "--port", "0"])
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/no/such/model"));
    let (status, stderr) = run(&["--port", "0", "--device", "cpu", "--max-model-len", "9999999"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("max_model_len"), "{stderr}");
}

#[test]
fn a_server_listens_on_version_6_and_on_a_unix_socket() {
    let server = Server::start(&["--host", "::1"]);
    assert!(server.url.starts_with("http://[::1]:"), "{}", server.url);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_allotrope"))
        .arg("serve")
        .arg(model())
        .args(["--device", "cpu", "--uds", path.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let answer = loop {
        assert!(started.elapsed() < PATIENCE, "no answer");
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&path) else { continue };
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        break answer;
    };
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_server_whose_log_nobody_reads_serves_all_the_same() {
    let mut server = Server::start(&[]);
    server.close_stderr();
    for _ in 0..20 {
        let answer = reqwest::Client::new()
            .post(format!("{}/v1/completions", server.url))
            .json(&json!({ "prompt": "The fox", "temperature": 0 }))
            .send();
        assert!(!text(&answer.await.unwrap().json().await.unwrap()).is_empty());
    }
    assert_eq!(status(&server.url, "/health").await, Some(200));
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn clients_that_leave_take_their_requests_with_them() {
    let server = Server::start(&["--max-num-seqs", "4"]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let body = endless(true).to_string();
    let request = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    // More than run at once, so that some leave while they wait.
    let mut open = Vec::new();
    for _ in 0..12 {
        let mut socket = TcpStream::connect(&address).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        open.push(socket);
    }
    open[0].read_exact(&mut [0; 16]).unwrap();
    drop(open);
    settle(&server.url).await;
}

#[test]
fn tiny_chat_is_ready_soon() {
    let server = Server::start(&[]);
    // The bound is wide, for machines that do other things too; it is ready in some tens of milliseconds.
    assert!(server.ready < Duration::from_secs(10), "{:?}", server.ready);
    eprintln!("ready in {:?}", server.ready);
}
