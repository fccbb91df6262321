//! What can go wrong between a request and its answer, and whose fault it is.

use std::path::PathBuf;

use allotrope_config::{DeviceChoice, SettingsError};
use allotrope_graph::memory::MemoryPlanError;
use allotrope_graph::partition::UnknownOp;
use allotrope_graph::verify::VerifyError;
use allotrope_model::ModelError;
use allotrope_runtime::{DeviceError, ExecutorError, LaunchOrderError};

use crate::client::{RequestFailure, SubmitError};
use crate::sampling::SamplingError;
use crate::structured::StructuredOutputError;

/// Why a model could not be loaded or a request not be answered.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The checkpoint is missing, broken or not supported.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The settings contradict each other, the model or the device.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device that was asked for can't be used.
    #[error("{origin}: `device` cannot be {device}: {error}{}", or_the_cpu(error))]
    NoDevice {
        /// Which device.
        device: DeviceChoice,
        /// Where it was asked for.
        origin: String,
        /// What is missing and what to do.
        error: DeviceError,
    },
    /// The GPU could not load the model.
    #[error("{error}{}", or_the_cpu(error))]
    Loading {
        /// What is missing and what to do.
        error: DeviceError,
    },
    /// The device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device or the step failed.
    #[error(transparent)]
    Execution(#[from] ExecutorError),
    /// The graph is malformed: a bug in Allotrope.
    #[error(transparent)]
    Graph(#[from] VerifyError),
    /// A splitting operation that there is none of.
    #[error("compilation.splitting_ops ({origin}): {error}")]
    SplittingOps {
        /// Which name, and the nearest right one.
        error: UnknownOp,
        /// Where the setting comes from.
        origin: String,
    },
    /// The launches are in an order that steps can't have: a bug in whoever built the graph.
    #[error(transparent)]
    Order(#[from] LaunchOrderError),
    /// A buffer of the step is too large.
    #[error(transparent)]
    Memory(#[from] MemoryPlanError),
    /// The dump can't be written.
    #[error("compilation.debug_dump_path: writing {path}: {error}", path = .path.display())]
    Dump {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// What the output must be can't be used, or can't be compiled now.
    #[error(transparent)]
    StructuredOutput(#[from] StructuredOutputError),
    /// The prompt does not fit into the context.
    #[error(
        "this model's maximum context length is {context} tokens (model.max_model_len), but the prompt has {tokens} and at least \
         {more} more {} wanted; shorten the prompt", if *.more == 1 { "is" } else { "are" }
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that are wanted behind it at least.
        more: usize,
        /// What the context holds.
        context: usize,
    },
    /// The engine takes no further request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine gave a request up.
    #[error(transparent)]
    Failure(#[from] RequestFailure),
    /// The thread of the engine could not be started.
    #[error("starting the thread of the engine: {0}")]
    EngineThread(String),
    /// The request can't be answered with this model and these settings.
    #[error("{0}")]
    Request(String),
    /// The tokenizer's thread could not be started, or died.
    #[error("loading the tokenizer of {folder}: {message}", folder = .0.display(), message = .1)]
    TokenizerThread(PathBuf, String),
}

/// The advice that is right whatever a GPU lacks, where the error does not give it itself.
fn or_the_cpu(error: &DeviceError) -> &'static str {
    if error.to_string().contains("--device cpu") { "" } else { "; or use the CPU (`--device cpu`)" }
}

impl EngineError {
    /// True if the caller wrote something that can never be right, whatever the machine: a usage error.
    pub fn is_usage(&self) -> bool {
        match self {
            EngineError::Settings(error) => error.is_usage(),
            EngineError::Sampling(_) | EngineError::SplittingOps { .. } => true,
            _ => false,
        }
    }
}
