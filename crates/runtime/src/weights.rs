//! What every device does with the tensors of a checkpoint: find each, hold it against the graph, say how copying went.

use std::time::Duration;

use allotrope_graph::{Sizes, TensorType, WeightData, WeightSource};

use crate::device::DeviceError;

/// What copying the weights to a device with memory of its own came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightUpload {
    /// Bytes of all weights.
    pub bytes: u64,
    /// From the first to the last of them, other work of the start meanwhile.
    pub time: Duration,
}

/// The tensor of a weight, as the graph says that it is. `device` names who asks.
///
/// # Errors
/// [`DeviceError::Weight`] if the checkpoint lacks it, or has it in another type, shape or length.
pub fn find_weight<'s>(
    source: &'s dyn WeightSource,
    device: &str,
    name: &str,
    tensor: &TensorType,
) -> Result<WeightData<'s>, DeviceError> {
    let wrong = |message: String| DeviceError::Weight { name: name.to_owned(), message };
    let data = source
        .weight(name)
        .ok_or_else(|| wrong(format!("the checkpoint has no such tensor; the model needs {tensor}")))?;
    let shape: Option<Vec<usize>> = (0..tensor.shape.len()).map(|axis| tensor.static_size(axis)).collect();
    let shape = shape.ok_or_else(|| DeviceError::Internal {
        device: device.to_owned(),
        message: format!("the shape of weight `{name}`, {tensor}, depends on the batch"),
    })?;
    let found = || format!("{}{:?}", data.dtype, data.shape);
    if data.dtype != tensor.dtype || data.shape != shape {
        return Err(wrong(format!("the checkpoint has {}, the model needs {tensor}", found())));
    }
    match tensor.bytes(&Sizes::default()) {
        Some(bytes) if bytes == data.bytes.len() => Ok(data),
        _ => Err(wrong(format!("the checkpoint has {} bytes of {}", data.bytes.len(), found()))),
    }
}
