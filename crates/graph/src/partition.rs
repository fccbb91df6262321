//! The partition of a step into pieces: runs of launches that can be recorded, and the launches between them.
//!
//! A step is cut at attention, whose work depends on the lengths of the sequences and not only on their number, and
//! where the number of rows changes from tokens to wanted logits, since each recording is made for one number of rows.

use crate::graph::Graph;
use crate::op::OpKind;
use crate::types::Dim;

/// A run of consecutive launches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Places in [`Graph::groups`].
    pub groups: std::ops::Range<usize>,
    /// The symbolic size that the launches run over: [`Dim::Tokens`] or [`Dim::LogitRows`].
    pub rows: Dim,
    /// True if this is attention, which `PIECEWISE` launches by itself.
    pub attention: bool,
}

/// Cuts a grouped graph into pieces, in launch order; together they hold every group once.
pub fn partition(graph: &Graph) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (index, group) in graph.groups().iter().enumerate() {
        let attention = group.ops.iter().any(|op| matches!(graph.op(*op).kind, OpKind::Attention { .. }));
        let by_logit_rows = group
            .ops
            .iter()
            .filter_map(|op| graph.tensor_type(graph.op(*op).output))
            .any(|tensor| tensor.rows() == Dim::LogitRows);
        let rows = if by_logit_rows { Dim::LogitRows } else { Dim::Tokens };
        match pieces.last_mut() {
            Some(piece) if !attention && !piece.attention && piece.rows == rows => piece.groups.end = index + 1,
            _ => pieces.push(Piece { groups: index..index + 1, rows, attention }),
        }
    }
    pieces
}
