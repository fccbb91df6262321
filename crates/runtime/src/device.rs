//! The device: what the runtime asks of a CPU or a GPU.
//!
//! A device keeps four kinds of memory: the weights, the arena of a [`MemoryPlan`], the KV caches and the inputs of
//! a step. It turns each group of the graph into a [`Device::Kernel`], runs kernels one by one
//! ([`Device::launch`]) or as a recording ([`Recorder::record`], [`Device::replay`]), and never changes an answer by
//! the choice: a kernel gives the same bits launched or replayed, at every batch size.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Graph, Sizes, StepInputs, Target, ValueId, WeightSource};

use crate::ledger::StartupLedger;
use crate::tuning_cache::TuningCache;
use crate::weights::WeightUpload;

/// The size of the paged KV caches, the same for every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLayout {
    /// Blocks in each layer's cache.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

/// What went wrong on a device, and whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine lacks something: memory, an instruction set, a driver.
    #[error("{device}: {message}")]
    Environment {
        /// The device.
        device: String,
        /// What is missing and what to do.
        message: String,
    },
    /// The checkpoint gives something else than the graph was built for.
    #[error("weight `{name}`: {message}")]
    Weight {
        /// The tensor's name.
        name: String,
        /// What was found and what would be right.
        message: String,
    },
    /// A bug in Allotrope: the runtime asked for what the device said it has no kernel for, or broke an obligation.
    #[error("{device}: {message} (this is a bug in Allotrope)")]
    Internal {
        /// The device.
        device: String,
        /// What happened.
        message: String,
    },
}

/// How a device is to choose the token of one row of logits.
///
/// A choice depends on the row and on this alone, and on no other row: it is the same in every batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowSampling {
    /// Not at all: the caller reads the row.
    Read,
    /// The token of the greatest logit, and the first among equals.
    Greedy,
    /// One drawn with the probabilities of softmax over the logits divided by a temperature. The device's random numbers are a
    /// function of seed and counter: the same give the same token for the same bits of logits, but another kind of device may
    /// give another.
    Seeded {
        /// At least [`RowSampling::LEAST_TEMPERATURE`].
        temperature: f32,
        /// The request's seed.
        seed: u64,
        /// Tokens that were drawn with the seed before.
        counter: u64,
    },
}

impl RowSampling {
    /// The least temperature that a device need draw with: with one below it, logits divided by it may leave the range of `f32`,
    /// or lose the digits in which they differ.
    pub const LEAST_TEMPERATURE: f32 = 0.01;
}

/// Makes recordings of a device's kernels, apart from the device: on the thread of the steps, or on another while steps run.
pub trait Recorder<Kernel, Recording> {
    /// Resolves kernels, in order, into a recording for batches of up to the given sizes. Nothing is run.
    ///
    /// # Errors
    /// If the kernels are of other memory than the recorder, the sizes exceed what was allocated, or recording fails. A
    /// recorder that failed can be used again.
    fn record(&mut self, kernels: &[Kernel], sizes: &Sizes) -> Result<Recording, DeviceError>;
}

/// The code of a kernel that is generated for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedCode {
    /// The kernel's name: letters, digits and `_`.
    pub name: String,
    /// What files of such code are called by: `ptx`.
    pub extension: &'static str,
    /// The code.
    pub text: String,
}

/// What tuning came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TuningReport {
    /// Kernels whose parameters were known from an earlier start.
    pub cached: usize,
    /// Kernels whose parameters were searched for.
    pub searched: usize,
    /// Kernels that run with the parameters that they have without tuning, as there was no time left.
    pub left: usize,
    /// How long it took.
    pub time: Duration,
}

