//! The plan of a run: checkpoint, resolved settings and optimized graph, before any weight is touched.

use std::path::Path;
use std::time::Duration;

use allotrope_config::{
    CompilationMode, KvCacheDtype, LoadFormat, ModelFacts, OptimizationLevel, Options, PassLine, SchedulingPolicy,
    Settings, kv_cache_dtype, load_format,
};
use allotrope_graph::facts;
use allotrope_graph::history::PassReport;
use allotrope_graph::memory::{MemoryPlan, MemoryPlanError, plan_memory};
use allotrope_graph::partition::{SplittingOps, partition};
use allotrope_graph::passes::{Fuel, PIPELINE, Pass, find, run_passes};
use allotrope_graph::schedule::{ScheduleReport, schedule};
use allotrope_graph::verify::{VerifyError, verify};
use allotrope_graph::{DType, Definition, Graph, OpKind, Sizes};
use allotrope_model::Checkpoint;
use allotrope_runtime::{CacheLayout, Device, DeviceError, ExecutorOptions, GeneratedCode, StartupLedger, Tuning};

use crate::device::{AnyDevice, Opened, open, open_another};
use crate::dump;
use crate::error::EngineError;
use crate::scheduler::SchedulerLimits;

/// After this much time of a start no further search for a kernel's parameters begins.
const TUNING_BUDGET: Duration = Duration::from_secs(10);

/// What a run will do, and why.
pub struct Plan {
    checkpoint: Checkpoint,
    settings: Settings,
    as_built: Graph,
    graph: Graph,
    schedule: Option<ScheduleReport>,
    splitting_ops: SplittingOps,
    device: AnyDevice,
    device_name: String,
}

/// The parts of a plan that a run keeps.
pub(crate) struct PlanParts {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) settings: Settings,
    pub(crate) graph: Graph,
    pub(crate) device: AnyDevice,
    pub(crate) device_name: String,
}

/// A graph as it will run.
struct Compiled {
    graph: Graph,
    schedule: Option<ScheduleReport>,
    splitting_ops: SplittingOps,
}

impl Compiled {
    /// Runs the passes for a device. Where one leaves a malformed graph and a dump is asked for, it has the graphs up to there.
    fn new(as_built: &Graph, opened: &Opened, ledger: &mut StartupLedger) -> Result<Self, EngineError> {
        let Opened { device, settings, .. } = opened;
        let splitting_ops = splitting_ops(settings)?;
        let compiled = ledger.phase("run passes", || {
            let mut graph = as_built.clone();
            compile(&mut graph, settings, device, &mut |_, _| {})?;
            let finished = graph.history().iter().all(|report| !report.out_of_fuel);
            let reorders = is_compiled(settings) && finished;
            let schedule = reorders.then(|| schedule(&mut graph, &limits(settings), &splitting_ops));
            Ok::<_, VerifyError>((graph, schedule))
        });
        match (compiled, &*settings.compilation.debug_dump_path) {
            (Ok((graph, schedule)), _) => Ok(Self { graph, schedule, splitting_ops }),
            (Err(error), None) => Err(error.into()),
            (Err(error), Some(folder)) => {
                // What a pass made before it was found malformed is what somebody will want to see.
                dump::write_graphs(as_built, &compiled_as_far_as_it_goes(as_built, settings, device), folder)?;
                Err(error.into())
            }
        }
    }

    /// Asks the device for a kernel for every launch, so that one that has none is known before a weight is touched.
    fn check(&self, device: &AnyDevice, ledger: &mut StartupLedger) -> Result<(), DeviceError> {
        ledger.phase("run passes", || device.check(&self.graph))
    }
}

