//! Streams and events.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::{self, CUresult};

use super::context::{Context, Mark, refuse_in_capture};
use super::error::DriverError;
use super::launch::Launch;
use super::memory::{Buffer, PinnedBuffer, Use};

/// A queue of work for the device, which does it in order. It does not wait for the default stream.
pub struct Stream {
    context: Context,
    raw: sys::CUstream,
}

// SAFETY: the driver locks its streams, so a handle may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Context {
    /// Makes a stream.
    ///
    /// # Errors
    /// If the context is dead.
    pub fn stream(&self) -> Result<Stream, DriverError> {
        self.enter("cuStreamCreate")?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the place is one for a handle.
        let code = unsafe { sys::cuStreamCreate(&mut raw, flags) };
        self.finish("cuStreamCreate", code, String::new)?;
        Ok(Stream { context: self.clone(), raw })
    }

    /// Makes an event, which tells the time it was reached at if it is `timed`.
    ///
    /// # Errors
    /// If the context is dead.
    pub fn event(&self, timed: bool) -> Result<Event, DriverError> {
        self.enter("cuEventCreate")?;
        let mut raw = std::ptr::null_mut();
        let flags = if timed { 0 } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        // SAFETY: the place is one for a handle.
        let code = unsafe { sys::cuEventCreate(&mut raw, flags) };
        self.finish("cuEventCreate", code, String::new)?;
        Ok(Event { context: self.clone(), raw, timed, mark: Mutex::new(None) })
    }
}

impl Stream {
    /// The context that it is in.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// What the stream is called where launches in flight are kept.
    pub(super) fn number(&self) -> usize {
        self.raw as usize
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// If the launch is not one of the kernel's, with its label and sizes; or an error of earlier work.
    pub fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        refuse_in_capture("cuLaunchKernelEx")?;
        launch.submit(self)?;
        self.context.launched(self.number(), &launch.label);
        Ok(())
    }

    /// Copies some bytes of pinned memory to the device.
    ///
    /// # Errors
    /// If the bytes do not fit, or an error of earlier work.
    pub fn copy_to_device(
        &self,
        to: &Buffer,
        offset: usize,
        from: &PinnedBuffer,
        range: Range<usize>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyHtoDAsync";
        let bytes = range.len();
        let source = from.place(CALL, range)?;
        let target = to.place(CALL, offset..offset.saturating_add(bytes))?;
        self.copy(CALL, from, false, bytes, || {
            // SAFETY: both places have so many bytes; the pinned ones are not written or freed before the event behind
            // the copy is reached.
            unsafe { sys::cuMemcpyHtoDAsync_v2(target, source.cast(), bytes, self.raw) }
        })
    }

    /// Copies some bytes of the device to pinned memory. [`PinnedBuffer::as_slice`] waits for them.
    ///
    /// # Errors
    /// If the bytes do not fit, or an error of earlier work.
    pub fn copy_to_host(
        &self,
        to: &mut PinnedBuffer,
        offset: usize,
        from: &Buffer,
        range: Range<usize>,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyDtoHAsync";
        let bytes = range.len();
        let source = from.place(CALL, range)?;
        let target = to.place(CALL, offset..offset.saturating_add(bytes))?;
        self.copy(CALL, to, true, bytes, || {
            // SAFETY: both places have so many bytes; the pinned ones are not touched or freed before the event behind the
            // copy is reached.
            unsafe { sys::cuMemcpyDtoHAsync_v2(target.cast(), source, bytes, self.raw) }
        })
    }

    /// Copies from or to pinned memory, and records the event that tells when it is done.
    fn copy(
        &self,
        call: &'static str,
        pinned: &PinnedBuffer,
        writes: bool,
        bytes: usize,
        begin: impl FnOnce() -> CUresult,
    ) -> Result<(), DriverError> {
        refuse_in_capture(call)?;
        if bytes == 0 {
            return Ok(());
        }
        let mut using = pinned.lock();
        // There is one event, so copies in several streams are done one after the other.
        if using.is_some_and(|using| using.stream != self.number()) {
            self.wait(pinned.done())?;
        }
        self.context.enter(call)?;
        let writes = writes || using.is_some_and(|using| using.writes);
        *using = Some(Use { writes, stream: self.number() });
        self.context.finish(call, begin(), || format!("{bytes} bytes"))?;
        self.record(pinned.done()).inspect_err(|_| {
            // Without the event only the stream tells.
            let _ = self.synchronize();
        })
    }

