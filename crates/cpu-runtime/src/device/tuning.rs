//! Tuning: for each shape of weights that a graph multiplies with, the cut that is fastest on this machine.

use super::{CpuDevice, environment, internal};
use crate::linear::tuning::{Shape, Tuning, search};
use allotrope_graph::{Graph, OpKind};
use allotrope_runtime::TuningCache;
use allotrope_runtime::device::{DeviceError, TuningReport};
use std::collections::HashSet;
use std::time::{Duration, Instant};

impl CpuDevice {
    /// Looks every shape up in `cache`, or searches for its cut until `budget` has passed. The weights must be loaded.
    pub(super) fn tune_products(
        &mut self,
        graph: &Graph,
        cache: &mut TuningCache,
        budget: Duration,
    ) -> Result<TuningReport, DeviceError> {
        let begin = Instant::now();
        let deadline = begin.checked_add(budget);
        let weights = self.weights.as_ref().ok_or_else(|| internal("no weights were loaded yet".to_owned()))?;
        let mut report = TuningReport::default();
        let mut seen = HashSet::new();
        let multiplied = graph.ops().iter().filter(|op| matches!(op.kind, OpKind::Linear { .. }));
        for weight in multiplied.filter_map(|op| weights.get(*op.inputs.get(1)?)) {
            let shape = Shape::of(&weight);
            if !seen.insert(shape) {
                continue;
            }
            let key = shape.key(self.isa, self.team.threads());
            if let Some(kept) = cache.get(&key).and_then(Tuning::from_numbers) {
                self.tunings.insert(shape, kept);
                report.cached += 1;
            } else if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                // SAFETY: loaded weights are readable as long as the device has them.
                let found = unsafe { search(&self.team, &mut self.workspace, self.isa, &weight, deadline) };
                let found = found.map_err(environment)?;
                cache.set(key, &found.to_numbers());
                self.tunings.insert(shape, found);
                report.searched += 1;
            } else {
                report.left += 1;
            }
        }
        report.time = begin.elapsed();
        Ok(report)
    }
}
