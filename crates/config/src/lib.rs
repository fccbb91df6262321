//! Settings of Allotrope: optimization levels as data, layers and their precedence, sources and reasons.
//!
//! Every setting is declared once, in `settings.rs`. From the declaration come the command line, the environment variables, the keys of
//! settings files, the JSON Schema, the documents and [`explain`].
//!
//! Two types keep apart what was said from what will happen: [`Options`], in which everything is optional, and [`Settings`], in which
//! nothing is. [`load`] gathers the layers of the first; [`resolve`] makes the second of them, for a model and a device.
//!
//! ```
//! use allotrope_config::{DeviceFacts, Format, ModelFacts, OptimizationLevel, Options, Source, explain, resolve};
//!
//! let mut options = Options::new();
//! options.set_optimization_level(OptimizationLevel::O1, Source::Builder);
//! options.set("compilation.pass_config.fuse_add_norm", "false", Source::Builder)?;
//!
//! let model = ModelFacts { context_length: 2048, ..ModelFacts::assumed() };
//! let settings = resolve(&options, &model, &DeviceFacts::assumed())?;
//!
//! // The level decides what nobody set, and nothing else.
//! assert!(settings.compilation.pass_config.fuse_act_mul.value);
//! assert_eq!(settings.compilation.pass_config.fuse_act_mul.source, Source::Level(OptimizationLevel::O1));
//! assert!(!settings.compilation.pass_config.fuse_add_norm.value);
//! assert_eq!(settings.model.max_model_len.value, 2048);
//!
//! println!("{}", explain(&settings, &[], Some("compilation"), &Format::Text { color: false })?);
//! # Ok::<(), allotrope_config::SettingsError>(())
//! ```

mod capture;
pub mod command_line;
mod declaration;
mod document;
pub mod environment;
mod error;
mod examples;
mod explain;
mod facts;
mod file;
mod kind;
mod level;
mod load;
mod modes;
mod options;
mod resolve;
mod rules;
mod schema;
mod settings;
mod source;
mod tree;

pub use capture::{CaptureSizesError, capture_sizes};
pub use document::{initial_file, levels_markdown, settings_markdown};
pub use error::{Problem, SettingsError};
pub use explain::{Format, PassLine, diff, explain};
pub use facts::{ActivationQuantization, DeviceFacts, ModelFacts};
pub use level::OptimizationLevel;
pub use load::{PROJECT_FILE, Sources, load, load_from};
pub use modes::{
    AttentionGraphSupport, CompilationMode, DeviceChoice, GraphCapture, GraphMode, KvCacheDtype, LoadFormat,
    RuntimeMode, SchedulingPolicy,
};
pub use options::Options;
pub use resolve::{device_choice, kv_cache_dtype, load_format, resolve, resolve_with};
pub use schema::{explanation_schema, schema};
pub use settings::{Cache, Compilation, Cpu, Kernel, Model, PassConfig, Row, Scheduler, Settings};
pub use source::{Resolved, Source};
