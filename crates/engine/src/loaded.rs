//! A model that is loaded: what [`crate::Llm`] and the engine's thread have in common.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use allotrope_config::Settings;
use allotrope_model::{Checkpoint, ModelError};
use allotrope_runtime::{
    DeviceError, DispatchCounts, Executor, ExecutorError, StartupLedger, StartupReport, TuningReport, WeightUpload,
};

use crate::async_llm::ModelInfo;
use crate::device::AnyDevice;
use crate::dump;
use crate::engine_core::{EngineCore, Throughput};
use crate::error::EngineError;
use crate::plan::{Plan, all_weight_bytes, executor_options, scheduler_limits, weight_bytes_per_step};
use crate::text::{TextFiles, TextModel};

/// A loaded model.
pub(crate) struct Loaded {
    pub(crate) core: EngineCore<AnyDevice>,
    pub(crate) text: TextModel,
    pub(crate) settings: Settings,
    pub(crate) device_name: String,
    weight_bytes: u64,
    kv_bytes_per_token: usize,
    pub(crate) startup: StartupReport,
    started: Instant,
}

impl Loaded {
    /// Loads what `plan` makes of the checkpoint in `folder`.
    pub(crate) fn new(
        folder: &Path,
        plan: impl FnOnce(&mut StartupLedger) -> Result<Plan, EngineError>,
        mut ledger: StartupLedger,
    ) -> Result<Self, EngineError> {
        let files = ledger.phase("start tokenizer thread", || open_text(folder))?;
        let plan = plan(&mut ledger)?;
        let options = ledger.phase("resolve settings", || executor_options(&plan))?;
        let parts = plan.into_parts();
        let weight_bytes = weight_bytes_per_step(&parts.graph);
        let kv_bytes_per_token = parts.graph.kv_bytes_per_token();
        let checkpoint = Arc::new(parts.checkpoint);
        let is_gpu = parts.device.is_gpu();
        let limits = scheduler_limits(&parts.settings);
        if checkpoint.is_dummy() {
            ledger.phase("make dummy weights", || make_dummy_weights(&checkpoint, all_weight_bytes(&parts.graph)))?;
        }
        let executor = Executor::build(parts.device, parts.graph, checkpoint.clone(), options, &mut ledger);
        let executor = executor.map_err(|error| match error {
            ExecutorError::Device(error @ DeviceError::Environment { .. }) if is_gpu => EngineError::Loading { error },
            error => error.into(),
        })?;
        if let Some(folder) = &*parts.settings.compilation.debug_dump_path {
            ledger.phase("write dump", || dump::write_recordings(&executor.recordings_text(), folder))?;
        }
        let core = EngineCore::new(executor, limits);
        let files = ledger.phase("wait for tokenizer", || join(files, folder))?;
        let text = TextModel::new(files, checkpoint, *parts.settings.model.max_model_len)?;
        Ok(Loaded {
            core,
            text,
            settings: parts.settings,
            device_name: parts.device_name,
            weight_bytes,
            kv_bytes_per_token,
            started: ledger.started(),
            startup: ledger.finish(),
        })
    }

    /// What is known from the start.
    pub(crate) fn info(&self) -> ModelInfo {
        let tokens = self.kv_cache_tokens();
        ModelInfo {
            settings: self.settings.clone(),
            device_name: self.device_name.clone(),
            startup: self.startup.clone(),
            kv_cache_tokens: tokens,
            kv_cache_bytes: (tokens as u64).saturating_mul(self.kv_bytes_per_token as u64),
        }
    }

    fn kv_cache_tokens(&self) -> usize {
        let cache = self.core.executor().options().cache;
        cache.blocks * cache.block_size
    }

    /// What has happened since the start.
    pub(crate) fn statistics(&self) -> Statistics {
        let executor = self.core.executor();
        Statistics {
            throughput: self.core.throughput(),
            time_to_first_token: self.core.first_token().map(|first| first.duration_since(self.started)),
            recordings: executor.recordings(),
            failed_captures: executor.failed_captures(),
            late_captures: executor.late_captures(),
            capture_memory: executor.capture_memory(),
            weight_upload: executor.weight_upload(),
            tuning: executor.tuning(),
            dispatch: executor.dispatch_counts().clone(),
            arena_bytes: executor.memory().bytes,
            weight_bytes_per_step: self.weight_bytes,
            kv_cache_tokens: self.kv_cache_tokens(),
        }
    }
}

/// Makes weights, of so many bytes, where none are read.
fn make_dummy_weights(checkpoint: &Checkpoint, bytes: u64) -> Result<(), EngineError> {
    // A system that promises more memory than it has ends the process that then uses it.
    let available = allotrope_cpu_runtime::facts().available_memory;
    if bytes > available {
        return Err(EngineError::Request(format!(
            "model.load_format=dummy makes {bytes} bytes of weights, and {available} bytes of memory are available; free memory or \
             choose a smaller model",
        )));
    }
    tracing::info!("the weights are made up (model.load_format=dummy): answers mean nothing");
    Ok(checkpoint.make_dummy_weights()?)
}

fn open_text(folder: &Path) -> Result<JoinHandle<Result<TextFiles, ModelError>>, EngineError> {
    let path = folder.to_path_buf();
    let thread = std::thread::Builder::new().name("tokenizer".into()).spawn(move || TextFiles::open(&path));
    thread.map_err(|error| EngineError::TokenizerThread(folder.to_path_buf(), error.to_string()))
}

fn join(thread: JoinHandle<Result<TextFiles, ModelError>>, folder: &Path) -> Result<TextFiles, EngineError> {
    let died = |_| EngineError::TokenizerThread(folder.to_path_buf(), "the thread panicked (a bug)".into());
    Ok(thread.join().map_err(died)??)
}

/// Counters of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Tokens, times and launches by the kind of step.
    pub throughput: Throughput,
    /// From the start of the program to the first token of all, the wait for the first request included; `None` before it.
    pub time_to_first_token: Option<Duration>,
    /// Recordings that exist.
    pub recordings: usize,
    /// Recordings that could not be made, and that steps run without.
    pub failed_captures: usize,
    /// Recordings made after the model was ready.
    pub late_captures: u64,
    /// Bytes of the device's memory that recordings took; `None` for a device without memory of its own.
    pub capture_memory: Option<u64>,
    /// What copying the weights to the device came to; `None` for a device that uses them where they are.
    pub weight_upload: Option<WeightUpload>,
    /// What tuning kernels came to; `None` where they were not tuned.
    pub tuning: Option<TuningReport>,
    /// How steps ran, with reasons.
    pub dispatch: DispatchCounts,
    /// Bytes of the arena that activations share.
    pub arena_bytes: usize,
    /// Bytes of weights that one decode step reads.
    pub weight_bytes_per_step: u64,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
}
