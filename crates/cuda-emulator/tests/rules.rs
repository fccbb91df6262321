//! What each call does to a capture: what it returns, and what the end of the capture returns then. `rules.txt` is what
//! the driver 580.159.04 did with an H100; the emulator must do the same.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/driver.rs"]
mod process;

use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};

const MODES: [(&str, CUstreamCaptureMode); 3] = [
    ("global", CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL),
    ("local", CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
    ("relaxed", CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED),
];

/// With a blocking stream, only these are tried: the others do not touch the legacy stream.
const WITH_BLOCKING: [&str; 5] = ["htod", "dtod", "memset", "sync context", "dtoh async pageable other"];

type Action<'a> = (&'static str, Box<dyn Fn() -> CUresult + 'a>);

/// What the calls are made on.
struct Things {
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    other: sys::CUstream,
    event: sys::CUevent,
    memory: [u64; 2],
    host: *mut std::ffi::c_void,
    text: CString,
}

/// Runs a function in a thread of its own that has the context.
fn elsewhere(things: &Things, function: impl FnOnce() -> CUresult + Send) -> CUresult {
    let context = &things.context;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            context.bind_to_thread().unwrap();
            function()
        });
        thread.join().unwrap()
    })
}

fn allocate() -> CUresult {
    let mut address = 0;
    // SAFETY: there is a place for the address.
    unsafe { sys::cuMemAlloc_v2(&mut address, 16) }
}

fn end(stream: sys::CUstream) -> CUresult {
    let mut graph = null_mut();
    // SAFETY: there is a place for the graph.
    unsafe { sys::cuStreamEndCapture(stream, &mut graph) }
}

/// Frees memory that was allocated in the relaxed mode of the thread, in which that is always allowed.
fn free() -> CUresult {
    let mut address = 0;
    let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: there are places for what is given back, and the memory is not used.
    unsafe {
        sys::cuThreadExchangeStreamCaptureMode(&mut mode).result().unwrap();
        sys::cuMemAlloc_v2(&mut address, 16).result().unwrap();
        sys::cuThreadExchangeStreamCaptureMode(&mut mode).result().unwrap();
        sys::cuMemFree_v2(address)
    }
}

/// A call of the driver with handles, places and memory that live as long as the test.
macro_rules! call {
    ($name:literal, $function:ident($($argument:expr),*)) => {
        // SAFETY: see above.
        ($name, Box::new(move || unsafe { sys::$function($($argument),*) }) as Box<dyn Fn() -> CUresult>)
    };
}

/// The same with a place for a result that nobody looks at.
macro_rules! make {
    ($name:literal, $function:ident($($argument:expr),*), $first:expr) => {
        ($name, Box::new(move || {
            let mut place = $first;
            // SAFETY: see above.
            unsafe { sys::$function(&mut place, $($argument),*) }
        }) as Box<dyn Fn() -> CUresult>)
    };
}

