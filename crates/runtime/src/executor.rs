//! The executor: a grouped graph made ready on a device, its recordings, and the steps that run through them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allotrope_config::{GraphCapture, GraphMode, RuntimeMode};
use allotrope_graph::memory::{MemoryPlan, MemoryPlanError, plan_memory};
use allotrope_graph::partition::SplittingOps;
use allotrope_graph::{Dim, Graph, Sizes, StepError, StepInputs, ValueId, WeightSource};

use crate::capture_plan::{CapturePlan, LaunchOrderError, Needed, Part};
use crate::device::{CacheLayout, Device, DeviceError, RowSampling, TuningReport};
use crate::dispatcher::{Decision, DispatchCounts, Dispatcher};
use crate::ledger::StartupLedger;
use crate::recordings::{Policy, Recordings};
use crate::tuning_cache::TuningCache;
use crate::weights::WeightUpload;

/// What an executor is built for.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// Upper bounds of a batch.
    pub limits: Sizes,
    /// The KV caches.
    pub cache: CacheLayout,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Whether weights are copied into the kernels' own layout.
    pub repack_weights: bool,
    /// Whether recorded decode steps are resident programs.
    pub persistent_decode: bool,
    /// What is recorded.
    pub graph_mode: GraphMode,
    /// Whether somebody asked for that mode: then a recording that fails is an error, and else a warning.
    pub explicit_graph_mode: bool,
    /// When it is recorded.
    pub capture: GraphCapture,
    /// The sizes that are recorded, ascending.
    pub capture_sizes: Vec<usize>,
    /// Where a step is cut into pieces.
    pub splitting_ops: SplittingOps,
    /// Whether a step that runs launch by launch is an error.
    pub require_graphs: bool,
    /// Whether and how kernels are tuned.
    pub tuning: Option<Tuning>,
}

/// How kernels are tuned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Where results are kept between starts, if anywhere.
    pub cache: Option<PathBuf>,
    /// After this much time no further search begins.
    pub budget: Duration,
}

/// Why an executor could not be built or a step not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// A buffer does not fit into the address space.
    #[error(transparent)]
    Memory(#[from] MemoryPlanError),
    /// The launches of the graph are in an order that steps can't have.
    #[error(transparent)]
    Order(#[from] LaunchOrderError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The caller's batch contradicts itself or the limits.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Something could not be recorded under a graph mode that somebody asked for.
    #[error(
        "recording {part} at size {size} failed: {cause}; compilation.cudagraph_mode={mode} was asked for: choose another mode, \
         give smaller compilation.cudagraph_capture_sizes, or leave the mode to the level, which goes on without the recording"
    )]
    Capture {
        /// What was recorded.
        part: Part,
        /// The capture size.
        size: usize,
        /// The graph mode.
        mode: GraphMode,
        /// Why it failed.
        cause: DeviceError,
    },
    /// The step ran outside a recording although recordings are required.
    #[error(
        "a step of {tokens} tokens can't run as a recording: {reason}; capture larger sizes \
         (compilation.cudagraph_capture_sizes), choose another compilation.cudagraph_mode, or drop require_graphs"
    )]
    GraphsRequired {
        /// Tokens in the batch.
        tokens: usize,
        /// Why the dispatcher fell back.
        reason: &'static str,
    },
}

/// What the last step did, up to its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepStatistics {
    /// Kernels that ran, in recordings or by themselves.
    pub launches: usize,
    /// Calls to the device that started them: launches by themselves, and replays.
    pub submissions: usize,
}

/// A graph that is ready to run on a device.
pub struct Executor<D: Device> {
    // Before the device: recordings and the thread that makes them must not outlive it.
    recordings: Recordings<D>,
    device: D,
    graph: Graph,
    kernels: Arc<[D::Kernel]>,
    memory: MemoryPlan,
    plan: CapturePlan,
    dispatcher: Dispatcher,
    options: ExecutorOptions,
    statistics: StepStatistics,
    tuning: Option<TuningReport>,
    /// The sizes of the last step, none before the first and after one that failed.
    ran: Option<Sizes>,
}

