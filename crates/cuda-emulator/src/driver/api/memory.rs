//! Memory: allocation, copies, pools.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use std::sync::{Arc, MutexGuard};

use super::{In, Out, Outcome, Pointer, export};
use crate::driver::state::{LEGACY, State, driver, enter};
use crate::driver::status::Status;
use crate::driver::work::{HostPointer, Work};
use crate::machine::memory::Region;

/// The handle of the pool that every allocation comes from.
const POOL: u64 = 0x200;

fn allocate(state: &mut State, bytes: usize) -> Result<Arc<Region>, Status> {
    if bytes == 0 {
        return Err(Status::INVALID_VALUE);
    }
    let left = state.options.memory.saturating_sub(state.memory.used());
    if bytes as u64 > left {
        return Err(Status::OUT_OF_MEMORY);
    }
    state.memory.allocate(bytes as u64).ok_or(Status::OUT_OF_MEMORY)
}

/// Does work on the legacy stream and waits for it. That is allowed while a stream captures that does not wait for the
/// legacy one.
fn at_once(work: Work) -> Outcome {
    let mut state = enter()?;
    state.implicit(LEGACY)?;
    submit_and_wait(state, LEGACY, work)
}

fn submit_and_wait(mut state: MutexGuard<'static, State>, stream: u64, work: Work) -> Outcome {
    match state.submit(stream, work)? {
        Some(mark) => driver().wait(state, mark).map(|_| ()),
        None => Ok(()),
    }
}

/// Frees memory that nothing may use any more, so the device must be idle.
fn free(address: u64) -> Outcome {
    let mut state = enter()?;
    state.unsafe_call()?;
    let mut state = driver().wait_all(state)?;
    match state.memory.free(address) {
        Some(_) => Ok(()),
        None => Err(Status::INVALID_VALUE),
    }
}

fn is_pinned(state: &State, pointer: Pointer, bytes: usize) -> bool {
    state.memory.find(pointer.address() as u64, bytes as u64).is_some_and(|region| region.host)
}

fn set(to: u64, value: u32, width: u8, count: usize, stream: Option<usize>) -> Outcome {
    if !to.is_multiple_of(u64::from(width)) {
        return Err(Status::INVALID_VALUE);
    }
    let work = Work::Set { to, value, width, count: count as u64 };
    match stream {
        None => at_once(work),
        Some(stream) => {
            let mut state = enter()?;
            let stream = state.stream(stream)?;
            state.submit(stream, work).map(|_| ())
        }
    }
}

/// What `cuMemcpy` works out from its pointers: each is one of the device, or else of the host.
fn any_copy(state: &State, to: u64, from: u64, bytes: usize) -> Work {
    let count = bytes as u64;
    let device =
        |address: u64| state.memory.find(address, count).is_some() || address >= crate::machine::memory::FIRST_ADDRESS;
    match (device(to), device(from)) {
        (false, _) => Work::CopyOut { to: HostPointer(to as usize), from, bytes: count },
        (true, false) => Work::CopyIn { to, from: HostPointer(from as usize), bytes: count },
        (true, true) => Work::Copy { to, from, bytes: count },
    }
}

export! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let state = enter()?;
        let all = state.options.memory;
        free.set(all.saturating_sub(state.memory.used()) as usize)?;
        total.set(all as usize)
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let mut state = enter()?;
        state.unsafe_call()?;
        let region = allocate(&mut state, bytes)?;
        address.set(region.address)
    }

    fn cuMemFree_v2(address: u64) { if address == 0 { Ok(()) } else { free(address) } }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        let captured = state.is_capturing(stream)?;
        if !captured {
            state.unsafe_call()?;
        }
        let region = allocate(&mut state, bytes)?;
        address.set(region.address)?;
        if captured {
            // The address is the graph's; the memory is there while the graph runs.
            state.memory.free(region.address);
            return state.submit(stream, Work::Allocate(region)).map(|_| ());
        }
        state.implicit(stream)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, _pool: u64, stream: Pointer) {
        let status = cuMemAllocAsync(address, bytes, stream);
        if status == Status::SUCCESS { Ok(()) } else { Err(status) }
    }

    fn cuMemFreeAsync(address: u64, stream: Pointer) {
        if address == 0 {
            return Ok(());
        }
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        if !state.is_capturing(stream)? && state.memory.find(address, 0).is_none_or(|region| region.address != address) {
            return Err(Status::INVALID_VALUE);
        }
        state.submit(stream, Work::Free(address)).map(|_| ())
    }

    fn cuMemHostAlloc(pointer: Out<u64>, bytes: usize, _flags: u32) {
        let mut state = enter()?;
        state.unsafe_call()?;
        let region = state.memory.allocate_host(bytes.max(1) as u64).ok_or(Status::OUT_OF_MEMORY)?;
        pointer.set(region.address)
    }

    fn cuMemAllocHost_v2(pointer: Out<u64>, bytes: usize) {
        let status = cuMemHostAlloc(pointer, bytes, 0);
        if status == Status::SUCCESS { Ok(()) } else { Err(status) }
    }

    fn cuMemAllocManaged(address: Out<u64>, bytes: usize, _flags: u32) {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let status = cuMemHostAlloc(address, bytes, 0);
        if status == Status::SUCCESS { Ok(()) } else { Err(status) }
    }

    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, pointer: Pointer, _flags: u32) {
        let state = enter()?;
        if !is_pinned(&state, pointer, 1) {
            return Err(Status::INVALID_VALUE);
        }
        address.set(pointer.address() as u64)
    }

    fn cuMemFreeHost(pointer: Pointer) {
        let state = enter()?;
        if !is_pinned(&state, pointer, 0) {
            return Err(Status::INVALID_VALUE);
        }
        drop(state);
        free(pointer.address() as u64)
    }

    fn cuMemcpyHtoD_v2(to: u64, from: Pointer, bytes: usize) {
        at_once(Work::CopyIn { to, from: from.host(), bytes: bytes as u64 })
    }

    fn cuMemcpyDtoH_v2(to: Pointer, from: u64, bytes: usize) {
        at_once(Work::CopyOut { to: to.host(), from, bytes: bytes as u64 })
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        at_once(Work::Copy { to, from, bytes: bytes as u64 })
    }

    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        let work = any_copy(&*enter()?, to, from, bytes);
        at_once(work)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: Pointer, bytes: usize, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        if bytes == 0 {
            return Ok(());
        }
        // A graph reads the memory whenever it runs, of whatever kind it is.
        if is_pinned(&state, from, bytes) || state.is_capturing(stream)? {
            return state.submit(stream, Work::CopyIn { to, from: from.host(), bytes: bytes as u64 }).map(|_| ());
        }
        // As the driver does: pageable memory may change as soon as the call returns.
        let staged = Work::CopyStaged { to, bytes: from.bytes(bytes)?.into() };
        state.submit(stream, staged).map(|_| ())
    }

    fn cuMemcpyDtoHAsync_v2(to: Pointer, from: u64, bytes: usize, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        if bytes == 0 {
            return Ok(());
        }
        let work = Work::CopyOut { to: to.host(), from, bytes: bytes as u64 };
        if is_pinned(&state, to, bytes) {
            return state.submit(stream, work).map(|_| ());
        }
        submit_and_wait(state, stream, work)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.submit(stream, Work::Copy { to, from, bytes: bytes as u64 }).map(|_| ())
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        let work = any_copy(&state, to, from, bytes);
        let mark = state.submit(stream, work)?;
        mark.map_or(Ok(()), |mark| driver().wait(state, mark).map(|_| ()))
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) { set(to, value.into(), 1, count, None) }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) { set(to, value.into(), 2, count, None) }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) { set(to, value, 4, count, None) }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Pointer) {
        set(to, value.into(), 1, count, Some(stream.address()))
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Pointer) {
        set(to, value.into(), 2, count, Some(stream.address()))
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Pointer) {
        set(to, value, 4, count, Some(stream.address()))
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let region = enter()?.memory.find(address, 1).ok_or(Status::NOT_FOUND)?;
        base.set_if_wanted(region.address);
        bytes.set_if_wanted(region.size as usize);
        Ok(())
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<u64>, _device: i32) { pool.set(POOL) }

    fn cuDeviceGetMemPool(pool: Out<u64>, _device: i32) { pool.set(POOL) }

    fn cuDeviceSetMemPool(_device: i32, _pool: u64) { Ok(()) }

    fn cuMemPoolCreate(pool: Out<u64>, _properties: Pointer) {
        let mut state = enter()?;
        let handle = state.handle();
        state.pools.insert(handle, 0);
        pool.set(handle)
    }

    fn cuMemPoolDestroy(pool: u64) {
        enter()?.pools.remove(&pool).map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    fn cuMemPoolTrimTo(_pool: u64, _bytes: usize) { enter().map(|_| ()) }

    fn cuMemPoolSetAttribute(pool: u64, attribute: u32, value: In<u64>) {
        const THRESHOLD: u32 = 4;
        let mut state = enter()?;
        if attribute == THRESHOLD {
            let value = value.get()?;
            state.pools.insert(pool, value);
        }
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: u64, attribute: u32, value: Out<u64>) {
        let state = enter()?;
        match attribute {
            // Three settings of 32 bits, all on.
            1..=3 => Out::<u32>(value.0.cast()).set(1),
            4 => value.set(state.pools.get(&pool).copied().unwrap_or(0)),
            5..=8 => value.set(state.memory.used()),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}
