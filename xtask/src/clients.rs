//! `cargo xtask clients`: the official `openai` package for Python against the server, as its users use it.

use crate::error::TaskError;
use crate::python;
use crate::server::Server;
use crate::workspace;

const KEY: &str = "a-key-of-the-test";

/// Installs the package where it is not yet, starts a server of tiny-chat and runs every check.
///
/// # Errors
/// If Python or the package can't be had, the server does not start, or a check fails.
pub(crate) fn run() -> Result<(), TaskError> {
    let target = workspace::target_folder()?;
    let requirements = workspace::root().join("tests/tools/openai_requirements.txt");
    let python = python::environment(&target.join("openai"), &requirements, None)?;
    workspace::run("cargo", &["build", "--package", "allotrope"])?;
    let program = target.join("debug").join(format!("allotrope{}", std::env::consts::EXE_SUFFIX));
    let model = workspace::root().join("tests/models/tiny-chat");
    let server = Server::start(&program, &model, &["--device", "cpu", "--api-key", KEY, "--metrics-prefix", "vllm:"])?;
    let script = workspace::root().join("tests/tools/openai_client.py");
    workspace::run(&python.to_string_lossy(), &[&script.to_string_lossy(), &server.url, KEY])
}
