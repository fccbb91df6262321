//! The context: what everything else lives in, and whether it is still alive.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};

use super::error::{DriverError, Unavailable, is_sticky};
use super::probe::{self, DeviceInfo};

/// Launches that are remembered for an error; older ones are forgotten.
const REMEMBERED: usize = 128;

thread_local! {
    /// Whether this thread captures, so that calls which would invalidate the capture are refused before they are made.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// A context of the first GPU: its primary one, which cuBLAS and its like use too.
///
/// Clones are the same context. It ends with the last of them and of everything made in it.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

struct Shared {
    context: sys::CUcontext,
    device: sys::CUdevice,
    info: DeviceInfo,
    dead: AtomicBool,
    health: Mutex<Health>,
}

/// What happened so far.
#[derive(Default)]
struct Health {
    /// The first error that ended the context.
    death: Option<DriverError>,
    /// Launches of which nobody has seen the end, oldest first.
    in_flight: VecDeque<InFlight>,
    launches: u64,
}

struct InFlight {
    stream: usize,
    number: u64,
    label: Arc<str>,
}

/// A place in a stream: all launches up to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    stream: usize,
    number: u64,
}

// SAFETY: a context's handle may be used from any thread; it is bound to the calling one by every call.
unsafe impl Send for Shared {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Shared {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

impl Context {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// As [`probe`](super::probe()).
    pub fn open() -> Result<Self, Unavailable> {
        probe::open()
    }

    /// Retains the primary context of a device, and asks it for its memory.
    pub(super) fn retain(device: sys::CUdevice, info: DeviceInfo) -> Result<Self, DriverError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the place is one for a handle, and the device is the driver's.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        if code != CUresult::CUDA_SUCCESS {
            return Err(DriverError::new("cuDevicePrimaryCtxRetain", code, "the GPU cannot be opened".to_owned()));
        }
        let shared =
            Shared { context, device, info, dead: AtomicBool::new(false), health: Mutex::new(Health::default()) };
        let mut opened = Self { shared: Arc::new(shared) };
        let (free, total) = opened.memory()?;
        if let Some(shared) = Arc::get_mut(&mut opened.shared) {
            (shared.info.memory_free, shared.info.memory_total) = (free, total);
        }
        Ok(opened)
    }

    /// What the GPU is.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    /// Free and total memory of the GPU, in bytes.
    ///
    /// # Errors
    /// If the context is dead.
    pub fn memory(&self) -> Result<(u64, u64), DriverError> {
        self.enter("cuMemGetInfo")?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places are ones for sizes.
        let code = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        self.finish("cuMemGetInfo", code, String::new)?;
        Ok((free as u64, total as u64))
    }

    /// Whether the context is alive, without asking the driver.
    ///
    /// # Errors
    /// The error that ended it.
    pub fn check(&self) -> Result<(), DriverError> {
        self.alive("the call")
    }

    /// Whether kernels may begin before the one before them has ended (programmatic dependent launch).
    pub fn has_dependent_launch(&self) -> bool {
        self.shared.info.capability >= (9, 0)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.shared.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self, call: &'static str) -> Result<(), DriverError> {
        if !self.shared.dead.load(Ordering::Acquire) {
            return Ok(());
        }
        self.health().death.as_ref().map_or(Ok(()), |death| Err(death.refusing(call)))
    }

    /// Begins a call: refuses it if the context is dead, and binds the context.
    pub(crate) fn enter(&self, call: &'static str) -> Result<(), DriverError> {
        self.alive(call)?;
        // SAFETY: the context is retained as long as `self` lives.
        let code = unsafe { sys::cuCtxSetCurrent(self.shared.context) };
        self.finish(call, code, || "the context cannot be made current".to_owned())
    }

    /// Ends a call: an error is classified, and one that stays ends the context.
    pub(crate) fn finish(
        &self,
        call: &'static str,
        code: CUresult,
        details: impl FnOnce() -> String,
    ) -> Result<(), DriverError> {
        if code == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let mut error = DriverError::new(call, code, details());
        if is_sticky(code) {
            let mut health = self.health();
            error = error.after(health.in_flight.iter().map(|launch| launch.label.to_string()).collect());
            let first = health.death.is_none();
            let death = health.death.get_or_insert(error).clone();
            self.shared.dead.store(true, Ordering::Release);
            drop(health);
            if first {
                tracing::error!("{death}");
            }
            return Err(death);
        }
        Err(error)
    }

    /// Notes that something was launched on a stream.
    pub(super) fn launched(&self, stream: usize, label: &Arc<str>) {
        let mut health = self.health();
        health.launches += 1;
        if health.in_flight.len() == REMEMBERED {
            health.in_flight.pop_front();
        }
        let number = health.launches;
        health.in_flight.push_back(InFlight { stream, number, label: Arc::clone(label) });
    }

    /// The place that a stream has come to.
    pub(super) fn mark(&self, stream: usize) -> Mark {
        Mark { stream, number: self.health().launches }
    }

    /// Notes that a stream has got past a place without an error.
    pub(super) fn passed(&self, mark: Mark) {
        self.health().in_flight.retain(|launch| launch.stream != mark.stream || launch.number > mark.number);
    }

    /// Frees something, in a way that leaves alone captures of this thread.
    ///
    /// Errors are not reported: they are those of earlier work, which the next call gets too.
    pub(super) fn release(&self, free: impl FnOnce() -> CUresult) {
        // SAFETY: the context is retained as long as `self` lives.
        if unsafe { sys::cuCtxSetCurrent(self.shared.context) } != CUresult::CUDA_SUCCESS {
            return;
        }
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the place holds a mode, and gets the one before.
        let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) } == CUresult::CUDA_SUCCESS;
        let _ = free();
        if exchanged {
            // SAFETY: as above; this puts back what was there.
            let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the context was retained once, by the only constructor.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Refuses a call that would invalidate a capture of this thread.
pub(crate) fn refuse_in_capture(call: &'static str) -> Result<(), DriverError> {
    if CAPTURING.get() {
        return Err(DriverError::program(call, "it was called inside of a capture, where it cannot be"));
    }
    Ok(())
}

/// Notes whether this thread captures.
pub(super) fn set_capturing(capturing: bool) {
    CAPTURING.set(capturing);
}
