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
        let repacked = if repack { Some(repack_all(graph, &*source, (isa, team), &mut tensors)?) } else { None };
        if !repack {
            read_ahead(graph, &source);
        }
        Ok(Self { tensors, _source: source, _repacked: repacked })
    }

    /// A weight by its value.
    pub(super) fn get(&self, value: ValueId) -> Option<RawWeights> {
        self.tensors.get(value.index()).copied().flatten()
    }
}

/// Fetches weights that stay where they are, in the order in which a step wants them, beside whatever comes next: the first
/// step would read and map them in small parts. Of an embedding table that is not multiplied too, a step wants single rows
/// only. The thread ends with the weights.
fn read_ahead(graph: &Graph, source: &Arc<dyn WeightSource>) {
    let operations = graph.ops().iter().filter(|op| !matches!(op.kind, OpKind::Embedding));
    let names = operations.flat_map(|op| &op.inputs).filter_map(|input| match &graph.value(*input).definition {
        Definition::Weight(name) => Some(name.clone()),
        _ => None,
    });
    let (names, source): (Vec<String>, _) = (names.collect(), Arc::downgrade(source));
    let work = move || {
        names.iter().map_while(|name| Some((name, source.upgrade()?))).for_each(|(name, source)| source.fetch(name));
    };
    if let Err(error) = std::thread::Builder::new().name("read ahead".to_owned()).spawn(work) {
        tracing::debug!(%error, "weights are not read ahead");
    }
}

/// A tensor where it is, if there are kernels for its type and shape.
fn in_place(name: &str, data: &WeightData<'_>) -> Result<RawWeights, DeviceError> {
    let wrong = |message: String| DeviceError::Weight { name: name.to_owned(), message };
    let found = || format!("{}{:?}", data.dtype, data.shape);
    let element = ElementType::from_dtype(data.dtype)
        .ok_or_else(|| wrong(format!("weights of {} have no kernel; use bf16, f16, f32 or f8e4m3", data.dtype)))?;
    let (rows, columns) = match *data.shape {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return Err(wrong(format!("{} has no kernel: weights are vectors or matrices", found()))),
    };
    Weights::new(data.bytes, element, WeightLayout::Rows, rows, columns)
        .map(|weights| weights.raw())
        .map_err(|error| wrong(format!("{}: {error}", found())))
}

/// Copies the matrices that are multiplied into one buffer, the largest first: then the pages of the source and of the
/// copy that are resident together are fewest when the copy is nearly complete.
fn repack_all(
    graph: &Graph,
    source: &dyn WeightSource,
    (isa, team): (Isa, &Team),
    tensors: &mut [Option<RawWeights>],
) -> Result<Buffer, DeviceError> {
    let mut multiplied: Vec<ValueId> = graph
        .ops()
        .iter()
        .filter(|op| matches!(op.kind, OpKind::Linear { .. }))
        .filter_map(|op| op.inputs.get(1).copied())
        .filter(|value| matches!(graph.value(*value).definition, Definition::Weight(_)))
        .collect();
    multiplied.sort_unstable();
    multiplied.dedup();
    let mut places = Vec::with_capacity(multiplied.len());
    for value in multiplied {
        let Some(raw) = tensors.get(value.index()).copied().flatten() else { continue };
        let height = TileHeight::of(isa, raw.element);
        let bytes = tiled_bytes(raw.element, height, raw.rows, raw.columns)
            .map_err(|error| internal(format!("{}: {error}", graph.value(value).name)))?;
        places.push((value, raw, height, bytes));
    }
    places.sort_by_key(|(value, _, _, bytes)| (std::cmp::Reverse(*bytes), *value));
    let total = places
        .iter()
        .try_fold(0usize, |sum, (_, _, _, bytes)| sum.checked_add(bytes.checked_next_multiple_of(ALIGNMENT)?))
        .ok_or_else(|| internal("the repacked weights do not fit the address space".to_owned()))?;
    let mut buffer = Buffer::new(total).map_err(super::environment)?;
    let name = |value: ValueId| match &graph.value(value).definition {
        Definition::Weight(name) => Some(name.as_str()),
        _ => None,
    };
    std::thread::scope(|scope| {
        // One is fetched while the one before it is repacked, and one may wait, but no more, so that none is dropped again for want
        // of memory.
        let (next, names) = std::sync::mpsc::sync_channel::<&str>(1);
        scope.spawn(move || names.into_iter().for_each(|name| source.fetch(name)));
        let mut offset = 0;
        for (index, &(value, raw, height, bytes)) in places.iter().enumerate() {
            let Some(name_of_weight) = name(value) else { continue };
            if let Some(following) = places.get(index + 1).and_then(|(value, ..)| name(*value)) {
                // A thread that is gone only fetches nothing.
                let _ = next.send(following);
            }
            let target = buffer.bytes_mut().get_mut(offset..offset + bytes).unwrap_or_default();
            tensors[value.index()] = Some(repack_one(source, name_of_weight, raw, height, (team, target))?);
            source.release(name_of_weight);
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        Ok(())
    })?;
    Ok(buffer)
}

/// Copies one matrix into `target`, and gives the copy.
fn repack_one(
    source: &dyn WeightSource,
    name: &str,
    raw: RawWeights,
    height: TileHeight,
    (team, target): (&Team, &mut [u8]),
) -> Result<RawWeights, DeviceError> {
    let wrong = |message: String| DeviceError::Weight { name: name.to_owned(), message };
    let data = source.weight(name).ok_or_else(|| wrong("the tensor disappeared while it was loaded".into()))?;
    let tensor = Weights::new(data.bytes, raw.element, WeightLayout::Rows, raw.rows, raw.columns)
        .map_err(|error| wrong(error.to_string()))?;
    repack(team, &tensor, height, target).map_err(|error| wrong(error.to_string()))?;
    let tiled = Weights::new(target, raw.element, WeightLayout::Tiled(height), raw.rows, raw.columns)
        .map_err(|error| wrong(error.to_string()))?;
    Ok(tiled.raw())
}
