//! A server that runs while a task looks at it from outside.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::error::TaskError;
use crate::workspace;

/// What stands before the address in the line that says that a server is ready.
const READY: &str = "ready at ";

/// A running `allotrope serve` on a free port of this machine. Dropping it ends it.
pub(crate) struct Server {
    child: Child,
    /// Such as `http://127.0.0.1:40123`.
    pub(crate) url: String,
}

impl Server {
    /// Starts the program with a model and waits until it is ready.
    ///
    /// # Errors
    /// If it can't be started, or ends before it is ready; the message ends with what it wrote.
    pub(crate) fn start(program: &Path, model: &Path, arguments: &[&str]) -> Result<Self, TaskError> {
        let command = format!("{} serve {} {}", program.display(), model.display(), arguments.join(" "));
        let mut child = Command::new(program)
            .arg("serve")
            .arg(model)
            .args(["--port", "0"])
            .args(arguments)
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| TaskError::Start { command: command.clone(), source })?;
        let mut lines =
            child.stderr.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok);
        let mut seen = String::new();
        let mut server = Server { child, url: String::new() };
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once(READY) {
                server.url = address.split_whitespace().next().unwrap_or_default().to_owned();
                break;
            }
            seen = format!("{seen}{line}\n");
        }
        if server.url.is_empty() {
            return Err(TaskError::Message(format!("`{command}` did not become ready:\n{}", seen.trim_end())));
        }
        // What it writes later must go somewhere, or it would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