    /// Sets every byte of a buffer.
    ///
    /// # Errors
    /// An error of earlier work.
    pub fn fill(&self, buffer: &Buffer, value: u8) -> Result<(), DriverError> {
        const CALL: &str = "cuMemsetD8Async";
        refuse_in_capture(CALL)?;
        if buffer.bytes() == 0 {
            return Ok(());
        }
        self.context.enter(CALL)?;
        // SAFETY: the buffer has so many bytes, and freeing it waits for this.
        let code = unsafe { sys::cuMemsetD8Async(buffer.address(), value, buffer.bytes(), self.raw) };
        self.context.finish(CALL, code, || format!("{} bytes", buffer.bytes()))
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// If any of it failed, with the launches that may have.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        refuse_in_capture("cuStreamSynchronize")?;
        self.context.enter("cuStreamSynchronize")?;
        let mark = self.context.mark(self.number());
        // SAFETY: the stream lives.
        let code = unsafe { sys::cuStreamSynchronize(self.raw) };
        self.context.finish("cuStreamSynchronize", code, String::new)?;
        self.context.passed(mark);
        Ok(())
    }

    /// Records an event behind what is in the stream.
    ///
    /// # Errors
    /// An error of earlier work.
    pub fn record(&self, event: &Event) -> Result<(), DriverError> {
        refuse_in_capture("cuEventRecord")?;
        self.context.enter("cuEventRecord")?;
        let mark = self.context.mark(self.number());
        // SAFETY: both live.
        let code = unsafe { sys::cuEventRecord(event.raw, self.raw) };
        self.context.finish("cuEventRecord", code, String::new)?;
        *event.mark.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
        Ok(())
    }

    /// Makes what comes next in the stream wait for an event.
    ///
    /// # Errors
    /// An error of earlier work.
    pub fn wait(&self, event: &Event) -> Result<(), DriverError> {
        refuse_in_capture("cuStreamWaitEvent")?;
        self.context.enter("cuStreamWaitEvent")?;
        // SAFETY: both live.
        let code = unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) };
        self.context.finish("cuStreamWaitEvent", code, String::new)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the stream's own; work that is in it is done all the same.
        self.context.release(|| unsafe { sys::cuStreamDestroy_v2(raw) });
    }
}

/// A place in a stream that can be waited for.
pub struct Event {
    context: Context,
    raw: sys::CUevent,
    timed: bool,
    /// The launches that it stands behind.
    mark: Mutex<Option<Mark>>,
}

// SAFETY: the driver locks its events, so a handle may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

impl Event {
    /// Waits until the event is reached; not at all if it was never recorded.
    ///
    /// # Errors
    /// If work before it failed.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        refuse_in_capture("cuEventSynchronize")?;
        self.wait_even_in_capture()
    }

    /// The same, also where this thread captures, whose capture it then invalidates.
    pub(super) fn wait_even_in_capture(&self) -> Result<(), DriverError> {
        self.context.enter("cuEventSynchronize")?;
        let mark = *self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the event lives.
        let code = unsafe { sys::cuEventSynchronize(self.raw) };
        self.context.finish("cuEventSynchronize", code, String::new)?;
        if let Some(mark) = mark {
            self.context.passed(mark);
        }
        Ok(())
    }

    /// Whether the event is reached.
    ///
    /// # Errors
    /// If work before it failed.
    pub fn is_done(&self) -> Result<bool, DriverError> {
        refuse_in_capture("cuEventQuery")?;
        self.context.enter("cuEventQuery")?;
        // SAFETY: the event lives.
        let code = unsafe { sys::cuEventQuery(self.raw) };
        if code == CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        self.context.finish("cuEventQuery", code, String::new)?;
        Ok(true)
    }

    /// The time from another event to this one, on the device's clock. Both are timed and reached.
    ///
    /// # Errors
    /// If one of them is not timed, or was not reached yet.
    pub fn elapsed_since(&self, start: &Self) -> Result<Duration, DriverError> {
        const CALL: &str = "cuEventElapsedTime";
        if !self.timed || !start.timed {
            return Err(DriverError::program(CALL, "an event was made without its time"));
        }
        self.context.enter(CALL)?;
        let mut milliseconds = 0f32;
        // SAFETY: the place is one for a number, and both events live.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, start.raw, self.raw) };
        self.context.finish(CALL, code, String::new)?;
        Ok(Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the event's own.
        self.context.release(|| unsafe { sys::cuEventDestroy_v2(raw) });
    }
}
