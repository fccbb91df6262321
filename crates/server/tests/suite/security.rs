//! Who is answered, and what comes back from what they send.

use allotrope_server::ServerConfig;
use serde_json::json;

use crate::support::client::{Reply, Request, exchange};
use crate::support::engine::{self, says, script};
use crate::support::{TestServer, config};

fn locked() -> TestServer {
    TestServer::with(
        ServerConfig { api_keys: vec!["first".to_owned(), "second".to_owned()], ..config() },
        engine::words(),
    )
}

#[test]
fn all_but_probes_need_a_key() {
    let server = locked();
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let closed = [
        "/ping",
        "/version",
        "/load",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/nothing",
        "/v1/models?api_key=first",
    ];
    for path in closed {
        let reply = server.get(path);
        assert!(reply.error(401).contains("API key"), "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        server.post(path, &json!({"prompt": "a"})).error(401);
    }
    for key in ["first", "second"] {
        let reply = Request::get("/v1/models").header(&format!("authorization: Bearer {key}")).send(server.address);
        assert_eq!(reply.status, 200);
    }
    for header in
        ["authorization: Bearer third", "authorization: Basic first", "x-api-key: first", "authorization: first"]
    {
        Request::get("/v1/models").header(header).send(server.address).error(401);
    }
    let long = format!("authorization: Bearer {}", "x".repeat(40_000));
    Request::get("/v1/models").header(&long).send(server.address).error(401);
    assert!(server.engine.requests().is_empty());
}

#[test]
fn no_spelling_of_a_path_goes_around_the_key() {
    let server = locked();
    for path in [
        "//v1/models",
        "/v1/../metrics",
        "/%2e%2e/metrics",
        "/health/../metrics",
        "/health/",
        "/v1/models/",
        "/health%2f..%2fmetrics",
    ] {
        let status = server.get(path).status;
        assert!(status == 401 || status == 404, "{path}: {status}");
    }
}

#[test]
fn preflights_need_no_key_and_only_known_origins_may_read() {
    let config = ServerConfig {
        api_keys: vec!["key".to_owned()],
        allowed_origins: vec!["https://a.example".to_owned()],
        ..config()
    };
    let server = TestServer::with(config, engine::words());
    let preflight = |origin: &str| -> Reply {
        let request = Request::new("OPTIONS", "/v1/completions").header(&format!("origin: {origin}"));
        request.header("access-control-request-method: POST").send(server.address)
    };
    let known = preflight("https://a.example");
    assert_eq!((known.status, known.header("access-control-allow-origin")), (204, Some("https://a.example")));
    assert!(known.header("access-control-allow-headers").unwrap().contains("authorization"));
    let unknown = preflight("https://b.example");
    assert_eq!((unknown.status, unknown.header("access-control-allow-origin")), (204, None));
    Request::new("OPTIONS", "/v1/models").send(server.address).error(401);
    let read = Request::get("/v1/models").header("origin: https://a.example").header("authorization: Bearer key");
    let reply = read.send(server.address);
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("https://a.example")));
}

#[test]
fn scripts_of_known_origins_may_send_the_headers_that_their_library_does() {
    let config = ServerConfig { allowed_origins: vec!["https://a.example".to_owned()], ..config() };
    let server = TestServer::with(config, engine::words());
    let granted = |origin: &str, asked: &str| {
        let request = Request::new("OPTIONS", "/v1/chat/completions").header(&format!("origin: {origin}"));
        let request = request.header("access-control-request-method: POST");
        let reply = request.header(&format!("access-control-request-headers: {asked}")).send(server.address);
        reply.header("access-control-allow-headers").map(str::to_owned)
    };
    let asked = "authorization,content-type,X-Stainless-Arch, x-stainless-retry-count";
    let expected = "authorization, content-type, x-stainless-arch, x-stainless-retry-count";
    assert_eq!(granted("https://a.example", asked).as_deref(), Some(expected));
    assert_eq!(granted("https://b.example", asked), None);
    for wrong in ["a b", "a,,b", "*/*;", "", &"x".repeat(5000)] {
        let usual = "authorization, content-type, x-request-id";
        assert_eq!(granted("https://a.example", wrong).as_deref(), Some(usual), "{wrong}");
    }
}

