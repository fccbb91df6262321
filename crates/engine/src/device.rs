//! The devices that there are, as one: which of them runs is chosen when a model is loaded.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use allotrope_config::environment::Environment;
use allotrope_config::{
    DeviceChoice, DeviceFacts, ModelFacts, Options, Problem, Resolved, Settings, device_choice, resolve,
};
use allotrope_cpu_runtime::{CpuDevice, CpuKernel, CpuRecorder, CpuRecording, Isa};
use allotrope_cuda_runtime::driver::probe;
use allotrope_cuda_runtime::{CudaDevice, CudaKernel, CudaOptions, CudaRecorder, CudaRecording};
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Graph, Sizes, StepInputs, Target, ValueId, WeightSource};
use allotrope_runtime::{
    CacheLayout, Device, DeviceError, GeneratedCode, Recorder, RowSampling, StartupLedger, TuningCache, TuningReport,
    WeightUpload,
};

use crate::error::EngineError;

/// A device that was chosen and opened, and the settings for it.
pub(crate) struct Opened {
    pub(crate) device: AnyDevice,
    pub(crate) settings: Settings,
    /// The device's name, for people.
    pub(crate) name: String,
}

/// Opens the device that `options` ask for and resolves them for it and the model. `auto` is the GPU if there is one that can be
/// used, else the CPU; the reason of the setting `device` says which.
///
/// # Errors
/// If a device that was asked for can't be had, or a setting can't.
pub(crate) fn open(options: &Options, model: &ModelFacts, ledger: &mut StartupLedger) -> Result<Opened, EngineError> {
    let choice = ledger.phase("resolve settings", || device_choice(options))?;
    if choice.value == DeviceChoice::Cpu {
        return open_cpu(options, model, None, ledger);
    }
    match open_cuda(options, model, ledger)? {
        Ok(mut opened) => {
            let reason = (choice.value == DeviceChoice::Auto).then(|| format!("{} runs the model", opened.name));
            opened.settings.device.reason = reason;
            Ok(opened)
        }
        Err(refusal) => instead_of_cuda(&choice, refusal, options, model, ledger),
    }
}

/// Opens the CPU where `device` is `auto` and the GPU that was opened refuses the model with `error`.
///
/// # Errors
/// If a GPU was asked for, or it is the CPU that refuses the model; otherwise as [`open`].
pub(crate) fn open_another(
    refused: Opened,
    error: DeviceError,
    options: &Options,
    model: &ModelFacts,
    ledger: &mut StartupLedger,
) -> Result<Opened, EngineError> {
    let Opened { device, settings, .. } = refused;
    match device {
        AnyDevice::Cpu(_) => Err(error.into()),
        AnyDevice::Cuda(_) => {
            instead_of_cuda(&settings.device, Refusal { error, is_absence: false }, options, model, ledger)
        }
    }
}

/// Why no GPU runs the model.
struct Refusal {
    error: DeviceError,
    /// Whether there is just none, which nobody needs to be told who did not ask for one.
    is_absence: bool,
}

impl From<DeviceError> for Refusal {
    fn from(error: DeviceError) -> Self {
        Self { error, is_absence: false }
    }
}

/// The CPU, if that will do.
fn instead_of_cuda(
    choice: &Resolved<DeviceChoice>,
    Refusal { error, is_absence }: Refusal,
    options: &Options,
    model: &ModelFacts,
    ledger: &mut StartupLedger,
) -> Result<Opened, EngineError> {
    if choice.value == DeviceChoice::Cuda {
        return Err(EngineError::NoDevice { device: choice.value, origin: choice.source.to_string(), error });
    }
    let reason = format!("the CPU runs the model, as no GPU can be used: {error}");
    if is_absence {
        tracing::info!("{reason}");
    } else {
        tracing::warn!("{reason}");
    }
    open_cpu(options, model, Some(reason), ledger)
}

