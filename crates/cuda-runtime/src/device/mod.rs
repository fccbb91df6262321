//! CUDA as a device of the runtime: a group becomes one launch, a recording is a CUDA graph.

mod compile;
mod facts;
mod kernel;
mod memory;
mod recorder;
mod sampling;
mod weights;

pub use facts::facts;
pub use kernel::CudaKernel;
pub use recorder::{CudaRecorder, CudaRecording};

use std::any::Any;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Graph, Sizes, StepInputs, Target, ValueId, WeightSource};
use allotrope_runtime::device::{CacheLayout, Device, DeviceError, GeneratedCode, RowSampling};
use allotrope_runtime::{StartupLedger, WeightUpload};

use crate::CudaTarget;
use crate::driver::{Context, DeviceInfo, PinnedBuffer, Stream};
use crate::lower::{self, CodeError};
use crate::program::Features;
use compile::Compiler;
use kernel::Ready;
use memory::Memory;
use sampling::Sampling;
use weights::Weights;

/// The device's name.
const DEVICE: &str = "cuda";

/// Something that a recording keeps alive.
type Keep = Arc<dyn Any + Send + Sync>;

/// The alignment of buffers in the arena, in bytes: a line of the L2 cache.
const ALIGNMENT: usize = 256;

/// As much pinned memory for outputs as there is from the start, in bytes: so that reading them allocates nothing later, but for
/// very many rows.
const OUTPUT_BYTES: usize = 16 << 20;

/// How the device is opened.
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    /// Where the driver's machine code is kept between starts; nowhere if `None`.
    pub cache: Option<PathBuf>,
}

/// A GPU.
pub struct CudaDevice {
    stream: Stream,
    compiler: Compiler,
    weights: Option<Arc<Weights>>,
    memory: Option<Memory>,
    sampling: Option<Sampling>,
    /// What was read last.
    output: Option<PinnedBuffer>,
    /// Names the memory that kernels have addresses of: they run on no other.
    identity: Identity,
}

/// What a kernel's addresses are of. Two are the same if they are one allocation, so none is ever given out twice while
/// somebody holds it.
#[derive(Clone, Default)]
pub(crate) struct Identity(Arc<()>);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        // An allocation of nothing has no address of its own, hence the counter of `Arc`, which has.
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl CudaDevice {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// [`DeviceError::Environment`] without a driver, with one that is too old, or without a GPU.
    pub fn open(options: CudaOptions) -> Result<Self, DeviceError> {
        let context = Context::open()?;
        let stream = context.stream()?;
        let compiler = Compiler::new(context, options.cache)?;
        let identity = Identity::default();
        Ok(Self { stream, compiler, weights: None, memory: None, sampling: None, output: None, identity })
    }

    /// Sets every byte of the arena and of the KV caches, as they were allocated: for tests that look for what no kernel wrote.
    ///
    /// # Errors
    /// If nothing is allocated yet, or the device fails.
    pub fn fill_memory(&mut self, byte: u8) -> Result<(), DeviceError> {
        self.memory()?.fill(&self.stream, byte)
    }

    /// What the GPU is.
    pub fn info(&self) -> &DeviceInfo {
        self.context().info()
    }

    /// The kernels that may run a group, by their names: that for the fewest rows first.
    pub fn kernels(&self, graph: &Graph, group: usize) -> Vec<String> {
        lower::kernels(graph, group, Features::of(self.info().capability))
    }

    fn context(&self) -> &Context {
        self.stream.context()
    }

    fn memory(&self) -> Result<&Memory, DeviceError> {
        self.memory.as_ref().ok_or_else(|| internal("no memory was allocated yet"))
    }

    /// The bytes of an output in the arena.
    fn output(&self, value: ValueId, sizes: &Sizes) -> Result<Range<usize>, DeviceError> {
        let place = self.memory()?.output(value, sizes);
        place.ok_or_else(|| internal("what was read is no f32 output in the arena"))
    }

    /// Reads some bytes of an output.
    fn read(&mut self, value: ValueId, place: Range<usize>) -> Result<&[f32], DeviceError> {
        let memory = self.memory.as_ref().ok_or_else(|| internal("no memory was allocated yet"))?;
        let bytes = place.len();
        if self.output.as_ref().is_none_or(|output| output.bytes() < bytes) {
            let most = memory.output(value, memory.limits()).map_or(bytes, |range| range.len());
            self.output = None;
            // Room for the largest batch, unless that is out of all proportion to this one.
            self.output = Some(self.stream.context().allocate_pinned(most.min(bytes.next_power_of_two()))?);
        }
        let output = self.output.as_mut().ok_or_else(|| internal("there is no memory to read an output into"))?;
        self.stream.copy_to_host(output, 0, memory.arena(), place)?;
        self.stream.synchronize()?;
        Ok(output.as_slice::<f32>()?.get(..bytes / 4).unwrap_or_default())
    }

    fn ready<'a>(&'a mut self, graph: &'a Graph) -> Result<Ready<'a>, DeviceError> {
        let memory = self.memory.as_ref().ok_or_else(|| internal("no memory was allocated yet"))?;
        let weights = self.weights.as_ref().ok_or_else(|| internal("no weights were loaded yet"))?;
        Ok(Ready { graph, memory, weights, compiler: &mut self.compiler, identity: self.identity.clone() })
    }

    fn check(&self, identity: &Identity, sizes: &Sizes, limits: &Sizes) -> Result<(), DeviceError> {
        if *identity != self.identity {
            return Err(internal("a kernel of another device, or of memory that was replaced, was run"));
        }
        sizes.check_within(limits).map_err(internal)
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // What still runs uses modules and memory that are about to go. An error ends it as well.
        let _ = self.stream.synchronize();
    }
}

