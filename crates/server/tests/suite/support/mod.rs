//! A server with a scripted engine, on threads of its own.

pub(crate) mod client;
pub(crate) mod engine;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use allotrope_engine::{AsyncLlm, EngineStatus, QueueLimits, TextModel, channel};
use allotrope_server::{Server, ServerConfig, ServerError, ServerHandle};

use client::{Reply, Request};
use engine::{Engine, Script};

/// Long enough for whatever is right, on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat")
}

/// The text side of the small model, read once.
pub(crate) fn text_model() -> &'static TextModel {
    static TEXT: LazyLock<TextModel> = LazyLock::new(|| TextModel::open(&folder()).unwrap());
    &TEXT
}

/// A server that serves.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) handle: ServerHandle,
    pub(crate) engine: Engine,
    pub(crate) status: std::sync::Arc<EngineStatus>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig { port: 0, served_model_names: vec!["tiny".to_owned()], ..ServerConfig::default() }
}

impl TestServer {
    /// A server whose engine answers every request with words.
    pub(crate) fn start() -> Self {
        Self::with(config(), engine::words())
    }

    pub(crate) fn with(config: ServerConfig, script: Script) -> Self {
        Self::with_limits(config, script, QueueLimits::UNLIMITED)
    }

    pub(crate) fn with_limits(config: ServerConfig, script: Script, limits: QueueLimits) -> Self {
        let (server, llm) = Self::without_model(config, script, limits);
        server.handle.set_model(llm).unwrap();
        server
    }

    /// A server that waits for its model, and the model.
    pub(crate) fn without_model(config: ServerConfig, script: Script, limits: QueueLimits) -> (Self, AsyncLlm) {
        let server = Server::bind(config).unwrap();
        let address = server.socket_address().unwrap();
        let handle = server.handle();
        let (client, inbox) = channel(limits);
        let status = std::sync::Arc::clone(client.status());
        let llm = AsyncLlm::from_parts(text_model().clone(), client);
        let engine = Engine::default();
        let playing = engine.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let ended = runtime.block_on(async {
                tokio::spawn(playing.play(inbox, script));
                server.run().await
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
            ended
        });
        (TestServer { address, handle, engine, status, thread: Some(thread) }, llm)
    }

    pub(crate) fn send(&self, request: Request) -> Reply {
        request.send(self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path))
    }

    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> Reply {
        self.send(Request::post(path, &body.to_string()))
    }

    /// Waits for the server to end.
    pub(crate) fn join(mut self) -> Result<(), ServerError> {
        let thread = self.thread.take().unwrap();
        until("the server ends", || thread.is_finished());
        thread.join().unwrap()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until something holds, which it must before long.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