/// Opens the CPU, for a reason if nobody asked for it.
fn open_cpu(
    options: &Options,
    model: &ModelFacts,
    reason: Option<String>,
    ledger: &mut StartupLedger,
) -> Result<Opened, EngineError> {
    let (facts, mut settings) = ledger.phase("resolve settings", || {
        let kernel_cache = Environment::current().kernel_cache();
        let facts = DeviceFacts { kernel_cache, ..allotrope_cpu_runtime::facts() };
        resolve(options, model, &facts).map(|settings| (facts, settings))
    })?;
    settings.device.reason = reason;
    let device = ledger.phase("open device", || CpuDevice::new(*settings.cpu.threads, Isa::detect()))?;
    Ok(Opened { device: AnyDevice::Cpu(Box::new(device)), settings, name: facts.name })
}

/// Opens the GPU; the inner error is why there is none that can be used.
fn open_cuda(
    options: &Options,
    model: &ModelFacts,
    ledger: &mut StartupLedger,
) -> Result<Result<Opened, Refusal>, EngineError> {
    let facts = ledger.phase("open device", || {
        // The facts are of the GPU that is found here, whose context is kept for them.
        probe().map_err(|reason| Refusal { is_absence: reason.is_absence(), error: reason.into() })?;
        Ok(allotrope_cuda_runtime::facts()?)
    });
    let facts = match facts {
        Ok(facts) => DeviceFacts { kernel_cache: Environment::current().kernel_cache(), ..facts },
        Err(refusal) => return Ok(Err(refusal)),
    };
    let settings = match ledger.phase("resolve settings", || resolve(options, model, &facts)) {
        Ok(settings) => settings,
        Err(error) if matches!(error.problem(), Problem::NoRoom { .. }) => {
            return Ok(Err(DeviceError::Environment { device: facts.kind, message: error.to_string() }.into()));
        }
        Err(error) => return Err(error.into()),
    };
    let cache = (*settings.kernel.kernel_cache).clone();
    let device = ledger.phase("open device", || CudaDevice::open(CudaOptions { cache }));
    let opened = device.map(|device| Opened { device: AnyDevice::Cuda(Box::new(device)), settings, name: facts.name });
    Ok(opened.map_err(Refusal::from))
}

/// One of the devices.
pub(crate) enum AnyDevice {
    Cpu(Box<CpuDevice>),
    Cuda(Box<CudaDevice>),
}

impl AnyDevice {
    /// The kernels that may run a group, by their names; none on the CPU, where a launch is not one kernel.
    pub(crate) fn kernels(&self, graph: &Graph, group: usize) -> Vec<String> {
        match self {
            AnyDevice::Cpu(_) => Vec::new(),
            AnyDevice::Cuda(device) => device.kernels(graph, group),
        }
    }

    /// Checks that the device has a kernel for every launch of a graph.
    ///
    /// # Errors
    /// With the first that it has none for, and why.
    pub(crate) fn check(&self, graph: &Graph) -> Result<(), DeviceError> {
        let target = self.target();
        for (place, group) in graph.groups().iter().enumerate() {
            target.accepts(graph, &group.ops).map_err(|reason| DeviceError::Environment {
                device: target.name().to_owned(),
                message: format!("launch {place}, {}, has no kernel: {reason}", graph.group_label(place)),
            })?;
        }
        Ok(())
    }

    /// Whether it is a GPU.
    pub(crate) fn is_gpu(&self) -> bool {
        matches!(self, AnyDevice::Cuda(_))
    }
}

/// A kernel of one of them.
#[derive(Clone)]
pub(crate) enum AnyKernel {
    Cpu(CpuKernel),
    Cuda(CudaKernel),
}

/// A recording of one of them.
pub(crate) enum AnyRecording {
    Cpu(CpuRecording),
    Cuda(CudaRecording),
}

/// What records for one of them.
pub(crate) enum AnyRecorder {
    Cpu(CpuRecorder),
    Cuda(CudaRecorder),
}

/// The same of whichever device it is.
macro_rules! either {
    ($any:ident, $device:ident => $result:expr) => {
        match $any {
            AnyDevice::Cpu($device) => $result,
            AnyDevice::Cuda($device) => $result,
        }
    };
}

/// A kernel or a recording came to another device than made it.
fn mixed_up() -> DeviceError {
    DeviceError::Internal {
        device: "any device".to_owned(),
        message: "what one device prepared was given to another".to_owned(),
    }
}

