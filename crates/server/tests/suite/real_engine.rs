//! The server in front of the engine that ships, with the small model on the CPU.

use allotrope_engine::{Llm, Prompt, SamplingParams};
use allotrope_server::Server;
use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::{config, folder};

#[test]
fn the_small_model_answers_as_the_library_does() {
    let mut llm = Llm::builder(folder()).build().unwrap();
    let params = SamplingParams { max_tokens: Some(12), ..SamplingParams::greedy() };
    let expected = llm.generate(&[Prompt::from("The fox")], &params).unwrap().remove(0).text;
    drop(llm);

    let server = Server::bind(config()).unwrap();
    let (address, handle) = (server.socket_address().unwrap(), server.handle());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(server.run())
    });
    handle.set_model(Llm::builder(folder()).build_async().unwrap()).unwrap();
    let mut body = json!({"prompt": "The fox", "max_tokens": 12, "temperature": 0, "logprobs": 0});
    let whole = Request::post("/v1/completions", &body.to_string()).send(address).json();
    assert_eq!(whole["choices"][0]["text"], json!(expected));
    body["stream"] = json!(true);
    let events = Request::post("/v1/completions", &body.to_string()).send(address).events();
    let texts: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, expected);
    let chat = json!({"messages": [{"role": "user", "content": "What is 7 + 8?"}], "max_tokens": 8, "temperature": 0});
    let reply = Request::post("/v1/chat/completions", &chat.to_string()).send(address).json();
    assert!(!reply["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    assert_ne!(reply["usage"]["completion_tokens"], Value::Null);

    for (contradiction, part) in [
        (json!({"allowed_token_ids": [1], "min_tokens": 1}), "token"),
        (json!({"allowed_token_ids": [40], "structured_outputs": {"choice": ["yes"]}}), "token"),
    ] {
        let mut body = json!({"prompt": "The fox", "max_tokens": 4});
        body.as_object_mut().unwrap().extend(contradiction.as_object().unwrap().clone());
        let reply = Request::post("/v1/completions", &body.to_string()).send(address);
        assert!(reply.error(400).contains(part), "{contradiction}: {reply:?}");
    }

    let metrics = Request::get("/metrics").send(address).body;
    for name in [
        "cache_config_info",
        "optimization_level_info",
        "startup_seconds",
        "graph_steps_total",
        "num_preemptions_total",
        "prefix_cache_queries_total",
        "kv_cache_tokens",
        "iteration_tokens_total_bucket",
        "late_captures_total",
    ] {
        assert!(metrics.contains(&format!("\nallotrope:{name}{{model_name=\"tiny\"")), "{name} is not in\n{metrics}");
    }
    handle.shutdown();
    thread.join().unwrap().unwrap();
}
