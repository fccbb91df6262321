//! The plan of a run: checkpoint, resolved settings and optimized graph, before any weight is touched.

use std::path::Path;

use allotrope_config::{ActivationQuantization, CompilationMode, ModelFacts, Options, Settings, resolve};
use allotrope_cpu_runtime::{CpuDevice, Isa};
use allotrope_graph::partition::partition;
use allotrope_graph::passes::{PassReport, optimize};
use allotrope_graph::{Definition, Graph, OpKind, Sizes};
use allotrope_model::Checkpoint;
use allotrope_runtime::{CacheLayout, Device, ExecutorOptions, StartupLedger};

use crate::error::EngineError;

/// What a run will do, and why.
pub struct Plan {
    checkpoint: Checkpoint,
    settings: Settings,
    graph: Graph,
    passes: Vec<PassReport>,
    launches_as_built: usize,
    device: CpuDevice,
}

/// The parts of a plan that a run keeps.
pub(crate) struct PlanParts {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) settings: Settings,
    pub(crate) graph: Graph,
    pub(crate) passes: Vec<PassReport>,
    pub(crate) device: CpuDevice,
}

impl Plan {
    /// Opens the checkpoint, resolves `options` for it and for this machine, and runs the passes.
    pub(crate) fn new(folder: &Path, options: &Options, ledger: &mut StartupLedger) -> Result<Self, EngineError> {
        let checkpoint = ledger.phase("open checkpoint", || Checkpoint::open(folder))?;
        let mut graph = ledger.phase("build graph", || checkpoint.graph())?;
        let settings = ledger.phase("resolve settings", || {
            resolve(options, &model_facts(&checkpoint, &graph), &allotrope_cpu_runtime::facts())
        })?;
        let device = ledger.phase("open device", || CpuDevice::new(*settings.cpu.threads, Isa::detect()))?;
        let launches_as_built = graph.groups().len();
        let compile = *settings.compilation.mode == CompilationMode::Compile;
        let passes = ledger.phase("run passes", || {
            optimize(&mut graph, &settings.compilation.pass_config, compile, device.target())
        })?;
        Ok(Plan { checkpoint, settings, graph, passes, launches_as_built, device })
    }

    /// The resolved settings, each with its source and reason.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What every pass did.
    pub fn passes(&self) -> &[PassReport] {
        &self.passes
    }

    /// The graph as it will run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Launches of a step before any pass.
    pub fn launches_as_built(&self) -> usize {
        self.launches_as_built
    }

    /// Launches of a step as it will run.
    pub fn launches(&self) -> usize {
        self.graph.groups().len()
    }

    /// Pieces that the step is cut into, attention pieces among them.
    pub fn pieces(&self) -> usize {
        partition(&self.graph).len()
    }

    /// What each launch of the step runs, in order.
    pub fn launch_labels(&self) -> Vec<String> {
        (0..self.graph.groups().len()).map(|group| self.graph.group_label(group)).collect()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub(crate) fn into_parts(self) -> PlanParts {
        let Plan { checkpoint, settings, graph, passes, device, .. } = self;
        PlanParts { checkpoint, settings, graph, passes, device }
    }
}

/// What the settings' rules need to know of a model.
fn model_facts(checkpoint: &Checkpoint, graph: &Graph) -> ModelFacts {
    let quantizes = graph.ops().iter().any(|op| matches!(op.kind, OpKind::Quantize { .. }));
    ModelFacts {
        name: checkpoint.folder().display().to_string(),
        activation_quantization: if quantizes { ActivationQuantization::Static } else { ActivationQuantization::None },
        has_qk_norm: false,
        context_length: checkpoint.config().max_position_embeddings,
        kv_bytes_per_token: checkpoint.kv_bytes_per_token(),
    }
}

/// What the executor is built for, from resolved settings.
pub(crate) fn executor_options(checkpoint: &Checkpoint, settings: &Settings) -> Result<ExecutorOptions, EngineError> {
    let block_size = *settings.cache.block_size;
    let sequences = *settings.scheduler.max_num_seqs;
    let per_sequence = settings.model.max_model_len.div_ceil(block_size);
    let block_bytes = (checkpoint.kv_bytes_per_token() as u64).saturating_mul(block_size as u64).max(1);
    let affordable = usize::try_from(*settings.cache.kv_cache_memory / block_bytes).unwrap_or(usize::MAX);
    let blocks = affordable.min(per_sequence.saturating_mul(sequences));
    // Slots are i32 in the step's inputs.
    let blocks = blocks.min(i32::MAX as usize / block_size);
    if blocks < per_sequence {
        return Err(EngineError::Request(format!(
            "cache.kv_cache_memory of {} bytes holds {} tokens, but one sequence of model.max_model_len may have {}; \
             raise cache.kv_cache_memory or lower model.max_model_len",
            *settings.cache.kv_cache_memory,
            blocks * block_size,
            *settings.model.max_model_len,
        )));
    }
    let tokens = *settings.scheduler.max_num_batched_tokens;
    Ok(ExecutorOptions {
        limits: Sizes { tokens, sequences, logit_rows: sequences.min(tokens), blocks: per_sequence },
        cache: CacheLayout { blocks, block_size },
        vocabulary: checkpoint.config().vocab_size,
        repack_weights: *settings.kernel.repack_weights,
        graph_mode: *settings.compilation.cudagraph_mode,
        capture: *settings.compilation.cudagraph_capture,
        capture_sizes: (*settings.compilation.cudagraph_capture_sizes).clone(),
        require_graphs: *settings.require_graphs,
    })
}

/// Bytes of weights that one decode step reads: every weight of the graph once, but of an embedding table that is not
/// also a projection only single rows.
pub(crate) fn weight_bytes_per_step(graph: &Graph) -> u64 {
    let mut read = vec![false; graph.values().len()];
    for op in graph.ops() {
        let skipped = if matches!(op.kind, OpKind::Embedding) { op.inputs.len() } else { 0 };
        op.inputs.iter().skip(skipped).for_each(|input| read[input.index()] = true);
    }
    let values = graph.values().iter().zip(read).filter(|(_, read)| *read);
    let weights = values.filter(|(value, _)| matches!(value.definition, Definition::Weight(_)));
    let tensors = weights.filter_map(|(value, _)| value.ty.tensor());
    tensors.filter_map(|tensor| tensor.bytes(&Sizes::default())).map(|bytes| bytes as u64).sum()
}
