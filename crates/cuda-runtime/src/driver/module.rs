//! Modules of machine code or PTX, and the kernels in them.

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUfunction_attribute, CUjit_option, CUresult};

use super::context::{Context, refuse_in_capture};
use super::error::DriverError;

/// Bytes for what the driver's PTX compiler has to say.
const LOG_BYTES: usize = 8 << 10;

/// Shared memory that a block has without asking, in bytes.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// What a module is loaded from.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// Machine code for the GPU.
    Cubin(&'a [u8]),
    /// PTX, which the driver compiles.
    Ptx(&'a str),
}

/// Code on the device. Clones are the same module, which is unloaded with the last of them and of its functions.
#[derive(Clone)]
pub struct Module {
    loaded: Arc<Loaded>,
}

struct Loaded {
    context: Context,
    raw: sys::CUmodule,
    label: String,
}

// SAFETY: the driver locks its modules, so a handle may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.loaded.label)
    }
}

/// What a kernel needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory of a block that is declared in the code, in bytes.
    pub static_shared_memory: u32,
    /// Local memory of a thread, which is where registers are spilled to, in bytes.
    pub local_memory: u32,
    /// The most threads of a block.
    pub maximum_threads: u32,
}

/// A kernel, with one parameter that is passed by value. Clones are the same kernel; each keeps its module loaded.
#[derive(Clone)]
pub struct Function {
    kernel: Arc<Kernel>,
}

struct Kernel {
    module: Module,
    raw: sys::CUfunction,
    name: String,
    parameter_bytes: usize,
    resources: Resources,
    /// The most dynamic shared memory that launches may ask for so far, in bytes.
    allowed: Mutex<u32>,
}

// SAFETY: a kernel's handle may be used from any thread while its module is loaded, which it keeps so.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({} of {})", self.name(), self.kernel.module.loaded.label)
    }
}

impl Context {
    /// Loads a module. The label says in errors what it is.
    ///
    /// # Errors
    /// If the image is damaged, is not for this GPU, or is PTX that the driver refuses, with what its compiler says.
    pub fn load_module(&self, image: Image<'_>, label: &str) -> Result<Module, DriverError> {
        const CALL: &str = "cuModuleLoadDataEx";
        refuse_in_capture(CALL)?;
        let text;
        let pointer: *const c_void = match image {
            Image::Cubin(bytes) => {
                let whole = is_whole(bytes);
                let damaged = || DriverError::program(CALL, format!("module `{label}` is no whole cubin"));
                whole.then(|| bytes.as_ptr().cast()).ok_or_else(damaged)?
            }
            Image::Ptx(ptx) => {
                text = terminated(CALL, ptx)?;
                text.as_ptr().cast()
            }
        };
        self.enter(CALL)?;
        let mut log = Log::new();
        let (mut options, mut values) = log.options();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image ends where its headers or its zero say; options and values are as many as is said, and the log
        // is as long.
        let code = unsafe {
            sys::cuModuleLoadDataEx(&mut raw, pointer, options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr())
        };
        self.finish(CALL, code, || format!("module `{label}`{}", log.says()))?;
        Ok(Module { loaded: Arc::new(Loaded { context: self.clone(), raw, label: label.to_owned() }) })
    }
}

impl Module {
    /// A kernel of the module.
    ///
    /// # Errors
    /// If there is none of that name, or it does not have one parameter.
    pub fn function(&self, name: &str) -> Result<Function, DriverError> {
        const CALL: &str = "cuModuleGetFunction";
        let context = &self.loaded.context;
        let text = terminated(CALL, name)?;
        context.enter(CALL)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero, and the place is one for a handle.
        let code = unsafe { sys::cuModuleGetFunction(&mut raw, self.loaded.raw, text.as_ptr()) };
        context.finish(CALL, code, || format!("kernel `{name}` of module `{}`", self.loaded.label))?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the function is one of a loaded module, and the place is one for a number.
            let code = unsafe { sys::cuFuncGetAttribute(&mut value, which, raw) };
            context.finish("cuFuncGetAttribute", code, || format!("kernel `{name}`"))?;
            Ok::<u32, DriverError>(value.unsigned_abs())
        };
        use CUfunction_attribute::*;
        let resources = Resources {
            registers: attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            static_shared_memory: attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_memory: attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            maximum_threads: attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        };
        // Else the first launch would load it, and that may be inside of a capture.
        // SAFETY: the function is one of a loaded module.
        context.finish("cuFuncLoad", unsafe { sys::cuFuncLoad(raw) }, || format!("kernel `{name}`"))?;
        let parameter_bytes = parameter_bytes(context, raw, name)?;
        let kernel = Kernel {
            module: self.clone(),
            raw,
            name: name.to_owned(),
            parameter_bytes,
            resources,
            allowed: Mutex::default(),
        };
        Ok(Function { kernel: Arc::new(kernel) })
    }
}

