//! Where a device or the evaluator gets the tensors of a checkpoint from.

use crate::types::DType;

/// A tensor of the checkpoint, as it is stored: row-major, little-endian, not necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct WeightData<'a> {
    /// The element type.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: &'a [usize],
    /// `product(shape) × dtype` bytes.
    pub bytes: &'a [u8],
}

/// Gives tensors by the names that the graph's weights carry. The bytes stay where they are for as long as the source lives.
pub trait WeightSource: Send + Sync {
    /// The tensor of that name, or `None` if there is no such tensor.
    fn weight(&self, name: &str) -> Option<WeightData<'_>>;

    /// Brings the tensor's bytes into memory if they lie elsewhere, and returns when they are there: to be called beside other
    /// work, by a thread of its own.
    fn fetch(&self, _name: &str) {}

    /// Says that the tensor's bytes were copied and will not be read again soon, so that memory that only mirrors the
    /// file may be given back. Reading them again stays possible.
    fn release(&self, _name: &str) {}
}