impl<D: Device> Executor<D> {
    /// Loads weights, lays out memory, tunes kernels where that is asked for, prepares every group and, where captures are made at startup, records. Each is a phase of
    /// `ledger`.
    ///
    /// # Errors
    /// If the device can't have it: memory, a missing kernel, a weight that is not as the graph says, or a recording under a graph
    /// mode that somebody asked for.
    pub fn build(
        mut device: D,
        graph: Graph,
        weights: Arc<dyn WeightSource>,
        options: ExecutorOptions,
        ledger: &mut StartupLedger,
    ) -> Result<Self, ExecutorError> {
        let memory = ledger.phase("plan memory", || {
            let workspace: Vec<_> = (0..graph.groups().len()).map(|group| device.workspace(&graph, group)).collect();
            plan_memory(&graph, device.target(), &workspace, options.limits, device.alignment())
        })?;
        let loading = if options.repack_weights { "repack weights" } else { "bind weights" };
        ledger.phase(loading, || device.load_weights(&graph, weights, options.repack_weights))?;
        ledger.phase("allocate", || device.allocate(&graph, &memory, options.cache))?;
        let tuning = match &options.tuning {
            Some(tuning) => ledger.phase("tune kernels", || tune(&mut device, &graph, tuning))?,
            None => None,
        };
        let kernels: Arc<[_]> = device.prepare_all(&graph, ledger)?.into();
        let mode = options.graph_mode;
        let plan = CapturePlan::new(&graph, &options.splitting_ops, mode, &options.capture_sizes, options.limits)?;
        let policy = Policy {
            mode,
            explicit: options.explicit_graph_mode,
            capture: options.capture,
            persistent_decode: options.persistent_decode,
        };
        let recordings = Recordings::new(&mut device, &plan, Arc::clone(&kernels), policy, ledger)?;
        ledger.phase("wait for weights", || device.finish_loading())?;
        let dispatcher = Dispatcher::new(mode, options.capture_sizes.clone()).with_pieces(plan.has_recorded_pieces());
        let statistics = StepStatistics::default();
        let ran = None;
        Ok(Executor { recordings, device, graph, kernels, memory, plan, dispatcher, options, statistics, tuning, ran })
    }

    /// The graph as it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Where values live.
    pub fn memory(&self) -> &MemoryPlan {
        &self.memory
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What the executor was built for.
    pub fn options(&self) -> &ExecutorOptions {
        &self.options
    }

    /// How steps ran so far, with reasons.
    pub fn dispatch_counts(&self) -> &DispatchCounts {
        self.dispatcher.counts()
    }

    /// What the last step did.
    pub fn statistics(&self) -> StepStatistics {
        self.statistics
    }

    /// Recordings that exist.
    pub fn recordings(&self) -> usize {
        self.recordings.count()
    }

    /// Recordings that could not be made, and that steps run without.
    pub fn failed_captures(&self) -> usize {
        self.recordings.failures()
    }

    /// Recordings made after the executor was ready: none, if they are made at startup.
    pub fn late_captures(&self) -> u64 {
        self.recordings.late()
    }

    /// What tuning kernels came to; `None` if that was not asked for, or the device has nothing to tune.
    pub fn tuning(&self) -> Option<TuningReport> {
        self.tuning
    }

    /// What copying the weights came to; `None` on a device that uses them where they are.
    pub fn weight_upload(&self) -> Option<WeightUpload> {
        self.device.weight_upload()
    }

    /// Bytes of the device's memory that recordings took; `None` for a device without memory of its own.
    pub fn capture_memory(&self) -> Option<u64> {
        self.recordings.memory()
    }

    /// The recordings that exist, by name and as Graphviz DOT graphs: `step-8` is the whole step at size 8, `body-64` all
    /// launches over tokens, `piece-3-16` the piece 3 at size 16.
    pub fn recordings_text(&self) -> Vec<(String, String)> {
        let recordings = self.recordings.each(&self.plan);
        recordings.filter_map(|(name, recording)| Some((name, self.device.recording_text(recording)?))).collect()
    }

    /// Runs a batch and gives all logits, `[R, V]` row-major.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn step(&mut self, inputs: &StepInputs) -> Result<&[f32], ExecutorError> {
        self.run(inputs)?;
        self.logits(0..inputs.sizes().logit_rows)
    }

