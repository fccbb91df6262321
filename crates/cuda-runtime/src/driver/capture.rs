//! Capture: what a stream is given becomes a graph in place of being done.

use std::any::Any;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};

use super::context::{refuse_in_capture, set_capturing};
use super::error::DriverError;
use super::graph::{Graph, Kept, Node};
use super::launch::Launch;
use super::memory::Buffer;
use super::stream::Stream;

/// A capture in progress. It can do what a graph can hold, and nothing else: there is no way to allocate, to wait, or to touch
/// memory of the host.
pub struct Capture<'a> {
    stream: &'a Stream,
    recorded: RefCell<(Vec<Node>, Kept)>,
}

/// Ends the capture however its closure ends.
struct Ending<'a> {
    stream: &'a Stream,
    open: bool,
}

impl Ending<'_> {
    fn end(&mut self) -> (CUresult, sys::CUgraph) {
        self.open = false;
        set_capturing(false);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream lives, and the place is one for a handle.
        let code = unsafe { sys::cuStreamEndCapture(self.stream.raw(), &mut graph) };
        (code, graph)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.open && self.stream.context().enter("cuStreamEndCapture").is_ok() {
            let (code, graph) = self.end();
            if code == CUresult::CUDA_SUCCESS {
                // SAFETY: the graph was just made and nobody else has it.
                let _ = unsafe { sys::cuGraphDestroy(graph) };
            }
        }
        set_capturing(false);
    }
}

impl Stream {
    /// Captures what the closure launches, as one chain of nodes. Nothing of it runs.
    ///
    /// The stream is borrowed mutably, so the closure cannot use it but through its [`Capture`]; what else would invalidate the
    /// capture (allocating, waiting, on whatever the closure brought with it) is refused when it is tried. However the closure ends, with an error or a panic too, the capture
    /// ends with it, and the stream is as before. Other threads are not disturbed.
    ///
    /// The graph keeps alive what is in `keep`, which must be all memory that the kernels' parameters name.
    ///
    /// # Errors
    /// That of the closure, or one of the driver.
    pub fn capture(
        &mut self,
        record: impl FnOnce(&Capture<'_>) -> Result<(), DriverError>,
        keep: Vec<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Graph, DriverError> {
        const BEGIN: &str = "cuStreamBeginCapture";
        const END: &str = "cuStreamEndCapture";
        refuse_in_capture(BEGIN)?;
        let context = self.context();
        context.enter(BEGIN)?;
        // SAFETY: the stream lives, and is no default stream.
        let code = unsafe {
            sys::cuStreamBeginCapture_v2(self.raw(), CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        };
        context.finish(BEGIN, code, String::new)?;
        set_capturing(true);
        let kept = Kept::new(context.clone(), keep);
        // Dropped after the capture has ended: nothing may be freed inside of it.
        let capture = Capture { stream: self, recorded: RefCell::new((Vec::new(), kept)) };
        let mut ending = Ending { stream: self, open: true };
        record(&capture)?;
        let (nodes, kept) = capture.recorded.into_inner();
        context.enter(END)?;
        let (code, raw) = ending.end();
        context.finish(END, code, || format!("after {} launches", nodes.len()))?;
        Graph::new(raw, nodes, kept)
    }
}

impl Capture<'_> {
    /// Records a launch.
    ///
    /// # Errors
    /// If the launch is not one of the kernel's, with its label and sizes.
    pub fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        launch.submit(self.stream)?;
        let dependent = launch.dependent && self.stream.context().has_dependent_launch();
        let mut recorded = self.recorded.borrow_mut();
        recorded.1.functions.push(launch.function.clone());
        recorded.0.push(Node::Kernel {
            label: Arc::clone(&launch.label),
            kernel: launch.function.name().to_owned(),
            grid: launch.grid,
            block: launch.block,
            shared_memory: launch.shared_memory,
            dependent,
        });
        Ok(())
    }

    /// Records a copy of some bytes from one buffer of the device to another. The graph keeps both.
    ///
    /// # Errors
    /// If the bytes do not fit.
    pub fn copy(&self, to: &Buffer, offset: usize, from: &Buffer, range: Range<usize>) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyDtoDAsync";
        let bytes = range.len();
        let source = from.place(CALL, range)?;
        let target = to.place(CALL, offset..offset.saturating_add(bytes))?;
        if bytes == 0 {
            return Ok(());
        }
        let context = self.stream.context();
        context.enter(CALL)?;
        // SAFETY: both places have so many bytes, and the graph keeps them.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes, self.stream.raw()) };
        context.finish(CALL, code, || format!("{bytes} bytes"))?;
        let mut recorded = self.recorded.borrow_mut();
        recorded.1.buffers.extend([to.clone(), from.clone()]);
        recorded.0.push(Node::Copy { bytes });
        Ok(())
    }
}