#[test]
fn request_ids_are_echoed_where_they_are_fit_and_ids_of_answers_stay_unique() {
    let config = ServerConfig { enable_request_id_headers: true, ..config() };
    let server = TestServer::with(config, script(says(" city")));
    let ask = |id: &str| {
        let request = Request::post("/v1/completions", "{\"prompt\": \"a\"}").header(&format!("x-request-id: {id}"));
        request.send(server.address)
    };
    let (first, second) = (ask("same"), ask("same"));
    for reply in [&first, &second] {
        assert_eq!(reply.header("x-request-id"), Some("same"));
    }
    assert_ne!(first.json()["id"], second.json()["id"]);
    for unfit in ["a\tb", "a b", &"x".repeat(200), "<script>"] {
        let id = ask(unfit).header("x-request-id").unwrap().to_owned();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    let raw = b"GET /version HTTP/1.1\r\nhost: t\r\nx-request-id: \x1b[31mred\r\n\r\n";
    assert!(exchange(server.address, raw).starts_with("HTTP/1.1 400"), "no header has such a character");
    let plain = TestServer::start();
    assert_eq!(plain.get("/version").header("x-request-id"), None);
}

#[test]
fn errors_are_small_and_have_no_control_characters() {
    let server = TestServer::start();
    let bad: Vec<String> = (0..12_000).map(|place| format!("{{\"bad\": \"{place}\\r\\n\\u001b[31m\"}}")).collect();
    for body in [
        format!("{{\"prompt\": [{}]}}", bad.join(",")),
        format!("{{\"prompt\": \"a\", \"model\": \"{}\\r\\n\\u001b[31mFAKE LOG LINE\"}}", "m".repeat(100_000)),
        format!("{{\"prompt\": \"a\", \"stop\": [{}]}}", vec!["\"\""; 12_000].join(",")),
        format!("{{\"messages\": [{}]}}", bad.join(",")),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            let reply = Request::post(path, &body).send(server.address);
            assert!((400..500).contains(&reply.status), "{}", reply.status);
            assert!(reply.body.len() <= 16 << 10, "{}", reply.body.len());
            assert!(!reply.body.contains("\\u001b") && !reply.body.contains("\\r"), "{}", reply.body);
        }
    }
    let long = server.get(&format!("/{}", "x".repeat(20_000)));
    assert!(long.error(404).len() < 1000);
}

#[test]
fn constraints_that_blow_up_are_refused() {
    let server = TestServer::start();
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let huge = json!({"enum": (0..300_000).map(|place| format!("value {place}")).collect::<Vec<_>>()});
    for schema in [deep, huge] {
        let body = json!({"prompt": "a", "structured_outputs": {"json": schema}});
        server.post("/v1/completions", &body).error(400);
    }
    for wrong in [
        json!({"regex": "(a"}),
        json!({"grammar": "start: nothing"}),
        json!({"json": {"type": 5}}),
        json!({"json": {"$ref": "#/nowhere"}}),
        json!({"json": {"$ref": "http://169.254.169.254/schema"}}),
    ] {
        let reply = server.post("/v1/completions", &json!({"prompt": "a", "structured_outputs": &wrong}));
        assert_eq!(reply.status, 400, "{wrong}: {}", reply.body);
    }
    let pattern = format!("a{{{}}}", "1".repeat(2 << 20));
    server.post("/v1/completions", &json!({"prompt": "a", "structured_outputs": {"regex": pattern}})).error(400);
    let schema = json!({"enum": ["x".repeat(200_000)]});
    let many = json!({"prompt": vec!["a"; 1000], "structured_outputs": {"json": schema}});
    assert!(server.post("/v1/completions", &many).error(400).contains("constraint"));
    assert!(server.engine.requests().is_empty());
}

#[test]
fn a_proxys_path_is_taken_away_and_nothing_else() {
    let config = ServerConfig { root_path: "/llm".to_owned(), api_keys: vec!["key".to_owned()], ..config() };
    let server = TestServer::with(config, engine::words());
    assert_eq!(server.get("/llm/health").status, 200);
    assert_eq!(server.get("/health").status, 200);
    server.get("/llm/v1/models").error(401);
    let models = Request::get("/llm/v1/models").header("authorization: Bearer key");
    assert_eq!(models.send(server.address).status, 200);
    let twice = Request::get("/llm/llm/v1/models").header("authorization: Bearer key");
    assert_eq!(twice.send(server.address).status, 404);
}

#[test]
fn what_is_compiled_for_a_request_is_shared_by_its_prompts() {
    let server = TestServer::start();
    let body = json!({"prompt": ["a", "b", "c"], "n": 2, "temperature": 1, "max_tokens": 3, "structured_outputs": {"regex": "(a*)*b"}});
    let reply = server.post("/v1/completions", &body).json();
    assert_eq!(reply["choices"].as_array().unwrap().len(), 6, "{reply}");
    let requests = server.engine.requests();
    assert!(requests.iter().all(|request| request.grammar.is_some() && request.max_tokens == 3));
    let prompts: std::collections::BTreeSet<Vec<u32>> =
        requests.iter().map(|request| request.prompt.to_vec()).collect();
    assert_eq!(prompts.len(), 3);
    let mut seeds: Vec<u64> = requests.iter().map(|request| request.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 6, "each answer draws differently");
}
