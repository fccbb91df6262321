//! The checkpoint's tensors on the device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use allotrope_graph::{Definition, Graph, ValueId, WeightSource};
use allotrope_runtime::device::DeviceError;
use allotrope_runtime::{WeightUpload, find_weight};

use super::{ALIGNMENT, DEVICE, internal};
use crate::driver::{Buffer, Context, DriverError};
use crate::upload::{Piece, UploadReport, Uploader};

/// All weights of a graph, in one buffer, as the checkpoint stores them.
pub(super) struct Weights {
    buffer: Buffer,
    /// By value.
    offsets: Vec<Option<usize>>,
    upload: Mutex<Upload>,
    /// Set when nobody wants the weights any more.
    stop: Arc<AtomicBool>,
}

/// Copying, which goes on while kernels are made.
enum Upload {
    Running(JoinHandle<Result<UploadReport, DeviceError>>),
    Over(Result<UploadReport, DeviceError>),
}

/// A tensor and where it goes.
struct Tensor {
    name: String,
    offset: usize,
}

impl Weights {
    /// Checks every weight of the graph, and begins to copy them to the device.
    pub(super) fn load(context: &Context, graph: &Graph, source: Arc<dyn WeightSource>) -> Result<Self, DeviceError> {
        let mut offsets = vec![None; graph.values().len()];
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut bytes = 0usize;
        for (index, value) in graph.values().iter().enumerate() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let data = find_weight(&*source, DEVICE, name, tensor)?;
            let offset = *known.entry(name).or_insert_with(|| {
                let offset = bytes;
                bytes = bytes.saturating_add(data.bytes.len()).saturating_add(ALIGNMENT) / ALIGNMENT * ALIGNMENT;
                tensors.push(Tensor { name: name.clone(), offset });
                offset
            });
            offsets[index] = Some(offset);
        }
        let buffer = context.allocate(bytes)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (context, to, stopped) = (context.clone(), buffer.clone(), Arc::clone(&stop));
        let work = move || {
            let report = upload(&mut Uploader::new(&context)?, &tensors, &*source, &to, &stopped)?;
            tensors.iter().for_each(|tensor| source.release(&tensor.name));
            tracing::debug!(bytes = report.bytes, time = ?report.time, "weights are on the device");
            Ok(report)
        };
        let thread = std::thread::Builder::new().name("upload".to_owned()).spawn(work);
        let thread = thread.map_err(|error| DeviceError::Environment {
            device: DEVICE.into(),
            message: format!("no thread to copy weights could be started: {error}"),
        })?;
        Ok(Self { buffer, offsets, upload: Mutex::new(Upload::Running(thread)), stop })
    }

    /// Waits until all weights are on the device.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        let mut upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner);
        if let Upload::Over(result) = &*upload {
            return result.clone().map(drop);
        }
        let over = Upload::Over(Err(internal("copying weights was given up")));
        let Upload::Running(thread) = std::mem::replace(&mut *upload, over) else { return Ok(()) };
        let result = thread.join().unwrap_or_else(|_| Err(internal("the thread that copies weights panicked")));
        *upload = Upload::Over(result.clone());
        result.map(drop)
    }

    /// What copying came to, if it is over and went well.
    pub(super) fn report(&self) -> Option<WeightUpload> {
        match &*self.upload.lock().unwrap_or_else(PoisonError::into_inner) {
            Upload::Over(Ok(report)) => Some(WeightUpload { bytes: report.bytes, time: report.time }),
            Upload::Over(Err(_)) | Upload::Running(_) => None,
        }
    }

    /// The address of a weight.
    pub(super) fn get(&self, value: ValueId) -> Option<u64> {
        let offset = (*self.offsets.get(value.index())?)?;
        Some(self.buffer.address() + offset as u64)
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        // Nobody reads them any more, so it does not matter how it ends.
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wait();
    }
}

fn upload(
    uploader: &mut Uploader,
    tensors: &[Tensor],
    source: &dyn WeightSource,
    to: &Buffer,
    stop: &AtomicBool,
) -> Result<UploadReport, DeviceError> {
    let mut pieces = Vec::with_capacity(tensors.len());
    for Tensor { name, offset } in tensors {
        let data = source.weight(name).ok_or_else(|| DeviceError::Weight {
            name: name.clone(),
            message: "the tensor disappeared while it was loaded".into(),
        })?;
        pieces.push(Piece { bytes: data.bytes, to, offset: *offset });
    }
    uploader.upload_unless(&pieces, stop).map_err(|error: DriverError| error.into())
}
