//! CUDA: what one launch can run there, and the device that runs it.
//!
//! ```
//! use allotrope_cuda_runtime::CudaTarget;
//! use allotrope_graph::Target;
//! use allotrope_graph::text::parse;
//!
//! let graph = parse(
//!     "graph {
//!        input %token_ids: i32[T]
//!        weight %table: bf16[100, 16]
//!        weight %scale: bf16[16]
//!        weight %w: bf16[32, 16]
//!        %x: bf16[T, 16] = embedding(%table, %token_ids)
//!        %n: bf16[T, 16] = rms_norm<epsilon=1e-5>(%x, %scale)
//!        %y: bf16[T, 32] = linear<to=bf16>(%n, %w)
//!        return %y
//!      }",
//! )?;
//! let ops: Vec<_> = graph.groups().iter().flat_map(|group| group.ops.clone()).collect();
//! assert!(CudaTarget.accepts(&graph, &ops[1..]).is_ok(), "a norm is the prologue of a projection");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bundle;
pub mod device;
pub mod driver;
pub mod jit;
pub mod lower;
pub mod program;
pub mod target;
pub mod upload;

pub use bundle::{Bundle, BundleError};
pub use device::{CudaDevice, CudaKernel, CudaOptions, CudaRecorder, CudaRecording, facts};
pub use target::CudaTarget;
