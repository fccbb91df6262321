//! Modules and functions.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use std::ffi::{CString, c_char};

use super::device::{SHARED_DEFAULT, SHARED_MOST};
use super::link::unwrapped;
use super::{In, Out, Outcome, Pointer, Text, export};
use crate::driver::state::{Function, Handle, State, driver, enter};
use crate::driver::status::Status;
use crate::program::{Place, Program};

/// Option numbers of `cuModuleLoadDataEx` and `cuLinkCreate`: the buffer for errors, and its size.
const ERROR_BUFFER: u32 = 5;
/// See [`ERROR_BUFFER`].
const ERROR_BUFFER_BYTES: u32 = 6;

/// Where a program wants to have errors written, if anywhere.
#[derive(Clone, Copy, Default)]
pub(super) struct LogBuffer {
    address: usize,
    bytes: usize,
}

impl LogBuffer {
    /// The buffer among some options.
    pub(super) fn of(count: u32, options: &In<u32>, values: &In<usize>) -> Result<Self, Status> {
        let mut buffer = Self::default();
        for index in 0..count as usize {
            match options.at(index)? {
                ERROR_BUFFER => buffer.address = values.at(index)?,
                // A number of 32 bits in the place of a pointer.
                ERROR_BUFFER_BYTES => buffer.bytes = values.at(index)? as u32 as usize,
                _ => {}
            }
        }
        Ok(buffer)
    }

    /// Writes as much of a text as there is room for, and a zero.
    pub(super) fn write(self, text: &str) {
        let place = Out(self.address as *mut u8);
        let Some(room) = self.bytes.checked_sub(1) else { return };
        for (index, byte) in text.bytes().take(room).chain([0]).enumerate() {
            let _ = place.set_at(index, byte);
        }
    }
}

/// Makes a program of a text, for a device of this capability, with variables where `place` says.
pub(super) fn compile(text: &str, capability: (u32, u32), place: &mut Place<'_>) -> Result<Program, (Status, String)> {
    let program = crate::program::load(text, place).map_err(|error| {
        let newer = error.message.contains("is newer than");
        (if newer { Status::UNSUPPORTED_PTX_VERSION } else { Status::INVALID_PTX }, error.to_string())
    })?;
    fits(&program.target, capability).map_err(|message| (Status::INVALID_PTX, message))?;
    Ok(program)
}

fn load(state: &mut State, text: &str) -> Result<Handle, (Status, String)> {
    let State { memory, options, .. } = state;
    let room = options.memory;
    let program = compile(text, options.capability, &mut |variable| {
        if memory.used().saturating_add(variable.bytes) > room {
            return None;
        }
        let region = memory.allocate(variable.bytes.max(1))?;
        // Variables are zero where nothing else is said.
        region.write(region.address, &vec![0; variable.bytes as usize]);
        region.write(region.address, &variable.initial);
        Some(region.address)
    })?;
    let handle = state.handle();
    state.modules.insert(handle, program);
    Ok(handle)
}

/// Whether a device of this capability takes PTX for a target: an older or the same one, and the very same for
/// targets with a letter.
fn fits(target: &str, (major, minor): (u32, u32)) -> Result<(), String> {
    let device = major * 10 + minor;
    let digits: String = target.chars().filter(char::is_ascii_digit).collect();
    let wanted: u32 = digits.parse().map_err(|_| format!("unknown target `{target}`"))?;
    let exact = target.ends_with('a') || target.ends_with('f');
    if wanted > device || (exact && wanted != device) {
        return Err(format!("PTX for {target} does not run on a device of compute capability {major}.{minor}"));
    }
    Ok(())
}

fn load_image(module: Out<u64>, image: Text, log: LogBuffer) -> Outcome {
    if image.0.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    let image = unwrapped(image).unwrap_or(image);
    // A cubin, and the two kinds of fat binaries.
    if image.begins_with(b"\x7fELF") || image.begins_with(b"\x50\xed\x55\xba") || image.begins_with(b"\xb1\x43\x62\x46")
    {
        return Err(Status::NO_BINARY_FOR_GPU);
    }
    let text = image.get().map_err(|_| Status::INVALID_PTX)?;
    let mut state = enter()?;
    let loaded = load(&mut state, &text);
    drop(state);
    match loaded {
        Ok(handle) => module.set(handle),
        Err((status, message)) => {
            driver().complain(&message);
            log.write(&message);
            Err(status)
        }
    }
}