fn cpu_kernels(kernels: &[AnyKernel]) -> Result<Vec<CpuKernel>, DeviceError> {
    let own = |kernel: &AnyKernel| match kernel {
        AnyKernel::Cpu(kernel) => Ok(kernel.clone()),
        AnyKernel::Cuda(_) => Err(mixed_up()),
    };
    kernels.iter().map(own).collect()
}

fn cuda_kernels(kernels: &[AnyKernel]) -> Result<Vec<CudaKernel>, DeviceError> {
    let own = |kernel: &AnyKernel| match kernel {
        AnyKernel::Cuda(kernel) => Ok(kernel.clone()),
        AnyKernel::Cpu(_) => Err(mixed_up()),
    };
    kernels.iter().map(own).collect()
}

impl Recorder<AnyKernel, AnyRecording> for AnyRecorder {
    fn record(&mut self, kernels: &[AnyKernel], sizes: &Sizes) -> Result<AnyRecording, DeviceError> {
        match self {
            AnyRecorder::Cpu(recorder) => recorder.record(&cpu_kernels(kernels)?, sizes).map(AnyRecording::Cpu),
            AnyRecorder::Cuda(recorder) => recorder.record(&cuda_kernels(kernels)?, sizes).map(AnyRecording::Cuda),
        }
    }
}

impl Device for AnyDevice {
    type Kernel = AnyKernel;
    type Recording = AnyRecording;
    type Recorder = AnyRecorder;

    fn target(&self) -> &dyn Target {
        either!(self, device => device.target())
    }

    fn alignment(&self) -> usize {
        either!(self, device => device.alignment())
    }

    fn workspace(&self, graph: &Graph, group: usize) -> Vec<ValueId> {
        either!(self, device => device.workspace(graph, group))
    }

    fn load_weights(&mut self, graph: &Graph, source: Arc<dyn WeightSource>, repack: bool) -> Result<(), DeviceError> {
        either!(self, device => device.load_weights(graph, source, repack))
    }

    fn allocate(&mut self, graph: &Graph, memory: &MemoryPlan, cache: CacheLayout) -> Result<(), DeviceError> {
        either!(self, device => device.allocate(graph, memory, cache))
    }

    fn tuning_fingerprint(&self) -> Option<String> {
        either!(self, device => device.tuning_fingerprint())
    }

    fn tune(&mut self, graph: &Graph, cache: &mut TuningCache, budget: Duration) -> Result<TuningReport, DeviceError> {
        either!(self, device => device.tune(graph, cache, budget))
    }

    fn describe(&self, graph: &Graph, group: usize) -> String {
        either!(self, device => device.describe(graph, group))
    }

    fn generated_code(&self, graph: &Graph, group: usize) -> Result<Vec<GeneratedCode>, DeviceError> {
        either!(self, device => device.generated_code(graph, group))
    }

    fn prepare(&mut self, graph: &Graph, group: usize) -> Result<AnyKernel, DeviceError> {
        match self {
            AnyDevice::Cpu(device) => device.prepare(graph, group).map(AnyKernel::Cpu),
            AnyDevice::Cuda(device) => device.prepare(graph, group).map(AnyKernel::Cuda),
        }
    }

    fn prepare_all(&mut self, graph: &Graph, ledger: &mut StartupLedger) -> Result<Vec<AnyKernel>, DeviceError> {
        Ok(match self {
            AnyDevice::Cpu(device) => device.prepare_all(graph, ledger)?.into_iter().map(AnyKernel::Cpu).collect(),
            AnyDevice::Cuda(device) => device.prepare_all(graph, ledger)?.into_iter().map(AnyKernel::Cuda).collect(),
        })
    }

    fn launches_of(&self, kernel: &AnyKernel, sizes: &Sizes) -> usize {
        match (self, kernel) {
            (AnyDevice::Cpu(device), AnyKernel::Cpu(kernel)) => device.launches_of(kernel, sizes),
            (AnyDevice::Cuda(device), AnyKernel::Cuda(kernel)) => device.launches_of(kernel, sizes),
            (AnyDevice::Cpu(_), AnyKernel::Cuda(_)) | (AnyDevice::Cuda(_), AnyKernel::Cpu(_)) => 0,
        }
    }

