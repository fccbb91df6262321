//! The checkpoint's tensors as kernels find them: in place, or repacked into one buffer.

use super::{DEVICE, internal};
use crate::element::ElementType;
use crate::isa::Isa;
use crate::linear::{RawWeights, TileHeight, WeightLayout, Weights, repack, tiled_bytes};
use crate::memory::Buffer;
use crate::team::Team;
use allotrope_graph::{Definition, Graph, OpKind, ValueId, WeightData, WeightSource};
use allotrope_runtime::device::DeviceError;
use allotrope_runtime::find_weight;
use std::sync::Arc;

/// Alignment of tensors in the repacked buffer: a cache line.
const ALIGNMENT: usize = 64;

/// All weights of a graph.
pub(super) struct LoadedWeights {
    /// By value; vectors are matrices of one row.
    tensors: Vec<Option<RawWeights>>,
    /// Keeps mapped tensors where they are.
    _source: Arc<dyn WeightSource>,
    /// Keeps repacked tensors.
    _repacked: Option<Buffer>,
}

impl LoadedWeights {
    /// Finds every weight of the graph; with `repack`, copies those that are multiplied into the tiled layout.
    pub(super) fn load(
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        (isa, team): (Isa, &Team),
        repack: bool,
    ) -> Result<Self, DeviceError> {
        let mut tensors = vec![None; graph.values().len()];
        for (index, value) in graph.values().iter().enumerate() {
            let (Definition::Weight(name), Some(tensor)) = (&value.definition, value.ty.tensor()) else { continue };
            let data = find_weight(&*source, DEVICE, name, tensor)?;
            tensors[index] = Some(in_place(name, &data)?);
        }
    for (index, &(value, raw, height, bytes)) in places.iter().enumerate() {
        let Definition::Weight(name) = &graph.value(value).definition else { continue };
        // One is fetched while the one before it is repacked, and no more, so that none is dropped again for want of memory.
        if let Some((next, ..)) = places.get(index + 1)
            && let Definition::Weight(next) = &graph.value(*next).definition
        {
            source.will_need(next);
        }
        let wrong = |message: String| DeviceError::Weight { name: name.clone(), message };
        let data = source.weight(name).ok_or_else(|| wrong("the tensor disappeared while it was loaded".into()))?;
        let tensor = Weights::new(data.bytes, raw.element, WeightLayout::Rows, raw.rows, raw.columns)
            .map_err(|error| wrong(error.to_string()))?;
        let target = buffer.bytes_mut().get_mut(offset..offset + bytes).unwrap_or_default();
        repack(team, &tensor, height, target).map_err(|error| wrong(error.to_string()))?;
        let tiled = Weights::new(target, raw.element, WeightLayout::Tiled(height), raw.rows, raw.columns)
            .map_err(|error| wrong(error.to_string()))?;
        tensors[value.index()] = Some(tiled.raw());
        source.release(name);
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    Ok(buffer)
}