    /// The logits of some rows of the last step, `[rows, V]` row-major.
    ///
    /// # Errors
    /// If no step was run, it has not so many rows, or the device fails.
    pub fn logits(&mut self, rows: Range<usize>) -> Result<&[f32], ExecutorError> {
        let (logits, sizes) = (self.output()?, self.last_sizes()?);
        if rows == (0..sizes.logit_rows) {
            return Ok(self.device.read_output(logits, &sizes)?);
        }
        Ok(self.device.read_rows(logits, &sizes, rows)?)
    }

    /// The tokens that the device chooses from the logits of the last step, one for each row that asks for one and has one
    /// ([`Device::sample`]); `None` if it can't.
    ///
    /// # Errors
    /// If no step was run, it has not as many rows, or the device fails.
    pub fn sample(&mut self, rows: &[RowSampling]) -> Result<Option<Vec<Option<u32>>>, ExecutorError> {
        let (logits, sizes) = (self.output()?, self.last_sizes()?);
        Ok(self.device.sample(logits, &sizes, rows)?)
    }

    fn last_sizes(&self) -> Result<Sizes, ExecutorError> {
        self.ran.ok_or_else(|| StepError("there is no step to read the logits of".into()).into())
    }

    /// Runs a batch, whose logits are then read ([`Executor::logits`]) or sampled ([`Executor::sample`]). With no rows wanted,
    /// only what runs over tokens is run.
    ///
    /// # Errors
    /// If the batch is invalid or beyond the limits, or the device fails.
    pub fn run(&mut self, inputs: &StepInputs) -> Result<(), ExecutorError> {
        let sizes = inputs.sizes();
        self.ran = None;
        self.check(inputs, &sizes)?;
        self.recordings.take_arrived(&self.device, &self.plan)?;
        let uniform = inputs.is_uniform_decode();
        let decision = self.decide(uniform, &sizes)?;
        if decision.mode == RuntimeMode::None && self.options.require_graphs {
            return Err(ExecutorError::GraphsRequired { tokens: sizes.tokens, reason: decision.reason });
        }
        self.device.write_inputs(inputs)?;
        self.statistics = StepStatistics::default();
        match decision.mode {
            RuntimeMode::None => {
                let last = if sizes.logit_rows == 0 { Part::Body } else { Part::Step };
                self.launch_range(self.plan.launches_of(last), &sizes)?;
            }
            RuntimeMode::Full if uniform => self.replay(Part::Step, decision.size, &sizes)?,
            RuntimeMode::Full => {
                if !self.plan.launches_of(Part::Body).is_empty() {
                    self.replay(Part::Body, decision.size, &sizes)?;
                }
                self.run_pieces(self.plan.body_pieces(), decision.size, &sizes)?;
            }
            RuntimeMode::Piecewise => self.run_pieces(0, decision.size, &sizes)?,
        }
        self.ran = Some(sizes);
        Ok(())
    }

