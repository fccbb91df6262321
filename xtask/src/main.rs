//! Developer tasks, run as `cargo xtask TASK`. `cargo xtask help` lists them; README.md says when to use which.
#![allow(clippy::print_stdout, reason = "the tasks are terminal programs, and standard output is their result")]

mod bench;
mod bisect;
mod clients;
mod compare;
mod docs;
mod emulate;
mod error;
mod fixtures;
mod gpu_archive;
mod kernels;
mod python;
mod runner;
mod server;
mod soak;
mod tidy;
mod validate;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::TaskError;

/// Developer tasks of Allotrope.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compare the optimization levels on a checkpoint: time to ready, speed, launches, memory, and whether the bits agree
    Bench(bench::Options),
    /// Find the first rewrite of a graph after which the logits have other bits
    Bisect(bisect::Options),
    /// Run the official `openai` package for Python against the server (needs Python, and the package or a way to install it)
    Clients,
    /// Measure the CPU device against llama.cpp and against transformers on PyTorch, in turns on this machine (needs Python and
    /// a C++ compiler, and the packages or a way to install them)
    Compare(compare::Options),
    /// Write the documentation that is generated from the code, or check that it is current
    Docs(docs::Options),
    /// Run a program on the CUDA emulator, which takes the place of a GPU and its driver: `cargo xtask emulate -- COMMAND`
    Emulate(emulate::Options),
    /// Make the test checkpoints, their reference logits and the questions again (needs Python with torch and transformers); with
    /// --preset, a checkpoint of a known shape with random weights
    Fixtures(fixtures::Options),
    /// Build an archive that tests and measures on a machine with a GPU and its driver alone
    GpuArchive(gpu_archive::Options),
    /// Compile the CUDA kernels into the bundle that the program embeds, check that it is current, or print what they take
    Kernels(kernels::Options),
    /// Put ten thousand requests to the server, many at once and some cancelled, and look for what is lost, wrong or left behind
    Soak(soak::Options),
    /// Check the rules of the source tree that no compiler checks
    Tidy,
    /// Run every check that a change must pass, cheapest first
    Validate,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Bench(options) => bench::run(&options),
        Task::Bisect(options) => bisect::run(&options),
        Task::Clients => clients::run(),
        Task::Compare(options) => compare::run(&options),
        Task::Docs(options) => docs::run(&options),
        Task::Emulate(options) => emulate::run(&options),
        Task::Fixtures(options) => fixtures::run(&options),
        Task::GpuArchive(options) => gpu_archive::run(&options),
        Task::Kernels(options) => kernels::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Tidy => tidy::run(),
        Task::Validate => validate::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &TaskError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
