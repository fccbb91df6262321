//! What a kernel is told when it is launched: addresses and constants, in the order in which its code first asked for them.
//!
//! Code is the same for all layers of a model; what differs between layers is here.

use std::collections::HashMap;

use allotrope_graph::{Input, OpId, ValueId};

/// The most entries that a launch may have: the size of the array in the kernels' parameters.
pub const MOST_POINTERS: usize = 64;

/// One entry of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointer {
    /// The live sizes of the batch.
    Sizes,
    /// A value in the arena, or a weight.
    Value(ValueId),
    /// An input of the step.
    Input(Input),
    /// The keys of a layer's cache, `[slots, kv width]`.
    Keys {
        /// The layer.
        layer: usize,
    },
    /// The values of a layer's cache, `[slots, kv width]`.
    Values {
        /// The layer.
        layer: usize,
    },
    /// No address: of what the kernel keeps to itself.
    Nothing,
    /// A number, in the lower four bytes.
    Constant(f32),
}

/// The entries of a launch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pointers {
    entries: Vec<Pointer>,
    constants: HashMap<OpId, usize>,
}

impl Pointers {
    /// The place of an entry.
    pub(super) fn place(&mut self, pointer: Pointer) -> usize {
        self.entries.iter().position(|entry| *entry == pointer).unwrap_or_else(|| self.push(pointer))
    }

    /// The place of the number that an operation has as its attribute. Each has its own: two layers may have the same
    /// number in two places and different ones in the next, and still run the same code.
    pub(super) fn constant(&mut self, op: OpId, value: f32) -> usize {
        if let Some(place) = self.constants.get(&op) {
            return *place;
        }
        let place = self.push(Pointer::Constant(value));
        self.constants.insert(op, place);
        place
    }

    fn push(&mut self, pointer: Pointer) -> usize {
        self.entries.push(pointer);
        self.entries.len() - 1
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[Pointer] {
        &self.entries
    }
}
