//! The PTX of launches: row programs, and templates of the bundle with their slots filled. Needs no device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use allotrope_graph::{Graph, Target};

use super::{KernelCode, PlannedLaunch, plan};
use crate::CudaTarget;
use crate::bundle::{Bundle, BundleError, entry};
use crate::program::{Features, Pointers, TemplateError, fill};

/// Why there is no code for a launch.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The bundle can't be read: a bug, as it is part of the program.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A template has other slots than it should have: a bug.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The bundle lacks a template: a bug.
    #[error("{kernel} is not in {source_file}")]
    Missing {
        /// The source that should have it.
        source_file: &'static str,
        /// The template.
        kernel: String,
    },
    /// No kernel runs the group.
    #[error("no kernel: {0}")]
    NoKernel(String),
}

/// The templates of the bundle for one compute capability, each taken out once.
pub struct Templates {
    bundle: Bundle,
    capability: (u32, u32),
    /// By the name of the kernel.
    texts: Mutex<HashMap<String, Arc<str>>>,
}

/// A kernel as PTX: a module with one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelPtx {
    /// The module.
    pub text: String,
    /// The kernel's name.
    pub entry: String,
    /// Where in the parameter generated code in slots wants its pointers, in bytes, and which. A row program has them in its
    /// launch's parameter.
    pub slots: Option<(usize, Pointers)>,
}

impl Templates {
    /// Those that the program embeds.
    ///
    /// # Errors
    /// If the bundle can't be read.
    pub fn embedded(capability: (u32, u32)) -> Result<Self, BundleError> {
        Ok(Self { bundle: Bundle::embedded()?, capability, texts: Mutex::default() })
    }

    /// The bundle that they are in.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What they are for.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// What generated code may use.
    pub fn features(&self) -> Features {
        Features::of(self.capability)
    }

    /// The PTX of one template, for the newest architecture that the device runs.
    ///
    /// # Errors
    /// If the bundle lacks it or can't be read.
    pub fn text(&self, source: &'static str, kernel: &str) -> Result<Arc<str>, CodeError> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.get(kernel) {
            return Ok(Arc::clone(text));
        }
        let file = self.bundle.ptx(source, self.capability)?;
        let text = entry(&file, kernel)
            .ok_or_else(|| CodeError::Missing { source_file: source, kernel: kernel.to_owned() })?;
        let text: Arc<str> = text.into();
        texts.insert(kernel.to_owned(), Arc::clone(&text));
        Ok(text)
    }

    /// The code of a launch, as far as it is generated; none for a kernel that is compiled ahead of time.
    ///
    /// # Errors
    /// If there is no template for it, or one with other slots: a bug.
    pub fn ptx(&self, graph: &Graph, launch: &PlannedLaunch) -> Result<Option<KernelPtx>, CodeError> {
        Ok(match &launch.code {
            KernelCode::Bundled { .. } => None,
            KernelCode::Generated(program) => {
                Some(KernelPtx { text: program.ptx.clone(), entry: program.entry.to_owned(), slots: None })
            }
            KernelCode::Filled { source, entry, slots } => {
                let template = self.text(source, entry)?;
                let filling = slots.filling(graph);
                let (text, pointers) = fill(&template, entry, &filling, Features::of_target(&template))?;
                Some(KernelPtx { text, entry: entry.clone(), slots: Some((filling.pointers_offset, pointers)) })
            }
        })
    }

    /// The generated code of a group: one kernel for each way in which it can run that is not compiled ahead of time, that for
    /// the fewest rows first.
    ///
    /// # Errors
    /// If no kernel runs the group, or as [`Templates::ptx`].
    pub fn group(&self, graph: &Graph, group: usize) -> Result<Vec<KernelPtx>, CodeError> {
        let ops = graph.groups().get(group).map(|group| group.ops.as_slice());
        let ops = ops.ok_or_else(|| CodeError::NoKernel(format!("the graph has no group {group}")))?;
        CudaTarget.accepts(graph, ops).map_err(CodeError::NoKernel)?;
        let plan = plan(graph, ops, self.features()).map_err(CodeError::NoKernel)?;
        let launches = plan.variants.iter().flat_map(|variant| &variant.launches);
        launches.filter_map(|launch| self.ptx(graph, launch).transpose()).collect()
    }
}
