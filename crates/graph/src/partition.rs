//! The partition of a step into pieces: runs of launches that can be recorded, and the launches between them.
//!
//! A step is cut at the splitting operations (attention, unless somebody says otherwise), whose work depends on the lengths of
//! the sequences and not only on their number, and where the number of rows changes from tokens to wanted logits, since
//! each recording is made for one number of rows.

use crate::graph::Graph;
use crate::op::{OpKind, catalogue};
use crate::types::Dim;

/// The operations at which a step is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplittingOps(Vec<&'static str>);

/// A name that no operation has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no operation `{name}` to cut steps at{hint}")]
pub struct UnknownOp {
    name: String,
    hint: String,
}

impl SplittingOps {
    /// Operations by their names in the text form of the IR.
    ///
    /// # Errors
    /// Names the first that there is no operation of.
    pub fn new(names: &[impl AsRef<str>]) -> Result<Self, UnknownOp> {
        let known = names.iter().map(|name| {
            let name = name.as_ref();
            let unknown = || UnknownOp { name: name.to_owned(), hint: catalogue::did_you_mean(name) };
            catalogue::find(name).map(|info| info.name).ok_or_else(unknown)
        });
        known.collect::<Result<_, _>>().map(SplittingOps)
    }

    /// Whether a step is cut at operations of this kind.
    pub fn contains(&self, kind: &OpKind) -> bool {
        self.0.contains(&kind.name())
    }
}

impl Default for SplittingOps {
    /// Attention.
    fn default() -> Self {
        SplittingOps(vec!["attention"])
    }
}

/// A run of consecutive launches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Places in [`Graph::groups`].
    pub groups: std::ops::Range<usize>,
    /// The symbolic size that the launches run over: [`Dim::Tokens`] or [`Dim::LogitRows`].
    pub rows: Dim,
    /// True if these are splitting operations, which `PIECEWISE` launches by themselves.
    pub splitting: bool,
}

/// Cuts a grouped graph into pieces, in launch order; together they hold every group once.
pub fn partition(graph: &Graph, splitting_ops: &SplittingOps) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (index, group) in graph.groups().iter().enumerate() {
        let splitting = group.ops.iter().any(|op| splitting_ops.contains(&graph.op(*op).kind));
        let by_logit_rows = group.ops.iter().any(|op| graph.rows_of(*op) == Ok(Dim::LogitRows));
        let rows = if by_logit_rows { Dim::LogitRows } else { Dim::Tokens };
        match pieces.last_mut() {
            Some(piece) if piece.splitting == splitting && piece.rows == rows => piece.groups.end = index + 1,
            _ => pieces.push(Piece { groups: index..index + 1, rows, splitting }),
        }
    }
    pieces
}
