//! Kernels with everything that their launches need.

use std::sync::Arc;

use allotrope_graph::{Definition, Dim, Graph, Sizes, Target, ValueId};
use allotrope_runtime::StartupLedger;
use allotrope_runtime::device::DeviceError;

use super::compile::{Compiled, Compiler, Request};
use super::memory::Memory;
use super::weights::Weights;
use super::{Identity, internal};
use crate::CudaTarget;
use crate::driver::Launch;
use crate::lower::{Grid, LaunchPlan, PlannedLaunch, plan};
use crate::program::{BLOCK, Pointer};

/// A group of ops, made ready.
#[derive(Clone)]
pub struct CudaKernel {
    rows: Dim,
    variants: Arc<[ReadyVariant]>,
    pub(super) identity: Identity,
}

/// A way to run the group.
struct ReadyVariant {
    most_rows: usize,
    /// Each with the grid of one row.
    launches: Vec<(Grid, Launch)>,
}

impl CudaKernel {
    /// The launches for a batch; none where it has no rows.
    pub(super) fn launches(&self, sizes: &Sizes) -> impl Iterator<Item = Launch> {
        let rows = sizes.of(self.rows);
        let variant = self.variants.iter().find(|variant| rows <= variant.most_rows).filter(|_| rows > 0);
        let launches = variant.into_iter().flat_map(|variant| &variant.launches);
        launches.map(move |(grid, launch)| Launch { grid: grid.dimensions(rows), ..launch.clone() })
    }

    /// All ways to run the group, over one row.
    pub(super) fn every_launch(&self) -> impl Iterator<Item = &Launch> {
        self.variants.iter().flat_map(|variant| &variant.launches).map(|(_, launch)| launch)
    }
}

/// What kernels are made of.
pub(super) struct Ready<'a> {
    pub(super) graph: &'a Graph,
    pub(super) memory: &'a Memory,
    pub(super) weights: &'a Weights,
    pub(super) compiler: &'a mut Compiler,
    pub(super) identity: Identity,
}

/// A group on its way to a kernel.
struct Planned {
    plan: LaunchPlan,
    /// For each launch of each variant.
    requests: Vec<Request>,
    label: String,
}

impl Ready<'_> {
    /// Makes all groups ready: first all code is generated, then compiled together, then addresses are filled in.
    pub(super) fn kernels(mut self, ledger: &mut StartupLedger) -> Result<Vec<CudaKernel>, DeviceError> {
        let groups = 0..self.graph.groups().len();
        let planned: Vec<Planned> =
            ledger.phase("generate kernels", || groups.map(|group| self.plan(group)).collect::<Result<_, _>>())?;
        let started = std::time::Instant::now();
        let requests: Vec<(&Request, &str)> = planned
            .iter()
            .flat_map(|planned| planned.requests.iter().map(|request| (request, planned.label.as_str())))
            .collect();
        let Compiled { now, before } = self.compiler.compile_all(&requests)?;
        ledger.claim(&format!("compile kernels ({now}, {before} cached)"), started.elapsed());
        ledger.phase("load kernels", || planned.iter().map(|planned| self.finish(planned)).collect())
    }

    /// Makes one group ready.
    pub(super) fn kernel(mut self, group: usize) -> Result<CudaKernel, DeviceError> {
        let planned = self.plan(group)?;
        self.finish(&planned)
    }

    fn plan(&mut self, group: usize) -> Result<Planned, DeviceError> {
        let ops = self.graph.groups().get(group).map(|group| group.ops.as_slice());
        let ops = ops.ok_or_else(|| internal(format!("the graph has no group {group}")))?;
        CudaTarget.accepts(self.graph, ops).map_err(internal)?;
        let plan = plan(self.graph, ops, self.compiler.features()).map_err(internal)?;
        let launches = plan.variants.iter().flat_map(|variant| &variant.launches);
        let requests = launches.map(|launch| self.compiler.request(self.graph, launch));
        let requests = requests.collect::<Result<_, _>>()?;
        let result = ops.last().map_or("", |op| &self.graph.value(self.graph.op(*op).output).name);
        let label = format!("launch {group}, {} to %{result}", self.graph.group_label(group));
        Ok(Planned { plan, requests, label })
    }

    fn finish(&mut self, planned: &Planned) -> Result<CudaKernel, DeviceError> {
        let Planned { plan, requests, label } = planned;
        let mut requests = requests.iter();
        let mut variants = Vec::with_capacity(plan.variants.len());
        for variant in &plan.variants {
            let pairs = variant.launches.iter().zip(&mut requests);
            let launches = pairs.map(|(launch, request)| Ok((launch.grid, self.launch(launch, request, label)?)));
            let launches = launches.collect::<Result<_, DeviceError>>()?;
            variants.push(ReadyVariant { most_rows: variant.most_rows, launches });
        }
        Ok(CudaKernel { rows: plan.rows, variants: variants.into(), identity: self.identity.clone() })
    }

    /// A launch over one row, with all addresses in its parameter.
    fn launch(&mut self, planned: &PlannedLaunch, request: &Request, label: &str) -> Result<Launch, DeviceError> {
        let code = self.compiler.code(request, label)?;
        let mut parameter = planned.parameter.clone();
        if let Some((offset, pointers)) = &code.slots {
            parameter.place(*offset, pointers.entries());
        }
        parameter.set_block_size(self.memory.block_size());
        let parameters = parameter.resolved(|pointer| self.address(pointer))?;
        let shared_memory = u32::try_from(planned.shared_memory).unwrap_or(u32::MAX);
        code.function.allow_shared_memory(shared_memory)?;
        Ok(Launch {
            label: label.into(),
            function: code.function,
            grid: planned.grid.dimensions(1),
            block: BLOCK,
            shared_memory,
            parameters: parameters.into(),
            dependent: code.dependent,
        })
    }

    /// The address that a pointer stands for.
    fn address(&self, pointer: &Pointer) -> Result<u64, DeviceError> {
        let found = match pointer {
            Pointer::Sizes => Some(self.memory.sizes()),
            Pointer::Value(value) => self.value(*value),
            Pointer::Input(input) => self.memory.input(*input),
            Pointer::Keys { layer } => self.memory.cache(*layer).map(|[keys, _]| keys),
            Pointer::Values { layer } => self.memory.cache(*layer).map(|[_, values]| values),
            Pointer::Nothing | Pointer::Constant(_) => Some(0),
        };
        found.ok_or_else(|| internal(format!("{} has no place in memory", self.name(pointer))))
    }

    fn value(&self, value: ValueId) -> Option<u64> {
        match self.graph.value(value).definition {
            Definition::Weight(_) => self.weights.get(value),
            Definition::Input(input) => self.memory.input(input),
            _ => self.memory.value(value),
        }
    }

    fn name(&self, pointer: &Pointer) -> String {
        match pointer {
            Pointer::Value(value) => format!("%{}", self.graph.value(*value).name),
            other => format!("{other:?}"),
        }
    }
}