    /// How a step runs. Where captures are lazy, what it needs is recorded first.
    fn decide(&mut self, uniform: bool, sizes: &Sizes) -> Result<Decision, ExecutorError> {
        let logit_size = self.dispatcher.size_for(sizes.logit_rows).filter(|_| sizes.logit_rows > 0);
        let needed = |token_size| Needed { uniform, token_size, logit_size };
        loop {
            let (plan, recordings) = (&self.plan, &mut self.recordings);
            let standing = |mode, size| recordings.standing(plan, mode, &needed(size));
            let decision = self.dispatcher.choose(uniform, sizes.tokens, standing);
            if !recordings.make_missing(&mut self.device, plan, decision.mode, &needed(decision.size))? {
                self.dispatcher.count(decision, sizes.tokens);
                return Ok(decision);
            }
        }
    }

    fn output(&self) -> Result<ValueId, ExecutorError> {
        self.graph.outputs().first().copied().ok_or_else(|| StepError("the graph has no output".into()).into())
    }

    fn check(&self, inputs: &StepInputs, sizes: &Sizes) -> Result<(), ExecutorError> {
        let limits = &self.options.limits;
        for (name, size, least, limit) in [
            ("tokens", sizes.tokens, 1, limits.tokens),
            ("sequences", sizes.sequences, 1, limits.sequences),
            ("rows of logits", sizes.logit_rows, 0, limits.logit_rows),
            ("blocks in a row of the block table", sizes.blocks, 1, limits.blocks),
        ] {
            if !(least..=limit).contains(&size) {
                return Err(StepError(format!("the batch has {size} {name}; {least} to {limit} are allowed")).into());
            }
        }
        let cache = self.options.cache;
        Ok(inputs.validate(self.options.vocabulary, cache.blocks, cache.block_size)?)
    }

    /// Runs the pieces from the `first` on, recorded but for the splitting operations.
    fn run_pieces(&mut self, first: usize, token_size: usize, sizes: &Sizes) -> Result<(), ExecutorError> {
        let end = if sizes.logit_rows == 0 { self.plan.body_pieces() } else { self.plan.pieces().len() };
        for index in first..end {
            let piece = &self.plan.pieces()[index];
            let size = match (piece.splitting, piece.rows) {
                (true, _) => None,
                (false, Dim::LogitRows) => self.dispatcher.size_for(sizes.logit_rows),
                (false, _) => Some(token_size),
            };
            match size {
                Some(size) => self.replay(Part::Piece(index), size, sizes)?,
                None => self.launch_range(piece.groups.clone(), sizes)?,
            }
        }
        Ok(())
    }

    fn launch_range(&mut self, groups: std::ops::Range<usize>, sizes: &Sizes) -> Result<(), ExecutorError> {
        for kernel in &self.kernels[groups] {
            let launches = self.device.launches_of(kernel, sizes);
            self.statistics.launches += launches;
            self.statistics.submissions += launches;
            self.device.launch(kernel, sizes)?;
        }
        Ok(())
    }

    fn replay(&mut self, part: Part, size: usize, sizes: &Sizes) -> Result<(), ExecutorError> {
        let groups = self.plan.launches_of(part);
        let Some(recording) = self.recordings.find(&self.plan, part, size) else {
            return self.launch_range(groups, sizes);
        };
        self.statistics.launches += self.device.launches_in(recording).unwrap_or(groups.len());
        self.statistics.submissions += 1;
        Ok(self.device.replay(recording, sizes)?)
    }
}

/// Lets a device that can tune its kernels do so, with what earlier starts found.
fn tune<D: Device>(device: &mut D, graph: &Graph, tuning: &Tuning) -> Result<Option<TuningReport>, DeviceError> {
    let Some(fingerprint) = device.tuning_fingerprint() else { return Ok(None) };
    let started = Instant::now();
    let mut cache = TuningCache::open(tuning.cache.as_deref(), &fingerprint);
    let result = device.tune(graph, &mut cache, tuning.budget);
    // What was found before a failure was found.
    cache.save();
    let report = TuningReport { time: started.elapsed(), ..result? };
    let TuningReport { cached, searched, left, time } = report;
    tracing::info!(cached, searched, left, ?time, "kernels are tuned");
    Ok(Some(report))
}