    fn launches_in(&self, recording: &AnyRecording) -> Option<usize> {
        match (self, recording) {
            (AnyDevice::Cpu(device), AnyRecording::Cpu(recording)) => device.launches_in(recording),
            (AnyDevice::Cuda(device), AnyRecording::Cuda(recording)) => device.launches_in(recording),
            (AnyDevice::Cpu(_), AnyRecording::Cuda(_)) | (AnyDevice::Cuda(_), AnyRecording::Cpu(_)) => None,
        }
    }

    fn weight_upload(&self) -> Option<WeightUpload> {
        either!(self, device => device.weight_upload())
    }

    fn finish_loading(&mut self) -> Result<(), DeviceError> {
        either!(self, device => device.finish_loading())
    }

    fn write_inputs(&mut self, inputs: &StepInputs) -> Result<(), DeviceError> {
        either!(self, device => device.write_inputs(inputs))
    }

    fn launch(&mut self, kernel: &AnyKernel, sizes: &Sizes) -> Result<(), DeviceError> {
        match (self, kernel) {
            (AnyDevice::Cpu(device), AnyKernel::Cpu(kernel)) => device.launch(kernel, sizes),
            (AnyDevice::Cuda(device), AnyKernel::Cuda(kernel)) => device.launch(kernel, sizes),
            (AnyDevice::Cpu(_), AnyKernel::Cuda(_)) | (AnyDevice::Cuda(_), AnyKernel::Cpu(_)) => Err(mixed_up()),
        }
    }

    fn warm_up(&mut self, kernels: &[AnyKernel]) -> Result<(), DeviceError> {
        match self {
            AnyDevice::Cpu(device) => device.warm_up(&cpu_kernels(kernels)?),
            AnyDevice::Cuda(device) => device.warm_up(&cuda_kernels(kernels)?),
        }
    }

    fn recorder(&self, persistent_decode: bool) -> Result<AnyRecorder, DeviceError> {
        match self {
            AnyDevice::Cpu(device) => device.recorder(persistent_decode).map(AnyRecorder::Cpu),
            AnyDevice::Cuda(device) => device.recorder(persistent_decode).map(AnyRecorder::Cuda),
        }
    }

    fn recording_text(&self, recording: &AnyRecording) -> Option<String> {
        match (self, recording) {
            (AnyDevice::Cpu(device), AnyRecording::Cpu(recording)) => device.recording_text(recording),
            (AnyDevice::Cuda(device), AnyRecording::Cuda(recording)) => device.recording_text(recording),
            (AnyDevice::Cpu(_), AnyRecording::Cuda(_)) | (AnyDevice::Cuda(_), AnyRecording::Cpu(_)) => None,
        }
    }

    fn health(&self) -> Result<(), DeviceError> {
        either!(self, device => device.health())
    }

    fn free_memory(&self) -> Option<u64> {
        either!(self, device => device.free_memory())
    }

    fn replay(&mut self, recording: &AnyRecording, sizes: &Sizes) -> Result<(), DeviceError> {
        match (self, recording) {
            (AnyDevice::Cpu(device), AnyRecording::Cpu(recording)) => device.replay(recording, sizes),
            (AnyDevice::Cuda(device), AnyRecording::Cuda(recording)) => device.replay(recording, sizes),
            (AnyDevice::Cpu(_), AnyRecording::Cuda(_)) | (AnyDevice::Cuda(_), AnyRecording::Cpu(_)) => Err(mixed_up()),
        }
    }

    fn read_output(&mut self, value: ValueId, sizes: &Sizes) -> Result<&[f32], DeviceError> {
        either!(self, device => device.read_output(value, sizes))
    }

    fn read_rows(&mut self, value: ValueId, sizes: &Sizes, rows: Range<usize>) -> Result<&[f32], DeviceError> {
        either!(self, device => device.read_rows(value, sizes, rows))
    }

    fn sample(
        &mut self,
        value: ValueId,
        sizes: &Sizes,
        rows: &[RowSampling],
    ) -> Result<Option<Vec<Option<u32>>>, DeviceError> {
        either!(self, device => device.sample(value, sizes, rows))
    }
}
