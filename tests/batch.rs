//! Batches of several sequences, run through the executor itself, so that every row of logits can be seen.

use std::path::Path;
use std::sync::Arc;

use allotrope_config::RuntimeMode;
use allotrope_cpu_runtime::{CpuDevice, Isa};
use allotrope_cuda_runtime::{CudaDevice, CudaOptions};
use allotrope_engine::{OptimizationLevel, Plan};
use allotrope_graph::partition::SplittingOps;
use allotrope_graph::{Sizes, StepInputs};
use allotrope_model::Checkpoint;
use allotrope_runtime::{CacheLayout, Device, Executor, ExecutorOptions, StartupLedger};

use crate::on_the_cpu;

/// Tokens in a KV block.
const BLOCK_SIZE: usize = 16;
/// KV blocks of each sequence.
const BLOCKS: usize = 8;

/// Several sequences that run together, each in KV blocks scattered over the cache.
pub struct BatchRunner<D: Device = CpuDevice> {
    executor: Executor<D>,
    /// Tokens of each sequence that have run.
    computed: Vec<usize>,
}

impl BatchRunner {
    /// Loads a checkpoint at a level, for `sequences` sequences and steps of at most `tokens` tokens, on so many threads
    /// with the kernels of an instruction set.
    #[must_use]
    pub fn new(folder: &Path, level: OptimizationLevel, shape: [usize; 2], threads: usize, isa: Isa) -> Self {
        let plan = on_the_cpu(folder).optimization_level(level).plan().expect("a plan");
        let [sequences, tokens] = shape;
        Self::with(CpuDevice::new(threads, isa).expect("a device"), &plan, shape, vec![1, sequences, tokens])
    }
}

impl BatchRunner<CudaDevice> {
    /// Makes a plan for CUDA ready, for `sequences` sequences and steps of at most `tokens` tokens, recorded at some sizes.
    #[must_use]
    pub fn on_cuda(plan: &Plan, shape: [usize; 2], capture_sizes: Vec<usize>) -> Self {
        Self::with(CudaDevice::open(CudaOptions::default()).expect("a device"), plan, shape, capture_sizes)
    }
}

impl<D: Device> BatchRunner<D> {
    fn with(device: D, plan: &Plan, [sequences, tokens]: [usize; 2], capture_sizes: Vec<usize>) -> Self {
        let settings = plan.settings();
        let checkpoint = Checkpoint::open(plan.checkpoint().folder()).expect("a checkpoint");
        // Recorded steps may be padded.
        let most = capture_sizes.iter().copied().filter(|size| *size < tokens).max().unwrap_or(0).max(sequences);
        let options = ExecutorOptions {
            limits: Sizes { tokens, sequences: most, logit_rows: tokens, blocks: BLOCKS },
            cache: CacheLayout { blocks: sequences * BLOCKS, block_size: BLOCK_SIZE },
            vocabulary: checkpoint.config().vocab_size,
            repack_weights: *settings.kernel.repack_weights,
            persistent_decode: *settings.kernel.persistent_decode,
            graph_mode: *settings.compilation.cudagraph_mode,
            explicit_graph_mode: true,
            capture: *settings.compilation.cudagraph_capture,
            capture_sizes,
            splitting_ops: SplittingOps::default(),
            require_graphs: *settings.require_graphs,
            tuning: None,
        };
        let mut ledger = StartupLedger::since(std::time::Instant::now());
        let executor = Executor::build(device, plan.graph().clone(), Arc::new(checkpoint), options, &mut ledger);
        BatchRunner { executor: executor.expect("an executor"), computed: vec![0; sequences] }
    }

    /// Recordings that exist.
    #[must_use]
    pub fn recordings(&self) -> usize {
        self.executor.recordings()
    }

    /// Steps that ran in a way so far.
    #[must_use]
    pub fn steps(&self, mode: RuntimeMode) -> u64 {
        self.executor.dispatch_counts().total(mode)
    }

    /// Runs the next tokens of every sequence in one step; gives the logits of all of them, sequence by sequence.
    #[must_use]
    pub fn step(&mut self, tokens: &[&[u32]]) -> Vec<Vec<f32>> {
        assert_eq!(tokens.len(), self.computed.len());
        let sequences = tokens.len();
        // Sequence s has blocks s, s + sequences, …, the last one first: neither contiguous nor in order.
        let block_of = |sequence: usize, block: usize| (BLOCKS - 1 - block) * sequences + sequence;
        let mut inputs = StepInputs { blocks: BLOCKS, ..StepInputs::default() };
        for (sequence, new) in tokens.iter().enumerate() {
            for token in *new {
                let position = self.computed[sequence];
                let slot = block_of(sequence, position / BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE;
                inputs.logit_rows.push(inputs.token_ids.len() as i32);
                inputs.token_ids.push(*token as i32);
                inputs.positions.push(position as i32);
                inputs.slots.push(slot as i32);
                inputs.token_sequences.push(sequence as i32);
                self.computed[sequence] += 1;
            }
            inputs.block_tables.extend((0..BLOCKS).map(|block| block_of(sequence, block) as i32));
        }
        let vocabulary = self.executor.options().vocabulary;
        let mut rows = self.executor.step(&inputs).expect("a step").chunks_exact(vocabulary);
        let mut of_sequence = |new: &[u32]| rows.by_ref().take(new.len()).flatten().copied().collect();
        tokens.iter().map(|new| of_sequence(new)).collect()
    }
}
