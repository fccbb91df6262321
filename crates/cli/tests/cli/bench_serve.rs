//! `allotrope bench serve` against a scripted server.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::scripted_server::{Reply, ScriptedServer, completion, cut, ending, events, models};
use crate::support::{Run, command, run};

/// Runs the benchmark in a folder, and reads the result that it saved there.
fn bench(server: &ScriptedServer, folder: &TempDir, more: &[&str]) -> (Run, Value) {
    let url = server.url("");
    let fixed =
        ["bench", "serve", "--base-url", &url, "--save-result", "--result-filename", "result.json", "--seed", "1"];
    let output = command(folder, &[&fixed, more].concat()).output().unwrap();
    let path = folder.path().join("result.json");
    let result = std::fs::read_to_string(path).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (output.into(), result)
}

const SMALL: [&str; 6] = ["--num-prompts", "4", "--random-input-len", "5", "--random-output-len", "3"];

#[test]
fn the_result_has_the_members_that_people_compare() {
    let server = ScriptedServer::answering(Reply::Stream(cut(&completion(&["a", "b", "c"], 5, 3), 10)));
    let folder = TempDir::new().unwrap();
    let more =
        [&SMALL[..], &["--save-detailed", "--goodput", "ttft:100000", "tpot:0", "--metric-percentiles", "50,99"]];
    let (run, result) = bench(&server, &folder, &more.concat());
    let run = run.ok();
    assert_eq!(run.stderr, "wrote result.json\n", "no bar where there is no terminal, and no warning");
    for part in ["Successful requests", "Request goodput", "Time to first token", "p50 (ms)"] {
        assert!(run.stdout.contains(part), "no {part} in {}", run.stdout);
    }
    let expected = [
        ("backend", json!("openai")),
        ("model_id", json!("org/tiny")),
        ("tokenizer_id", json!("org/tiny")),
        ("num_prompts", json!(4)),
        ("request_rate", json!("inf")),
        ("burstiness", json!(1.0)),
        ("max_concurrency", Value::Null),
        ("completed", json!(4)),
        ("failed", json!(0)),
        ("total_input_tokens", json!(20)),
        ("total_output_tokens", json!(12)),
        ("input_lens", json!([5, 5, 5, 5])),
        ("output_lens", json!([3, 3, 3, 3])),
        ("generated_texts", json!(["abc", "abc", "abc", "abc"])),
        ("errors", json!(["", "", "", ""])),
    ];
    for (name, value) in expected {
        assert_eq!(result[name], value, "{name}");
    }
    let numbers = [
        "duration",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
    ];
    let statistics = ["mean", "median", "std", "p50", "p99"]
        .iter()
        .flat_map(|statistic| ["ttft", "tpot", "itl", "e2el"].map(|metric| format!("{statistic}_{metric}_ms")));
    for name in numbers.map(str::to_owned).into_iter().chain(statistics) {
        assert!(result[&name].is_number(), "{name}: {}", result[&name]);
    }
    assert_eq!(result["date"].as_str().unwrap().len(), "20250131-235959".len());
    assert!(result["ttfts"].as_array().unwrap().iter().all(|time| time.as_f64().unwrap() > 0.0));
    // The last chunk, which has the reason, is no output: three outputs have two gaps.
    assert!(result["itls"].as_array().unwrap().iter().all(|gaps| gaps.as_array().unwrap().len() == 2), "{result}");
    for request in server.requests() {
        assert_eq!(request.path, "/v1/completions");
        let prompt = request.body["prompt"].as_array().unwrap();
        assert!(prompt.len() == 5 && prompt.iter().all(|token| (32..1000).contains(&token.as_u64().unwrap())));
        assert_eq!((&request.body["max_tokens"], &request.body["stream"]), (&json!(3), &json!(true)));
        assert_eq!(request.body.get("ignore_eos"), None);
    }
}

