//! Every route, and what answers for none.

use std::io::Write;

use serde_json::json;

use crate::support::client::{Reply, Request, connect, read_until};
use crate::support::{TestServer, config, engine, folder, text_model};
use allotrope_server::ServerConfig;

#[test]
fn probes_and_descriptions_answer() {
    let server = TestServer::start();
    for path in ["/health", "/ready", "/ping"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
    }
    assert_eq!(server.get("/version").json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(server.get("/load").json(), json!({"server_load": 0}));
    assert_eq!(server.get("/openapi.json").json()["info"]["title"], "Allotrope");
    let models = server.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!((&models["object"], &model["id"], &model["object"]), (&json!("list"), &json!("tiny"), &json!("model")));
    assert_eq!((&model["root"], &model["max_model_len"]), (&json!("tiny-chat"), &json!(1024)));
    assert_eq!(Request::new("HEAD", "/health").send(server.address).status, 200);
}

#[test]
fn the_folder_names_a_model_that_has_no_other_name() {
    let server = TestServer::with(ServerConfig { served_model_names: Vec::new(), ..config() }, engine::words());
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "tiny-chat");
    assert!(folder().ends_with("tiny-chat"));
}

#[test]
fn unknown_routes_and_wrong_methods_get_the_error_object() {
    let server = TestServer::start();
    for path in [
        "/",
        "/v1",
        "/v1/models/",
        "//v1/models",
        "/v1//models",
        "/v1/../metrics",
        "/./metrics",
        "/%761/models",
        "/v1/%2e%2e/metrics",
        "/v1/models/x",
        "/V1/models",
        "/health/",
        "/metrics;x",
        "/v1/models%00",
    ] {
        assert!(server.get(path).error(404).contains("no route"), "{path}");
    }
    let reply = server.get("/v1/completions");
    assert!(reply.error(405).contains("POST"));
    assert_eq!(reply.header("allow"), Some("POST"));
    for (method, path) in [("POST", "/health"), ("DELETE", "/v1/models"), ("BREW", "/metrics"), ("OPTIONS", "/health")]
    {
        let reply = Request::new(method, path).send(server.address);
        reply.error(405);
        assert_eq!(reply.header("allow"), Some("GET, HEAD"), "{method} {path}");
    }
    assert_eq!(server.get("/v1/models?x=1").status, 200);
}

#[test]
fn tokens_of_texts_and_conversations_and_back() {
    let server = TestServer::start();
    let text = "The city lives.";
    let expected = text_model().tokenizer().encode(text, true).unwrap();
    let reply = server.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})).json();
    assert_eq!(reply["tokens"], json!(expected));
    assert_eq!((&reply["count"], &reply["max_model_len"]), (&json!(expected.len()), &json!(1024)));
    assert_eq!(reply["token_strs"].as_array().unwrap().len(), expected.len());
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = server.post("/tokenize", &json!({"messages": messages})).json();
    let prompt = "<|begin|><|start_header|>user<|end_header|>\nHi<|eot|>\n<|start_header|>assistant<|end_header|>\n";
    assert_eq!(chat["tokens"], json!(text_model().tokenizer().encode(prompt, false).unwrap()));
    let back = server.post("/detokenize", &json!({"tokens": chat["tokens"]})).json();
    assert_eq!(back, json!({"prompt": prompt}));
    server.post("/detokenize", &json!({"tokens": [1024]})).error(400);
    server.post("/tokenize", &json!({})).error(400);
}

#[test]
fn large_answers_come_whole() {
    let server = TestServer::start();
    let text = "The city lives. ".repeat(500);
    let reply = server
        .post("/tokenize", &json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true}))
        .json();
    let tokens = reply["tokens"].as_array().unwrap();
    assert!(tokens.len() > 1024 && tokens.len() == reply["token_strs"].as_array().unwrap().len());
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens})).json(), json!({"prompt": text}));
    let body = json!({"prompt": vec![10; 500], "max_tokens": 500, "logprobs": 20, "echo": true, "return_token_ids": true, "n": 4});
    for choice in server.post("/v1/completions", &body).json()["choices"].as_array().unwrap() {
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 1000);
    }
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"messages": messages, "max_tokens": 900, "logprobs": true, "top_logprobs": 20});
    let reply = server.post("/v1/chat/completions", &body).json();
    assert_eq!(reply["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 900);
}

#[test]
fn metrics_have_the_known_names_and_count_by_route() {
    let server = TestServer::with(ServerConfig { metrics_prefix: "vllm:".to_owned(), ..config() }, engine::words());
    server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 5})).json();
    server.get("/nowhere/1");
    server.get("/nowhere/2");
    Request::new("BREW", "/health").send(server.address);
    let reply = server.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.body;
    for line in [
        "vllm:generation_tokens_total{model_name=\"tiny\"} 5",
        "vllm:request_success_total{finished_reason=\"length\",model_name=\"tiny\"} 1",
        "vllm:request_generation_tokens_sum{model_name=\"tiny\"} 5",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"tiny\"} 4",
        "vllm:e2e_request_latency_seconds_count{model_name=\"tiny\"} 1",
        "vllm:request_params_max_tokens_sum{model_name=\"tiny\"} 5",
        "vllm:num_requests_running{model_name=\"tiny\"} 0",
        "vllm:num_requests_waiting{model_name=\"tiny\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0",
        "vllm:admission_rejections_total{model_name=\"tiny\"} 0",
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"200\"} 1",
        "http_requests_total{handler=\"unknown\",method=\"GET\",status=\"404\"} 2",
        "http_requests_total{handler=\"/health\",method=\"other\",status=\"405\"} 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("nowhere"));
    assert!(text.contains("# TYPE vllm:iteration_tokens_total histogram"));
    assert!(text.lines().all(|line| line.starts_with('#') || line.rsplit(' ').next().unwrap().parse::<f64>().is_ok()));
}

#[test]
fn a_hundred_requests_on_one_socket_are_answered_in_order() {
    let server = TestServer::start();
    let mut stream = connect(server.address);
    let mut bytes = Vec::new();
    for place in 0..99 {
        let path = if place % 2 == 0 { "/version".to_owned() } else { format!("/nothing/{place}") };
        bytes.extend_from_slice(&Request::get(&path).bytes(false));
    }
    bytes.extend_from_slice(&Request::get("/load").bytes(true));
    stream.write_all(&bytes).unwrap();
    let text = read_until(&mut stream, "server_load");
    let answers: Vec<Reply> =
        text.split("HTTP/1.1 ").skip(1).filter_map(|one| Reply::parse(&format!("HTTP/1.1 {one}"))).collect();
    assert_eq!(answers.len(), 100);
    for (place, answer) in answers.iter().enumerate().take(99) {
        match place % 2 {
            0 => assert!(answer.body.contains("version"), "{place}"),
            _ => assert!(answer.error(404).contains(&format!("/nothing/{place}\"")), "{place}"),
        }
    }
}
