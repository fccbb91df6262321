//! Devices, contexts, errors.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use std::ffi::c_char;

use super::{Out, Pointer, export};
use crate::driver::state::{CURRENT, State, driver, enter};
use crate::driver::status::Status;

/// What a context's handle is: there is one device and one context.
const CONTEXT: usize = 0x100;

/// Streaming multiprocessors.
pub(super) const PROCESSORS: u32 = 132;

/// Shared memory of a block: without asking, and at most.
pub(super) const SHARED_DEFAULT: u32 = 48 * 1024;
/// See [`SHARED_DEFAULT`].
pub(super) const SHARED_MOST: u32 = 227 * 1024;

fn initialized() -> Result<std::sync::MutexGuard<'static, State>, Status> {
    let state = driver().lock();
    if state.initialized { Ok(state) } else { Err(Status::NOT_INITIALIZED) }
}

fn device(ordinal: i32) -> Result<std::sync::MutexGuard<'static, State>, Status> {
    let state = initialized()?;
    if ordinal == 0 { Ok(state) } else { Err(Status::INVALID_DEVICE) }
}

fn attribute(number: i32, state: &State) -> i32 {
    match number {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => SHARED_DEFAULT as i32,
        9 => 65536,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 65536,
        13 => 1_980_000,
        14 => 512,
        16 => PROCESSORS as i32,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        40 => 3,
        75 => state.options.capability.0 as i32,
        76 => state.options.capability.1 as i32,
        81 => (SHARED_MOST + 1024) as i32,
        97 => SHARED_MOST as i32,
        106 => 32,
        111 => 1024,
        // What can be done: map host memory, run kernels side by side, address all memory alike, priorities, managed
        // memory, cooperative launches, memory pools.
        15 | 19 | 31 | 41 | 78 | 79 | 80 | 83 | 95 | 115 => 1,
        _ => 0,
    }
}

export! {
    fn cuInit(_flags: u32) {
        let mut state = driver().lock();
        if !state.options.device {
            return Err(Status::NO_DEVICE);
        }
        if !state.initialized {
            driver().start()?;
            state.initialized = true;
        }
        Ok(())
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        let (major, minor) = driver().lock().options.version;
        version.set((major * 1000 + minor * 10) as i32)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        drop(initialized()?);
        count.set(1)
    }

    fn cuDeviceGet(handle: Out<i32>, ordinal: i32) {
        drop(device(ordinal)?);
        handle.set(0)
    }

    fn cuDeviceGetName(name: Out<c_char>, length: i32, ordinal: i32) {
        drop(device(ordinal)?);
        let text = b"CUDA emulator";
        let room = usize::try_from(length).ok().and_then(|length| length.checked_sub(1)).ok_or(Status::INVALID_VALUE)?;
        let count = text.len().min(room);
        for (index, byte) in text[..count].iter().enumerate() {
            name.set_at(index, byte.cast_signed())?;
        }
        name.set_at(count, 0)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, ordinal: i32) {
        drop(device(ordinal)?);
        uuid.set(*b"cuda-emulator-00")
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, ordinal: i32) {
        drop(device(ordinal)?);
        uuid.set(*b"cuda-emulator-00")
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, ordinal: i32) {
        let state = device(ordinal)?;
        bytes.set(state.options.memory as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, number: i32, ordinal: i32) {
        let state = device(ordinal)?;
        value.set(attribute(number, &state))
    }

    fn cuDevicePrimaryCtxRetain(context: Out<usize>, ordinal: i32) {
        device(ordinal)?.retained += 1;
        context.set(CONTEXT)
    }

    fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) {
        let mut state = device(ordinal)?;
        if state.retained == 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        if state.retained == 1 {
            let error = state.error;
            // Whatever it was, the context ends with it.
            drop(driver().wait_all(state));
            state = driver().lock();
            debug_assert!(error.is_none() || state.error.is_some());
            state.reset();
        }
        state.retained -= 1;
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(ordinal: i32) {
        let state = device(ordinal)?;
        drop(driver().wait_all(state));
        driver().lock().reset();
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(ordinal: i32, flags: Out<u32>, active: Out<i32>) {
        let state = device(ordinal)?;
        flags.set(0)?;
        active.set(i32::from(state.retained > 0))
    }

    fn cuCtxSetCurrent(context: Pointer) {
        drop(initialized()?);
        CURRENT.set(context.address() == CONTEXT);
        if [0, CONTEXT].contains(&context.address()) { Ok(()) } else { Err(Status::INVALID_CONTEXT) }
    }

    fn cuCtxGetCurrent(context: Out<usize>) {
        drop(initialized()?);
        context.set(if CURRENT.get() { CONTEXT } else { 0 })
    }

    fn cuCtxPushCurrent_v2(context: Pointer) { CURRENT.set(context.address() == CONTEXT); Ok(()) }

    fn cuCtxPopCurrent_v2(context: Out<usize>) {
        if !CURRENT.replace(false) {
            return Err(Status::INVALID_CONTEXT);
        }
        context.set_if_wanted(CONTEXT);
        Ok(())
    }

    fn cuCtxGetDevice(handle: Out<i32>) {
        drop(enter()?);
        handle.set(0)
    }

    fn cuCtxSynchronize() {
        let mut state = enter()?;
        state.observe_all()?;
        driver().wait_all(state).map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        drop(enter()?);
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn cuCtxSetLimit(_limit: u32, _value: usize) { enter().map(|_| ()) }

    fn cuCtxGetLimit(value: Out<usize>, _limit: u32) {
        drop(enter()?);
        value.set(1024)
    }

    fn cuCtxSetFlags(_flags: u32) { enter().map(|_| ()) }

    fn cuCtxGetCacheConfig(config: Out<u32>) {
        drop(enter()?);
        config.set(0)
    }

    fn cuCtxSetCacheConfig(_config: u32) { enter().map(|_| ()) }

    fn cuProfilerStart() { enter().map(|_| ()) }

    fn cuProfilerStop() { enter().map(|_| ()) }

    fn cuGetErrorName(code: u32, text: Out<*const c_char>) {
        let (name, _) = Status::describe(code).ok_or(Status::INVALID_VALUE)?;
        text.set(name.as_ptr())
    }

    fn cuGetErrorString(code: u32, text: Out<*const c_char>) {
        let (_, meaning) = Status::describe(code).ok_or(Status::INVALID_VALUE)?;
        text.set(meaning.as_ptr())
    }

    #[doc = "Instructions that were run so far: those of warps, and those of threads. Not part of CUDA."]
    fn allotropeEmulatorCounts(warps: Out<u64>, threads: Out<u64>) {
        let (of_warps, of_threads) = crate::driver::state::counts();
        warps.set(of_warps)?;
        threads.set(of_threads)
    }
}
