//! The CPU as a device of the runtime: groups become phases, a launch is one dispatch of the thread team, a recording
//! is one dispatch for many launches.

mod describe;
mod facts;
mod fingerprint;
mod hazards;
mod lower;
mod memory;
mod operands;
mod persistent;
mod phase;
mod recording;
mod rows;
mod schedule;
mod steps;
mod target;
mod tuning;
mod weights;

pub use facts::facts;
pub use target::CpuTarget;

use crate::isa::Isa;
use crate::linear::Job;
use crate::linear::tuning::Tunings;
use crate::memory::{ScratchBytes, Workspace};
use crate::team::{Team, TeamError};
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Dim, Graph, Sizes, StepInputs, Target, ValueId, WeightSource};
use allotrope_runtime::TuningCache;
use allotrope_runtime::device::{CacheLayout, Device, DeviceError, Recorder, TuningReport};
use lower::Lowering;
use memory::Memory;
use phase::{Phase, Work};
use recording::{Part, Parts};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weights::LoadedWeights;

/// The device's name.
const DEVICE: &str = "cpu";

/// The alignment of buffers in the arena, in bytes: a cache line, so that no two values share one.
const ALIGNMENT: usize = 64;

/// The CPU.
///
/// ```
/// use allotrope_cpu_runtime::{CpuDevice, Isa};
/// let device = CpuDevice::new(1, Isa::detect())?;
/// assert_eq!(device.threads(), 1);
/// # Ok::<(), allotrope_runtime::device::DeviceError>(())
/// ```
pub struct CpuDevice {
    team: Team,
    isa: Isa,
    workspace: Workspace,
    weights: Option<LoadedWeights>,
    memory: Option<Memory>,
    /// How products are cut up, where a search found something better than the defaults.
    tunings: Tunings,
    /// Names the memory that kernels have addresses of: they run on no other.
    identity: u64,
}

/// A group of ops, resolved.
#[derive(Clone)]
pub struct CpuKernel {
    phases: Arc<[Phase]>,
    identity: u64,
}

/// Kernels that run in one dispatch.
pub struct CpuRecording {
    parts: Parts,
    limits: Sizes,
    identity: u64,
}

/// Makes recordings: the phases of kernels are resolved already, and it is decided which of them wait for each other.
pub struct CpuRecorder {
    limits: Sizes,
    identity: u64,
    threads: usize,
    persistent_decode: bool,
}

impl CpuDevice {
    /// A device of `threads` threads that runs the given instruction-set path.
    ///
    /// # Errors
    /// [`DeviceError::Environment`] if the machine can't run the path or give the threads.
    pub fn new(threads: usize, isa: Isa) -> Result<Self, DeviceError> {
        if !isa.is_available() {
            let available: Vec<_> = Isa::available().map(Isa::name).collect();
            return Err(DeviceError::Environment {
                device: DEVICE.into(),
                message: format!("this processor can't run the {isa} path; it can run {}", available.join(", ")),
            });
        }
        let team = Team::new(threads).map_err(|error: TeamError| environment(error))?;
        Ok(Self {
            team,
            isa,
            workspace: Workspace::default(),
            weights: None,
            memory: None,
            tunings: Tunings::default(),
            identity: new_identity(),
        })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The instruction-set path.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn memory(&self) -> Result<&Memory, DeviceError> {
        self.memory.as_ref().ok_or_else(|| internal("no memory was allocated yet".to_owned()))
    }

    /// Bytes of scratch that a phase needs.
    fn scratch_bytes(&self, work: &Work) -> Result<ScratchBytes, DeviceError> {
        let too_large = || internal("the scratch of a kernel does not fit the address space".to_owned());
        let own = |own| ScratchBytes { own, shared: 0 };
        match work {
            Work::Rows(program) => Ok(own(program.scratch_bytes())),
            Work::Linear(jobs) => jobs.iter().try_fold(ScratchBytes::default(), |most, job: &Job| {
                Ok(job.scratch_bytes(self.team.threads()).map_err(|error| internal(error.to_string()))?.max(most))
            }),
            Work::Attention(attention) => attention.scratch_bytes().map(own).ok_or_else(too_large),
        }
    }

    /// Runs a kernel's phases, with a barrier between them, in one dispatch.
    fn run_kernel(&mut self, phases: &[Phase], sizes: &Sizes) {
        let (isa, scratch) = (self.isa, self.workspace.scratch());
        self.team.run(|worker| {
            for (index, phase) in phases.iter().enumerate() {
                if index > 0 {
                    worker.barrier();
                }
                // SAFETY: `check` found that the phases are of this device's memory and the sizes within its limits;
                // `prepare` reserved the scratch; `&mut self` keeps everybody else away.
                unsafe { phase.run(isa, worker, sizes, scratch.part(worker.index())) };
            }
        });
    }

    /// Runs the parts of a recording in one dispatch.
    fn run_parts(&mut self, parts: &[Part], sizes: &Sizes) {
        let (isa, scratch) = (self.isa, self.workspace.scratch());
        self.team.run(|worker| {
            for part in parts {
                if part.barrier {
                    worker.barrier();
                }
                // SAFETY: as in `run_kernel`; the recording knows where a barrier is needed.
                unsafe { part.run(isa, worker, sizes, scratch.part(worker.index())) };
            }
        });
    }
}

impl Recorder<CpuKernel, CpuRecording> for CpuRecorder {
    fn record(&mut self, kernels: &[CpuKernel], sizes: &Sizes) -> Result<CpuRecording, DeviceError> {
        for kernel in kernels {
            check((self.identity, kernel.identity), sizes, &self.limits)?;
        }
        let kernels: Vec<_> = kernels.iter().map(|kernel| Arc::clone(&kernel.phases)).collect();
        let parts = Parts::new(&kernels, sizes, self.threads, self.persistent_decode).map_err(environment)?;
        Ok(CpuRecording { parts, limits: *sizes, identity: self.identity })
    }
}

impl Device for CpuDevice {
    type Kernel = CpuKernel;
    type Recording = CpuRecording;
    type Recorder = CpuRecorder;