impl Plan {
    /// Opens the checkpoint and the device, resolves `options` for both, runs the passes, and dumps what they did if
    /// that is asked for.
    pub(crate) fn new(folder: &Path, options: &Options, ledger: &mut StartupLedger) -> Result<Self, EngineError> {
        let format = ledger.phase("resolve settings", || load_format(options))?;
        let checkpoint = ledger.phase("open checkpoint", || match format.value {
            LoadFormat::Auto | LoadFormat::Safetensors => Checkpoint::open(folder),
            LoadFormat::Dummy => Checkpoint::open_dummy(folder),
        })?;
        let as_built = ledger.phase("build graph", || {
            let kv_cache = match kv_cache_dtype(options)? {
                KvCacheDtype::Auto => checkpoint.dtype(),
                KvCacheDtype::Fp8 => DType::F8E4M3,
            };
            Ok::<_, EngineError>(checkpoint.graph_with_kv_cache(kv_cache)?)
        })?;
        let model = ledger.phase("resolve settings", || model_facts(&checkpoint, &as_built));
        let mut opened = open(options, &model, ledger)?;
        let mut compiled = Compiled::new(&as_built, &opened, ledger)?;
        if let Err(error) = compiled.check(&opened.device, ledger) {
            opened = open_another(opened, error, options, &model, ledger)?;
            compiled = Compiled::new(&as_built, &opened, ledger)?;
            compiled.check(&opened.device, ledger)?;
        }
        let Opened { device, settings, name: device_name } = opened;
        let Compiled { graph, schedule, splitting_ops } = compiled;
        let dump_path = (*settings.compilation.debug_dump_path).clone();
        let plan = Plan { checkpoint, settings, as_built, graph, schedule, splitting_ops, device, device_name };
        if let Some(folder) = dump_path {
            ledger.phase("write dump", || dump::write(&plan, &folder))?;
        }
        Ok(plan)
    }

    /// The resolved settings, each with its source and reason.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What every pass did.
    pub fn passes(&self) -> &[PassReport] {
        self.graph.history()
    }

    /// What every pass did, as `explain` shows it: with its time if `timed`, without where texts must not differ from run
    /// to run.
    pub fn pass_lines(&self, timed: bool) -> Vec<PassLine> {
        let lines = self.passes().iter().map(|report| {
            let launches = report.enabled.then(|| match timed {
                true => format!("{} launches after it, {:.2} ms", report.launches, report.time.as_secs_f64() * 1e3),
                false => format!("{} launches after it", report.launches),
            });
            let dry = (report.enabled && report.out_of_fuel).then(|| "out of fuel".to_owned());
            let notes: Vec<String> = launches.into_iter().chain(dry).collect();
            PassLine {
                name: report.name.to_owned(),
                setting: find(report.name).map(Pass::setting).unwrap_or_default(),
                matches: report.enabled.then_some(report.matches),
                note: (!notes.is_empty()).then(|| notes.join("; ")),
                left_alone: report.near_misses.iter().map(ToString::to_string).collect(),
            }
        });
        lines.collect()
    }

    /// The graph as the model builder wrote it.
    pub fn as_built(&self) -> &Graph {
        &self.as_built
    }

    /// The graph as it will run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph after each pass, with what the pass did. The passes run once more for that, with each graph verified.
    ///
    /// # Errors
    /// If a pass leaves a malformed graph, which is a bug.
    pub fn stages(&self) -> Result<Vec<(PassReport, Graph)>, VerifyError> {
        let stages = compiled_as_far_as_it_goes(&self.as_built, &self.settings, &self.device);
        stages.iter().try_for_each(|(_, graph)| verify(graph))?;
        Ok(stages)
    }

    /// The graph before and after each pass, side by side, as a page for a browser that needs nothing else. The same input
    /// gives the same bytes.
    ///
    /// # Errors
    /// As [`Plan::stages`].
    pub fn passes_page(&self) -> Result<String, VerifyError> {
        Ok(dump::passes_page(self, &self.stages()?))
    }

    /// What ordering the launches did; `None` where they were left in the order of the graph: where no pass runs, or the fuel
    /// ran out.
    pub fn schedule(&self) -> Option<ScheduleReport> {
        self.schedule
    }

    /// Where values between launches are kept.
    ///
    /// # Errors
    /// If one of them is too large to address.
    pub fn memory(&self) -> Result<MemoryPlan, MemoryPlanError> {
        let launches = 0..self.graph.groups().len();
        let workspace: Vec<_> = launches.map(|group| self.device.workspace(&self.graph, group)).collect();
        let (target, alignment) = (self.device.target(), self.device.alignment());
        plan_memory(&self.graph, target, &workspace, limits(&self.settings), alignment)
    }