impl Device for CudaDevice {
    type Kernel = CudaKernel;
    type Recording = CudaRecording;
    type Recorder = CudaRecorder;

    fn target(&self) -> &dyn Target {
        &CudaTarget
    }

    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    /// What a launch in front of the products of a large batch hands to them. Everything else stays in registers and shared
    /// memory.
    fn workspace(&self, graph: &Graph, group: usize) -> Vec<ValueId> {
        graph.groups().get(group).map_or_else(Vec::new, |group| lower::workspace(graph, &group.ops))
    }

    /// Begins to copy every weight to the GPU. There is one layout, that of the checkpoint.
    fn load_weights(&mut self, graph: &Graph, source: Arc<dyn WeightSource>, repack: bool) -> Result<(), DeviceError> {
        if repack {
            return Err(internal("the kernels have no layout of their own to repack weights into"));
        }
        self.identity = Identity::default();
        // What was loaded before is freed before the new weights are allocated.
        self.weights = None;
        self.weights = Some(Arc::new(Weights::load(self.context(), graph, source)?));
        Ok(())
    }

    fn allocate(&mut self, graph: &Graph, memory: &MemoryPlan, cache: CacheLayout) -> Result<(), DeviceError> {
        self.identity = Identity::default();
        (self.memory, self.sampling) = (None, None);
        let context = self.context().clone();
        let memory = Memory::new(&context, graph, memory, cache)?;
        let outputs = graph.outputs().iter().filter_map(|value| memory.output(*value, memory.limits()));
        let bytes = outputs.map(|place| place.len()).max().unwrap_or(0).min(OUTPUT_BYTES);
        self.output = Some(context.allocate_pinned(bytes)?);
        self.sampling = Some(Sampling::new(&context, &mut self.compiler, memory.limits().logit_rows)?);
        self.memory = Some(memory);
        Ok(())
    }

    fn describe(&self, graph: &Graph, group: usize) -> String {
        lower::describe(graph, group, Features::of(self.info().capability))
    }

    fn generated_code(&self, graph: &Graph, group: usize) -> Result<Vec<GeneratedCode>, DeviceError> {
        let kernels = match self.compiler.templates().group(graph, group) {
            // Its description says why.
            Err(CodeError::NoKernel(_)) => Vec::new(),
            kernels => kernels.map_err(|error| internal(error.to_string()))?,
        };
        let code = |kernel: lower::KernelPtx| GeneratedCode { name: kernel.entry, extension: "ptx", text: kernel.text };
        Ok(kernels.into_iter().map(code).collect())
    }

    fn prepare(&mut self, graph: &Graph, group: usize) -> Result<CudaKernel, DeviceError> {
        self.ready(graph)?.kernel(group)
    }

    fn prepare_all(&mut self, graph: &Graph, ledger: &mut StartupLedger) -> Result<Vec<CudaKernel>, DeviceError> {
        self.ready(graph)?.kernels(ledger)
    }

