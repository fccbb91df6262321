//! The CUDA driver behind safe types: context, streams, memory, modules, launches, capture.
//!
//! The driver is loaded when the process first asks for it ([`probe()`]), so nothing here needs CUDA to be built or started.
//! Every type keeps alive what it needs; every call binds the context to its thread, so they may be used from any.
//!
//! What the types vouch for is the *host*: buffers, pinned memory and recordings live as long as the device may use them, ranges
//! are checked, and a launch hands over exactly the bytes that its kernel reads. What a kernel does with the addresses that it
//! gets is the kernel's business, as with any code that the process loads. Only kernels of Allotrope's own are loaded.
//!
//! An error of a kernel *stays* in CUDA: the context is of no use from then on. [`Context`] remembers the first such error
//! with the launches that were in flight, and every later call fails with it at once.

mod capture;
mod context;
mod error;
mod graph;
mod launch;
mod link;
mod memory;
mod module;
mod probe;
mod stream;

pub use capture::Capture;
pub use context::Context;
pub use error::{DriverError, Fault, Unavailable};
pub use graph::{Graph, GraphExec, Node};
pub use launch::Launch;
pub use memory::{Buffer, PinnedBuffer};
pub use module::{Function, Image, Module, Resources};
pub use probe::{DeviceInfo, probe};
pub use stream::{Event, Stream};
