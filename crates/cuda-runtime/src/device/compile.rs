//! Code for the device: machine code from the bundle where there is some, else PTX through the driver.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use allotrope_graph::Graph;
use allotrope_runtime::device::DeviceError;
use sha2::{Digest, Sha256};

use super::internal;
use crate::bundle::{Bundle, entry};
use crate::driver::{Context, DriverError, Function, Image, Module};
use crate::jit::{self, KernelCache, Outcome};
use crate::lower::{KernelCode, PlannedLaunch};
use crate::program::{Features, Pointers, fill};

/// The most threads that compile at once.
const MOST_THREADS: usize = 16;

/// Loads and compiles code, each once.
pub(super) struct Compiler {
    context: Context,
    bundle: Bundle,
    cache: KernelCache,
    /// Modules of the bundle, by source.
    modules: HashMap<&'static str, Loaded<Module>>,
    /// PTX of the templates, by the name of the kernel.
    templates: HashMap<String, String>,
    /// Functions of compiled PTX, by its digest.
    compiled: HashMap<[u8; 32], Loaded<Function>>,
}

#[derive(Clone)]
struct Loaded<T> {
    code: T,
    /// Whether its kernels wait for the one in front of them themselves.
    dependent: bool,
    /// Whether the driver compiled it now.
    is_new: bool,
}

/// What a launch needs to be compiled.
pub(super) enum Request {
    Bundled { source: &'static str, entry: String },
    Ptx(PtxRequest),
}

/// A kernel as PTX.
pub(super) struct PtxRequest {
    ptx: String,
    entry: String,
    digest: [u8; 32],
    /// Where generated code in slots wants its pointers, and which.
    slots: Option<(usize, Pointers)>,
}

/// Code that is ready to launch.
pub(super) struct Code {
    pub(super) function: Function,
    pub(super) dependent: bool,
    /// Where generated code in slots wants its pointers, and which.
    pub(super) slots: Option<(usize, Pointers)>,
}

/// How many modules the driver compiled, and how many were on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Compiled {
    pub(super) now: usize,
    pub(super) before: usize,
}

impl Compiler {
    pub(super) fn new(context: Context, folder: Option<PathBuf>) -> Result<Self, DeviceError> {
        let bundle = Bundle::embedded().map_err(|error| internal(error.to_string()))?;
        Ok(Self {
            context,
            bundle,
            cache: KernelCache::new(folder),
            modules: HashMap::new(),
            templates: HashMap::new(),
            compiled: HashMap::new(),
        })
    }

    fn capability(&self) -> (u32, u32) {
        self.context.info().capability
    }

    /// What generated code may use.
    pub(super) fn features(&self) -> Features {
        Features::of(self.capability())
    }

    /// Generates the code of a launch, as far as it is generated.
    pub(super) fn request(&mut self, graph: &Graph, launch: &PlannedLaunch) -> Result<Request, DeviceError> {
        let (ptx, entry, slots) = match &launch.code {
            KernelCode::Bundled { source, entry } => {
                return Ok(Request::Bundled { source, entry: entry.clone() });
            }
            KernelCode::Generated(program) => (program.ptx.clone(), program.entry.to_owned(), None),
            KernelCode::Filled { source, entry, slots } => {
                let template = self.template(source, entry)?;
                let filling = slots.filling(graph);
                let filled = fill(template, entry, &filling, Features::of_target(template));
                let (ptx, pointers) = filled.map_err(|error| internal(error.to_string()))?;
                (ptx, entry.clone(), Some((filling.pointers_offset, pointers)))
            }
        };
        let digest = Sha256::digest(&ptx).into();
        Ok(Request::Ptx(PtxRequest { ptx, entry, digest, slots }))
    }