#[test]
fn the_seed_makes_the_prompts() {
    let prompts = |seed: &str| {
        let server = ScriptedServer::answering(Reply::Stream(completion(&["a"], 5, 1)));
        let url = server.url("");
        let fixed = ["bench", "serve", "--base-url", &url, "--model", "m", "--seed", seed, "--max-concurrency", "1"];
        run(&[&fixed[..], &SMALL].concat()).ok();
        server.requests().iter().map(|request| request.body["prompt"].clone()).collect::<Vec<Value>>()
    };
    let first = prompts("1");
    assert_eq!(first.len(), 4);
    assert_eq!(prompts("1"), first);
    assert_ne!(prompts("2"), first);
}

#[test]
fn one_at_a_time_the_requests_come_in_the_order_of_the_data() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["a"], 5, 1)));
    let folder = TempDir::new().unwrap();
    let prompts: Vec<String> = (0..100).map(|place| format!("prompt {place}")).collect();
    let lines: Vec<String> = prompts.iter().map(|prompt| json!({ "prompt": prompt }).to_string()).collect();
    std::fs::write(folder.path().join("prompts.jsonl"), lines.join("\n")).unwrap();
    let more = [
        "--dataset-name",
        "custom",
        "--dataset-path",
        "prompts.jsonl",
        "--num-prompts",
        "100",
        "--max-concurrency",
        "1",
    ];
    bench(&server, &folder, &more).0.ok();
    let came: Vec<Value> = server.requests().iter().map(|request| request.body["prompt"].clone()).collect();
    assert_eq!(json!(came), json!(prompts));
}

#[test]
fn a_seed_that_nobody_chose_is_warned_of() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["a"], 5, 1)));
    let run = run(&[&["bench", "serve", "--base-url", &server.url("")], &SMALL[..]].concat()).ok();
    assert!(run.stderr.contains("prefix cache"), "{}", run.stderr);
}

#[test]
fn requests_that_fail_are_counted_and_do_not_end_the_run() {
    let server = ScriptedServer::start(|request, _| {
        let whole = completion(&["a", "b"], 1, 2);
        match request.body["prompt"].as_str() {
            None => models(),
            Some("refused") => Reply::Json(500, json!({ "error": { "message": "not today" } })),
            Some("broken") => Reply::BrokenStream(whole[..1].to_vec()),
            Some("error") => Reply::Stream(events(&[json!({ "error": { "message": "out of memory" } })])),
            Some("silent") => Reply::Stream(vec![b"data: [DONE]\n\n".to_vec()]),
            Some(_) => Reply::Stream(whole),
        }
    });
    let folder = TempDir::new().unwrap();
    let lines = ["good", "refused", "broken", "error", "silent"].map(|prompt| json!({ "prompt": prompt }).to_string());
    std::fs::write(folder.path().join("prompts.jsonl"), lines.join("\n")).unwrap();
    let more = ["--dataset-name", "custom", "--dataset-path", "prompts.jsonl", "--num-prompts", "6", "--save-detailed"];
    let (run, result) = bench(&server, &folder, &more);
    let run = run.ok();
    assert!(run.stderr.contains("4 of 6 requests failed; the first: "), "{}", run.stderr);
    assert_eq!((&result["completed"], &result["failed"]), (&json!(2), &json!(4)));
    assert_eq!((&result["total_input_tokens"], &result["total_output_tokens"]), (&json!(2), &json!(4)));
    let errors: Vec<&str> = result["errors"].as_array().unwrap().iter().map(|error| error.as_str().unwrap()).collect();
    let parts = ["", "status 500: not today", "connection was lost", "out of memory", "had no output", ""];
    for (error, part) in errors.iter().zip(parts) {
        assert!(error.contains(part) && error.is_empty() == part.is_empty(), "{error}: {part}");
    }
    assert_eq!(server.requests().len(), 6, "the first line comes again after the last");
}

#[test]
fn no_success_at_all_is_a_failure_whose_result_is_kept() {
    let server = ScriptedServer::answering(Reply::Json(503, json!({ "error": "busy" })));
    let folder = TempDir::new().unwrap();
    let (run, result) = bench(&server, &folder, &SMALL);
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("error: all 4 requests failed; the first: "), "{}", run.stderr);
    assert!(run.stderr.contains("status 503: busy"), "{}", run.stderr);
    assert_eq!((&result["failed"], &result["mean_ttft_ms"]), (&json!(4), &json!(0.0)));
}