    /// Launches of a step before any pass.
    pub fn launches_as_built(&self) -> usize {
        self.as_built.groups().len()
    }

    /// Launches of a step as it will run.
    pub fn launches(&self) -> usize {
        self.graph.groups().len()
    }

    /// Pieces that the step is cut into, those of the splitting operations among them.
    pub fn pieces(&self) -> usize {
        partition(&self.graph, &self.splitting_ops).len()
    }

    /// What each launch of the step runs, in order.
    pub fn launch_labels(&self) -> Vec<String> {
        (0..self.graph.groups().len()).map(|group| self.graph.group_label(group)).collect()
    }

    /// What the device runs for a launch, one line for each part of it.
    pub fn describe_launch(&self, launch: usize) -> String {
        self.device.describe(&self.graph, launch)
    }

    /// The code that the device generates for a launch. None on the CPU.
    ///
    /// # Errors
    /// If generating fails, which is a bug.
    pub fn generated_code(&self, launch: usize) -> Result<Vec<GeneratedCode>, DeviceError> {
        self.device.generated_code(&self.graph, launch)
    }

    /// The kernels that may run a launch, by their names, that for the smallest batches first. None on the CPU, where a launch is
    /// not one kernel.
    pub fn kernels(&self, launch: usize) -> Vec<String> {
        self.device.kernels(&self.graph, launch)
    }

