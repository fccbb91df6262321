//! Errors of the driver, and whose fault they are.

use std::fmt;

use allotrope_runtime::DeviceError;
use cudarc::driver::sys::CUresult;

/// The device's name in errors.
const DEVICE: &str = "cuda";

/// Launches in flight that an error names; the others are counted.
const NAMED: usize = 8;

/// Whose fault an error is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The machine's: a driver or a GPU that cannot do what is asked, or hardware that failed.
    Environment,
    /// A bug in Allotrope.
    Program,
    /// A kernel failed, which is a bug in Allotrope too, and the context with it: nothing else can run on it.
    Device,
    /// Memory does not suffice.
    OutOfMemory {
        /// Bytes that were asked for, where that is known.
        wanted: Option<u64>,
    },
    /// Memory of the host, which the driver locks, does not suffice.
    OutOfHostMemory {
        /// Bytes that were asked for, where that is known.
        wanted: Option<u64>,
    },
}

/// A call of the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverError {
    fault: Fault,
    call: &'static str,
    code: Option<CUresult>,
    details: String,
    in_flight: Vec<String>,
    refused: Option<&'static str>,
}

impl std::error::Error for DriverError {}

impl DriverError {
    /// What a code of a call means.
    pub(crate) fn new(call: &'static str, code: CUresult, details: String) -> Self {
        let fault = match code {
            code if is_sticky(code) && !is_hardware(code) => Fault::Device,
            CUresult::CUDA_ERROR_OUT_OF_MEMORY if call == "cuMemHostAlloc" => Fault::OutOfHostMemory { wanted: None },
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory { wanted: None },
            code if is_environment(code) || is_hardware(code) => Fault::Environment,
            _ => Fault::Program,
        };
        Self { fault, call, code: Some(code), details, in_flight: Vec::new(), refused: None }
    }

    /// A mistake of the caller's that was found before the driver was called.
    pub(crate) fn program(call: &'static str, details: impl Into<String>) -> Self {
        Self { fault: Fault::Program, call, code: None, details: details.into(), in_flight: Vec::new(), refused: None }
    }

    /// The same, with how much was asked for.
    pub(crate) fn wanting(mut self, bytes: u64) -> Self {
        if let Fault::OutOfMemory { wanted } | Fault::OutOfHostMemory { wanted } = &mut self.fault {
            *wanted = Some(bytes);
        }
        self
    }

    /// The same, with the launches that may have caused it.
    pub(crate) fn after(mut self, in_flight: Vec<String>) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// The same error as the reason why another call was not even tried.
    pub(crate) fn refusing(&self, call: &'static str) -> Self {
        Self { refused: Some(call), ..self.clone() }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The function of the driver that failed.
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// The driver's name of the error, such as `CUDA_ERROR_OUT_OF_MEMORY`; nothing if the driver was not called.
    pub fn code(&self) -> Option<String> {
        self.code.map(|code| format!("{code:?}"))
    }

    /// Launches that may have caused an error of a kernel: those since the last synchronization, oldest first.
    pub fn in_flight(&self) -> &[String] {
        &self.in_flight
    }

    /// Whether the error ended the context, so that nothing else can run on it.
    pub fn is_final(&self) -> bool {
        self.code.is_some_and(is_sticky)
    }

    /// What happened, without whose fault it is.
    fn says(&self) -> String {
        let mut text = String::new();
        if let Some(call) = self.refused {
            text += &format!("{call} was not tried, since the GPU failed before: ");
        }
        text += self.call;
        match self.code {
            Some(code) => {
                let of_host = matches!(self.fault, Fault::OutOfHostMemory { .. });
                let meaning = if of_host { "out of host memory that can be locked" } else { meaning(code) };
                text += &format!(" failed with {code:?} ({meaning})");
            }
            None => text += " was refused",
        }
        if !self.details.is_empty() {
            text += &format!(": {}", self.details);
        }
        if let Fault::OutOfMemory { wanted: Some(bytes) } | Fault::OutOfHostMemory { wanted: Some(bytes) } = self.fault
        {
            text += &format!("; {bytes} bytes were wanted");
        }
        if !self.in_flight.is_empty() {
            text += &format!("; launched since the last synchronization: {}", listed(&self.in_flight));
        }
        text
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.says())?;
        match self.fault {
            Fault::Environment if self.is_final() => {
                f.write_str(" (the GPU or its driver failed; restart the process)")
            }
            Fault::Environment => f.write_str(" (the driver or the GPU cannot do this)"),
            Fault::Program => f.write_str(" (this is a bug in Allotrope)"),
            Fault::Device => f.write_str(" (this is a bug in Allotrope; restart the process to use the GPU again)"),
            Fault::OutOfMemory { .. } => f.write_str(
                " (lower what is kept on the GPU: the KV cache's blocks, the batch limits, or the model's size)",
            ),
            Fault::OutOfHostMemory { .. } => f.write_str(
                " (free memory of the host, or raise the limit on locked memory, `ulimit -l`, or the container's memory limit)",
            ),
        }
    }
}

