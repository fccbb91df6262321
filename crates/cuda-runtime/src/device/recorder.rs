//! Recordings: kernels captured in CUDA graphs.

use allotrope_graph::Sizes;
use allotrope_runtime::device::{DeviceError, Recorder};

use super::{CudaKernel, Identity, Keep, internal};
use crate::driver::{DriverError, Graph, GraphExec, Stream};

/// Captures kernels, on a stream of its own: other work of the device goes on meanwhile.
pub struct CudaRecorder {
    pub(super) stream: Stream,
    /// The memory that kernels name.
    pub(super) keep: Vec<Keep>,
    pub(super) limits: Sizes,
    pub(super) identity: Identity,
}

/// Kernels captured in a graph.
pub struct CudaRecording {
    graph: Graph,
    executable: GraphExec,
    /// How many launches it has.
    pub(super) launches: usize,
    pub(super) limits: Sizes,
    pub(super) identity: Identity,
}

impl CudaRecording {
    /// The graph as Graphviz DOT.
    pub(super) fn text(&self) -> String {
        self.graph.to_dot()
    }

    /// Runs it.
    pub(super) fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        self.executable.launch(stream)
    }
}

impl Recorder<CudaKernel, CudaRecording> for CudaRecorder {
    fn record(&mut self, kernels: &[CudaKernel], sizes: &Sizes) -> Result<CudaRecording, DeviceError> {
        sizes.check_within(&self.limits).map_err(internal)?;
        if kernels.iter().any(|kernel| kernel.identity != self.identity) {
            return Err(internal("a kernel of other memory than the recorder's was recorded"));
        }
        let launches: Vec<_> = kernels.iter().flat_map(|kernel| kernel.launches(sizes)).collect();
        let keep = self.keep.clone();
        let graph =
            self.stream.capture(|capture| launches.iter().try_for_each(|launch| capture.launch(launch)), keep)?;
        let executable = graph.instantiate()?;
        executable.upload(&self.stream)?;
        self.stream.synchronize()?;
        let launches = launches.len();
        Ok(CudaRecording { graph, executable, launches, limits: *sizes, identity: self.identity.clone() })
    }
}
