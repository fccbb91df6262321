//! Code for the device: machine code from the bundle where there is some, else PTX through the driver.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use allotrope_graph::Graph;
use allotrope_runtime::device::DeviceError;
use sha2::{Digest, Sha256};

use super::internal;
use crate::bundle::{Bundle, entry};
use crate::driver::{Context, Function, Image, Module};
use crate::jit::{self, KernelCache};
use crate::lower::{KernelCode, Variant};
use crate::program::{Features, Pointers, fill};

/// Loads and compiles code, each once.
pub(super) struct Compiler {
    context: Context,
    bundle: Bundle,
    cache: KernelCache,
    /// Modules of the bundle, by source.
    modules: HashMap<&'static str, Loaded>,
    /// Functions of compiled PTX, by its digest.
    compiled: HashMap<[u8; 32], Loaded<Function>>,
    /// What the driver was asked to do.
    work: JitWork,
}

/// What the driver's compiler did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JitWork {
    /// Modules that it compiled.
    pub compiled: usize,
    /// Modules whose machine code was on disk.
    pub cached: usize,
    /// The time that compiling took.
    pub time: Duration,
}

#[derive(Clone)]
struct Loaded<T = Module> {
    code: T,
    /// Whether its kernels wait for the one in front of them themselves.
    dependent: bool,
}

/// Code that is ready to launch.
pub(super) struct Code {
    pub(super) function: Function,
    pub(super) dependent: bool,
    /// Where generated code in slots wants its pointers, and which.
    pub(super) slots: Option<(usize, Pointers)>,
}

impl Compiler {
    pub(super) fn new(context: Context, folder: Option<PathBuf>) -> Result<Self, DeviceError> {
        let bundle = Bundle::embedded().map_err(|error| internal(error.to_string()))?;
        let cache = KernelCache::new(folder);
        Ok(Self {
            context,
            bundle,
            cache,
            modules: HashMap::new(),
            compiled: HashMap::new(),
            work: JitWork::default(),
        })
    }

    fn capability(&self) -> (u32, u32) {
        self.context.info().capability
    }

    /// What generated code may use.
    pub(super) fn features(&self) -> Features {
        Features::of(self.capability())
    }

    /// The code of a variant of a launch.
    pub(super) fn compile(&mut self, graph: &Graph, variant: &Variant, label: &str) -> Result<Code, DeviceError> {
        match &variant.code {
            KernelCode::Bundled { source, entry } => {
                let module = self.module(source)?;
                let function = module.code.function(entry)?;
                Ok(Code { function, dependent: module.dependent, slots: None })
            }
            KernelCode::Generated(program) => {
                let loaded = self.function(&program.ptx, program.entry, label)?;
                Ok(Code { function: loaded.code, dependent: loaded.dependent, slots: None })
            }
            KernelCode::Filled { source, entry: name, slots } => {
                let template = self.template(source, name)?;
                let features = Features::of_target(&template);
                let filling = slots.filling(graph);
                let offset = filling.pointers_offset;
                let filled = fill(&template, name, &filling, features);
                let (ptx, pointers) = filled.map_err(|error| internal(error.to_string()))?;
                let loaded = self.function(&ptx, name, label)?;
                Ok(Code { function: loaded.code, dependent: loaded.dependent, slots: Some((offset, pointers)) })
            }
        }
    }

    /// The PTX of one template, for as new an architecture as it may say.
    fn template(&self, source: &str, name: &str) -> Result<String, DeviceError> {
        let ptx = self.bundle.ptx(source, self.capability()).map_err(|error| internal(error.to_string()))?;
        let template = entry(&ptx, name).ok_or_else(|| internal(format!("{source} has no kernel {name}")))?;
        let newer = self.features().e4m3 && template.contains(".target sm_80");
        Ok(if newer { template.replacen(".target sm_80", ".target sm_89", 1) } else { template })
    }

    /// A source of the bundle: as machine code if there is some for the device, else as PTX.
    fn module(&mut self, source: &'static str) -> Result<Loaded, DeviceError> {
        if let Some(module) = self.modules.get(source) {
            return Ok(module.clone());
        }
        let capability = self.capability();
        let cubin = self.bundle.cubin(source, capability).map_err(|error| internal(error.to_string()))?;
        let module = cubin.and_then(|cubin| self.context.load_module(Image::Cubin(&cubin), source).ok());
        let loaded = match module {
            // Machine code for 9.0 and newer is compiled with the wait in it.
            Some(code) => Loaded { code, dependent: capability >= (9, 0) },
            None => {
                let ptx = self.bundle.ptx(source, capability).map_err(|error| internal(error.to_string()))?;
                self.load_ptx(&ptx, source)?
            }
        };
        self.modules.insert(source, loaded.clone());
        Ok(loaded)
    }

    fn load_ptx(&mut self, ptx: &str, label: &str) -> Result<Loaded, DeviceError> {
        let (image, outcome) = jit::compile(&self.context, ptx, &self.cache)?;
        match outcome {
            jit::Outcome::Hit => self.work.cached += 1,
            jit::Outcome::Compiled(time) => {
                self.work.compiled += 1;
                self.work.time += time;
            }
        }
        let code = self.context.load_module(Image::Cubin(&image), label)?;
        Ok(Loaded { code, dependent: ptx.contains("griddepcontrol.wait") })
    }

    /// A kernel of generated PTX. The same text is compiled once.
    fn function(&mut self, ptx: &str, name: &str, label: &str) -> Result<Loaded<Function>, DeviceError> {
        let digest: [u8; 32] = Sha256::digest(ptx).into();
        if let Some(loaded) = self.compiled.get(&digest) {
            return Ok(loaded.clone());
        }
        let Loaded { code, dependent } = self.load_ptx(ptx, label)?;
        let loaded = Loaded { code: code.function(name)?, dependent };
        self.compiled.insert(digest, loaded.clone());
        Ok(loaded)
    }

    /// What the driver's compiler did so far.
    pub(super) fn work(&self) -> JitWork {
        self.work
    }
}
