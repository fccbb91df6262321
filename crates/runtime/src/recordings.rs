//! The recordings of an executor: which are there, who makes the others and when, and what a failure leads to.

use std::sync::Arc;

use allotrope_config::{GraphCapture, GraphMode, RuntimeMode};
use allotrope_graph::Sizes;

use crate::background::{Background, Ended, Job, Made};
use crate::capture_plan::{CapturePlan, Needed, Part};
use crate::device::{Device, DeviceError, Recorder};
use crate::dispatcher::{Lack, Standing};
use crate::executor::ExecutorError;
use crate::ledger::StartupLedger;

/// What is recorded, when, and what if that fails.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) mode: GraphMode,
    /// Whether somebody asked for the mode, so that a failure stops the run.
    pub(crate) explicit: bool,
    pub(crate) capture: GraphCapture,
    /// Whether decode steps are resident programs.
    pub(crate) persistent_decode: bool,
}

/// One recording.
enum Slot<R> {
    Missing,
    Failed,
    There(R),
}

/// Who makes the recordings that are missing.
enum Maker<D: Device> {
    /// Nobody: all were made, or there are none.
    Nobody,
    /// The step that needs one. `warm` once the kernels ran.
    Lazy {
        recorder: D::Recorder,
        warm: bool,
    },
    Background(Background<D::Recording>),
}

pub(crate) struct Recordings<D: Device> {
    /// By part, then by place in the capture sizes.
    slots: Vec<Vec<Slot<D::Recording>>>,
    maker: Maker<D>,
    kernels: Arc<[D::Kernel]>,
    policy: Policy,
    /// The failure that stops the run.
    refused: Option<ExecutorError>,
    late: u64,
    /// Free memory of the device before the first recording and after the last.
    memory: Option<(u64, u64)>,
}

impl<D: Device> Recordings<D> {
    /// Makes all recordings of the plan, or sees to it that they will be made.
    pub(crate) fn new(
        device: &mut D,
        plan: &CapturePlan,
        kernels: Arc<[D::Kernel]>,
        policy: Policy,
        ledger: &mut StartupLedger,
    ) -> Result<Self, ExecutorError> {
        let slots = (0..plan.parts()).map(|_| plan.capture_sizes().iter().map(|_| Slot::Missing).collect()).collect();
        let mut recordings =
            Recordings { slots, maker: Maker::Nobody, kernels, policy, refused: None, late: 0, memory: None };
        let jobs = plan.jobs();
        if jobs.is_empty() {
            return Ok(recordings);
        }
        let mut recorder = device.recorder(policy.persistent_decode)?;
        if policy.capture == GraphCapture::Lazy {
            recordings.maker = Maker::Lazy { recorder, warm: false };
            return Ok(recordings);
        }
        ledger.phase("warm up kernels", || recordings.warm_up(device, plan))?;
        recordings.memory = device.free_memory().map(|free| (free, free));
        match policy.capture {
            GraphCapture::Background => {
                let kernels = Arc::clone(&recordings.kernels);
                let thread = Background::start(recorder, kernels, jobs).map_err(|error| DeviceError::Environment {
                    device: device.target().name().to_owned(),
                    message: format!("no thread could be started for recording in the background: {error}"),
                })?;
                recordings.maker = Maker::Background(thread);
            }
            GraphCapture::Startup | GraphCapture::Lazy => ledger.phase("capture", || {
                for Job { part, size, launches, sizes } in jobs {
                    let recording = recorder.record(&recordings.kernels[launches], &sizes);
                    recordings.install(device, plan, Made { part, size, recording })?;
                }
                recordings.finish(device);
                Ok::<(), ExecutorError>(())
            })?,
        }
        Ok(recordings)
    }

    /// Runs every kernel that is recorded once.
    fn warm_up(&self, device: &mut D, plan: &CapturePlan) -> Result<(), DeviceError> {
        let mut recorded = vec![false; self.kernels.len()];
        plan.jobs().into_iter().flat_map(|job| job.launches).for_each(|launch| recorded[launch] = true);
        let kernels = self.kernels.iter().zip(recorded).filter(|(_, recorded)| *recorded);
        device.warm_up(&kernels.map(|(kernel, _)| kernel.clone()).collect::<Vec<_>>())
    }

    /// All is made: says so, with the memory that it took.
    fn finish(&mut self, device: &D) {
        if let (Some(memory), Some(free)) = (&mut self.memory, device.free_memory()) {
            memory.1 = free;
        }
        let (before, after) = self.memory.unzip();
        tracing::info!(
            recordings = self.count(),
            failed = self.failures(),
            free_before = before,
            free_after = after,
            "recorded what graph mode {} replays",
            self.policy.mode
        );
    }

    /// Puts a recording into its place. A failure is reported, and stops the run if somebody asked for the mode, or if it was not the
    /// recording that failed but the device.
    fn install(&mut self, device: &D, plan: &CapturePlan, made: Made<D::Recording>) -> Result<(), ExecutorError> {
        let slot = &mut self.slots[plan.index_of(made.part)][made.size];
        let cause = match made.recording {
            Ok(recording) => {
                *slot = Slot::There(recording);
                return Ok(());
            }
            Err(cause) => cause,
        };
        *slot = Slot::Failed;
        let (part, size) = (made.part, plan.capture_sizes()[made.size]);
        if self.policy.explicit {
            let error = ExecutorError::Capture { part, size, mode: self.policy.mode, cause };
            self.refused = Some(error.clone());
            return Err(error);
        }
        device.health()?;
        tracing::warn!("recording {part} at size {size} failed, and steps run without it: {cause}");
        Ok(())
    }

