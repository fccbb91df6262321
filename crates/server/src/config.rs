//! What a server is told before it starts.

use std::path::PathBuf;
use std::time::Duration;

use allotrope_engine::LogprobCount;

use crate::error::ServerError;
use crate::tools::ToolFormat;

/// Longest prefix of metric names, in bytes.
const MAX_METRICS_PREFIX: usize = 64;
/// The longest time that anything may take: some thirty years. Moments that are further away than that can't be told everywhere.
pub const MAX_TIME: Duration = Duration::from_secs(1_000_000_000);

/// Bounds on what clients may send and hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// The most bytes of a request body; more is answered with 413.
    pub body_bytes: usize,
    /// The most bytes of all bodies that are read, or wait to be parsed, at one time; a request that finds no room is answered with 503.
    pub total_body_bytes: usize,
    /// The most bytes of a request's line and headers; more is answered with 431.
    pub header_bytes: usize,
    /// The most headers of a request; more is answered with 431.
    pub header_count: usize,
    /// The most connections; others wait in the kernel's queue.
    pub connections: usize,
    /// How long the headers of a request may take from their first byte.
    pub header_timeout: Duration,
    /// How long a request body may take.
    pub body_timeout: Duration,
    /// How long a client may read nothing while there is something for it; then its connection is dropped, and its requests
    /// with it.
    pub write_timeout: Duration,
    /// How long a connection may stay open between two requests.
    pub keep_alive: Duration,
    /// How long one answer may take altogether, if there is a limit.
    pub request_time: Option<Duration>,
    /// How long a prompt may take to be rendered, tokenized and compiled, the wait for a thread included.
    pub preparation_time: Duration,
    /// How many prompts are prepared at one time.
    pub preparations: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            body_bytes: 32 << 20,
            total_body_bytes: 512 << 20,
            header_bytes: 64 << 10,
            header_count: 100,
            connections: 4096,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            request_time: None,
            preparation_time: Duration::from_secs(30),
            preparations: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// How a server listens, whom it serves, and with what defaults.
///
/// ```
/// use allotrope_server::{Server, ServerConfig};
///
/// let config = ServerConfig { port: 0, ..ServerConfig::default() };
/// let server = Server::bind(config)?;
/// assert!(server.address().starts_with("http://127.0.0.1:"));
/// # Ok::<(), allotrope_server::ServerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The name or address to listen at.
    pub host: String,
    /// The port; 0 for any that is free.
    pub port: u16,
    /// A path for a Unix socket, in place of host and port.
    pub uds: Option<PathBuf>,
    /// Keys of which requests must give one as `Authorization: Bearer KEY`; if there are none, everyone is served.
    pub api_keys: Vec<String>,
    /// Whether an address that others can reach may be served without a key.
    pub allow_public_without_key: bool,
    /// Names of the model; if there are none, that of its folder.
    pub served_model_names: Vec<String>,
    /// The most alternatives that a request may ask for with each token.
    pub max_logprobs: LogprobCount,
    /// Bounds on what clients may send and hold.
    pub limits: HttpLimits,
    /// The most bytes of text in a prompt; by default as many as the longest tokens could have in the model's context.
    pub max_prompt_bytes: Option<usize>,
    /// How long open answers may go on after the first request to shut down. Zero aborts them at once.
    pub shutdown_timeout: Duration,
    /// Whether answers have the header `X-Request-Id`, taken from the request if it has a valid one.
    pub enable_request_id_headers: bool,
    /// Whether every stream tells its usage at the end.
    pub force_include_usage: bool,
    /// Whether the usage tells how many tokens of the prompt were in the prefix cache.
    pub prompt_tokens_details: bool,
    /// How long a stream may be silent before a comment is sent; `None` for no comments.
    pub sse_keep_alive_interval: Option<Duration>,
    /// How many tokens a chunk of a stream has.
    pub stream_interval: usize,
    /// What the names of metrics begin with.
    pub metrics_prefix: String,
    /// Origins of pages whose scripts may read answers; `*` for all.
    pub allowed_origins: Vec<String>,
    /// A path that a proxy puts before all routes.
    pub root_path: String,
    /// Whether models may call tools by themselves (`tool_choice` `auto`).
    pub enable_auto_tool_choice: bool,
    /// How the model writes calls of tools; by default as its chat template shows.
    pub tool_parser: Option<ToolFormat>,
    /// The source of a chat template in place of the checkpoint's.
    pub chat_template: Option<String>,
    /// Whether requests may bring a chat template, which is a program.
    pub trust_request_chat_template: bool,
    /// Whether the engine runs urgent requests first; if not, a request that gives a priority is refused.
    pub priority_scheduling: bool,
    /// Whether the log leaves out the regular summary.
    pub disable_log_stats: bool,
    /// How often the log has a summary while requests run.
    pub stats_interval: Duration,
    /// How long requests may run without a step before `/health` says that something is wrong.
    pub step_watchdog: Duration,
    /// How long `/health` says that the engine is dead before the server ends with an error, for a supervisor to start it anew;
    /// `None` for ever.
    pub engine_death_grace: Option<Duration>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            uds: None,
            api_keys: Vec::new(),
            allow_public_without_key: false,
            served_model_names: Vec::new(),
            max_logprobs: LogprobCount::Top(20),
            limits: HttpLimits::default(),
            max_prompt_bytes: None,
            shutdown_timeout: Duration::ZERO,
            enable_request_id_headers: false,
            force_include_usage: false,
            prompt_tokens_details: false,
            sse_keep_alive_interval: Some(Duration::from_secs(15)),
            stream_interval: 1,
            metrics_prefix: "allotrope:".to_owned(),
            allowed_origins: Vec::new(),
            root_path: String::new(),
            enable_auto_tool_choice: false,
            tool_parser: None,
            chat_template: None,
            trust_request_chat_template: false,
            priority_scheduling: false,
            disable_log_stats: false,
            stats_interval: Duration::from_secs(10),
            step_watchdog: Duration::from_secs(60),
            engine_death_grace: Some(Duration::from_secs(5)),
        }
    }
}

