//! `cargo xtask validate`: every check that a change must pass, cheapest first, each named and timed.

use std::time::{Duration, Instant};

use crate::error::TaskError;
use crate::{clients, docs, kernels, tidy, workspace};

type Step = (&'static str, fn() -> Result<(), TaskError>);

const STEPS: [Step; 8] = [
    ("format", || workspace::run("cargo", &["fmt", "--all", "--check"])),
    ("tidy", tidy::run),
    ("kernels", kernels::check_repository),
    ("clippy", || workspace::run("cargo", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])),
    ("docs", || docs::run(&docs::Options { check: true })),
    ("test", || workspace::run("cargo", &["test", "--workspace"])),
    ("bench", || workspace::run("cargo", &["xtask", "bench", "--quick"])),
    ("clients", clients::run),
];

/// Runs the steps until one fails.
///
/// # Errors
/// The failure of the first step that fails, with its name.
pub(crate) fn run() -> Result<(), TaskError> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for (name, check) in STEPS {
        println!("== {name}");
        let started = Instant::now();
        check().map_err(|error| TaskError::Message(format!("step `{name}`: {error}")))?;
        times.push((name, started.elapsed()));
    }
    for (name, time) in times {
        println!("{name:<8} passed in {:>6.1} s", time.as_secs_f64());
    }
    Ok(())
}