    /// Installs what has arrived from the background.
    ///
    /// # Errors
    /// If something could not be recorded, now or before, and somebody asked for the mode.
    pub(crate) fn take_arrived(&mut self, device: &D, plan: &CapturePlan) -> Result<(), ExecutorError> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        while let Maker::Background(background) = &self.maker {
            match background.arrived() {
                Ok(None) => break,
                Ok(Some(made)) => {
                    self.late += u64::from(made.recording.is_ok());
                    self.install(device, plan, made)?;
                }
                Err(Ended) => {
                    self.maker = Maker::Nobody;
                    self.miss_the_rest(device, plan)?;
                    self.finish(device);
                }
            }
        }
        Ok(())
    }

    /// What the thread still owed when it ended can't be had any more.
    fn miss_the_rest(&mut self, device: &D, plan: &CapturePlan) -> Result<(), ExecutorError> {
        for Job { part, size, .. } in plan.jobs() {
            if matches!(self.slots[plan.index_of(part)][size], Slot::Missing) {
                let message = "the thread that records ended before it was done".to_owned();
                let cause = DeviceError::Internal { device: device.target().name().to_owned(), message };
                self.install(device, plan, Made { part, size, recording: Err(cause) })?;
            }
        }
        Ok(())
    }

    /// Whether a step can run from recordings in this mode, and what is missing of those of its own size. What a lazy capture
    /// will make counts as there.
    pub(crate) fn standing(&self, plan: &CapturePlan, mode: RuntimeMode, needed: &Needed) -> Standing {
        let mut standing = Standing { runs: true, lack: None };
        for (part, size) in plan.needed(mode, needed) {
            let slots = &self.slots[plan.index_of(part)][size..];
            let lack = match (slots.first(), &self.maker) {
                (Some(Slot::There(_)), _) | (Some(Slot::Missing), Maker::Lazy { .. }) => continue,
                (Some(Slot::Failed), _) => Lack::Failed,
                (Some(Slot::Missing) | None, _) => Lack::NotYet,
            };
            standing.lack = standing.lack.or(Some(lack));
            standing.runs &= slots.iter().any(|slot| matches!(slot, Slot::There(_)));
        }
        standing
    }

    /// Records what a step needs and what is missing, where captures are lazy. True if something could not be recorded, so that the
    /// step must be decided anew.
    ///
    /// # Errors
    /// If somebody asked for the mode, and a recording failed.
    pub(crate) fn make_missing(
        &mut self,
        device: &mut D,
        plan: &CapturePlan,
        mode: RuntimeMode,
        needed: &Needed,
    ) -> Result<bool, ExecutorError> {
        let Maker::Lazy { warm, .. } = &self.maker else { return Ok(false) };
        let missing = |part: Part, size: usize| matches!(self.slots[plan.index_of(part)][size], Slot::Missing);
        let missing: Vec<_> = plan.needed(mode, needed).filter(|(part, size)| missing(*part, *size)).collect();
        if missing.is_empty() {
            return Ok(false);
        }
        if !warm {
            self.warm_up(device, plan)?;
            self.memory = device.free_memory().map(|free| (free, free));
        }
        for (part, size) in &missing {
            let Some(sizes) = plan.sizes(*part, *size) else { continue };
            self.make(device, plan, *part, *size, &sizes)?;
        }
        if let (Some(memory), Some(free)) = (&mut self.memory, device.free_memory()) {
            tracing::debug!(free_before = memory.1, free_after = free, "recorded for a step");
            memory.1 = free;
        }
        Ok(missing.iter().any(|(part, size)| !matches!(self.slots[plan.index_of(*part)][*size], Slot::There(_))))
    }

    /// Records one part for the step that needs it.
    fn make(
        &mut self,
        device: &D,
        plan: &CapturePlan,
        part: Part,
        size: usize,
        sizes: &Sizes,
    ) -> Result<(), ExecutorError> {
        let Maker::Lazy { recorder, warm } = &mut self.maker else { return Ok(()) };
        *warm = true;
        let recording = recorder.record(&self.kernels[plan.launches_of(part)], sizes);
        self.late += u64::from(recording.is_ok());
        self.install(device, plan, Made { part, size, recording })
    }

    /// The smallest recording of a part that is there, of the capture sizes from this place on.
    pub(crate) fn find(&self, plan: &CapturePlan, part: Part, size: usize) -> Option<&D::Recording> {
        self.slots[plan.index_of(part)][size..].iter().find_map(|slot| match slot {
            Slot::There(recording) => Some(recording),
            Slot::Missing | Slot::Failed => None,
        })
    }

    /// All that are there, by part and then by size.
    pub(crate) fn each<'a>(&'a self, plan: &'a CapturePlan) -> impl Iterator<Item = (String, &'a D::Recording)> {
        let named = move |part: Part, size: usize| format!("{}-{}", part.file_name(), plan.capture_sizes()[size]);
        plan.all_parts().flat_map(move |part| {
            self.slots[plan.index_of(part)].iter().enumerate().filter_map(move |(size, slot)| match slot {
                Slot::There(recording) => Some((named(part, size), recording)),
                Slot::Missing | Slot::Failed => None,
            })
        })
    }

    /// How many are there.
    pub(crate) fn count(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| matches!(slot, Slot::There(_))).count()
    }

    /// How many could not be made.
    pub(crate) fn failures(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| matches!(slot, Slot::Failed)).count()
    }

    /// How many were made after the start.
    pub(crate) fn late(&self) -> u64 {
        self.late
    }

    /// Bytes of the device's own memory that they took.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory.map(|(before, after)| before.saturating_sub(after))
    }
}
