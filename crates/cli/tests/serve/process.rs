//! A server as a process of its own, and a client of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take on a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat")
}

/// A running `allotrope serve`. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    lines: Option<mpsc::Receiver<String>>,
    /// Such as `http://127.0.0.1:40123`.
    pub(crate) url: String,
    /// From the start of the process to the line that says that it is ready.
    pub(crate) ready: Duration,
}

impl Server {
    /// Starts a server of tiny-chat on a free port and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[&["--device", "cpu"], arguments].concat(), |_| {})
    }

    /// The same with a command that was changed, on any device.
    pub(crate) fn start_with(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut server = Self::spawn(arguments, change);
        let started = Instant::now();
        server.url = server.wait_for("ready at ");
        server.ready = started.elapsed();
        server
    }

    /// Starts one and waits for nothing.
    fn spawn(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_allotrope"));
        command
            .arg("serve")
            .arg(model())
            .args(["--port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Server { child, lines: Some(lines), url: String::new(), ready: Duration::ZERO }
    }

    /// Waits for a line with `words` and gives the rest of it up to a space.
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let next = self.lines.as_ref().map(|lines| lines.recv_timeout(PATIENCE));
            match next {
                Some(Ok(line)) => match line.split_once(words) {
                    Some((_, rest)) => return rest.split_whitespace().next().unwrap_or_default().to_owned(),
                    None => seen.push(line),
                },
                _ => panic!("no line with {words:?}; it wrote:\n{}", seen.join("\n")),
            }
        }
    }

    /// Reads no more of what it writes: the pipe breaks with its next line.
    pub(crate) fn close_stderr(&mut self) {
        self.lines = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server does not end");
    }

    /// A number in KiB of `/proc/PID/status`.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Files and sockets that it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a metric without labels that matter, whatever its prefix.
pub(crate) async fn metric(url: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|line| {
        let (metric, value) = line.rsplit_once(' ')?;
        let bare = metric.split('{').next()?.split(':').next_back()?;
        (bare == name).then(|| value.parse::<f64>().ok())?
    });
    value.unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
}

/// Waits until nothing runs, waits or holds blocks.
pub(crate) async fn settle(url: &str) {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let mut busy = 0.0;
        for name in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"] {
            busy += metric(url, name).await;
        }
        if busy == 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("requests are left behind");
}

/// The text of a completion.
pub(crate) fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {answer}")).to_owned()
}
