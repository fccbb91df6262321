//! Memory of the device whose addresses kernels hold: the arena, the inputs of a step, the KV caches.

use std::ops::Range;
use std::sync::Arc;

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{
    DType, Definition, Dim, Graph, Input, KvCacheType, Sizes, StepInputs, TensorType, ValueId, ValueType,
};
use allotrope_runtime::device::{CacheLayout, DeviceError};

use super::{ALIGNMENT, Keep, internal};
use crate::driver::{Buffer, Context, PinnedBuffer, Stream};

/// Bytes of the live sizes, in front of the inputs.
const SIZES_BYTES: usize = 16;

/// Everything but the weights.
pub(super) struct Memory {
    arena: Buffer,
    offsets: Vec<Option<usize>>,
    /// The type of each value in the arena.
    types: Vec<Option<TensorType>>,
    inputs: Buffer,
    /// Where each input is in `inputs` and in `staging`.
    places: Vec<(Input, Range<usize>)>,
    staging: PinnedBuffer,
    caches: Vec<Option<Cache>>,
    cache: CacheLayout,
    limits: Sizes,
}

/// The keys and the values of one layer.
struct Cache {
    buffer: Buffer,
    /// Bytes of the keys, which come first.
    half: usize,
}

impl Memory {
    pub(super) fn new(
        context: &Context,
        graph: &Graph,
        plan: &MemoryPlan,
        cache: CacheLayout,
    ) -> Result<Self, DeviceError> {
        let limits = plan.limits;
        let mut end = SIZES_BYTES;
        let mut places = Vec::with_capacity(Input::ALL.len());
        for input in Input::ALL {
            let begin = end.next_multiple_of(ALIGNMENT);
            let bytes = input.tensor_type().bytes(&limits).and_then(|bytes| begin.checked_add(bytes));
            end = bytes.ok_or_else(|| internal("the inputs of a step do not fit the address space"))?;
            places.push((input, begin..end));
        }
        let types = graph.values().iter().map(|value| value.ty.tensor().cloned()).collect();
        let mut caches = Vec::new();
        for (layer, ty) in cache_types(graph) {
            let half = half_bytes(&ty, cache).ok_or_else(|| internal("a KV cache does not fit the address space"))?;
            let buffer = context.allocate(2 * half)?;
            if caches.len() <= layer {
                caches.resize_with(layer + 1, || None);
            }
            caches[layer] = Some(Cache { buffer, half });
        }
        Ok(Self {
            arena: context.allocate(plan.bytes)?,
            offsets: plan.offsets.clone(),
            types,
            inputs: context.allocate(end)?,
            places,
            staging: context.allocate_pinned(end)?,
            caches,
            cache,
            limits,
        })
    }

    pub(super) fn limits(&self) -> &Sizes {
        &self.limits
    }

    /// Tokens in a block of the KV caches.
    pub(super) fn block_size(&self) -> usize {
        self.cache.block_size
    }

    pub(super) fn arena(&self) -> &Buffer {
        &self.arena
    }

    /// All buffers, for recordings to keep.
    pub(super) fn buffers(&self) -> Vec<Keep> {
        let caches = self.caches.iter().flatten().map(|cache| cache.buffer.clone());
        let buffers = [self.arena.clone(), self.inputs.clone()].into_iter().chain(caches);
        buffers.map(|buffer| Arc::new(buffer) as Keep).collect()
    }

    /// The address of the live sizes.
    pub(super) fn sizes(&self) -> u64 {
        self.inputs.address()
    }

    /// The address of an input of the step.
    pub(super) fn input(&self, input: Input) -> Option<u64> {
        let place = self.places.iter().find(|(known, _)| *known == input);
        place.map(|(_, range)| self.inputs.address() + range.start as u64)
    }

    /// The address of a value in the arena.
    pub(super) fn value(&self, value: ValueId) -> Option<u64> {
        let offset = (*self.offsets.get(value.index())?)?;
        Some(self.arena.address() + offset as u64)
    }

    /// The addresses of a layer's keys and values.
    pub(super) fn cache(&self, layer: usize) -> Option<[u64; 2]> {
        let cache = self.caches.get(layer)?.as_ref()?;
        let keys = cache.buffer.address();
        Some([keys, keys + cache.half as u64])
    }

    /// The bytes of an `f32` output in the arena.
    pub(super) fn output(&self, value: ValueId, sizes: &Sizes) -> Option<Range<usize>> {
        let (offset, tensor) = ((*self.offsets.get(value.index())?)?, self.types.get(value.index())?.as_ref()?);
        let bytes = tensor.bytes(sizes).filter(|_| tensor.dtype == DType::F32)?;
        Some(offset..offset.checked_add(bytes)?)
    }

    /// Copies the inputs of a step to the device.
    pub(super) fn write(&mut self, stream: &Stream, inputs: &StepInputs) -> Result<(), DeviceError> {
        let sizes = inputs.sizes();
        sizes.check_within(&self.limits).map_err(internal)?;
        let staging = self.staging.as_mut_slice::<i32>()?;
        let live = Dim::SYMBOLIC.map(|dim| sizes.of(dim) as i32);
        let mut copies = Vec::with_capacity(1 + self.places.len());
        copies.push(0..SIZES_BYTES);
        staging.get_mut(..live.len()).ok_or_else(|| internal("no room for sizes"))?.copy_from_slice(&live);
        for (input, place) in &self.places {
            let elements = inputs.get(*input);
            let begin = place.start / 4;
            let room = staging.get_mut(begin..begin + elements.len()).filter(|_| 4 * elements.len() <= place.len());
            let room = room.ok_or_else(|| internal(format!("{} elements of {}", elements.len(), input.name())))?;
            room.copy_from_slice(elements);
            if !elements.is_empty() {
                copies.push(place.start..place.start + 4 * elements.len());
            }
        }
        for range in joined(copies) {
            stream.copy_to_device(&self.inputs, range.start, &self.staging, range)?;
        }
        Ok(())
    }

    /// Sets every byte of what steps write.
    pub(super) fn fill(&self, stream: &Stream, byte: u8) -> Result<(), DeviceError> {
        let caches = self.caches.iter().flatten().map(|cache| &cache.buffer);
        caches.chain([&self.arena]).try_for_each(|buffer| Ok(stream.fill(buffer, byte)?))
    }

    /// Makes the inputs those of a batch of nothing.
    pub(super) fn clear_inputs(&self, stream: &Stream) -> Result<(), DeviceError> {
        Ok(stream.fill(&self.inputs, 0)?)
    }
}

/// Ranges with small gaps between them as one: a copy costs more than a few bytes in it.
fn joined(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    const GAP: usize = 4096;
    let mut all: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= GAP => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

/// The caches of the graph, by layer.
fn cache_types(graph: &Graph) -> Vec<(usize, KvCacheType)> {
    let states = graph.values().iter().filter_map(|value| match (&value.definition, &value.ty) {
        (Definition::State { layer }, ValueType::KvCache(ty)) => Some((*layer, *ty)),
        _ => None,
    });
    states.collect()
}

/// Bytes of a layer's keys, rounded up so that its values are aligned.
fn half_bytes(ty: &KvCacheType, cache: CacheLayout) -> Option<usize> {
    let slots = cache.blocks.checked_mul(cache.block_size)?;
    let bytes = slots.checked_mul(ty.width())?.checked_mul(ty.dtype.size_in_bytes())?;
    bytes.checked_next_multiple_of(ALIGNMENT).filter(|bytes| *bytes <= usize::MAX / 4)
}
