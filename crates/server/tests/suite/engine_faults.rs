//! What clients see when the engine, or one of their own, is gone.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use allotrope_engine::{QueueLimits, RequestFailure};
use allotrope_server::{ServerConfig, ServerError};
use serde_json::{Value, json};

use crate::support::client::{Reply, Request, connect, read_all, read_until};
use crate::support::engine::{self, Step, hangs_after_one, script, tokens};
use crate::support::{TestServer, config, until};

fn ask(stream: bool) -> Request {
    Request::post("/v1/completions", &json!({"prompt": "The", "max_tokens": 500, "stream": stream}).to_string())
}

fn city() -> Step {
    Step::Token(tokens(" city")[0])
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    // Waiting for the first token, reading a stream, waiting for a whole answer.
    for (steps, streams) in [
        (vec![Step::Hang], true),
        (vec![Step::Hang], false),
        (vec![city(), Step::Hang], true),
        (vec![city(), Step::Hang], false),
    ] {
        let server = TestServer::with(config(), script(steps.clone()));
        let mut client = ask(streams).open(server.address);
        until("the request arrives", || server.engine.requests().len() == 1);
        if streams && steps.len() == 2 {
            read_until(&mut client, "city");
        }
        assert_eq!(server.engine.cancelled(), 0);
        drop(client);
        until("the request is cancelled", || server.engine.cancelled() == 1);
        until("nothing runs", || server.get("/load").json() == json!({"server_load": 0}));
        until("nothing runs in the engine", || server.status.running() == 0);
        assert!(server.get("/metrics").body.contains("finished_reason=\"abort\",model_name=\"tiny\"} 1"));
    }
}

#[test]
fn a_client_that_leaves_bytes_behind_has_left_too() {
    let whole = ask(false).bytes(false);
    // A byte too many, another request, and as much as fits beside it into the buffers of a socket.
    for behind in [b"x".to_vec(), whole.clone(), vec![b'x'; 50_000]] {
        let server = TestServer::with(config(), script(vec![Step::Hang]));
        let mut client = connect(server.address);
        client.write_all(&[whole.clone(), behind].concat()).unwrap();
        until("the request arrives", || server.engine.requests().len() == 1);
        drop(client);
        until("the request is cancelled", || server.engine.cancelled() == 1);
        assert_eq!(server.engine.requests().len(), 1, "what follows is not run for nobody");
    }
}

#[test]
fn requests_that_follow_without_waiting_are_answered_in_order_however_long_each_takes() {
    let server = TestServer::with(config(), script(vec![Step::Gate, engine::says(" city")[0].clone()]));
    let long = json!({"prompt": "The", "max_tokens": 500, "unknown": "x".repeat(200_000)});
    let last = Request::post("/v1/completions", &long.to_string()).bytes(true);
    let mut client = connect(server.address);
    client.write_all(&[ask(false).bytes(false), ask(false).bytes(false), last].concat()).unwrap();
    for place in 1..=3 {
        until("it arrives", || server.engine.requests().len() == place);
        // Longer than between two looks at a socket.
        std::thread::sleep(Duration::from_millis(600));
        server.engine.pass(1);
    }
    let text = read_all(&mut client);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3, "{text}");
}

#[test]
fn a_client_that_only_stops_sending_has_left_too() {
    let server = TestServer::with(config(), hangs_after_one());
    let mut client = ask(true).open(server.address);
    read_until(&mut client, "city");
    client.shutdown(Shutdown::Write).unwrap();
    until("the request is cancelled", || server.engine.cancelled() == 1);
}

#[test]
fn all_answers_of_a_request_are_cancelled_together() {
    let server = TestServer::with(config(), hangs_after_one());
    let body = json!({"prompt": ["a", "b", "c"], "n": 2, "temperature": 1, "stream": true});
    let mut client = Request::post("/v1/completions", &body.to_string()).open(server.address);
    read_until(&mut client, "city");
    until("all arrive", || server.engine.requests().len() == 6);
    drop(client);
    until("all are cancelled", || server.engine.cancelled() == 6);
}

#[test]
fn a_failure_before_the_first_token_has_a_status() {
    let failure = RequestFailure::Sampling("the logit of token 77 is NaN at 0xdeadbeef".to_owned());
    let server = TestServer::with(config(), script(vec![Step::Fail(failure)]));
    for stream in [false, true] {
        let message = ask(stream).send(server.address).error(500);
        assert!(!message.contains("77") && !message.contains("0x"), "{message}");
    }
    assert_eq!(server.get("/health").status, 200, "others go on");
}

#[test]
fn what_a_request_makes_impossible_is_its_own_fault() {
    for (failure, param) in [
        (RequestFailure::Masked("no token is allowed".to_owned()), Value::Null),
        (RequestFailure::Grammar("no token fits".to_owned()), json!("structured_outputs")),
    ] {
        let server = TestServer::with(config(), script(vec![Step::Fail(failure)]));
        let reply = ask(false).send(server.address);
        assert!(reply.error(400).contains("no token"));
        assert_eq!(reply.json()["error"]["param"], param);
    }
}