export! {
    fn cuModuleLoadData(module: Out<u64>, image: Text) { load_image(module, image, LogBuffer::default()) }

    fn cuModuleLoadDataEx(module: Out<u64>, image: Text, count: u32, options: In<u32>, values: In<usize>) {
        let log = LogBuffer::of(count, &options, &values)?;
        load_image(module, image, log)
    }

    fn cuModuleLoad(module: Out<u64>, path: Text) {
        let bytes = std::fs::read(path.get()?).map_err(|_| Status::FILE_NOT_FOUND)?;
        if bytes.starts_with(b"\x7fELF") {
            return Err(Status::NO_BINARY_FOR_GPU);
        }
        let text = CString::new(bytes).map_err(|_| Status::INVALID_PTX)?;
        load_image(module, Text(text.as_ptr()), LogBuffer::default())
    }

    fn cuModuleUnload(module: Handle) {
        let mut state = enter()?;
        state.unsafe_call()?;
        let mut state = driver().wait_all(state)?;
        let program = state.modules.remove(&module).ok_or(Status::INVALID_HANDLE)?;
        state.functions.retain(|_, function| function.module != module);
        for global in program.globals {
            state.memory.free(global.address);
        }
        Ok(())
    }

    fn cuModuleGetFunction(function: Out<u64>, module: Handle, name: Text) {
        let name = name.get()?;
        let mut state = enter()?;
        let program = state.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
        let kernel = program.kernels.iter().find(|kernel| kernel.name == name).cloned().ok_or(Status::NOT_FOUND)?;
        let known = state.functions.iter().find(|(_, function)| std::ptr::eq(&*function.kernel, &*kernel));
        if let Some((handle, _)) = known {
            return function.set(*handle);
        }
        let name = CString::new(name).map_err(|_| Status::INVALID_VALUE)?;
        let handle = state.handle();
        let dynamic_limit = SHARED_DEFAULT.saturating_sub(kernel.static_shared as u32);
        state.functions.insert(handle, Function { kernel, module, name, dynamic_limit });
        function.set(handle)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        let name = name.get()?;
        let state = enter()?;
        let program = state.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
        let global = program.globals.iter().find(|global| global.name == name).ok_or(Status::NOT_FOUND)?;
        address.set_if_wanted(global.address);
        bytes.set_if_wanted(global.bytes as usize);
        Ok(())
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: Handle) {
        let state = enter()?;
        let function = state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let kernel = &function.kernel;
        value.set(match attribute {
            0 => kernel.most_threads as i32,
            1 => kernel.static_shared as i32,
            3 => kernel.local_bytes as i32,
            // Registers of the text, which are not those of any device.
            4 => kernel.words.saturating_add(kernel.quads.saturating_mul(2)).min(255) as i32,
            5 | 6 => (state.options.capability.0 * 10 + state.options.capability.1) as i32,
            8 => function.dynamic_limit as i32,
            _ => 0,
        })
    }

    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) {
        const DYNAMIC_SHARED: u32 = 8;
        let mut state = enter()?;
        let function = state.functions.get_mut(&function).ok_or(Status::INVALID_HANDLE)?;
        if attribute == DYNAMIC_SHARED {
            let bytes = u32::try_from(value).map_err(|_| Status::INVALID_VALUE)?;
            if bytes > SHARED_MOST.saturating_sub(function.kernel.static_shared as u32) {
                return Err(Status::INVALID_VALUE);
            }
            function.dynamic_limit = bytes;
        }
        Ok(())
    }

    fn cuFuncSetCacheConfig(_function: Handle, _config: u32) { enter().map(|_| ()) }

    fn cuFuncLoad(function: Handle) {
        // Everything is loaded with its module.
        enter()?.functions.get(&function).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    fn cuFuncGetName(name: Out<*const c_char>, function: Handle) {
        let state = enter()?;
        name.set(state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.name.as_ptr())
    }

    fn cuFuncGetModule(module: Out<u64>, function: Handle) {
        let state = enter()?;
        module.set(state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.module)
    }

    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        let state = enter()?;
        let function = state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let parameter = function.kernel.parameters.get(index).ok_or(Status::INVALID_VALUE)?;
        offset.set(parameter.offset)?;
        bytes.set_if_wanted(parameter.bytes);
        Ok(())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: Handle, threads: i32, shared: usize) {
        occupancy(blocks, function, threads, shared)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: Handle, threads: i32, shared: usize, _flags: u32,
    ) {
        occupancy(blocks, function, threads, shared)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, threads: Out<i32>, function: Handle, _callback: Pointer, _shared: usize, limit: i32,
    ) {
        let state = enter()?;
        let most = state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel.most_threads as i32;
        let best = if limit > 0 { most.min(limit) } else { most };
        grid.set(super::device::PROCESSORS as i32 * (2048 / best.max(1)))?;
        threads.set(best)
    }
}

/// How many blocks of a kernel a multiprocessor holds, by threads and shared memory.
pub(super) fn resident(static_shared: usize, threads: u32, dynamic_shared: usize) -> u32 {
    let by_threads = 2048 / threads.next_multiple_of(32).max(32);
    let shared = static_shared + dynamic_shared + 1024;
    by_threads.min((SHARED_MOST as usize + 1024).checked_div(shared).unwrap_or(0) as u32).min(32)
}

fn occupancy(blocks: Out<i32>, function: Handle, threads: i32, shared: usize) -> Outcome {
    let state = enter()?;
    let function = state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
    let threads = u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(Status::INVALID_VALUE)?;
    blocks.set(resident(function.kernel.static_shared, threads, shared) as i32)
}