#[test]
fn chats_are_asked_in_words_after_the_warm_up() {
    let chunk = |text: &str| json!({ "choices": [{ "delta": { "content": text } }] });
    let mut data =
        vec![json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }), chunk("a"), chunk("b")];
    data.extend(ending("length", 11, 2));
    let server = ScriptedServer::answering(Reply::Stream(events(&data)));
    let folder = TempDir::new().unwrap();
    let chat = ["--backend", "openai-chat", "--ignore-eos", "--num-warmups", "2", "--save-detailed"];
    let (run, result) = bench(&server, &folder, &[&SMALL[..], &chat].concat());
    run.ok();
    let requests = server.requests();
    assert_eq!(requests.len(), 6);
    for request in &requests {
        assert_eq!((request.path.as_str(), &request.body["ignore_eos"]), ("/v1/chat/completions", &json!(true)));
        assert_eq!(request.body["messages"][0]["content"].as_str().unwrap().split(' ').count(), 5);
    }
    assert_eq!((&result["completed"], &result["total_input_tokens"]), (&json!(4), &json!(44)));
    assert!(result["itls"].as_array().unwrap().iter().all(|gaps| gaps.as_array().unwrap().len() == 1), "{result}");
}

#[test]
fn a_server_that_does_not_count_tokens_is_warned_of() {
    let data =
        [json!({ "choices": [{ "text": "a" }] }), json!({ "choices": [{ "text": "b", "finish_reason": "length" }] })];
    let server = ScriptedServer::answering(Reply::Stream(events(&data)));
    let folder = TempDir::new().unwrap();
    let (run, result) =
        bench(&server, &folder, &[&SMALL[..], &["--request-rate", "1000", "--burstiness", "0.5"]].concat());
    assert!(run.ok().stderr.contains("every part of the stream counts as a token"));
    assert_eq!((&result["total_input_tokens"], &result["total_output_tokens"]), (&json!(20), &json!(8)));
    assert_eq!((&result["request_rate"], result.get("ttfts")), (&json!(1000.0), None));
}

#[test]
fn the_name_of_the_file_is_not_the_servers_to_choose() {
    let server = ScriptedServer::start(|request, _| match request.path.as_str() {
        "/v1/models" => Reply::Json(200, json!({ "data": [{ "id": "a/..\\b c" }] })),
        _ => Reply::Stream(completion(&["a"], 5, 1)),
    });
    let folder = TempDir::new().unwrap();
    let url = server.url("");
    let fixed =
        ["bench", "serve", "--base-url", &url, "--save-result", "--result-dir", "results", "--max-concurrency", "2"];
    Run::from(command(&folder, &[&fixed[..], &SMALL].concat()).output().unwrap()).ok();
    let files: Vec<_> = std::fs::read_dir(folder.path().join("results")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let name = files[0].as_ref().unwrap().file_name().into_string().unwrap();
    assert!(name.starts_with("openai-infqps-concurrency2-.._b_c-2") && name.ends_with(".json"), "{name}");
}

#[test]
fn what_cannot_be_is_found_before_a_request_is_sent() {
    let server = ScriptedServer::answering(Reply::Stream(completion(&["a"], 5, 1)));
    let url = server.url("");
    let cases: [(i32, &[&str]); 10] = [
        (2, &["--goodput", "itl:3"]),
        (2, &["--request-rate", "0"]),
        (2, &["--burstiness", "nan"]),
        (2, &["--burstiness", "inf"]),
        (2, &["--num-prompts", "0"]),
        (2, &["--random-range-ratio", "1"]),
        (2, &["--metric-percentiles", "101"]),
        (2, &["--dataset-name", "custom"]),
        (1, &["--dataset-name", "custom", "--dataset-path", "/nowhere/x.jsonl"]),
        (1, &["--save-result", "--result-filename", "/nowhere/x.json"]),
    ];
    for (status, more) in cases {
        run(&[&["bench", "serve", "--base-url", &url], more].concat()).failed(status);
    }
    let message = run(&["bench", "serve", "--base-url", "https://127.0.0.1"]).failed(2);
    assert!(message.contains("no TLS"), "{message}");
    assert!(server.requests().is_empty());
}
