//! CUDA as a device of the runtime.

use std::path::PathBuf;
use std::sync::Arc;

use allotrope_config::DeviceFacts;
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Graph, Sizes, StepInputs, Target, ValueId, WeightSource};
use allotrope_runtime::device::{CacheLayout, Device, DeviceError, Recorder};

use crate::CudaTarget;

/// The device's name.
const DEVICE: &str = "cuda";

/// How the device is opened.
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    /// Where the driver's machine code is kept between starts; nowhere if `None`.
    pub cache: Option<PathBuf>,
}

/// A GPU.
pub struct CudaDevice {
    _options: CudaOptions,
}

/// A group of ops, made ready.
#[derive(Clone)]
pub struct CudaKernel;

/// Kernels captured in a graph.
pub struct CudaRecording;

/// Captures kernels.
pub struct CudaRecorder;

impl Recorder<CudaKernel, CudaRecording> for CudaRecorder {
    fn record(&mut self, _: &[CudaKernel], _: &Sizes) -> Result<CudaRecording, DeviceError> {
        Err(missing())
    }
}

/// What the settings' rules need to know of the first GPU, or why there is none that can be used.
///
/// # Errors
/// [`DeviceError::Environment`] without a driver, with one that is too old, or without a GPU.
pub fn facts() -> Result<DeviceFacts, DeviceError> {
    Err(missing())
}

fn missing() -> DeviceError {
    DeviceError::Environment { device: DEVICE.into(), message: "there is no CUDA device yet".into() }
}

impl CudaDevice {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// As [`facts`].
    pub fn open(options: CudaOptions) -> Result<Self, DeviceError> {
        let _ = CudaDevice { _options: options };
        Err(missing())
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
        256
    }

    fn workspace(&self, _graph: &Graph, _group: usize) -> Vec<ValueId> {
        Vec::new()
    }

    fn load_weights(&mut self, _: &Graph, _: Arc<dyn WeightSource>, _: bool) -> Result<(), DeviceError> {
        Err(missing())
    }

    fn allocate(&mut self, _: &Graph, _: &MemoryPlan, _: CacheLayout) -> Result<(), DeviceError> {
        Err(missing())
    }

    fn describe(&self, _: &Graph, _: usize) -> String {
        String::new()
    }

    fn prepare(&mut self, _: &Graph, _: usize) -> Result<CudaKernel, DeviceError> {
        Err(missing())
    }

    fn write_inputs(&mut self, _: &StepInputs) -> Result<(), DeviceError> {
        Err(missing())
    }

    fn launch(&mut self, _: &CudaKernel, _: &Sizes) -> Result<(), DeviceError> {
        Err(missing())
    }

    fn recorder(&self) -> Result<CudaRecorder, DeviceError> {
        Err(missing())
    }

    fn replay(&mut self, _: &CudaRecording, _: &Sizes) -> Result<(), DeviceError> {
        Err(missing())
    }

    fn read_output(&mut self, _: ValueId, _: &Sizes) -> Result<&[f32], DeviceError> {
        Err(missing())
    }
}
