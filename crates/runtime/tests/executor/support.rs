//! A device that writes down what it is asked to do, and the graph and batches that it is asked to run.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use allotrope_config::{GraphCapture, GraphMode};
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::partition::SplittingOps;
use allotrope_graph::*;
use allotrope_runtime::{
    CacheLayout, Device, DeviceError, Executor, ExecutorError, ExecutorOptions, Recorder, StartupLedger, TuningCache,
    TuningReport,
};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Call {
    /// Where it can be tuned.
    Allocate,
    /// Where it can be tuned.
    Prepare(usize),
    /// What was known of each key of [`KEYS`].
    Tune([Option<Vec<u32>>; 2]),
    Launch(usize),
    WarmUp(Vec<usize>),
    Record(Vec<usize>, usize, usize),
    Replay(Vec<usize>, usize),
}

/// What tuning looks for.
pub(crate) const KEYS: [&str; 2] = ["linear 4x8", "linear 8x8"];

/// All clones write into one list.
#[derive(Default, Clone)]
pub(crate) struct Scribe {
    pub(crate) calls: Arc<Mutex<Vec<Call>>>,
    pub(crate) logits: Vec<f32>,
    /// Every launch and replay fails.
    pub(crate) is_dead: bool,
    /// Recordings fail for which this says so, of their groups and tokens.
    pub(crate) fails: Option<fn(&[usize], usize) -> bool>,
    /// Recording takes until somebody lets it go on: one permit for each recording.
    pub(crate) gate: Option<Arc<Mutex<Receiver<()>>>>,
    /// What it says of itself where it can be tuned, and whether tuning fails after the first kernel.
    pub(crate) tunable: Option<(&'static str, bool)>,
}

impl Scribe {
    fn write(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn alive(&self) -> Result<(), DeviceError> {
        let dead = || DeviceError::Environment { device: "scribe".into(), message: "the pen broke".into() };
        if self.is_dead { Err(dead()) } else { Ok(()) }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

impl Target for Scribe {
    fn name(&self) -> &str {
        "scribe"
    }
    fn accepts(&self, _: &Graph, _: &[OpId]) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) struct Recording {
    groups: Vec<usize>,
    limits: Sizes,
}

impl Recorder<usize, Recording> for Scribe {
    fn record(&mut self, kernels: &[usize], sizes: &Sizes) -> Result<Recording, DeviceError> {
        if let Some(gate) = &self.gate {
            // Once the gate is gone, everything passes.
            let _ = gate.lock().unwrap().recv();
        }
        self.write(Call::Record(kernels.to_vec(), sizes.tokens, sizes.logit_rows));
        if self.fails.is_some_and(|fails| fails(kernels, sizes.tokens)) {
            return Err(DeviceError::Environment { device: "scribe".into(), message: "the paper is full".into() });
        }
        Ok(Recording { groups: kernels.to_vec(), limits: *sizes })
    }
}

impl Device for Scribe {
    type Kernel = usize;
    type Recording = Recording;
    type Recorder = Scribe;

    fn target(&self) -> &dyn Target {
        self
    }
    fn alignment(&self) -> usize {
        64
    }
    fn workspace(&self, _: &Graph, _: usize) -> Vec<ValueId> {
        Vec::new()
    }
    fn load_weights(&mut self, _: &Graph, _: Arc<dyn WeightSource>, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    fn allocate(&mut self, _: &Graph, _: &MemoryPlan, _: CacheLayout) -> Result<(), DeviceError> {
        if self.tunable.is_some() {
            self.write(Call::Allocate);
        }
        Ok(())
    }
    fn tuning_fingerprint(&self) -> Option<String> {
        self.tunable.map(|(fingerprint, _)| fingerprint.to_owned())
    }
    fn tune(&mut self, _: &Graph, cache: &mut TuningCache, budget: Duration) -> Result<TuningReport, DeviceError> {
        let known = KEYS.map(|key| cache.get(key).map(<[u32]>::to_vec));
        self.write(Call::Tune(known.clone()));
        let mut report = TuningReport::default();
        for (index, (key, known)) in KEYS.into_iter().zip(known).enumerate() {
            if known.is_some() {
                report.cached += 1;
            } else if budget.is_zero() {
                report.left += 1;
            } else {
                cache.set(key, &[index as u32, 16]);
                report.searched += 1;
            }
            if self.tunable.is_some_and(|(_, fails)| fails) {
                return Err(DeviceError::Environment { device: "scribe".into(), message: "it got dark".into() });
            }
        }
        Ok(report)
    }
    fn describe(&self, _: &Graph, group: usize) -> String {
        format!("group {group}, written down")
    }
    fn prepare(&mut self, _: &Graph, group: usize) -> Result<usize, DeviceError> {
        if self.tunable.is_some() {
            self.write(Call::Prepare(group));
        }
        Ok(group)
    }
    fn write_inputs(&mut self, _: &StepInputs) -> Result<(), DeviceError> {
        Ok(())
    }
    fn launch(&mut self, kernel: &usize, _: &Sizes) -> Result<(), DeviceError> {
        self.alive()?;
        self.write(Call::Launch(*kernel));
        Ok(())
    }
    fn warm_up(&mut self, kernels: &[usize]) -> Result<(), DeviceError> {
        self.write(Call::WarmUp(kernels.to_vec()));
        Ok(())
    }
    fn recorder(&self, _persistent_decode: bool) -> Result<Scribe, DeviceError> {
        Ok(self.clone())
    }
    fn recording_text(&self, recording: &Recording) -> Option<String> {
        Some(format!("groups {:?} of {} tokens", recording.groups, recording.limits.tokens))
    }
    fn health(&self) -> Result<(), DeviceError> {
        self.alive()
    }
    fn free_memory(&self) -> Option<u64> {
        let recorded = self.calls().iter().filter(|call| matches!(call, Call::Record(..))).count();
        Some(1000 - 10 * recorded as u64)
    }
    fn replay(&mut self, recording: &Recording, sizes: &Sizes) -> Result<(), DeviceError> {
        self.alive()?;
        let limits = recording.limits;
        assert!(sizes.tokens <= limits.tokens && sizes.logit_rows <= limits.logit_rows, "{sizes:?} in {limits:?}");
        let size = if recording.groups.first() > Some(&3) { limits.logit_rows } else { limits.tokens };
        self.write(Call::Replay(recording.groups.clone(), size));
        Ok(())
    }
    fn read_output(&mut self, _: ValueId, sizes: &Sizes) -> Result<&[f32], DeviceError> {
        self.logits = vec![0.0; sizes.logit_rows * 8];
        Ok(&self.logits)
    }
}

struct NoWeights;
impl WeightSource for NoWeights {
    fn weight(&self, _: &str) -> Option<WeightData<'_>> {
        None
    }
}

/// Groups: 0 embedding, 1 KV write, 2 attention, 3 add | 4 choice of rows, 5 logits.
pub(crate) fn graph() -> Graph {
    let mut graph = Graph::new();
    let table = graph.weight("table", TensorType::new(DType::F32, [Dim::Static(8), Dim::Static(4)]));
    let ids = graph.input(Input::TokenIds);
    let x = graph.push("x", OpKind::Embedding, &[table, ids]).unwrap();
    let cache = graph.state(0, KvCacheType { dtype: DType::F32, kv_heads: 1, head_dim: 4 });
    let slots = graph.input(Input::Slots);
    let cache = graph.push("written", OpKind::KvWrite, &[cache, x, x, slots]).unwrap();
    let metadata = [Input::Positions, Input::TokenSequences, Input::BlockTables].map(|input| graph.input(input));
    let attention = OpKind::Attention { heads: 1, scale: 0.5 };
    let y = graph.push("y", attention, &[x, cache, metadata[0], metadata[1], metadata[2]]).unwrap();
    let z = graph.push("z", OpKind::Add, &[x, y]).unwrap();
    let rows = graph.input(Input::LogitRows);
    let wanted = graph.push("wanted", OpKind::SelectRows, &[z, rows]).unwrap();
    let logits = graph.push("logits", OpKind::Linear { to: DType::F32, scale: None }, &[wanted, table]).unwrap();
    graph.add_output(logits);
    graph
}

pub(crate) fn executor(mode: GraphMode, capture: GraphCapture, require_graphs: bool) -> Executor<Scribe> {
    executor_of(graph(), mode, capture, require_graphs).unwrap()
}

pub(crate) fn executor_of(
    graph: Graph,
    mode: GraphMode,
    capture: GraphCapture,
    require_graphs: bool,
) -> Result<Executor<Scribe>, ExecutorError> {
    let options = options(mode, capture, require_graphs);
    build(Scribe::default(), graph, options)
}

pub(crate) fn options(mode: GraphMode, capture: GraphCapture, require_graphs: bool) -> ExecutorOptions {
    ExecutorOptions {
        limits: Sizes { tokens: 16, sequences: 4, logit_rows: 4, blocks: 4 },
        cache: CacheLayout { blocks: 16, block_size: 4 },
        vocabulary: 8,
        repack_weights: false,
        persistent_decode: false,
        graph_mode: mode,
        explicit_graph_mode: false,
        capture,
        capture_sizes: vec![1, 2, 4, 8],
        require_graphs,
        tuning: None,
        splitting_ops: SplittingOps::default(),
    }
}

pub(crate) fn build(device: Scribe, graph: Graph, options: ExecutorOptions) -> Result<Executor<Scribe>, ExecutorError> {
    let mut ledger = StartupLedger::since(Instant::now());
    Executor::build(device, graph, Arc::new(NoWeights), options, &mut ledger)
}

/// A batch of sequences with the given numbers of new tokens; each wants logits of its last token.
pub(crate) fn batch(lengths: &[usize]) -> StepInputs {
    let mut inputs = StepInputs { blocks: 4, ..StepInputs::default() };
    for (sequence, length) in lengths.iter().enumerate() {
        for position in 0..*length {
            inputs.token_ids.push(1);
            inputs.positions.push(position as i32);
            inputs.slots.push((sequence * 16 + position) as i32);
            inputs.token_sequences.push(sequence as i32);
        }
        inputs.block_tables.extend((0..4).map(|block| (sequence * 4 + block) as i32));
        inputs.logit_rows.push(inputs.token_ids.len() as i32 - 1);
    }
    inputs
}