    fn finish_loading(&mut self) -> Result<(), DeviceError> {
        self.weights.as_ref().map_or(Ok(()), |weights| weights.wait())
    }

    fn weight_upload(&self) -> Option<WeightUpload> {
        self.weights.as_ref()?.report()
    }

    fn write_inputs(&mut self, inputs: &StepInputs) -> Result<(), DeviceError> {
        self.finish_loading()?;
        let memory = self.memory.as_mut().ok_or_else(|| internal("no memory was allocated yet"))?;
        memory.write(&self.stream, inputs)
    }

    fn launch(&mut self, kernel: &CudaKernel, sizes: &Sizes) -> Result<(), DeviceError> {
        self.check(&kernel.identity, sizes, self.memory()?.limits())?;
        kernel.launches(sizes).try_for_each(|launch| Ok(self.stream.launch(&launch)?))
    }

    fn launches_of(&self, kernel: &CudaKernel, sizes: &Sizes) -> usize {
        kernel.launches(sizes).count()
    }

    fn launches_in(&self, recording: &CudaRecording) -> Option<usize> {
        Some(recording.launches)
    }

    /// Runs each kernel over a batch of nothing, all of whose blocks leave at once.
    fn warm_up(&mut self, kernels: &[CudaKernel]) -> Result<(), DeviceError> {
        let memory = self.memory()?;
        memory.clear_inputs(&self.stream)?;
        for kernel in kernels {
            if kernel.identity != self.identity {
                return Err(internal("a kernel of other memory was warmed up"));
            }
            kernel.every_launch().try_for_each(|launch| self.stream.launch(launch))?;
        }
        if let Some(sampling) = &self.sampling {
            sampling.warm_up(&self.stream, memory)?;
        }
        Ok(self.stream.synchronize()?)
    }

    fn recorder(&self, _persistent_decode: bool) -> Result<CudaRecorder, DeviceError> {
        let memory = self.memory()?;
        let mut keep = memory.buffers();
        keep.extend(self.weights.iter().map(|weights| Arc::clone(weights) as Keep));
        Ok(CudaRecorder {
            stream: self.context().stream()?,
            keep,
            limits: *memory.limits(),
            identity: self.identity.clone(),
        })
    }

    fn recording_text(&self, recording: &CudaRecording) -> Option<String> {
        Some(recording.text())
    }

    fn health(&self) -> Result<(), DeviceError> {
        Ok(self.context().check()?)
    }

    fn free_memory(&self) -> Option<u64> {
        self.context().memory().ok().map(|(free, _)| free)
    }

    fn replay(&mut self, recording: &CudaRecording, sizes: &Sizes) -> Result<(), DeviceError> {
        self.check(&recording.identity, sizes, &recording.limits)?;
        Ok(recording.launch(&self.stream)?)
    }

    fn read_output(&mut self, value: ValueId, sizes: &Sizes) -> Result<&[f32], DeviceError> {
        let place = self.output(value, sizes)?;
        self.read(value, place)
    }

    fn read_rows(&mut self, value: ValueId, sizes: &Sizes, rows: Range<usize>) -> Result<&[f32], DeviceError> {
        let place = self.output(value, sizes)?;
        let (all, width) = (sizes.logit_rows, place.len() / sizes.logit_rows.max(1));
        if rows.start > rows.end || rows.end > all {
            return Err(internal(format!("rows {} to {} of {all} were read", rows.start, rows.end)));
        }
        self.read(value, place.start + rows.start * width..place.start + rows.end * width)
    }

    fn sample(
        &mut self,
        value: ValueId,
        sizes: &Sizes,
        rows: &[RowSampling],
    ) -> Result<Option<Vec<Option<u32>>>, DeviceError> {
        let place = self.output(value, sizes)?;
        if rows.len() != sizes.logit_rows {
            return Err(internal(format!("{} rows of {} were sampled", rows.len(), sizes.logit_rows)));
        }
        let memory = self.memory.as_ref().ok_or_else(|| internal("no memory was allocated yet"))?;
        let sampling = self.sampling.as_mut().ok_or_else(|| internal("no memory was allocated yet"))?;
        sampling.run(&self.stream, memory, place, rows).map(Some)
    }
}

/// A bug in the caller or here.
fn internal(message: impl Into<String>) -> DeviceError {
    DeviceError::Internal { device: DEVICE.into(), message: message.into() }
}
