//! The checkpoint's tensors on the device.

use std::collections::HashMap;

use allotrope_graph::{Definition, Graph, Sizes, TensorType, ValueId, WeightData, WeightSource};
use allotrope_runtime::device::DeviceError;

use super::{ALIGNMENT, internal};
use crate::driver::{Buffer, Context};
use crate::upload::{Piece, Uploader};

/// All weights of a graph, in one buffer, as the checkpoint stores them.
pub(super) struct Weights {
    buffer: Buffer,
    /// By value.
    offsets: Vec<Option<usize>>,
}

impl Weights {
    /// Checks every weight of the graph and copies it to the device.
    pub(super) fn load(context: &Context, graph: &Graph, source: &dyn WeightSource) -> Result<Self, DeviceError> {
        let mut offsets = vec![None; graph.values().len()];
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut tensors: Vec<(&str, usize, WeightData<'_>)> = Vec::new();
        let mut bytes = 0usize;
        for (index, value) in graph.values().iter().enumerate() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let data = source.weight(name).ok_or_else(|| DeviceError::Weight {
                name: name.clone(),
                message: format!("the checkpoint has no such tensor; the model needs {tensor}"),
            })?;
            check(name, tensor, &data)?;
            let offset = *known.entry(name).or_insert_with(|| {
                let offset = bytes;
                bytes = bytes.saturating_add(data.bytes.len()).saturating_add(ALIGNMENT) / ALIGNMENT * ALIGNMENT;
                tensors.push((name, offset, data));
                offset
            });
            offsets[index] = Some(offset);
        }
        let buffer = context.allocate(bytes)?;
        let pieces: Vec<Piece<'_>> = tensors
            .iter()
            .map(|(_, offset, data)| Piece { bytes: data.bytes, to: &buffer, offset: *offset })
            .collect();
        Uploader::new(context)?.upload(&pieces)?;
        drop(pieces);
        tensors.iter().for_each(|(name, ..)| source.release(name));
        Ok(Self { buffer, offsets })
    }

    /// The address of a weight.
    pub(super) fn get(&self, value: ValueId) -> Option<u64> {
        let offset = (*self.offsets.get(value.index())?)?;
        Some(self.buffer.address() + offset as u64)
    }
}

/// Checks a tensor of the checkpoint against the graph's type.
fn check(name: &str, tensor: &TensorType, data: &WeightData<'_>) -> Result<(), DeviceError> {
    let wrong = |message: String| DeviceError::Weight { name: name.to_owned(), message };
    let shape: Vec<usize> = (0..tensor.shape.len())
        .map(|axis| tensor.static_size(axis))
        .collect::<Option<_>>()
        .ok_or_else(|| internal(format!("the shape of weight `{name}`, {tensor}, depends on the batch")))?;
    if data.dtype != tensor.dtype || data.shape != shape {
        return Err(wrong(format!("the checkpoint has {}{:?}, the model needs {tensor}", data.dtype, data.shape)));
    }
    match tensor.bytes(&Sizes::default()) {
        Some(bytes) if bytes == data.bytes.len() => Ok(()),
        _ => Err(wrong(format!("the checkpoint has {} bytes of {}{:?}", data.bytes.len(), data.dtype, data.shape))),
    }
}