    fn target(&self) -> &dyn Target {
        &CpuTarget
    }

    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    fn workspace(&self, graph: &Graph, group: usize) -> Vec<ValueId> {
        graph.groups().get(group).map_or_else(Vec::new, |group| schedule::workspace_values(graph, &group.ops))
    }

    fn load_weights(&mut self, graph: &Graph, source: Arc<dyn WeightSource>, repack: bool) -> Result<(), DeviceError> {
        self.identity = new_identity();
        self.weights = Some(LoadedWeights::load(graph, source, (self.isa, &self.team), repack)?);
        Ok(())
    }

    fn allocate(&mut self, graph: &Graph, memory: &MemoryPlan, cache: CacheLayout) -> Result<(), DeviceError> {
        self.identity = new_identity();
        self.memory = Some(Memory::new(graph, memory, cache, self.team.threads())?);
        Ok(())
    }

    fn tuning_fingerprint(&self) -> Option<String> {
        Some(fingerprint::fingerprint(self.isa))
    }

    fn tune(&mut self, graph: &Graph, cache: &mut TuningCache, budget: Duration) -> Result<TuningReport, DeviceError> {
        self.tune_products(graph, cache, budget)
    }

    fn describe(&self, graph: &Graph, group: usize) -> String {
        describe::describe(graph, group)
    }

    fn prepare(&mut self, graph: &Graph, group: usize) -> Result<CpuKernel, DeviceError> {
        let ops = graph.groups().get(group).map(|group| group.ops.as_slice());
        let ops = ops.ok_or_else(|| internal(format!("the graph has no group {group}")))?;
        CpuTarget.accepts(graph, ops).map_err(internal)?;
        let weights = self.weights.as_ref().ok_or_else(|| internal("no weights were loaded yet".to_owned()))?;
        let lowering = Lowering { graph, memory: self.memory()?, weights, isa: self.isa, tunings: &self.tunings };
        let phases = lowering.phases(group)?;
        for phase in &phases {
            let bytes = self.scratch_bytes(&phase.work)?;
            self.workspace.reserve(self.team.threads(), bytes).map_err(environment)?;
        }
        Ok(CpuKernel { phases: phases.into(), identity: self.identity })
    }

    fn write_inputs(&mut self, inputs: &StepInputs) -> Result<(), DeviceError> {
        let memory = self.memory.as_mut().ok_or_else(|| internal("no memory was allocated yet".to_owned()))?;
        memory.write(inputs)
    }

    fn launch(&mut self, kernel: &CpuKernel, sizes: &Sizes) -> Result<(), DeviceError> {
        check((self.identity, kernel.identity), sizes, self.memory()?.limits())?;
        self.run_kernel(&kernel.phases, sizes);
        Ok(())
    }

    fn recorder(&self, persistent_decode: bool) -> Result<CpuRecorder, DeviceError> {
        let (limits, threads) = (*self.memory()?.limits(), self.team.threads());
        Ok(CpuRecorder { limits, identity: self.identity, threads, persistent_decode })
    }

    fn recording_text(&self, recording: &CpuRecording) -> Option<String> {
        Some(describe::recording(&recording.parts.parts, &recording.limits))
    }

    fn replay(&mut self, recording: &CpuRecording, sizes: &Sizes) -> Result<(), DeviceError> {
        check((self.identity, recording.identity), sizes, &recording.limits)?;
        self.run_parts(&recording.parts.parts, sizes);
        Ok(())
    }

    fn read_output(&mut self, value: ValueId, sizes: &Sizes) -> Result<&[f32], DeviceError> {
        let elements = self.memory()?.read(value, sizes);
        elements.ok_or_else(|| internal("the value that was read is no f32 output in the arena".to_owned()))
    }
}

/// Checks that a kernel is of the memory `identities.0`, and a batch within the limits.
fn check((memory, kernel): (u64, u64), sizes: &Sizes, limits: &Sizes) -> Result<(), DeviceError> {
    if kernel != memory {
        return Err(internal("a kernel of another device, or of memory that was replaced, was run".to_owned()));
    }
    sizes.check_within(limits).map_err(internal)
}

/// A number that no other memory of this process has.
fn new_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A bug in the caller or here.
fn internal(message: String) -> DeviceError {
    DeviceError::Internal { device: DEVICE.into(), message }
}

/// Something that the machine can't give.
fn environment(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Environment { device: DEVICE.into(), message: error.to_string() }
}

/// A dimension that is known from the model.
fn static_size(dim: Dim) -> Option<usize> {
    match dim {
        Dim::Static(size) => Some(size),
        _ => None,
    }
}
