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
use crate::driver::{Context, DriverError, Fault, Function, Image, Module};
use crate::jit::{self, KernelCache, Outcome};
use crate::lower::{KernelCode, KernelPtx, PlannedLaunch, Templates};
use crate::program::{Features, Pointers};

/// The most threads that compile at once.
const MOST_THREADS: usize = 16;

/// Loads and compiles code, each once.
pub(super) struct Compiler {
    context: Context,
    templates: Templates,
    cache: KernelCache,
    /// Modules of the bundle, by source.
    modules: HashMap<&'static str, Loaded<Module>>,
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
    code: KernelPtx,
    digest: [u8; 32],
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
        let templates = Templates::embedded(context.info().capability).map_err(|error| internal(error.to_string()))?;
        let cache = KernelCache::new(folder);
        Ok(Self { context, templates, cache, modules: HashMap::new(), compiled: HashMap::new() })
    }

    /// What code is generated with.
    pub(super) fn templates(&self) -> &Templates {
        &self.templates
    }

    /// What generated code may use.
    pub(super) fn features(&self) -> Features {
        self.templates.features()
    }

    /// Generates the code of a launch, as far as it is generated.
    pub(super) fn request(&self, graph: &Graph, launch: &PlannedLaunch) -> Result<Request, DeviceError> {
        if let KernelCode::Bundled { source, entry } = &launch.code {
            return Ok(Request::Bundled { source, entry: entry.clone() });
        }
        let code = self.templates.ptx(graph, launch).map_err(|error| internal(error.to_string()))?;
        let code = code.ok_or_else(|| internal("a kernel that is not compiled ahead of time has no code"))?;
        let digest = Sha256::digest(&code.text).into();
        Ok(Request::Ptx(PtxRequest { code, digest }))
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
                Ok(Code { function: loaded.code, dependent: loaded.dependent, slots: request.code.slots.clone() })
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
        open.sort_by_key(|(request, _)| std::cmp::Reverse(request.code.text.len()));
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

    /// A source of the bundle: as machine code if there is some for the device, else as PTX.
    fn module(&mut self, source: &'static str) -> Result<Loaded<Module>, DeviceError> {
        if let Some(module) = self.modules.get(source) {
            return Ok(module.clone());
        }
        let (bundle, capability) = (self.templates.bundle(), self.templates.capability());
        let cubin = bundle.cubin(source, capability).map_err(|error| internal(error.to_string()))?;
        let ptx = bundle.ptx(source, capability).map_err(|error| internal(error.to_string()))?;
        let module = cubin.map(|cubin| self.context.load_module(Image::Cubin(&cubin), source));
        let loaded = match module {
            // Machine code and PTX of a source are of the same code, as far as architectures differ in it.
            Some(Ok(code)) => Loaded { code, dependent: waits(&ptx), is_new: false },
            Some(Err(error)) if error.code().as_deref() != Some("CUDA_ERROR_NO_BINARY_FOR_GPU") => {
                return Err(error.into());
            }
            Some(Err(_)) | None => load_ptx(&self.context, &self.cache, &ptx, source)?,
        };
        self.modules.insert(source, loaded.clone());
        Ok(loaded)
    }
}

fn load_ptx(context: &Context, cache: &KernelCache, ptx: &str, label: &str) -> Result<Loaded<Module>, DriverError> {
    let (image, outcome) = jit::compile(context, ptx, cache)?;
    let is_new = matches!(outcome, Outcome::Compiled(_));
    let loaded = context.load_module(Image::Cubin(&image), label);
    let (code, is_new) = match loaded {
        // What another driver left on disk under the same name is made again.
        Err(error) if !is_new && *error.fault() == Fault::Program && !error.is_final() => {
            tracing::warn!("a kernel kept on disk is of no use and is compiled again: {error}");
            let image = jit::compile_anew(context, ptx, cache)?.0;
            (context.load_module(Image::Cubin(&image), label)?, true)
        }
        loaded => (loaded?, is_new),
    };
    Ok(Loaded { code, dependent: waits(ptx), is_new })
}

/// Whether kernels wait for the one in front of them themselves.
fn waits(ptx: &str) -> bool {
    ptx.contains("griddepcontrol.wait")
}

fn compile(
    context: &Context,
    cache: &KernelCache,
    request: &PtxRequest,
    label: &str,
) -> Result<Loaded<Function>, DriverError> {
    let Loaded { code, dependent, is_new } = load_ptx(context, cache, &request.code.text, label)?;
    Ok(Loaded { code: code.function(&request.code.entry)?, dependent, is_new })
}
