//! A server on a GPU that fails: on the emulator, which fails where a test wants that.

use allotrope_cuda_emulator::testing;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::process::{Server, metric, text};

fn start(plan: &str) -> Server {
    Server::start_with(&["--device", "cuda", "--max-num-seqs", "2", "-O2"], |command| {
        testing::give(command).unwrap();
        command.env("ALLOTROPE_EMULATOR_FAIL", plan);
    })
}

fn body(max_tokens: usize, stream: bool) -> Value {
    json!({ "prompt": "Once upon", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "stream": stream })
}

async fn post(url: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new().post(format!("{url}/v1/completions")).json(body).send().await.unwrap()
}

#[tokio::test]
async fn a_recording_that_fails_is_told_of_and_steps_run_without_it() {
    let whole = start("");
    let expected = text(&post(&whole.url, &body(4, false)).await.json().await.unwrap());
    let server = start("cuGraphInstantiateWithFlags:1:2");
    let found = text(&post(&server.url, &body(4, false)).await.json().await.unwrap());
    assert_eq!(found, expected);
    assert_eq!(metric(&server.url, "graph_failed_captures").await, 1.0);
    assert_eq!(metric(&whole.url, "graph_failed_captures").await, 0.0);
}

#[tokio::test]
async fn a_gpu_that_dies_ends_every_request_with_an_error_and_the_server_with_a_failure() {
    let mut server = start("cuGraphLaunch:40:700");
    let answer = post(&server.url, &body(500, true)).await;
    assert_eq!(answer.status(), 200, "it died before the first token");
    let mut parts = answer.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part.unwrap());
    }
    let events = String::from_utf8(bytes).unwrap();
    assert!(events.contains("\"error\"") && events.trim_end().ends_with("data: [DONE]"), "{events}");
    assert!(!events.contains("CUDA"), "what failed is for the log: {events}");
    // It says that it is dead for a while, then ends for its supervisor to start it anew.
    let health = reqwest::get(format!("{}/health", server.url)).await;
    assert!(health.is_ok_and(|answer| answer.status() == 503));
    assert_eq!(post(&server.url, &body(1, false)).await.status(), 500);
    server.wait_for("CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(server.wait().code(), Some(1));
}
