//! PTX for row programs: whole kernels, and the code in the slots of other kernels.
//!
//! A program is a list of results to be written. Code for a result is generated backwards, for eight neighbouring elements
//! at a time: an element-wise operation asks for the same elements of its operands, a rotation for those of the other half
//! too, a slice for ones further on. What was computed for the same elements is not computed again. So an operation is
//! the same instructions in the same order, whatever it is grouped with.

mod code;
mod functions;
mod generator;
mod numbers;
mod place;
mod pointers;
mod rows;
mod slots;
mod stores;

pub use generator::Features;
pub use pointers::{MOST_POINTERS, Pointer, Pointers};
pub use rows::BLOCK;
pub use slots::{Bundle, Filling, TemplateError, fill};
pub use stores::RowProgram;
pub(crate) use stores::place_of_size;
