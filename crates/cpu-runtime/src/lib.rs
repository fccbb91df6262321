//! The CPU device: SIMD kernels, a thread team and recorded launch lists.
//!
//! [`CpuDevice`] is what the runtime drives. [`linear`], [`Team`] and [`measure_read_bandwidth`] can be used by
//! themselves. The crate's `README.md` has the layouts, the numeric contract and what was measured.

mod attention;
mod device;
mod element;
mod error;
mod isa;
mod linear;
mod memory;
mod peak;
mod row;
mod simd;
mod team;
#[cfg(test)]
mod testing;

pub use device::{CpuDevice, CpuKernel, CpuRecorder, CpuRecording, CpuTarget, facts};
pub use element::ElementType;
pub use error::KernelError;
pub use isa::Isa;
pub use linear::{Linear, TileHeight, WeightLayout, Weights, linear, repack, tiled_bytes};
pub use memory::{AllocationError, BandwidthProbe, Buffer, Workspace, measure_read_bandwidth};
pub use peak::measure_dot_product_peak;
pub use team::{MAX_THREADS, Team, TeamError, Worker, available_threads, partition};
