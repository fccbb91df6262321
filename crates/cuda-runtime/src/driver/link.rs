//! Machine code from PTX, by the driver's compiler.

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUjitInputType};

use super::context::{Context, refuse_in_capture};
use super::error::DriverError;
use super::module::{Log, terminated};

/// A link in progress. The log is written by the driver as long as it lives.
struct Link<'a> {
    context: &'a Context,
    raw: sys::CUlinkState,
    log: Log,
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the link's own, and what it gave was copied.
        self.context.release(|| unsafe { sys::cuLinkDestroy(raw) });
    }
}

impl Context {
    /// Compiles PTX to machine code for this GPU.
    ///
    /// # Errors
    /// If the driver refuses the PTX, with what its compiler says, or has no compiler.
    pub fn compile(&self, ptx: &str) -> Result<Vec<u8>, DriverError> {
        const ADD: &str = "cuLinkAddData";
        refuse_in_capture(ADD)?;
        let text = terminated(ADD, ptx)?;
        self.enter("cuLinkCreate")?;
        let mut log = Log::new();
        let (mut options, mut values) = log.options();
        let mut raw = std::ptr::null_mut();
        // SAFETY: options and values are as many as is said, and the log is as long and lives until the link is destroyed.
        let code =
            unsafe { sys::cuLinkCreate_v2(options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr(), &mut raw) };
        self.finish("cuLinkCreate", code, String::new)?;
        let link = Link { context: self, raw, log };
        let bytes = text.as_bytes_with_nul();
        let data = bytes.as_ptr().cast::<c_void>().cast_mut();
        let (none, no_values) = (std::ptr::null_mut(), std::ptr::null_mut());
        let kind = CUjitInputType::CU_JIT_INPUT_PTX;
        // SAFETY: the text has as many bytes as is said, and is only read.
        let code = unsafe { sys::cuLinkAddData_v2(raw, kind, data, bytes.len(), c"ptx".as_ptr(), 0, none, no_values) };
        self.finish(ADD, code, || format!("PTX of {} bytes{}", ptx.len(), link.log.says()))?;
        let (mut image, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: the places are ones for a pointer and a size.
        let code = unsafe { sys::cuLinkComplete(raw, &mut image, &mut size) };
        self.finish("cuLinkComplete", code, || format!("PTX of {} bytes{}", ptx.len(), link.log.says()))?;
        if image.is_null() {
            return Err(DriverError::program("cuLinkComplete", "the driver gave no machine code and no error"));
        }
        // SAFETY: the driver gave so many bytes, which are there until the link is destroyed.
        Ok(unsafe { std::slice::from_raw_parts(image.cast::<u8>(), size) }.to_vec())
    }
}