/// The size of the one parameter of a kernel.
fn parameter_bytes(context: &Context, raw: sys::CUfunction, name: &str) -> Result<usize, DriverError> {
    const CALL: &str = "cuFuncGetParamInfo";
    let size = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is one of a loaded module, and the places are ones for sizes.
        let code = unsafe { sys::cuFuncGetParamInfo(raw, index, &mut offset, &mut bytes) };
        if code == CUresult::CUDA_ERROR_INVALID_VALUE {
            return Ok(None);
        }
        context.finish(CALL, code, || format!("kernel `{name}`"))?;
        Ok(Some(bytes))
    };
    match (size(0)?, size(1)?) {
        (Some(bytes), None) => Ok(bytes),
        _ => Err(DriverError::program(CALL, format!("kernel `{name}` does not have exactly one parameter"))),
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the module's own, and no function of it is left.
        self.context.release(|| unsafe { sys::cuModuleUnload(raw) });
    }
}

impl Function {
    /// The kernel's name in its module.
    pub fn name(&self) -> &str {
        &self.kernel.name
    }

    /// What it needs.
    pub fn resources(&self) -> Resources {
        self.kernel.resources
    }

    /// The size of its parameter.
    pub fn parameter_bytes(&self) -> usize {
        self.kernel.parameter_bytes
    }

    /// The context that it is in.
    pub fn context(&self) -> &Context {
        &self.kernel.module.loaded.context
    }

    pub(super) fn raw(&self) -> sys::CUfunction {
        self.kernel.raw
    }

    /// Lets launches ask for so much shared memory beside the static one, which they must where both are over 48 KiB.
    ///
    /// # Errors
    /// If the GPU does not have so much.
    pub fn allow_shared_memory(&self, bytes: u32) -> Result<(), DriverError> {
        const CALL: &str = "cuFuncSetAttribute";
        let declared = self.kernel.resources.static_shared_memory;
        if bytes.saturating_add(declared) <= SHARED_WITHOUT_ASKING {
            return Ok(());
        }
        // What was allowed to one launch stays allowed when another asks for less.
        let mut allowed = self.kernel.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if *allowed >= bytes {
            return Ok(());
        }
        let context = self.context();
        context.enter(CALL)?;
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is one of a loaded module.
        let code = unsafe { sys::cuFuncSetAttribute(self.kernel.raw, which, value) };
        context.finish(CALL, code, || {
            let most = context.info().shared_memory_per_block;
            let name = self.name();
            format!("kernel `{name}` wants {bytes} bytes of shared memory beside {declared}; a block can have {most}")
        })?;
        *allowed = bytes;
        Ok(())
    }
}

/// Where the driver's PTX compiler writes what is wrong.
pub(crate) struct Log {
    text: Vec<u8>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { text: vec![0; LOG_BYTES] }
    }

    /// The options that name it, with their values, which are good as long as it lives.
    pub(crate) fn options(&mut self) -> ([CUjit_option; 2], [*mut c_void; 2]) {
        let names = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size is passed in the place of a pointer.
        (names, [self.text.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)])
    }

    /// What is in it, behind a colon; nothing if it is empty.
    pub(crate) fn says(&self) -> String {
        let length = self.text.iter().position(|byte| *byte == 0).unwrap_or(self.text.len());
        let text = String::from_utf8_lossy(&self.text[..length]);
        if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
    }
}

/// A text with a zero at its end.
pub(crate) fn terminated(call: &'static str, text: &str) -> Result<CString, DriverError> {
    CString::new(text).map_err(|_| DriverError::program(call, "a text has a zero inside"))
}

/// Whether an ELF file has all the bytes that its headers speak of: the driver is not told where the image ends.
fn is_whole(image: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        let field = image.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    // The start, the size and the number of the entries of the tables of segments and sections.
    let end = |start, size, count| number(start, 8)?.checked_add(number(size, 2)? * number(count, 2)?);
    let fits = |end: Option<u64>| end.is_some_and(|end| end <= image.len() as u64);
    image.starts_with(b"\x7fELF\x02\x01") && fits(end(0x20, 0x36, 0x38)) && fits(end(0x28, 0x3a, 0x3c))
}
