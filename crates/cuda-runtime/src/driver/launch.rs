//! One launch of a kernel.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUlaunchAttributeID};

use super::error::DriverError;
use super::module::Function;
use super::stream::Stream;

/// A launch: a kernel, its sizes and its parameter.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel.
    pub function: Function,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes ([`Function::allow_shared_memory`]).
    pub shared_memory: u32,
    /// The kernel's one parameter, a struct, byte by byte.
    pub parameters: Arc<[u8]>,
    /// Whether it may begin before the kernel before it has ended. The kernel waits for that itself
    /// (`griddepcontrol.wait`). GPUs before compute capability 9.0 don't do this.
    pub dependent: bool,
    /// What the launch is, for errors and pictures: the kernel and its group.
    pub label: Arc<str>,
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        let Self { label, block, shared_memory, .. } = self;
        write!(f, "launch `{label}` of kernel `{}`, grid {x}×{y}×{z}, ", self.function.name())?;
        write!(f, "block {block}, {shared_memory} bytes of shared memory")
    }
}

impl Launch {
    /// Hands it to a stream, which runs or captures it.
    pub(super) fn submit(&self, stream: &Stream) -> Result<(), DriverError> {
        const CALL: &str = "cuLaunchKernelEx";
        let context = stream.context();
        let (given, wanted) = (self.parameters.len(), self.function.parameter_bytes());
        if given != wanted {
            let message = format!("{self}: the parameter has {given} bytes, and the kernel's {wanted}");
            return Err(DriverError::program(CALL, message));
        }
        context.enter(CALL)?;
        // SAFETY: zeros are a value of each of these types.
        let (mut attribute, mut config): (sys::CUlaunchAttribute, sys::CUlaunchConfig) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        [config.gridDimX, config.gridDimY, config.gridDimZ] = self.grid;
        [config.blockDimX, config.blockDimY, config.blockDimZ] = [self.block, 1, 1];
        config.sharedMemBytes = self.shared_memory;
        config.hStream = stream.raw();
        if self.dependent && context.has_dependent_launch() {
            attribute.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attribute.value.programmaticStreamSerializationAllowed = 1;
            config.attrs = &mut attribute;
            config.numAttrs = 1;
        }
        let mut parameters = [self.parameters.as_ptr().cast::<c_void>().cast_mut()];
        let function = self.function.raw();
        // SAFETY: the function is loaded; it has one parameter, of as many bytes as were just compared, which the driver
        // copies before it returns; the configuration has as many attributes as it says.
        let code = unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) };
        context.finish(CALL, code, || self.to_string())
    }
}
