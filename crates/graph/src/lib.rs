//! The graph of a transformer step: small operations in SSA form, and the groups of them that one launch runs.
//!
//! ```
//! use allotrope_config::{DeviceFacts, ModelFacts, Options, resolve};
//! use allotrope_graph::passes::optimize;
//! use allotrope_graph::{DType, Dim, Graph, Input, OpId, OpKind, Target, TensorType};
//!
//! /// A device that has a kernel for every group.
//! struct Anything;
//! impl Target for Anything {
//!     fn name(&self) -> &str {
//!         "anything"
//!     }
//!     fn accepts(&self, _: &Graph, _: &[OpId]) -> Result<(), String> {
//!         Ok(())
//!     }
//! }
//!
//! let mut graph = Graph::new();
//! let ids = graph.input(Input::TokenIds);
//! let table = graph.weight("table", TensorType::new(DType::Bf16, [Dim::Static(100), Dim::Static(8)]));
//! let scale = graph.weight("scale", TensorType::vector(DType::Bf16, Dim::Static(8)));
//! let x = graph.push("x", OpKind::Embedding, &[table, ids])?;
//! let doubled = graph.push("doubled", OpKind::Add, &[x, x])?;
//! let y = graph.push("y", OpKind::RmsNorm { epsilon: 1e-5 }, &[doubled, scale])?;
//! graph.add_output(y);
//!
//! let settings = resolve(&Options::default(), &ModelFacts::assumed(), &DeviceFacts::assumed())?;
//! optimize(&mut graph, &settings.compilation.pass_config, true, &Anything)?;
//! assert!(graph.history().iter().any(|report| report.name == "fuse_add_norm" && report.matches == 1));
//! assert_eq!(graph.groups().len(), 2); // embedding, add+rms_norm
//! println!("{graph}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod evaluate;
pub mod facts;
pub mod graph;
pub mod history;
pub mod memory;
pub mod numerics;
pub mod op;
pub mod partition;
pub mod passes;
pub mod schedule;
pub mod step;
pub mod target;
pub mod text;
pub mod types;
pub mod verify;
pub mod weights;

pub use graph::{Definition, Graph, GraphError, Group, Op, OpId, RegroupError, Value, ValueId};
pub use op::{Input, OpKind};
pub use step::{StepError, StepInputs};
pub use target::Target;
pub use types::{DType, Dim, KvCacheType, Sizes, TensorType, ValueType};
pub use weights::{WeightData, WeightSource};