    /// The code of a launch, loaded or compiled unless it was before.
    pub(super) fn code(&mut self, request: &Request, label: &str) -> Result<Code, DeviceError> {
        match request {
            Request::Bundled { source, entry } => {
                let module = self.module(source)?;
                Ok(Code { function: module.code.function(entry)?, dependent: module.dependent, slots: None })
            }
            Request::Ptx(request) => {
                let loaded = match self.compiled.get(&request.digest) {
                    Some(loaded) => loaded.clone(),
                    None => {
                        let loaded = compile(&self.context, &self.cache, request, label)?;
                        self.compiled.insert(request.digest, loaded.clone());
                        loaded
                    }
                };
                Ok(Code { function: loaded.code, dependent: loaded.dependent, slots: request.slots.clone() })
            }
        }
    }

    /// Compiles all that is not compiled yet, several texts at once: the driver's compiler runs in the thread that calls it.
    /// Each request comes with the label of its launch.
    pub(super) fn compile_all(&mut self, requests: &[(&Request, &str)]) -> Result<Compiled, DeviceError> {
        let mut open: Vec<(&PtxRequest, &str)> = Vec::new();
        for (request, label) in requests {
            let Request::Ptx(request) = request else { continue };
            let known = self.compiled.contains_key(&request.digest)
                || open.iter().any(|(other, _)| other.digest == request.digest);
            if !known {
                open.push((request, *label));
            }
        }
        // The longest text first, so that nobody waits for it alone in the end.
        open.sort_by_key(|(request, _)| std::cmp::Reverse(request.ptx.len()));
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS).min(open.len());
        let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(open.len())));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((request, label)) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = compile(&self.context, &self.cache, request, label);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((request.digest, result));
                    }
                });
            }
        });
        let mut compiled = Compiled::default();
        for (digest, result) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let loaded = result?;
            *if loaded.is_new { &mut compiled.now } else { &mut compiled.before } += 1;
            self.compiled.insert(digest, loaded);
        }
        Ok(compiled)
    }

    /// The PTX of one template, for as new an architecture as it may say.
    fn template(&mut self, source: &str, name: &str) -> Result<&str, DeviceError> {
        if !self.templates.contains_key(name) {
            let ptx = self.bundle.ptx(source, self.capability()).map_err(|error| internal(error.to_string()))?;
            let template = entry(&ptx, name).ok_or_else(|| internal(format!("{source} has no kernel {name}")))?;
            let newer = self.features().e4m3 && template.contains(".target sm_80");
            let template = if newer { template.replacen(".target sm_80", ".target sm_89", 1) } else { template };
            self.templates.insert(name.to_owned(), template);
        }
        Ok(self.templates.get(name).map_or("", String::as_str))
    }

    /// A source of the bundle: as machine code if there is some for the device, else as PTX.
    fn module(&mut self, source: &'static str) -> Result<Loaded<Module>, DeviceError> {
        if let Some(module) = self.modules.get(source) {
            return Ok(module.clone());
        }
        let capability = self.capability();
        let cubin = self.bundle.cubin(source, capability).map_err(|error| internal(error.to_string()))?;
        let module = cubin.and_then(|cubin| self.context.load_module(Image::Cubin(&cubin), source).ok());
        let loaded = match module {
            // Machine code for 9.0 and newer is compiled with the wait in it.
            Some(code) => Loaded { code, dependent: capability >= (9, 0), is_new: false },
            None => {
                let ptx = self.bundle.ptx(source, capability).map_err(|error| internal(error.to_string()))?;
                load_ptx(&self.context, &self.cache, &ptx, source)?
            }
        };
        self.modules.insert(source, loaded.clone());
        Ok(loaded)
    }
}

fn load_ptx(context: &Context, cache: &KernelCache, ptx: &str, label: &str) -> Result<Loaded<Module>, DriverError> {
    let (image, outcome) = jit::compile(context, ptx, cache)?;
    let code = context.load_module(Image::Cubin(&image), label)?;
    let dependent = ptx.contains("griddepcontrol.wait");
    Ok(Loaded { code, dependent, is_new: matches!(outcome, Outcome::Compiled(_)) })
}

fn compile(
    context: &Context,
    cache: &KernelCache,
    request: &PtxRequest,
    label: &str,
) -> Result<Loaded<Function>, DriverError> {
    let Loaded { code, dependent, is_new } = load_ptx(context, cache, &request.ptx, label)?;
    Ok(Loaded { code: code.function(&request.entry)?, dependent, is_new })
}
