//! What a row program writes, and its kernel.

use std::fmt::Write as _;

use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Dim, Graph, OpId, OpKind, ValueId};

use super::code::{Block, Class, emit};
use super::generator::{Features, Generator, ParameterArray};
use super::pointers::{Pointer, Pointers};
use super::rows::{BLOCK, Store, Team, reductions, team_for};

/// The kernel of a row program.
#[derive(Debug, Clone, PartialEq)]
pub struct RowProgram {
    /// The whole module.
    pub ptx: String,
    /// The name of the kernel in it.
    pub entry: &'static str,
    /// What its parameter holds.
    pub pointers: Pointers,
    /// Rows that a block computes.
    pub rows_per_block: u32,
}

/// The kernel's name: a module has one.
const ENTRY: &str = "row_program";

/// What the operations write that others read: results that are kept in memory, and the KV cache.
pub(super) fn stores(graph: &Graph, ops: &[OpId]) -> Vec<Store> {
    let mut stores = Vec::new();
    for id in ops {
        let op = graph.op(*id);
        if matches!(op.kind, OpKind::KvWrite) {
            let layer = graph.cache_layer(op.output).unwrap_or(0);
            stores.push(Store::Keys(*id, op.inputs[1], layer));
            stores.push(Store::Values(*id, op.inputs[2], layer));
        } else if graph.tensor_type(op.output).is_some() && MemoryPlan::crosses_launches(graph, op.output) {
            stores.push(Store::Value(op.output));
        }
    }
    stores
}

/// The first lines of a module.
pub(super) fn header(features: Features) -> &'static str {
    match (features.dependent_launch, features.e4m3) {
        (true, _) => ".version 9.0\n.target sm_90\n.address_size 64\n\n",
        (false, true) => ".version 9.0\n.target sm_89\n.address_size 64\n\n",
        (false, false) => ".version 9.0\n.target sm_80\n.address_size 64\n\n",
    }
}

/// Which of the live sizes counts the rows of a program: they are in the order of [`Dim::SYMBOLIC`].
pub(crate) fn place_of_size(rows: Dim) -> usize {
    Dim::SYMBOLIC.iter().position(|dim| *dim == rows).unwrap_or(0)
}

impl RowProgram {
    /// Generates the kernel for operations that the target accepts as a row program. It writes what others read, and `handed_over`.
    pub fn generate(graph: &Graph, ops: &[OpId], handed_over: &[ValueId], features: Features) -> Self {
        let mut pointers = Pointers::default();
        let parameter = ParameterArray { name: format!("{ENTRY}_param_0"), offset: 0 };
        let mut stores = stores(graph, ops);
        stores.extend(handed_over.iter().map(|value| Store::Value(*value)));
        let widest = ops.iter().filter_map(|op| graph.tensor_type(graph.op(*op).output)?.width()).max().unwrap_or(1);
        // The widest reduction decides; without one, the widest row.
        let reduced = reductions(graph, ops).into_iter();
        let reduced = reduced.filter_map(|op| graph.tensor_type(graph.op(op).output)?.width()).max();
        let threads = team_for(reduced.unwrap_or(widest));
        let rows = ops.first().and_then(|op| graph.rows_of(*op).ok()).unwrap_or(Dim::Tokens);
        let mut generator = Generator::new(graph, ops, features, &mut pointers, parameter, 0);
        generator.kernel(&stores, threads, place_of_size(rows));
        let Block { text, tables } = generator.code.finish();
        let mut ptx = header(features).to_owned();
        ptx.extend(tables.into_values());
        let bytes = 8 * pointers.entries().len().max(1);
        let _ = write!(
            ptx,
            "\n.visible .entry {ENTRY}(\n\t.param .align 8 .b8 {ENTRY}_param_0[{bytes}]\n)\n.maxntid {BLOCK}\n{{\n\
             \t.shared .align 16 .b8 scratch[16];\n{text}\tret;\n}}\n"
        );
        Self { ptx, entry: ENTRY, pointers, rows_per_block: BLOCK / threads }
    }
}

impl Generator<'_> {
    fn kernel(&mut self, stores: &[Store], threads: u32, size: usize) {
        if self.features.dependent_launch {
            emit!(self, "griddepcontrol.wait;");
            emit!(self, "griddepcontrol.launch_dependents;");
        }
        let [thread, block, row, scratch, live, in_block] = std::array::from_fn(|_| self.word());
        let outside = self.code.register(Class::Predicate);
        let end = self.code.label();
        let sizes = self.pointer(Pointer::Sizes);
        emit!(self, "ld.global.u32 {live}, [{sizes}+{}];", 4 * size);
        emit!(self, "mov.u32 {in_block}, %tid.x;");
        emit!(self, "mov.u32 {block}, %ctaid.x;");
        emit!(self, "mov.u32 {scratch}, scratch;");
        emit!(self, "and.b32 {thread}, {in_block}, {};", threads - 1);
        emit!(self, "div.u32 {row}, {in_block}, {threads};");
        emit!(self, "mad.lo.u32 {row}, {block}, {}, {row};", BLOCK / threads);
        emit!(self, "setp.ge.u32 {outside}, {row}, {live};");
        emit!(self, "@{outside} bra {end};");
        self.begin_row(row);
        self.whole_row(stores, Team { threads, thread, scratch });
        self.code.place(end);
    }
}