    /// The checkpoint's folder and the level, on one line whatever the folder is called.
    pub fn title(&self) -> String {
        let folder = self.checkpoint.folder().display().to_string();
        format!("{} at {}", folder.replace(char::is_control, "\u{fffd}"), self.level())
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The name of the device that would run it.
    pub fn device_name(&self) -> &str {
        &self.device_name
    }

    /// The level that the settings were resolved at.
    pub fn level(&self) -> OptimizationLevel {
        *self.settings.optimization_level
    }

    /// The operations at which steps are cut.
    pub(crate) fn splitting_ops(&self) -> &SplittingOps {
        &self.splitting_ops
    }

    pub(crate) fn into_parts(self) -> PlanParts {
        let Plan { checkpoint, settings, graph, device, device_name, .. } = self;
        PlanParts { checkpoint, settings, graph, device, device_name }
    }
}

fn is_compiled(settings: &Settings) -> bool {
    *settings.compilation.mode == CompilationMode::Compile
}

/// Runs the passes that the settings turn on.
fn compile(
    graph: &mut Graph,
    settings: &Settings,
    device: &AnyDevice,
    observe: &mut dyn FnMut(&PassReport, &Graph),
) -> Result<(), VerifyError> {
    let fuel = settings.compilation.fuel.map_or(Fuel::UNLIMITED, Fuel::limited);
    let on = |pass: &Pass| is_compiled(settings) && (pass.enabled)(&settings.compilation.pass_config);
    run_passes(graph, PIPELINE, on, device.target(), fuel, observe)
}

/// The graph after each pass, down to the first that the verifier does not accept.
fn compiled_as_far_as_it_goes(as_built: &Graph, settings: &Settings, device: &AnyDevice) -> Vec<(PassReport, Graph)> {
    let mut stages = Vec::with_capacity(PIPELINE.len());
    let mut graph = as_built.clone();
    // The error is the caller's to report; the last of the stages shows it.
    let _ = compile(&mut graph, settings, device, &mut |report, graph| stages.push((report.clone(), graph.clone())));
    stages
}

/// The operations at which steps are cut.
fn splitting_ops(settings: &Settings) -> Result<SplittingOps, EngineError> {
    let setting = &settings.compilation.splitting_ops;
    SplittingOps::new(setting).map_err(|error| EngineError::SplittingOps { error, origin: setting.source.to_string() })
}

/// The largest batch.
pub(crate) fn limits(settings: &Settings) -> Sizes {
    let (tokens, sequences) = (*settings.scheduler.max_num_batched_tokens, *settings.scheduler.max_num_seqs);
    let blocks = settings.model.max_model_len.div_ceil(*settings.cache.block_size);
    Sizes { tokens, sequences, logit_rows: sequences.min(tokens), blocks }
}

/// What bounds the scheduler's steps.
pub(crate) fn scheduler_limits(settings: &Settings) -> SchedulerLimits {
    let limits = limits(settings);
    SchedulerLimits {
        max_num_seqs: limits.sequences,
        max_num_batched_tokens: limits.tokens,
        logit_rows: limits.logit_rows,
        block_size: *settings.cache.block_size,
        prefix_caching: *settings.cache.enable_prefix_caching,
        chunked_prefill: *settings.scheduler.enable_chunked_prefill,
        long_prefill: *settings.scheduler.long_prefill_token_threshold,
        by_priority: *settings.scheduler.scheduling_policy == SchedulingPolicy::Priority,
    }
}

/// What the settings' rules need to know of a model.
fn model_facts(checkpoint: &Checkpoint, graph: &Graph) -> ModelFacts {
    let of_checkpoint = ModelFacts {
        name: checkpoint.folder().display().to_string(),
        context_length: checkpoint.config().max_position_embeddings,
        kv_bytes_per_token: graph.kv_bytes_per_token(),
        weight_bytes: all_weight_bytes(graph),
        ..ModelFacts::assumed()
    };
    facts::model_facts(graph, of_checkpoint)
}

/// What the executor is built for.
pub(crate) fn executor_options(plan: &Plan) -> Result<ExecutorOptions, EngineError> {
    let Plan { checkpoint, settings, splitting_ops, .. } = plan;
    let block_size = *settings.cache.block_size;
    let sequences = *settings.scheduler.max_num_seqs;
    let per_sequence = settings.model.max_model_len.div_ceil(block_size);
    let block_bytes = (plan.graph.kv_bytes_per_token() as u64).saturating_mul(block_size as u64).max(1);
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
    let (budget, context) = (*settings.scheduler.max_num_batched_tokens, *settings.model.max_model_len);
    if !*settings.scheduler.enable_chunked_prefill && budget < context {
        return Err(EngineError::Request(format!(
            "without scheduler.enable_chunked_prefill a prompt runs in one step, but one may have {context} tokens \
             (model.max_model_len) and scheduler.max_num_batched_tokens is {budget}; raise the one or lower the other",
        )));
    }
    Ok(ExecutorOptions {
        limits: limits(settings),
        cache: CacheLayout { blocks, block_size },
        vocabulary: checkpoint.config().vocab_size,
        repack_weights: *settings.kernel.repack_weights,
        persistent_decode: *settings.kernel.persistent_decode,
        graph_mode: *settings.compilation.cudagraph_mode,
        explicit_graph_mode: settings.compilation.cudagraph_mode.source.is_explicit(),
        capture: *settings.compilation.cudagraph_capture,
        capture_sizes: (*settings.compilation.cudagraph_capture_sizes).clone(),
        splitting_ops: splitting_ops.clone(),
        require_graphs: *settings.require_graphs,
        tuning: settings
            .kernel
            .autotune
            .then(|| Tuning { cache: (*settings.kernel.kernel_cache).clone(), budget: TUNING_BUDGET }),
    })
}

/// Bytes of all weights of the graph.
pub(crate) fn all_weight_bytes(graph: &Graph) -> u64 {
    weight_bytes(graph, |_| true)
}

/// Bytes of weights that one decode step reads: every weight of the graph once, but of an embedding table that is not
/// also a projection only single rows.
pub(crate) fn weight_bytes_per_step(graph: &Graph) -> u64 {
    let mut read = vec![false; graph.values().len()];
    for op in graph.ops() {
        let skipped = if matches!(op.kind, OpKind::Embedding) { op.inputs.len() } else { 0 };
        op.inputs.iter().skip(skipped).for_each(|input| read[input.index()] = true);
    }
    weight_bytes(graph, |value| read[value])
}

/// Bytes of the weights among the values that are wanted, by their places.
fn weight_bytes(graph: &Graph, wanted: impl Fn(usize) -> bool) -> u64 {
    let values = graph.values().iter().enumerate().filter(|(value, _)| wanted(*value));
    let weights = values.filter(|(_, value)| matches!(value.definition, Definition::Weight(_)));
    let tensors = weights.filter_map(|(_, value)| value.ty.tensor());
    tensors.filter_map(|tensor| tensor.bytes(&Sizes::default())).map(|bytes| bytes as u64).sum()
}