#[test]
fn a_failure_after_it_is_an_event() {
    let failure = RequestFailure::Sampling("NaN".to_owned());
    let server = TestServer::with(config(), script(vec![city(), Step::Fail(failure)]));
    let events = ask(true).send(server.address).events();
    assert_eq!(events[0]["choices"][0]["text"], " city");
    assert_eq!((events.len(), &events[1]["error"]["code"]), (2, &json!(500)));
    ask(false).send(server.address).error(500);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("finished_reason=\"error\",model_name=\"tiny\"} 2"), "{metrics}");
}

fn dies_when_let() -> engine::Script {
    script(vec![city(), Step::Gate, Step::Die("Xid 79 at 0x7f00".to_owned())])
}

#[test]
fn a_dead_engine_ends_streams_with_an_error_and_is_not_healthy() {
    let server = TestServer::with(ServerConfig { engine_death_grace: None, ..config() }, dies_when_let());
    let mut first = ask(true).open(server.address);
    let mut second = ask(false).open(server.address);
    read_until(&mut first, "city");
    until("both arrive", || server.engine.requests().len() == 2);
    server.engine.pass(2);
    let rest = read_all(&mut first);
    assert!(rest.contains("\"code\":500") && rest.contains("data: [DONE]") && !rest.contains("Xid"), "{rest}");
    Reply::read_to_end(&mut second).error(500);
    assert!(server.get("/health").error(503).contains("engine has stopped"));
    assert_eq!(server.get("/ready").status, 503);
    assert!(!ask(false).send(server.address).error(500).contains("Xid"));
}

#[test]
fn a_server_ends_with_its_engine_for_someone_to_start_both_anew() {
    let config = ServerConfig { engine_death_grace: Some(Duration::ZERO), ..config() };
    let server = TestServer::with(config, dies_when_let());
    let mut client = ask(true).open(server.address);
    read_until(&mut client, "city");
    server.engine.pass(1);
    assert!(read_all(&mut client).contains("data: [DONE]"), "what was open is told first");
    match server.join() {
        Err(ServerError::EngineDead(reason)) => assert!(reason.contains("Xid 79"), "the log is told: {reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_engine_whose_thread_is_gone_is_dead() {
    let server = TestServer::with(config(), std::sync::Arc::new(|_| panic!("a bug")));
    ask(false).send(server.address).error(500);
}

#[test]
fn an_engine_that_makes_no_step_is_not_healthy() {
    let config = ServerConfig { step_watchdog: Duration::from_millis(300), ..config() };
    let server = TestServer::with(config, script(vec![city(), Step::Gate, engine::says(" city")[0].clone()]));
    let mut client = ask(true).open(server.address);
    read_until(&mut client, "city");
    until("the watchdog barks", || server.get("/health").status == 503);
    assert!(server.get("/ready").error(503).contains("no progress"));
    server.engine.pass(1);
    read_until(&mut client, "[DONE]");
    until("all is well again", || server.get("/health").status == 200);
}

#[test]
fn more_requests_than_may_wait_are_told_to_come_again() {
    let limits = QueueLimits { requests: 2, tokens: usize::MAX };
    let (server, llm) = TestServer::without_model(config(), engine::words(), limits);
    // Two that wait, as far as the engine is concerned.
    server.status.came(3);
    server.status.came(3);
    server.handle.set_model(llm).unwrap();
    let reply = ask(false).send(server.address);
    reply.error(503);
    assert_eq!(
        (reply.header("retry-after"), reply.json()["error"]["type"].clone()),
        (Some("1"), json!("ServiceUnavailableError"))
    );
    assert!(server.get("/metrics").body.contains("allotrope:admission_rejections_total{model_name=\"tiny\"} 1"));
    server.status.left(3);
    assert_eq!(ask(false).send(server.address).status, 200);
}

#[test]
fn a_request_has_only_so_much_time() {
    let mut config = config();
    config.limits.request_time = Some(Duration::from_millis(1500));
    let server = TestServer::with(config, hangs_after_one());
    let events = ask(true).send(server.address).events();
    assert_eq!(events.last().unwrap()["error"]["code"], 503);
    let message = ask(false).send(server.address).error(503);
    assert!(message.contains("1.5s") && !message.contains("not ready"), "{message}");
    until("both are cancelled", || server.engine.cancelled() == 2);
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    let interval = Some(Duration::from_millis(50));
    let config = ServerConfig { sse_keep_alive_interval: interval, ..config() };
    let server = TestServer::with(config, script(vec![city(), Step::Gate, engine::says(" city")[0].clone()]));
    let mut client = ask(true).open(server.address);
    let mut text = read_until(&mut client, ": keep-alive\n\n");
    server.engine.pass(1);
    text.push_str(&read_all(&mut client));
    let reply = Reply::parse(&text).unwrap();
    let texts: Vec<Value> = reply.events().iter().map(|event| event["choices"][0]["text"].clone()).collect();
    assert_eq!(texts, [" city", " city"]);
}
