//! The device's memory for steps: the arena, the inputs and the KV caches.

use super::{environment, internal};
use crate::attention::{CacheView, Records};
use crate::element::ElementType;
use crate::memory::Buffer;
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{
    DType, Definition, Graph, Input, KvCacheType, OpKind, Sizes, StepInputs, TensorType, ValueId, ValueType,
};
use allotrope_runtime::device::{CacheLayout, DeviceError};
use std::collections::HashMap;
use std::ops::Range;

/// What [`allotrope_runtime::device::Device::allocate`] allocates.
pub(super) struct Memory {
    plan: MemoryPlan,
    /// The types of the values of the plan.
    types: Vec<Option<TensorType>>,
    arena: Buffer,
    /// By place in [`Input::ALL`].
    inputs: Vec<Buffer>,
    /// By layer; addresses in `_cache_memory`.
    caches: HashMap<usize, CacheView>,
    _cache_memory: Vec<Buffer>,
    /// For attention, one at a time.
    records: Buffer,
    /// Begin of the arena, for kernels.
    begin: *mut u8,
}

// SAFETY: the addresses are into buffers that this owns.
unsafe impl Send for Memory {}
// SAFETY: shared references give out addresses, which only kernels follow, under their own contracts.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates for a plan of `graph`, which `threads` threads are to run.
    pub(super) fn new(
        graph: &Graph,
        plan: &MemoryPlan,
        layout: CacheLayout,
        threads: usize,
    ) -> Result<Self, DeviceError> {
        check_plan(graph, plan)?;
        let mut arena = Buffer::new(plan.bytes).map_err(environment)?;
        let begin = arena.bytes_mut().as_mut_ptr();
        let mut inputs = Vec::with_capacity(Input::ALL.len());
        for input in Input::ALL {
            let bytes = input.tensor_type().bytes(&plan.limits);
            let bytes = bytes.ok_or_else(|| internal(format!("input {} is too large", input.name())))?;
            inputs.push(Buffer::new(bytes).map_err(environment)?);
        }
        let (mut caches, mut cache_memory) = (HashMap::new(), Vec::new());
        for value in graph.values() {
            let (Definition::State { layer }, ValueType::KvCache(ty)) = (&value.definition, &value.ty) else {
                continue;
            };
            let (view, buffer) = allocate_cache(*layer, ty, layout)?;
            caches.insert(*layer, view);
            cache_memory.push(buffer);
        }
        let types = graph.values().iter().map(|value| value.ty.tensor().cloned()).collect();
        let records = Buffer::new(record_bytes(graph, &plan.limits, layout, threads)).map_err(environment)?;
        Ok(Self { plan: plan.clone(), types, arena, inputs, caches, _cache_memory: cache_memory, records, begin })
    }

    /// The largest batch.
    pub(super) fn limits(&self) -> &Sizes {
        &self.plan.limits
    }

    /// Where a value is in the arena, if it is there.
    pub(super) fn offset(&self, value: ValueId) -> Option<usize> {
        self.plan.offsets.get(value.index()).copied().flatten()
    }

    /// The bytes of the arena that a value has, if it is there.
    pub(super) fn range(&self, value: ValueId) -> Option<Range<usize>> {
        let (offset, tensor) = (self.offset(value)?, self.types.get(value.index())?.as_ref()?);
        Some(offset..offset.checked_add(tensor.bytes(&self.plan.limits)?)?)
    }

    /// The address of a value in the arena, if it is there with the given type.
    pub(super) fn address(&self, value: ValueId, tensor: &TensorType) -> Option<*mut u8> {
        let known = self.types.get(value.index())?.as_ref()?;
        self.offset(value).filter(|_| known == tensor).map(|offset| self.begin.wrapping_add(offset))
    }

    /// The address of an input.
    pub(super) fn input(&self, input: Input) -> *const i32 {
        self.inputs.get(place(input)).map_or(std::ptr::null(), |buffer| buffer.bytes().as_ptr().cast())
    }

    /// A layer's cache.
    pub(super) fn cache(&self, layer: usize) -> Option<CacheView> {
        self.caches.get(&layer).copied()
    }

    /// Where attention records what partitions of the context found.
    pub(super) fn records(&self) -> Records {
        Records { begin: self.records.bytes().as_ptr().cast_mut(), bytes: self.records.len() }
    }

    /// The most rows that a value has.
    pub(super) fn rows(&self, graph: &Graph, value: ValueId) -> usize {
        graph.tensor_type(value).map_or(0, |tensor| self.plan.limits.of(tensor.rows()))
    }

    /// Copies the inputs of a step.
    pub(super) fn write(&mut self, inputs: &StepInputs) -> Result<(), DeviceError> {
        for input in Input::ALL {
            let values: &[u8] = bytemuck::cast_slice(inputs.get(input));
            let target =
                self.inputs.get_mut(place(input)).and_then(|buffer| buffer.bytes_mut().get_mut(..values.len()));
            let target = target
                .ok_or_else(|| internal(format!("input {} is longer than the limits of the plan", input.name())))?;
            target.copy_from_slice(values);
        }
        Ok(())
    }

    /// The elements of an `f32` value at the given sizes, if it is one and within the limits.
    pub(super) fn read(&self, value: ValueId, sizes: &Sizes) -> Option<&[f32]> {
        let tensor = self.types.get(value.index())?.as_ref()?;
        if tensor.dtype != DType::F32 {
            return None;
        }
        let (offset, bytes) = (self.offset(value)?, tensor.bytes(sizes)?);
        if bytes > tensor.bytes(&self.plan.limits)? {
            return None;
        }
        bytemuck::try_cast_slice(self.arena.bytes().get(offset..offset.checked_add(bytes)?)?).ok()
    }
}

