//! Memory of the device, and pinned memory of the host.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys;

use super::context::{Context, refuse_in_capture};
use super::error::DriverError;
use super::stream::Event;

/// What the device does with pinned memory until the event behind it is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Whether it writes, or else only reads.
    pub(super) writes: bool,
    /// The stream of the last copy.
    pub(super) stream: usize,
}

/// Memory of the device. Clones are the same memory, which is freed with the last of them.
///
/// It comes from `cuMemAlloc`, and not from a stream-ordered pool: a device has few buffers, all as long-lived as the plan
/// that they belong to, at addresses that recordings hold. So there is nothing to reuse, an allocation that does not fit
/// fails where it is made, and freeing waits for the work that may still use the memory.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
}

struct Memory {
    context: Context,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:#x})", self.bytes(), self.address())
    }
}

impl Context {
    /// Allocates memory of the device, with any content. Its address is a multiple of 256.
    ///
    /// # Errors
    /// [`Fault::OutOfMemory`](super::Fault::OutOfMemory), with how much is free.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, DriverError> {
        refuse_in_capture("cuMemAlloc")?;
        self.enter("cuMemAlloc")?;
        let mut address = 0;
        // SAFETY: the place is one for an address. The driver refuses allocations of nothing, of which there may be some.
        let code = unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        let free =
            || self.memory().map_or_else(|_| String::new(), |(free, all)| format!("{free} of {all} bytes are free"));
        self.finish("cuMemAlloc", code, free).map_err(|error| error.wanting(bytes as u64))?;
        Ok(Buffer { memory: Arc::new(Memory { context: self.clone(), address, bytes }) })
    }

    /// Allocates pinned memory of the host, all zeros.
    ///
    /// # Errors
    /// If the host has no more that can be pinned.
    pub fn allocate_pinned(&self, bytes: usize) -> Result<PinnedBuffer, DriverError> {
        refuse_in_capture("cuMemHostAlloc")?;
        let done = self.event(false)?;
        self.enter("cuMemHostAlloc")?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the place is one for a pointer. Without flags the memory is cached, so the host reads it at full speed.
        let code = unsafe { sys::cuMemHostAlloc(&mut pointer, bytes.max(1), 0) };
        let details = || "this is pinned memory of the host, not of the GPU".to_owned();
        self.finish("cuMemHostAlloc", code, details).map_err(|error| error.wanting(bytes as u64))?;
        let Some(pointer) = NonNull::new(pointer.cast::<u8>()) else {
            return Err(DriverError::program("cuMemHostAlloc", "the driver gave no memory and no error"));
        };
        // SAFETY: the driver gave so many bytes, which nobody else has.
        unsafe { pointer.as_ptr().write_bytes(0, bytes) };
        Ok(PinnedBuffer { context: self.clone(), pointer, bytes, done, using: Mutex::new(None) })
    }
}

impl Buffer {
    /// Where it is, for the parameters of kernels.
    pub fn address(&self) -> u64 {
        self.memory.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }

    /// The context that it is in.
    pub fn context(&self) -> &Context {
        &self.memory.context
    }

    /// The address of some bytes of it, if there are so many.
    pub(super) fn place(&self, call: &'static str, range: Range<usize>) -> Result<sys::CUdeviceptr, DriverError> {
        inside(call, &range, self.bytes())?;
        Ok(self.memory.address + range.start as u64)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address came from `cuMemAlloc`, and the last one that knew it is gone.
        self.context.release(|| unsafe { sys::cuMemFree_v2(self.address) });
    }
}

/// Refuses a range that leads out of a buffer.
pub(super) fn inside(call: &'static str, range: &Range<usize>, bytes: usize) -> Result<(), DriverError> {
    if range.start > range.end || range.end > bytes {
        let message = format!("bytes {} to {} of a buffer of {bytes} bytes", range.start, range.end);
        return Err(DriverError::program(call, message));
    }
    Ok(())
}

/// Pinned memory of the host, which the device copies from and to while the host goes on. It is not write-combined, so
/// it is as fast to read as any.
///
/// Whoever looks at its bytes waits until the copies of it that were begun are done.
pub struct PinnedBuffer {
    context: Context,
    pointer: NonNull<u8>,
    bytes: usize,
    /// Recorded behind each copy.
    done: Event,
    using: Mutex<Option<Use>>,
}

// SAFETY: it owns its memory, and what the device does with that is waited for whichever thread looks.
unsafe impl Send for PinnedBuffer {}
// SAFETY: with a shared reference the memory can only be read.
unsafe impl Sync for PinnedBuffer {}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} bytes)", self.bytes)
    }
}

impl PinnedBuffer {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its elements, as many as fit. Waits for a copy into it.
    ///
    /// # Errors
    /// If work before the copy failed.
    pub fn as_slice<T: Pod>(&self) -> Result<&[T], DriverError> {
        self.wait_if(|using| using.writes)?;
        // SAFETY: the memory is aligned to pages, initialized, and the device does not write it any more.
        Ok(unsafe { std::slice::from_raw_parts(self.pointer.as_ptr().cast(), self.bytes / size_of::<T>().max(1)) })
    }

    /// Its elements, as many as fit. Waits for copies from it and into it.
    ///
    /// # Errors
    /// If work before a copy failed.
    pub fn as_mut_slice<T: Pod>(&mut self) -> Result<&mut [T], DriverError> {
        self.wait_if(|_| true)?;
        let length = self.bytes / size_of::<T>().max(1);
        // SAFETY: as in `as_slice`; the device does not read it either, and the reference is the only one.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().cast(), length) })
    }

    /// Waits for the copies that were begun, if they are ones that the caller must not meet.
    fn wait_if(&self, matters: impl FnOnce(Use) -> bool) -> Result<(), DriverError> {
        let mut using = self.lock();
        if using.is_some_and(matters) {
            self.done.synchronize()?;
            *using = None;
        }
        Ok(())
    }

    /// What the device does with the memory. Who holds the lock may begin a copy, record the event behind it, and say so.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Use>> {
        self.using.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event behind the copies.
    pub(super) fn done(&self) -> &Event {
        &self.done
    }

    /// A pointer to some bytes, if there are so many.
    pub(super) fn place(&self, call: &'static str, range: Range<usize>) -> Result<*mut u8, DriverError> {
        inside(call, &range, self.bytes)?;
        Ok(self.pointer.as_ptr().wrapping_add(range.start))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.lock().is_some() {
            // An error ends the copies as well.
            let _ = self.done.wait_even_in_capture();
        }
        let pointer = self.pointer.as_ptr().cast();
        // SAFETY: the pointer came from `cuMemHostAlloc`, and nothing uses the memory any more.
        self.context.release(|| unsafe { sys::cuMemFreeHost(pointer) });
    }
}
