//! Streams, events, capture.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use super::{Out, Outcome, Pointer, export};
use crate::driver::capture::{Stage, is_mode};
use crate::driver::state::{Event, Handle, LEGACY, MODE, Stream, driver, enter};
use crate::driver::status::Status;
use crate::driver::work::{HostFunction, Work};

fn create(handle: Out<u64>, flags: u32, priority: i32) -> Outcome {
    let mut state = enter()?;
    let number = state.handle();
    state.streams.insert(number, Stream::new(flags & 1 == 0, priority));
    handle.set(number)
}

export! {
    fn cuStreamCreate(handle: Out<u64>, flags: u32) { create(handle, flags, 0) }

    fn cuStreamCreateWithPriority(handle: Out<u64>, flags: u32, priority: i32) { create(handle, flags, priority) }

    fn cuStreamGetPriority(stream: Pointer, priority: Out<i32>) {
        let state = enter()?;
        let stream = state.stream(stream.address())?;
        priority.set(state.streams.get(&stream).map_or(0, |stream| stream.priority))
    }

    fn cuStreamDestroy_v2(stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.destroy_stream(stream)
    }

    fn cuStreamSynchronize(stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.observe(stream)?;
        state.unsafe_call()?;
        if state.is_idle(stream) {
            return Ok(());
        }
        // The legacy stream's task waits for the blocking streams, which is what waiting for it means.
        let mark = state.enqueue(stream, Work::Nothing);
        driver().wait(state, mark).map(|_| ())
    }

    fn cuStreamQuery(stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.observe(stream)?;
        if state.is_idle(stream) { Ok(()) } else { Err(Status::NOT_READY) }
    }

    fn cuStreamWaitEvent(stream: Pointer, event: Handle, _flags: u32) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.wait_event(stream, event)
    }

    fn cuStreamAttachMemAsync(_stream: Pointer, _address: u64, _length: usize, _flags: u32) { enter().map(|_| ()) }

    fn cuLaunchHostFunc(stream: Pointer, function: Option<HostFunction>, data: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        let function = function.ok_or(Status::INVALID_VALUE)?;
        state.submit(stream, Work::Host(function, data.host())).map(|_| ())
    }

    fn cuEventCreate(handle: Out<u64>, _flags: u32) {
        let mut state = enter()?;
        let number = state.handle();
        state.events.insert(number, Event::default());
        handle.set(number)
    }

    fn cuEventDestroy_v2(event: Handle) {
        let mut state = enter()?;
        state.events.remove(&event).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    fn cuEventRecord(event: Handle, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.record(event, stream)
    }

    fn cuEventRecordWithFlags(event: Handle, stream: Pointer, _flags: u32) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.record(event, stream)
    }

    fn cuEventQuery(event: Handle) {
        let mut state = enter()?;
        let mark = state.event_mark(event)?;
        state.unsafe_call()?;
        if mark.is_none_or(|mark| state.is_done(mark)) { Ok(()) } else { Err(Status::NOT_READY) }
    }

    fn cuEventSynchronize(event: Handle) {
        let mut state = enter()?;
        let mark = state.event_mark(event)?;
        state.unsafe_call()?;
        match mark {
            Some(mark) => driver().wait(state, mark).map(|_| ()),
            None => Ok(()),
        }
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        let state = enter()?;
        let (from, to) = (state.event_mark(start)?, state.event_mark(end)?);
        let (Some(from), Some(to)) = (from, to) else { return Err(Status::INVALID_HANDLE) };
        if !state.is_done(from) || !state.is_done(to) {
            return Err(Status::NOT_READY);
        }
        let time = |event| state.events.get(&event).and_then(|event| event.time).ok_or(Status::INVALID_HANDLE);
        milliseconds.set(time(end)?.saturating_duration_since(time(start)?).as_secs_f32() * 1e3)
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        let status = cuEventElapsedTime_v2(milliseconds, start, end);
        if status == Status::SUCCESS { Ok(()) } else { Err(status) }
    }

    fn cuStreamBeginCapture_v2(stream: Pointer, mode: u32) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        state.begin_capture(stream, mode)
    }

    fn cuStreamEndCapture(stream: Pointer, graph: Out<u64>) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        graph.set_if_wanted(0);
        let ended = state.end_capture(stream)?;
        graph.set(ended)
    }

    fn cuStreamIsCapturing(stream: Pointer, status: Out<u32>) {
        let state = enter()?;
        let stream = state.stream(stream.address())?;
        // This alone says that the legacy stream would wait for a capture and lets it be.
        if stream == LEGACY && state.streams.values().any(|stream| stream.blocking && stream.capture.is_some()) {
            return Err(Status::CAPTURE_IMPLICIT);
        }
        status.set(stage_number(state.capture_stage(stream).0))
    }

    fn cuStreamGetCaptureInfo_v3(
        stream: Pointer, status: Out<u32>, id: Out<u64>, graph: Out<u64>,
        dependencies: Out<u64>, edges: Out<u64>, count: Out<usize>,
    ) {
        let state = enter()?;
        let stream = state.stream(stream.address())?;
        let (stage, number) = state.capture_stage(stream);
        // The graph and its nodes have no handles before the capture ends.
        for place in [graph, dependencies, edges] {
            if !place.is_null() {
                return Err(Status::NOT_SUPPORTED);
            }
        }
        count.set_if_wanted(0);
        id.set_if_wanted(number);
        status.set(stage_number(stage))
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let wanted = super::In(mode.0.cast_const()).get()?;
        if !is_mode(wanted) {
            return Err(Status::INVALID_VALUE);
        }
        mode.set(MODE.replace(wanted))
    }
}

fn stage_number(stage: Stage) -> u32 {
    match stage {
        Stage::None => 0,
        Stage::Active => 1,
        Stage::Invalidated => 2,
    }
}
