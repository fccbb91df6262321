//! Settings of Allotrope: optimization levels as data, layers and their precedence, sources and reasons.

mod capture;
pub mod command_line;
mod declaration;
mod document;
pub mod environment;
mod error;
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
pub use modes::{AttentionGraphSupport, CompilationMode, GraphCapture, GraphMode, RuntimeMode};
pub use options::Options;
pub use resolve::{resolve, resolve_with};
pub use schema::{explanation_schema, schema};
pub use settings::{Cache, Compilation, Cpu, Kernel, Model, PassConfig, Row, Scheduler, Settings};
pub use source::{Resolved, Source};
