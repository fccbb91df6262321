//! What a device can run as one launch: the question that every grouping pass asks before it forms a group.

use crate::graph::{Graph, OpId, ValueId};

/// The kernels of a device, as far as grouping and the memory plan need to know them.
pub trait Target {
    /// The device's name in reports, such as `cpu`.
    fn name(&self) -> &str;

    /// Whether one launch can run `ops` (in order, from one graph) together.
    ///
    /// # Errors
    /// The reason why not, in words, for the report.
    fn accepts(&self, graph: &Graph, ops: &[OpId]) -> Result<(), String>;

    /// Whether the launch of `group` may write `result` over `operand`, which is as large and which nothing reads after
    /// this launch: true only if each of its bytes has been read for the last time before it is overwritten.
    fn may_overwrite(&self, _graph: &Graph, _group: usize, _operand: ValueId, _result: ValueId) -> bool {
        false
    }
}