impl From<DriverError> for DeviceError {
    fn from(error: DriverError) -> Self {
        let device = DEVICE.to_owned();
        match error.fault {
            Fault::Environment | Fault::OutOfMemory { .. } | Fault::OutOfHostMemory { .. } => {
                Self::Environment { device, message: error.to_string() }
            }
            Fault::Program => Self::Internal { device, message: error.says() },
            Fault::Device => {
                let message = format!("{}; restart the process to use the GPU again", error.says());
                Self::Internal { device, message }
            }
        }
    }
}

/// Names in one line, the middle ones counted if there are many.
fn listed(names: &[String]) -> String {
    let quoted = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() <= NAMED {
        return quoted(names);
    }
    let (first, last) = (&names[..NAMED / 2], &names[names.len() - NAMED / 2..]);
    format!("{}, {} others, {}", quoted(first), names.len() - NAMED, quoted(last))
}

/// Errors after which the context is of no use.
pub(crate) fn is_sticky(code: CUresult) -> bool {
    use CUresult::*;
    let of_kernels = matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
    );
    of_kernels || is_hardware(code)
}

/// Errors after which the context is of no use, and that no kernel is to blame for.
fn is_hardware(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

/// Errors of drivers and GPUs that lack something.
fn is_environment(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_STUB_LIBRARY
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_NO_DEVICE
            | CUDA_ERROR_INVALID_DEVICE
            | CUDA_ERROR_DEVICE_NOT_LICENSED
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
            | CUDA_ERROR_SHARED_OBJECT_INIT_FAILED
            | CUDA_ERROR_OPERATING_SYSTEM
            | CUDA_ERROR_NOT_PERMITTED
            | CUDA_ERROR_NOT_SUPPORTED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
            | CUDA_ERROR_MPS_CONNECTION_FAILED
            | CUDA_ERROR_MPS_RPC_FAILURE
            | CUDA_ERROR_MPS_SERVER_NOT_READY
            | CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
            | CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED
    )
}