/// A device that can run grouped graphs.
///
/// What the settings' rules need to know of it ([`allotrope_config::DeviceFacts`]) is found before the device is opened,
/// since settings decide how it is opened: each device crate has a function `facts()` for that.
///
/// The order of calls is: [`load_weights`](Device::load_weights), [`allocate`](Device::allocate), [`tune`](Device::tune) where that is
/// asked for, [`prepare`](Device::prepare) for every group, [`warm_up`](Device::warm_up) and [`recorder`](Device::recorder) where
/// something is recorded, then for every step [`write_inputs`](Device::write_inputs), launches and replays, and
/// [`read_output`](Device::read_output) or [`sample`](Device::sample). A call out of order is a [`DeviceError::Internal`].
pub trait Device {
    /// A group made ready to run at any batch size within the limits.
    type Kernel: Clone + Send + Sync + 'static;
    /// Kernels resolved for batches of up to one size.
    type Recording: Send + 'static;
    /// What makes recordings.
    type Recorder: Recorder<Self::Kernel, Self::Recording> + Send + 'static;

    /// The kernels that there are, for the grouping passes.
    fn target(&self) -> &dyn Target;

    /// The alignment of buffers in the arena, in bytes.
    fn alignment(&self) -> usize;

    /// Values inside a group that need memory while its kernel runs.
    fn workspace(&self, graph: &Graph, group: usize) -> Vec<ValueId>;

    /// Makes the graph's weights ready: in place, or with `repack` copied once into the layout that the kernels like best.
    ///
    /// # Errors
    /// If a weight is missing or has another type than the graph says, or memory does not suffice.
    fn load_weights(&mut self, graph: &Graph, source: Arc<dyn WeightSource>, repack: bool) -> Result<(), DeviceError>;

    /// Allocates the arena, the inputs and the KV caches.
    ///
    /// # Errors
    /// If memory does not suffice.
    fn allocate(&mut self, graph: &Graph, memory: &MemoryPlan, cache: CacheLayout) -> Result<(), DeviceError>;

    /// All that decides which parameters of a kernel are the fastest and is the same for all kernels of this device, as text: the
    /// hardware, the kernels' sources, their version. `None`, the default, where there is nothing to tune.
    fn tuning_fingerprint(&self) -> Option<String> {
        None
    }

    /// Chooses parameters for the kernels of a graph, such as tile shapes and partitions, which [`Device::prepare`] then uses: those
    /// in `cache`, which was opened for [`Device::tuning_fingerprint`], if kernels can have them, and else the best of a search, which
    /// are put there. A key says everything else that decides: kernel, shape, types, threads.
    ///
    /// What is searched and in which order does not depend on the machine's speed. After `budget` no further search begins; what is
    /// left has the parameters that it has without tuning. No parameters change an answer, so neither does the time there was.
    ///
    /// # Errors
    /// If a kernel can't be run.
    fn tune(
        &mut self,
        _graph: &Graph,
        _cache: &mut TuningCache,
        _budget: Duration,
    ) -> Result<TuningReport, DeviceError> {
        Ok(TuningReport::default())
    }

    /// What the device runs for a group, as text for dumps, one line for each part of the launch. It needs no weights, and
    /// the same group always gives the same text.
    fn describe(&self, graph: &Graph, group: usize) -> String;

    /// The code that is generated for a group, for dumps: nothing where the device has all its code ahead of time, which is
    /// the default, or has no kernel for the group. It needs neither weights nor memory, and the same group always gives the
    /// same text.
    ///
    /// # Errors
    /// If generating fails, which is a bug.
    fn generated_code(&self, _graph: &Graph, _group: usize) -> Result<Vec<GeneratedCode>, DeviceError> {
        Ok(Vec::new())
    }

    /// Makes a group ready to run.
    ///
    /// # Errors
    /// If there is no kernel for the group.
    fn prepare(&mut self, graph: &Graph, group: usize) -> Result<Self::Kernel, DeviceError>;

