//! Whether there is a GPU that can be used.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use super::context::Context;
use super::error::{DriverError, Unavailable};

/// The oldest CUDA whose driver takes Allotrope's PTX.
const NEEDED_VERSION: (u32, u32) = (13, 0);

/// The release of NVIDIA's driver that comes with it.
pub(super) const DRIVER: &str = "580";

/// The oldest GPUs for which Allotrope has kernels.
const NEEDED_CAPABILITY: (u32, u32) = (8, 0);

/// Every function of the driver that is called here. They are looked for before any is called, since calling one that
/// a library lacks ends in a panic.
const FUNCTIONS: [&str; 51] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphExecUpdate_v2",
    "cuGraphGetEdges_v2",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuLinkAddData_v2",
    "cuLinkComplete",
    "cuLinkCreate_v2",
    "cuLinkDestroy",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// A context that [`probe()`] made, so that opening the device does not make it a second time.
static PROBED: Mutex<Option<Context>> = Mutex::new(None);

/// What there is to know of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The marketing name.
    pub name: String,
    /// The compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that nobody used when the context had just been made, in bytes.
    pub memory_free: u64,
    /// Shared memory that a block can have if it asks for it, in bytes.
    pub shared_memory_per_block: u32,
    /// The CUDA version of the driver.
    pub driver_version: (u32, u32),
}

/// Looks for a driver and a GPU that can be used, and says what the first GPU is.
///
/// The context that this needs is kept for the [`Context::open`] that comes next.
///
/// # Errors
/// [`Unavailable`], with what to do. It never panics.
pub fn probe() -> Result<DeviceInfo, Unavailable> {
    let context = open()?;
    let info = context.info().clone();
    *PROBED.lock().unwrap_or_else(PoisonError::into_inner) = Some(context);
    Ok(info)
}

/// The context of the last probe, or a new one.
pub(super) fn open() -> Result<Context, Unavailable> {
    let probed = PROBED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(context) = probed.filter(|context| context.check().is_ok()) {
        return Ok(context);
    }
    let version = find_driver()?;
    let device = find_device()?;
    let info = describe(device, version)?;
    if info.capability < NEEDED_CAPABILITY {
        let found = info.capability;
        return Err(Unavailable::OldDevice { name: info.name, found, needed: NEEDED_CAPABILITY });
    }
    Ok(Context::retain(device, info)?)
}

/// The version of the driver, if there is one that is whole and new enough.
fn find_driver() -> Result<(u32, u32), Unavailable> {
    // SAFETY: loading a driver runs its initializers, which are trusted as the rest of the driver is.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // SAFETY: as above; the library is there, so this does not panic.
    let library = unsafe { sys::culib() };
    let lacks = |name: &str| {
        // SAFETY: the symbol is looked up and not used.
        unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    };
    let missing: Vec<&'static str> = FUNCTIONS.into_iter().filter(|name| lacks(name)).collect();
    let mut number = 0;
    if !missing.contains(&"cuDriverGetVersion") {
        // SAFETY: the place is one for a number.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut number) })?;
    }
    let number = number.unsigned_abs();
    let version = (number / 1000, number % 1000 / 10);
    // An old driver lacks functions too, and its age says more.
    if number > 0 && version < NEEDED_VERSION {
        return Err(Unavailable::OldDriver { found: version, needed: NEEDED_VERSION });
    }
    if missing.is_empty() { Ok(version) } else { Err(Unavailable::Incomplete { missing }) }
}

/// The first GPU.
fn find_device() -> Result<sys::CUdevice, Unavailable> {
    // SAFETY: no conditions.
    let code = unsafe { sys::cuInit(0) };
    let mut count = 0;
    if code != CUresult::CUDA_ERROR_NO_DEVICE {
        check("cuInit", code)?;
        // SAFETY: the place is one for a number.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    }
    if count == 0 {
        return Err(match allotrope_config::environment::Environment::current().cuda_visible_devices() {
            Some(value) => Unavailable::Hidden { value },
            None => Unavailable::NoDevice,
        });
    }
    let mut device = 0;
    // SAFETY: the place is one for a device.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, 0) })?;
    Ok(device)
}

/// What the driver says of a GPU without a context; its memory is asked for later.
fn describe(device: sys::CUdevice, driver_version: (u32, u32)) -> Result<DeviceInfo, DriverError> {
    use CUdevice_attribute::*;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the place is one for a number, and the device is the driver's.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
        Ok::<u32, DriverError>(value.unsigned_abs())
    };
    let mut name = [0u8; 256];
    // SAFETY: the place is as long as is said.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), 256, device) })?;
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_total: 0,
        memory_free: 0,
        shared_memory_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver_version,
    })
}

/// An error where there is no context yet that could die of it.
fn check(call: &'static str, code: CUresult) -> Result<(), DriverError> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(DriverError::new(call, code, String::new())) }
}