fn place(input: Input) -> usize {
    Input::ALL.iter().position(|other| *other == input).unwrap_or(usize::MAX)
}

/// Checks that every value of the plan lies in the arena, which is what makes kernels' addresses valid.
fn check_plan(graph: &Graph, plan: &MemoryPlan) -> Result<(), DeviceError> {
    for (index, offset) in plan.offsets.iter().enumerate() {
        let Some(offset) = offset else { continue };
        let value = graph.values().get(index);
        let bytes = value.and_then(|value| value.ty.tensor()).and_then(|tensor| tensor.bytes(&plan.limits));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        if end.is_none_or(|end| end > plan.bytes) || offset % super::ALIGNMENT != 0 {
            return Err(internal(format!("the memory plan puts value {index} outside the arena or unaligned")));
        }
    }
    Ok(())
}

/// Bytes of records that any attention of the graph can use.
fn record_bytes(graph: &Graph, limits: &Sizes, layout: CacheLayout, threads: usize) -> usize {
    let positions = limits.blocks.saturating_mul(layout.block_size);
    let bytes = graph.ops().iter().filter_map(|op| {
        let OpKind::Attention { heads, .. } = op.kind else { return None };
        let cache = op.inputs.get(1).and_then(|cache| graph.value(*cache).ty.kv_cache())?;
        Some(Records::wanted_bytes(threads, limits.tokens, positions, heads, (cache.kv_heads, cache.head_dim)))
    });
    bytes.max().unwrap_or(0)
}

fn allocate_cache(layer: usize, ty: &KvCacheType, layout: CacheLayout) -> Result<(CacheView, Buffer), DeviceError> {
    let element = ElementType::from_dtype(ty.dtype)
        .ok_or_else(|| internal(format!("layer {layer} has a KV cache of {}", ty.dtype)))?;
    let bytes = CacheView::bytes(element, layout.blocks, layout.block_size, ty.kv_heads, ty.head_dim)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| internal(format!("the KV cache of layer {layer} has an impossible size: {layout:?}, {ty}")))?;
    let mut buffer = Buffer::new(bytes).map_err(environment)?;
    let view = CacheView {
        begin: buffer.bytes_mut().as_mut_ptr(),
        element,
        blocks: layout.blocks,
        block_size: layout.block_size,
        kv_heads: ty.kv_heads,
        head_dim: ty.head_dim,
    };
    Ok((view, buffer))
}
