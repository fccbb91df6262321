//! What a device can run as one launch: the question that every grouping pass asks before it joins groups.

use crate::graph::{Graph, OpId};

/// The kernels of a device, as far as grouping needs to know them.
pub trait Target {
    /// The device's name in reports, such as `cpu`.
    fn name(&self) -> &str;

    /// Whether one launch can run `ops` (in order, from one graph) together.
    ///
    /// # Errors
    /// The reason why not, in words, for the report.
    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String>;
}