/// A code in words, for those that a person may meet.
fn meaning(code: CUresult) -> &'static str {
    use CUresult::*;
    match code {
        CUDA_ERROR_INVALID_VALUE => "an argument is invalid",
        CUDA_ERROR_OUT_OF_MEMORY => "out of GPU memory",
        CUDA_ERROR_NO_DEVICE => "no GPU is visible",
        CUDA_ERROR_NO_BINARY_FOR_GPU => "the module has no code for this GPU",
        CUDA_ERROR_INVALID_PTX => "the PTX was refused",
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "the PTX is newer than the driver",
        CUDA_ERROR_JIT_COMPILER_NOT_FOUND => "the driver's PTX compiler, libnvidia-ptxjitcompiler.so, was not found",
        CUDA_ERROR_JIT_COMPILATION_DISABLED => "CUDA_DISABLE_PTX_JIT forbids compiling PTX",
        CUDA_ERROR_NOT_FOUND => "there is no such name",
        CUDA_ERROR_ILLEGAL_ADDRESS => "a kernel accessed memory that it may not",
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => "a block of this size does not fit",
        CUDA_ERROR_LAUNCH_TIMEOUT => "a kernel ran too long",
        CUDA_ERROR_ILLEGAL_INSTRUCTION => "a kernel met an illegal instruction",
        CUDA_ERROR_MISALIGNED_ADDRESS => "a kernel accessed a misaligned address",
        CUDA_ERROR_LAUNCH_FAILED => "a kernel failed",
        CUDA_ERROR_ECC_UNCORRECTABLE => "the GPU's memory has an uncorrectable error",
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => "the call is not permitted while a stream captures",
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => "an earlier error made the capture invalid",
        CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE => "the graph differs in more than an update can change",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "the kernel module and libcuda.so are of different versions",
        CUDA_ERROR_UNKNOWN => "the driver does not say why",
        _ => "see the CUDA driver's documentation",
    }
}

/// Why CUDA cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no `libcuda.so`.
    #[error(
        "no CUDA driver: libcuda.so was not found. Install NVIDIA's driver ({} or newer), or use the CPU (`--device cpu`)",
        super::probe::DRIVER
    )]
    NoDriver,
    /// The library that was found is not a whole driver.
    #[error(
        "the CUDA driver that was found lacks {}{}: it is no whole driver. Install NVIDIA's driver ({} or newer), or use \
         the CPU (`--device cpu`)",
        missing.first().copied().unwrap_or_default(),
        if missing.len() > 1 { format!(" and {} other functions", missing.len() - 1) } else { String::new() },
        super::probe::DRIVER
    )]
    Incomplete {
        /// Functions that it lacks.
        missing: Vec<&'static str>,
    },
    /// The driver is older than Allotrope's PTX.
    #[error(
        "the CUDA driver is too old: it is of CUDA {}.{}, and CUDA {}.{} is needed. Install NVIDIA's driver ({} or \
         newer), or use the CPU (`--device cpu`)",
        found.0, found.1, needed.0, needed.1, super::probe::DRIVER
    )]
    OldDriver {
        /// The CUDA version of the driver.
        found: (u32, u32),
        /// The oldest one that will do.
        needed: (u32, u32),
    },
    /// GPUs are hidden from the process.
    #[error(
        "no GPU is visible, since CUDA_VISIBLE_DEVICES is `{value}`. Name a GPU that there is, such as \
         CUDA_VISIBLE_DEVICES=0, or use the CPU (`--device cpu`)"
    )]
    Hidden {
        /// The variable's value.
        value: String,
    },
    /// The driver has no GPU.
    #[error(
        "the CUDA driver finds no GPU. Look whether `nvidia-smi` lists one and whether it was given to this container, or \
         use the CPU (`--device cpu`)"
    )]
    NoDevice,
    /// The GPU is older than Allotrope's kernels.
    #[error(
        "{name} has compute capability {}.{}, and Allotrope's kernels need {}.{}. Choose another GPU with \
         CUDA_VISIBLE_DEVICES, since the first visible one runs, or use the CPU (`--device cpu`)",
        found.0, found.1, needed.0, needed.1
    )]
    OldDevice {
        /// The GPU.
        name: String,
        /// What it has.
        found: (u32, u32),
        /// What is needed.
        needed: (u32, u32),
    },
    /// The driver or the GPU does not work.
    #[error("the GPU cannot be used: {0}")]
    Broken(#[from] DriverError),
}

impl Unavailable {
    /// Whether there is just no driver or no GPU, as opposed to one that is there and will not do.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NoDriver | Self::NoDevice)
    }
}

impl From<Unavailable> for DeviceError {
    fn from(reason: Unavailable) -> Self {
        match reason {
            Unavailable::Broken(error) => error.into(),
            reason => Self::Environment { device: DEVICE.to_owned(), message: reason.to_string() },
        }
    }
}