fn actions(things: &Things) -> Vec<Action<'_>> {
    let &Things { stream, other, event, memory: [first, second], host, .. } = things;
    let text = things.text.as_ptr().cast();
    let address = stream as usize;
    let ends_elsewhere = move || elsewhere(things, move || end(address as sys::CUstream));
    vec![
        call!("sync stream", cuStreamSynchronize(stream)),
        call!("query stream", cuStreamQuery(stream)),
        call!("sync other stream", cuStreamSynchronize(other)),
        call!("sync context", cuCtxSynchronize()),
        call!("sync legacy", cuStreamSynchronize(null_mut())),
        ("alloc", Box::new(allocate)),
        ("alloc in thread", Box::new(|| elsewhere(things, allocate))),
        ("free", Box::new(free)),
        make!("host alloc", cuMemHostAlloc(16, 0), null_mut()),
        make!("alloc async", cuMemAllocAsync(16, stream), 0),
        make!("alloc async other", cuMemAllocAsync(16, other), 0),
        call!("htod async pageable", cuMemcpyHtoDAsync_v2(first, host, 64, stream)),
        call!("dtoh async pageable", cuMemcpyDtoHAsync_v2(host, first, 64, stream)),
        call!("htod async pageable other", cuMemcpyHtoDAsync_v2(first, host, 64, other)),
        call!("dtoh async pageable other", cuMemcpyDtoHAsync_v2(host, first, 64, other)),
        call!("memset async other", cuMemsetD8Async(second, 0, 64, other)),
        call!("htod", cuMemcpyHtoD_v2(first, host, 64)),
        call!("dtod", cuMemcpyDtoD_v2(first, second, 64)),
        call!("memset", cuMemsetD8_v2(first, 0, 64)),
        call!("memset async legacy", cuMemsetD8Async(first, 0, 64, null_mut())),
        call!("wait outside event", cuStreamWaitEvent(stream, event, 0)),
        call!("query outside event", cuEventQuery(event)),
        call!("sync outside event", cuEventSynchronize(event)),
        make!("load module", cuModuleLoadData(text), null_mut()),
        ("mem info", Box::new(|| code(cudarc::driver::result::mem_get_info()))),
        call!("begin again", cuStreamBeginCapture_v2(stream, MODES[2].1)),
        ("is capturing legacy", Box::new(is_capturing_legacy)),
        ("end on other", Box::new(move || end(other))),
        ("end in thread", Box::new(ends_elsewhere)),
        make!("new stream", cuStreamCreate(1), null_mut()),
        make!("new event", cuEventCreate(0), null_mut()),
    ]
}

fn code<T>(result: Result<T, cudarc::driver::DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}

fn is_capturing_legacy() -> CUresult {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: there is a place for the status.
    unsafe { sys::cuStreamIsCapturing(null_mut(), &mut status) }
}

#[test]
fn rules() {
    if let Some(text) = process::outside("rules", &[]) {
        let lines =
            |text: &str| text.lines().filter(|line| line.contains("blocking")).map(str::to_owned).collect::<Vec<_>>();
        let (got, expected) = (lines(&text), lines(include_str!("rules.txt")));
        let wrong: Vec<_> = got.iter().zip(&expected).filter(|(got, expected)| got != expected).collect();
        assert!(wrong.is_empty() && got.len() == expected.len(), "{wrong:#?}\n{text}");
        return;
    }
    let context = CudaContext::new(0).unwrap();
    // SAFETY: nothing here depends on events that cudarc keeps.
    unsafe { context.disable_event_tracking() };
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let event = stream.record_event(None).unwrap();
    let mut host = [0u8; 64];
    // SAFETY: the memory stays until the process ends.
    let memory = [(); 2].map(|()| unsafe { cudarc::driver::result::malloc_sync(64) }.unwrap());
    let mut blocking = null_mut();
    // SAFETY: the memory is that large, and there is a place for the stream.
    unsafe {
        cudarc::driver::result::memset_d8_sync(memory[0], 0, 64).unwrap();
        cudarc::driver::result::memset_d8_sync(memory[1], 0, 64).unwrap();
        sys::cuStreamCreate(&mut blocking, 0).result().unwrap();
    }
    let text = CString::new(include_str!("ptx/basic.sm_80.ptx")).unwrap();
    let (stream, other, event) = (stream.cu_stream(), other.cu_stream(), event.cu_event());
    let things = Things { context, stream, other, event, memory, host: host.as_mut_ptr().cast(), text };
    println!();
    for (kind, target) in [("nonblocking", stream), ("blocking", blocking)] {
        for (name, mode) in MODES {
            for (what, action) in actions(&things) {
                if kind == "blocking" && !what.contains("legacy") && !WITH_BLOCKING.contains(&what) {
                    continue;
                }
                // SAFETY: the stream is live.
                let begun = unsafe { sys::cuStreamBeginCapture_v2(target, mode) };
                let (got, ended) = (action(), end(target));
                println!("{kind:11} {name:8} {what:28} {} {} {}", begun as u32, got as u32, ended as u32);
            }
        }
    }
}
