//! From a grouped graph to steps that run: what a device must do, what is recorded, and how each step is dispatched.
//!
//! The startup ledger by itself:
//!
//! ```
//! use std::time::Instant;
//! use allotrope_runtime::StartupLedger;
//!
//! let mut ledger = StartupLedger::since(Instant::now());
//! let sum: u64 = ledger.phase("count", || (0..1000).sum());
//! assert_eq!(sum, 499_500);
//! let report = ledger.finish();
//! assert_eq!(report.phases[0].name, "count");
//! println!("{report}"); // every phase, the unclaimed time, and the total they sum to
//! ```

mod background;
pub mod capture_plan;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod device;
pub mod disk_cache;
pub mod dispatcher;
pub mod executor;
pub mod ledger;
mod recordings;
pub mod tuning_cache;
pub mod weights;

pub use capture_plan::{CapturePlan, LaunchOrderError, Part};
pub use device::{CacheLayout, Device, DeviceError, GeneratedCode, Recorder, RowSampling, TuningReport};
pub use dispatcher::{Decision, DispatchCounts, Dispatcher, Lack, Standing};
pub use executor::{Executor, ExecutorError, ExecutorOptions, StepStatistics, Tuning};
pub use ledger::{PhaseObserver, StartupLedger, StartupPhase, StartupReport};
pub use tuning_cache::TuningCache;
pub use weights::{WeightUpload, find_weight};