impl ServerConfig {
    /// Checks what can be checked without a socket.
    pub(crate) fn validate(&self) -> Result<(), ServerError> {
        let wrong = |field, problem: &str| Err(ServerError::Config { field, problem: problem.to_owned() });
        let is_key = |key: &String| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.api_keys.iter().all(is_key) {
            // The key itself is a secret, also a wrong one.
            return wrong(
                "api_keys",
                "a key is empty or has characters that a header can't; use visible ASCII characters",
            );
        }
        let is_name = |name: &String| !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
        if !self.served_model_names.iter().all(is_name) {
            return wrong("served_model_names", "a name is empty, longer than 256 bytes or has control characters");
        }
        let prefix = &self.metrics_prefix;
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
        if prefix.len() > MAX_METRICS_PREFIX
            || !prefix.bytes().all(is_word)
            || prefix.starts_with(|first: char| first.is_ascii_digit())
        {
            return wrong("metrics_prefix", "it may have letters, digits, `_` and `:`, and no digit first");
        }
        if !self.root_path.is_empty() && (!self.root_path.starts_with('/') || self.root_path.ends_with('/')) {
            return wrong("root_path", "it must begin with `/` and not end with one");
        }
        if self.stream_interval == 0 {
            return wrong("stream_interval", "it must be at least 1");
        }
        if let Some((field, _)) = self.times().into_iter().find(|(_, time)| *time > MAX_TIME) {
            return wrong(field, &format!("it is longer than {} seconds", MAX_TIME.as_secs()));
        }
        let limits = &self.limits;
        if limits.connections == 0 || limits.header_count == 0 || limits.preparations == 0 || limits.body_bytes == 0 {
            return wrong("limits", "connections, headers, preparations and bytes of a body must each be at least 1");
        }
        if limits.header_bytes < 1024 {
            return wrong("limits.header_bytes", "it must be at least 1024");
        }
        Ok(())
    }

    /// Every time of the configuration by its name.
    fn times(&self) -> [(&'static str, Duration); 11] {
        let limits = &self.limits;
        [
            ("limits.header_timeout", limits.header_timeout),
            ("limits.body_timeout", limits.body_timeout),
            ("limits.write_timeout", limits.write_timeout),
            ("limits.keep_alive", limits.keep_alive),
            ("limits.request_time", limits.request_time.unwrap_or_default()),
            ("limits.preparation_time", limits.preparation_time),
            ("shutdown_timeout", self.shutdown_timeout),
            ("sse_keep_alive_interval", self.sse_keep_alive_interval.unwrap_or_default()),
            ("stats_interval", self.stats_interval),
            ("step_watchdog", self.step_watchdog),
            ("engine_death_grace", self.engine_death_grace.unwrap_or_default()),
        ]
    }
}
