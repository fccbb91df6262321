//! A device with a prepared graph.

use std::fmt;
use std::sync::Arc;

use allotrope_graph::memory::plan_memory;
use allotrope_graph::{Graph, OpId, Sizes, StepInputs, Target, ValueId};

use super::batches::{BLOCKS, plain_inputs};
use super::{Subject, Weights};
use crate::device::{CacheLayout, Device, DeviceError, Recorder};

/// How a graph is set up on a device.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// What the memory plan asks; the device's own target if `None`.
    pub target: Option<&'a dyn Target>,
    /// In which of the [variants](Subject::variants) the device is opened.
    pub variant: usize,
    /// Whether weights are repacked.
    pub repack: bool,
    /// Whether steps run as one recording.
    pub record: bool,
    /// Tokens in a block of the KV caches, of which there are [`BLOCKS`].
    pub block_size: usize,
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { variant, repack, record, block_size, .. } = self;
        write!(f, "variant {variant}, repack={repack}, record={record}, blocks of {block_size}")
    }
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { target: None, variant: 0, repack: false, record: false, block_size: 4 }
    }
}

/// A target that a memory plan asks with another answer to what may be overwritten: nothing, or everything.
pub struct Overwriting<'a>(pub &'a dyn Target, pub bool);

impl Target for Overwriting<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String> {
        self.0.accepts(graph, ops)
    }
    fn may_overwrite(&self, _: &Graph, _: usize, _: ValueId, _: ValueId) -> bool {
        self.1
    }
}

/// A device with a prepared graph.
pub struct Runner<D: Device> {
    /// The device.
    pub device: D,
    /// The kernels of the graph's groups.
    pub kernels: Vec<D::Kernel>,
    /// Upper bounds of a batch.
    pub limits: Sizes,
    /// Results that the memory plan puts in the place of operands.
    pub in_place: usize,
    /// Whether steps run as one recording.
    pub record: bool,
    recordings: Vec<(Sizes, D::Recording)>,
    outputs: Vec<ValueId>,
}

impl<D: Device> Runner<D> {
    /// Opens a device and prepares everything, over memory that holds what is not a number.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn new(
        subject: &impl Subject<Device = D>,
        graph: &Graph,
        weights: &Weights,
        setup: Setup<'_>,
    ) -> Result<Self, DeviceError> {
        let mut device = subject.open(setup.variant);
        let rows = subject.effort().pick(40, 80);
        let limits = Sizes { tokens: rows, sequences: 8, logit_rows: rows, blocks: BLOCKS };
        let workspace: Vec<_> = (0..graph.groups().len()).map(|group| device.workspace(graph, group)).collect();
        let target = setup.target.unwrap_or(device.target());
        let plan = plan_memory(graph, target, &workspace, limits, device.alignment()).expect("a small plan");
        let cache = CacheLayout { blocks: BLOCKS, block_size: setup.block_size };
        let outputs = graph.outputs().to_vec();
        device.load_weights(graph, Arc::new(weights.not_numbers()), false)?;
        device.allocate(graph, &plan, cache)?;
        let filled = subject.poison(&mut device);
        let in_place = plan.in_place.len();
        let (kernels, recordings) = (Vec::new(), Vec::new());
        let mut runner = Self { device, kernels, limits, in_place, record: false, recordings, outputs };
        if !filled {
            // Memory outlives the weights, so a step with weights that are not numbers leaves such results in all of it.
            runner.prepare(graph)?;
            let mut garbage = plain_inputs(vec![0; rows]);
            garbage.block_tables = (0..16).collect();
            runner.step(&garbage);
        }
        runner.device.load_weights(graph, Arc::new(weights.clone()), setup.repack)?;
        runner.prepare(graph)?;
        runner.record = setup.record;
        if setup.record {
            runner.device.warm_up(&runner.kernels)?;
        }
        Ok(runner)
    }

    fn prepare(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        let groups = 0..graph.groups().len();
        self.kernels = groups.map(|group| self.device.prepare(graph, group)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Recordings that steps made.
    pub fn recordings(&self) -> usize {
        self.recordings.len()
    }

    /// Runs a step and gives the outputs, one after the other.
    pub fn step(&mut self, inputs: &StepInputs) -> Vec<f32> {
        self.device.write_inputs(inputs).unwrap();
        self.run(&inputs.sizes());
        self.read(&inputs.sizes())
    }

    /// The outputs, one after the other, as after a step of these sizes.
    pub fn read(&mut self, sizes: &Sizes) -> Vec<f32> {
        let mut values = Vec::new();
        for output in &self.outputs {
            values.extend(self.device.read_output(*output, sizes).unwrap());
        }
        values
    }

    fn run(&mut self, sizes: &Sizes) {
        if self.record {
            let recording = self.recording(sizes);
            self.device.replay(&self.recordings[recording].1, sizes).unwrap();
        } else {
            for kernel in &self.kernels {
                self.device.launch(kernel, sizes).unwrap();
            }
        }
    }

    /// The place of a recording of all kernels for more rows than the step has, if there can be more.
    fn recording(&mut self, sizes: &Sizes) -> usize {
        let round = |rows: usize, limit: usize| [3, 9, 30].into_iter().find(|size| *size > rows).unwrap_or(limit);
        let tokens = round(sizes.tokens, self.limits.tokens);
        let logit_rows = round(sizes.logit_rows, self.limits.logit_rows);
        let larger = Sizes { tokens, logit_rows, ..self.limits };
        self.recordings.iter().position(|(recorded, _)| *recorded == larger).unwrap_or_else(|| {
            let recording = self.device.recorder(false).unwrap().record(&self.kernels, &larger).unwrap();
            self.recordings.push((larger, recording));
            self.recordings.len() - 1
        })
    }
}