    /// Makes every group ready, in order, in phases of `ledger`.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    fn prepare_all(&mut self, graph: &Graph, ledger: &mut StartupLedger) -> Result<Vec<Self::Kernel>, DeviceError> {
        ledger.phase("prepare kernels", || (0..graph.groups().len()).map(|group| self.prepare(graph, group)).collect())
    }

    /// Waits for weights that are still on their way to the device: [`Device::load_weights`] need not.
    ///
    /// # Errors
    /// If they can't be copied.
    fn finish_loading(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What copying the weights came to, once it is over; `None` on a device that uses them where they are.
    fn weight_upload(&self) -> Option<WeightUpload> {
        None
    }

    /// Copies the inputs of a step to the device. They were validated ([`StepInputs::validate`]) and keep to the limits.
    ///
    /// # Errors
    /// If the inputs exceed what was allocated, or copying fails.
    fn write_inputs(&mut self, inputs: &StepInputs) -> Result<(), DeviceError>;

    /// Runs one kernel over a batch of the given sizes.
    ///
    /// # Errors
    /// If the sizes exceed what was allocated, or the launch fails.
    fn launch(&mut self, kernel: &Self::Kernel, sizes: &Sizes) -> Result<(), DeviceError>;

    /// How many kernels of the device [`Device::launch`] runs for a kernel and a batch.
    fn launches_of(&self, _kernel: &Self::Kernel, _sizes: &Sizes) -> usize {
        1
    }

    /// How many kernels of the device a recording runs, where that may be another number than that of the kernels that were
    /// recorded.
    fn launches_in(&self, _recording: &Self::Recording) -> Option<usize> {
        None
    }

    /// Runs each kernel once without any effect, so that nothing is loaded while it is recorded. It may come before the first
    /// inputs are written, and between steps. Without need where nothing is loaded late.
    ///
    /// # Errors
    /// If a kernel can't be loaded or run.
    fn warm_up(&mut self, _kernels: &[Self::Kernel]) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What makes recordings of this device's kernels, in the memory that is allocated now. With `persistent_decode`, which only
    /// a device is asked for whose facts say that it can, decode steps are recorded as one resident program.
    ///
    /// # Errors
    /// If nothing is allocated yet, or the device can't give what recording needs.
    fn recorder(&self, persistent_decode: bool) -> Result<Self::Recorder, DeviceError>;

    /// A recording as a Graphviz DOT graph for dumps: its launches, and what waits for what. The same recording always gives the
    /// same text. `None` where there is nothing to show.
    fn recording_text(&self, _recording: &Self::Recording) -> Option<String> {
        None
    }

    /// Whether the device can still run anything.
    ///
    /// # Errors
    /// The failure that it did not survive.
    fn health(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Bytes of the device's memory that are free now, if the device has memory of its own.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Runs a recording over a batch of the given sizes, which are at most the recorded ones. A device that can only
    /// run the recorded sizes treats the rows in between as padding.
    ///
    /// # Errors
    /// If the batch is larger than the recording, or the launch fails.
    fn replay(&mut self, recording: &Self::Recording, sizes: &Sizes) -> Result<(), DeviceError>;

    /// The elements of an `f32` output of the last step, row-major.
    ///
    /// # Errors
    /// If the value is no `f32` output in the arena, or copying fails.
    fn read_output(&mut self, value: ValueId, sizes: &Sizes) -> Result<&[f32], DeviceError>;

    /// The elements of some rows of an `f32` output of the last step, `[R, N]`, row-major.
    ///
    /// # Errors
    /// As [`Device::read_output`], or if there are not so many rows.
    fn read_rows(&mut self, value: ValueId, sizes: &Sizes, rows: Range<usize>) -> Result<&[f32], DeviceError> {
        let count = sizes.logit_rows;
        let all = self.read_output(value, sizes)?;
        let width = all.len() / count.max(1);
        let missing = || DeviceError::Internal {
            device: "any device".into(),
            message: format!("rows {} to {} of {count} were read", rows.start, rows.end),
        };
        all.get(rows.start.saturating_mul(width)..rows.end.saturating_mul(width)).ok_or_else(missing)
    }

    /// Chooses tokens from the `f32` output `[R, V]` of the last step without reading it: one for each row that asks for one.
    /// A row that asks for none gets none, nor one from which there is nothing to choose: a logit is NaN or positive infinity, or
    /// all are negative infinity. `None` from a device that samples nothing at all; one that does always does.
    ///
    /// # Errors
    /// If the value is no such output, the rows are not as many as the step has, or the launch fails.
    fn sample(
        &mut self,
        _value: ValueId,
        _sizes: &Sizes,
        _rows: &[RowSampling],
    ) -> Result<Option<Vec<Option<u32>>>, DeviceError> {
        Ok(None)
    }
}
