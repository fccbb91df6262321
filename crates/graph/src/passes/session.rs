//! What a pass works with: the graph, the target that it asks, the fuel that it burns, and the report that it fills.

use crate::graph::{Graph, Op, OpId, RegroupError};
use crate::history::NearMiss;
use crate::op::OpKind;
use crate::target::Target;

/// How many more rewrites may be made. One unit is one operation replaced or dropped, or one group formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fuel {
    left: Option<usize>,
    /// Whether a rewrite was refused for lack of it.
    refused: bool,
}

impl Fuel {
    /// No limit.
    pub const UNLIMITED: Fuel = Fuel { left: None, refused: false };

    /// At most this many rewrites.
    pub const fn limited(rewrites: usize) -> Self {
        Fuel { left: Some(rewrites), refused: false }
    }

    /// True if a rewrite was refused because there was none left.
    pub fn ran_out(&self) -> bool {
        self.refused
    }

    /// Burns one unit; false if there is none.
    pub(crate) fn take(&mut self) -> bool {
        match &mut self.left {
            None => true,
            Some(0) => {
                self.refused = true;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// Whether a unit is there; if not, that counts as a rewrite refused.
    fn is_there(&mut self) -> bool {
        self.refused |= self.left == Some(0);
        self.left != Some(0)
    }
}

/// One run of one pass. A pass from outside this crate can look at the graph, form groups and note near misses; only the
/// passes of this crate rewrite operations.
pub struct Session<'a> {
    pub(crate) graph: &'a mut Graph,
    pub(crate) target: &'a dyn Target,
    pub(crate) fuel: &'a mut Fuel,
    pub(crate) matches: usize,
    pub(crate) near_misses: Vec<NearMiss>,
}

impl Session<'_> {
    /// The graph as it is now. Until the pass ends, groups that others were taken out of may be empty.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Burns fuel for one rewrite and counts it; false if there is no fuel, and the rewrite must not be made.
    pub(crate) fn may_rewrite(&mut self) -> bool {
        let may = self.fuel.take();
        self.matches += usize::from(may);
        may
    }

    /// Notes that a place was left alone.
    pub fn near_miss(&mut self, at: OpId, reason: impl Into<String>) {
        let reason = reason.into();
        match self.near_misses.iter_mut().find(|known| known.reason == reason) {
            Some(known) => known.count += 1,
            None => {
                let first = self.graph.value(self.graph.op(at).output).name.clone();
                self.near_misses.push(NearMiss { reason, first, count: 1 });
            }
        }
    }

    /// An operation.
    pub fn op(&self, id: OpId) -> &Op {
        self.graph.op(id)
    }

    /// The operations of a kind, in order.
    pub fn ops_where(&self, is: impl Fn(&OpKind) -> bool) -> Vec<OpId> {
        self.graph.op_ids().filter(|op| is(&self.op(*op).kind)).collect()
    }

    /// The operation that yields an operand.
    pub fn producer(&self, op: OpId, operand: usize) -> Option<OpId> {
        self.op(op).inputs.get(operand).and_then(|input| self.graph.producer(*input))
    }

    /// The operations of the group that an operation is in.
    pub fn group(&self, op: OpId) -> &[OpId] {
        &self.graph.groups()[self.graph.group_of(op)].ops
    }

    /// The operations that read a result.
    pub fn users(&self, op: OpId) -> &[OpId] {
        self.graph.users(self.op(op).output)
    }

    /// Joins the whole groups of `members` into one, if the target has a kernel for it. Gives whether they are one group
    /// now; where not, the reason is noted at the last of the members, unless the fuel ran out.
    pub fn join(&mut self, members: &[OpId]) -> bool {
        let at = members.iter().max().copied().unwrap_or(OpId(0));
        self.join_whole(members).unwrap_or_else(|reason| {
            self.near_miss(at, reason);
            false
        })
    }

    /// [`Session::join`] for a first try that another one follows: where it can't be, nothing is noted.
    pub(crate) fn join_quietly(&mut self, members: &[OpId]) -> bool {
        self.join_whole(members).unwrap_or(false)
    }

    fn join_whole(&mut self, members: &[OpId]) -> Result<bool, String> {
        let places = self.places(members);
        if places.len() < 2 {
            return Ok(true);
        }
        let ops: Vec<OpId> = places.iter().flat_map(|place| self.graph.groups()[*place].ops.iter().copied()).collect();
        self.form(&ops)
    }

    /// The places of the groups that hold operations, in order.
    fn places(&self, ops: &[OpId]) -> Vec<usize> {
        let mut places: Vec<usize> = ops.iter().map(|op| self.graph.group_of(*op)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Makes one group of `ops`, taking them out of the groups that they are in. Gives false where there is no fuel.
    ///
    /// # Errors
    /// Why the target or the order of things does not allow it; nothing has changed then.
    pub fn form(&mut self, ops: &[OpId]) -> Result<bool, String> {
        let mut ops = ops.to_vec();
        ops.sort_unstable();
        ops.dedup();
        self.accepts(&ops)?;
        for rest in self.rests(&ops) {
            self.accepts(&rest)?;
        }
        if !self.fuel.is_there() {
            return Ok(false);
        }
        self.graph.move_into_one_group(&ops).map_err(|error: RegroupError| error.to_string())?;
        Ok(self.may_rewrite())
    }

    fn accepts(&self, ops: &[OpId]) -> Result<(), String> {
        self.target.accepts(self.graph, ops).map_err(|reason| format!("{}: {reason}", self.target.name()))
    }

    /// What several operations would leave behind of each group that they are taken out of, where that is more than one.
    fn rests(&self, ops: &[OpId]) -> Vec<Vec<OpId>> {
        let rest = |place: usize| -> Vec<OpId> {
            let group = &self.graph.groups()[place].ops;
            group.iter().copied().filter(|op| ops.binary_search(op).is_err()).collect()
        };
        self.places(ops).into_iter().map(rest).filter(|rest| rest.len() > 1).collect()
    }
}
