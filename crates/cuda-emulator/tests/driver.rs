//! The driver through cudarc, as any program uses it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "common/driver.rs"]
mod process;

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode::*};
use cudarc::driver::{CudaContext, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use process::outside;

const TEXT: &str = include_str!("ptx/basic.sm_80.ptx");

fn start() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests order their work themselves.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (context, stream)
}

fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}

#[test]
fn kernels_run() {
    if let Some(text) = outside("kernels_run", &[("ALLOTROPE_EMULATOR_SEED", "3")]) {
        assert!(!text.contains("CUDA_ERROR"), "{text}");
        return;
    }
    let (context, stream) = start();
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    assert!(context.name().unwrap().contains("emulator") && context.has_async_alloc());
    let module = context.load_module(Ptx::from_src(TEXT)).unwrap();
    let add = module.load_function("add").unwrap();
    let count = 10_007;
    let a: Vec<f32> = (0..count).map(|index| index as f32).collect();
    let (first, second) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&a).unwrap());
    let mut sum = stream.clone_htod(&vec![f32::NAN; count]).unwrap();
    let length = count as i32;
    let mut launch = stream.launch_builder(&add);
    launch.arg(&mut sum).arg(&first).arg(&second).arg(&length);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(shape(count.div_ceil(256) as u32, 256)) }.unwrap();
    let result = stream.clone_dtoh(&sum).unwrap();
    assert!(result.iter().zip(&a).all(|(sum, a)| *sum == a + a));

    let total = module.load_function("total").unwrap();
    let mut out = stream.clone_htod(&[f32::NAN; 4]).unwrap();
    let mut launch = stream.launch_builder(&total);
    let (width, ones) = (250, stream.clone_htod(&vec![1f32; 1000]).unwrap());
    launch.arg(&mut out).arg(&ones).arg(&width);
    // SAFETY: as above.
    unsafe { launch.launch(shape(4, 128)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [250.0; 4]);

    // Events, and two streams that wait for each other.
    let other = context.new_stream().unwrap();
    let event = stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    other.wait(&event).unwrap();
    let later = other.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    later.synchronize().unwrap();
    assert!(event.elapsed_ms(&later).unwrap() >= 0.0);
    assert_eq!(
        code(context.load_module(Ptx::from_src(".version 9.9\n"))),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    );
    assert_eq!(
        code(context.load_module(Ptx::from_binary(b"\x7fELF\0".to_vec()))),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    assert_eq!(code(module.load_function("nothing")), CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn captures_replay() {
    if outside("captures_replay", &[]).is_some() {
        return;
    }
    let (context, stream) = start();
    let module = context.load_module(Ptx::from_src(TEXT)).unwrap();
    let add = module.load_function("add").unwrap();
    let mut a = stream.clone_htod(&[0f32; 64]).unwrap();
    let mut sum = stream.clone_htod(&[f32::NAN; 64]).unwrap();
    let length = 64;
    let other = context.new_stream().unwrap();
    let mut twice = stream.clone_htod(&[f32::NAN; 64]).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let run =
        |on: &Arc<CudaStream>, out: &mut cudarc::driver::CudaSlice<f32>, from: &cudarc::driver::CudaSlice<f32>| {
            let mut launch = on.launch_builder(&add);
            launch.arg(out).arg(from).arg(from).arg(&length);
            // SAFETY: the arguments are those of the kernel.
            unsafe { launch.launch(shape(1, 64)) }.map(|_| ())
        };
    run(&stream, &mut sum, &a).unwrap();
    // A fork and a join by events.
    let event = stream.record_event(None).unwrap();
    other.wait(&event).unwrap();
    assert_eq!(other.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    run(&other, &mut twice, &sum).unwrap();
    let joined = other.record_event(None).unwrap();
    stream.wait(&joined).unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert!(stream.clone_dtoh(&sum).unwrap().iter().all(|value| value.is_nan()), "nothing runs while it is captured");
    for round in 1..4 {
        stream.memcpy_htod(&[round as f32; 64], &mut a).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [2.0 * round as f32; 64]);
        assert_eq!(stream.clone_dtoh(&twice).unwrap(), [4.0 * round as f32; 64]);
    }
    raw_graph(&graph);
}

/// Nodes, types, pictures, updates: by the functions themselves.
fn raw_graph(graph: &cudarc::driver::CudaGraph) {
    let (raw, executable) = (graph.cu_graph(), graph.cu_graph_exec());
    // SAFETY: the handles are live, and the places are as large as is said.
    unsafe {
        let mut count = 0;
        sys::cuGraphGetNodes(raw, std::ptr::null_mut(), &mut count).result().unwrap();
        assert_eq!(count, 2);
        let mut nodes = [std::ptr::null_mut(); 2];
        sys::cuGraphGetNodes(raw, nodes.as_mut_ptr(), &mut count).result().unwrap();
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        sys::cuGraphNodeGetType(nodes[0], &mut kind).result().unwrap();
        assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        let mut parameters = std::mem::zeroed();
        sys::cuGraphKernelNodeGetParams_v2(nodes[0], &mut parameters).result().unwrap();
        assert_eq!((parameters.blockDimX, parameters.gridDimX), (64, 1));
        assert_eq!(*(*parameters.kernelParams.add(3)).cast::<i32>(), 64);
        // One element is left as it was.
        let mut fewer = 63i32;
        let mut pointers: Vec<_> = (0..4).map(|index| *parameters.kernelParams.add(index)).collect();
        pointers[3] = std::ptr::from_mut(&mut fewer).cast();
        parameters.kernelParams = pointers.as_mut_ptr();
        sys::cuGraphExecKernelNodeSetParams_v2(executable, nodes[0], &parameters).result().unwrap();
        let mut result = std::mem::zeroed();
        sys::cuGraphExecUpdate_v2(executable, raw, &mut result).result().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.dot");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        sys::cuGraphDebugDotPrint(raw, name.as_ptr(), 0).result().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("add<<<(1,1,1),(64,1,1),0>>>") && text.contains("node0 -> node1"), "{text}");
    }
}

#[test]
fn illegal_calls_invalidate_a_capture() {
    if outside("illegal_calls_invalidate_a_capture", &[]).is_some() {
        return;
    }
    let (context, stream) = start();
    let before = stream.record_event(None).unwrap();
    let invalid = |mode, what: &dyn Fn() -> CUresult, expected| {
        stream.begin_capture(mode).unwrap();
        assert_eq!(what(), expected);
        // What failed in a destructor is kept by the context until someone asks.
        context.check_err().ok();
        assert_eq!(
            code(stream.end_capture(sys::CUgraphInstantiate_flags(0))),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        );
        let none = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        assert_eq!(stream.capture_status().unwrap(), none);
    };
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    invalid(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, &|| code(stream.synchronize()), unsupported);
    invalid(CU_STREAM_CAPTURE_MODE_RELAXED, &|| code(stream.synchronize()), unsupported);
    invalid(CU_STREAM_CAPTURE_MODE_GLOBAL, &|| code(context.synchronize()), unsupported);
    // SAFETY: the memory is never used.
    let allocate = || code(unsafe { cudarc::driver::result::malloc_sync(16) });
    invalid(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, &allocate, unsupported);
    invalid(CU_STREAM_CAPTURE_MODE_GLOBAL, &|| in_thread(&context), unsupported);
    invalid(
        CU_STREAM_CAPTURE_MODE_GLOBAL,
        &|| code(stream.wait(&before)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
    );
    // What is allowed: another thread under the thread-local mode, allocation under the relaxed one.
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(in_thread(&context), CUresult::CUDA_SUCCESS);
    stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap();
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    assert_eq!(allocate(), CUresult::CUDA_SUCCESS);
    assert_eq!(code(stream.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED)), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    // A fork that is not joined.
    let other = context.new_stream().unwrap();
    let mut memory = other.alloc_zeros::<f32>(64).unwrap();
    let event = stream.record_event(None).unwrap();
    assert_eq!(code(event.synchronize()), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    other.wait(&event).unwrap();
    other.memset_zeros(&mut memory).unwrap();
    assert_eq!(
        code(stream.end_capture(sys::CUgraphInstantiate_flags(0))),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
    );
    // The legacy stream cannot capture; a blocking stream that captures is in its way.
    let legacy = context.default_stream();
    assert_eq!(code(legacy.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED)), unsupported);
    context.synchronize().unwrap();
}

fn in_thread(context: &Arc<CudaContext>) -> CUresult {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            context.bind_to_thread().unwrap();
            // SAFETY: the memory is never used.
            code(unsafe { cudarc::driver::result::malloc_sync(16) })
        });
        thread.join().unwrap()
    })
}

#[test]
fn faults_are_reported_and_stay() {
    let Some(text) = outside("faults_are_reported_and_stay", &[]) else { return faults() };
    for part in [
        "CUDA_ERROR_ILLEGAL_ADDRESS: load of 4 bytes at",
        "400 bytes into the allocation of 400 bytes",
        "kernel `add`, block (0, 0, 0), thread (100, 0, 0)",
        "ld.global",
        "use after free:",
        "bytes into an allocation of 400 bytes that was freed",
        "kernel `racy`",
        "that nobody has written",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

/// In one process, since releasing the context ends an error.
fn faults() {
    let run = |name: &str, length: i32, freed: bool, offset: u64, written: bool| {
        let (context, stream) = start();
        let kernel = context.load_module(Ptx::from_src(TEXT)).unwrap().load_function(name).unwrap();
        // SAFETY: raw pointers, so that a freed one can be used: that is what is tested.
        unsafe {
            let memory = cudarc::driver::result::malloc_sync(400).unwrap();
            let out = cudarc::driver::result::malloc_sync(4096).unwrap();
            if written {
                cudarc::driver::result::memset_d8_sync(memory, 0, 400).unwrap();
            }
            if freed {
                cudarc::driver::result::free_sync(memory).unwrap();
            }
            let from = memory + offset;
            let mut launch = stream.launch_builder(&kernel);
            launch.arg(&out).arg(&from);
            if name == "add" {
                launch.arg(&from);
            }
            launch.arg(&length);
            launch.launch(shape(1, 128)).unwrap();
        }
        let status = code(stream.synchronize());
        if status != CUresult::CUDA_SUCCESS {
            assert_eq!(code(stream.clone_htod(&[1f32])), status, "an error stays");
            assert_eq!(code(context.synchronize()), status);
        }
        context.check_err().ok();
        status
    };
    assert_eq!(run("add", 100, false, 0, true), CUresult::CUDA_SUCCESS);
    assert_eq!(run("add", 101, false, 0, true), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(run("add", 100, true, 0, true), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(run("add", 99, false, 2, true), CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
    assert_eq!(run("add", 100, false, 0, false), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(run("racy", 100, false, 0, true), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(run("total", 100, false, 0, true), CUresult::CUDA_SUCCESS, "a new context has no error");
}

#[test]
fn no_device() {
    if outside("no_device", &[("CUDA_VISIBLE_DEVICES", "")]).is_some() {
        return;
    }
    assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE);
}

#[test]
fn memory_runs_out() {
    let settings = [("ALLOTROPE_EMULATOR_MEMORY_MIB", "1"), ("ALLOTROPE_EMULATOR_CAPABILITY", "8.0")];
    if let Some(text) = outside("memory_runs_out", &settings) {
        assert!(text.contains("PTX for sm_90a does not run on a device of compute capability 8.0"), "{text}");
        return;
    }
    let (context, stream) = start();
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    let half = stream.alloc_zeros::<u8>(600 << 10).unwrap();
    assert_eq!(code(stream.alloc_zeros::<u8>(600 << 10)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(half);
    stream.synchronize().unwrap();
    stream.alloc_zeros::<u8>(600 << 10).unwrap();
    let newer = TEXT.replace("sm_80", "sm_90a");
    assert_eq!(code(context.load_module(Ptx::from_src(newer))), CUresult::CUDA_ERROR_INVALID_PTX);
}

#[test]
fn other_launches_and_memory() {
    if let Some(text) = outside("other_launches_and_memory", &[]) {
        assert!(!text.contains("CUDA emulator:"), "{text}");
        return;
    }
    let (context, stream) = start();
    let text = include_str!("ptx/cooperative.sm_90a.ptx");
    let module = context.load_module(Ptx::from_src(text)).unwrap();
    let normalize = module.load_function("normalize").unwrap();
    let mut x = stream.clone_htod(&[3f32; 1000]).unwrap();
    let mut sum = stream.clone_htod(&[0f32]).unwrap();
    let count = 1000;
    let mut launch = stream.launch_builder(&normalize);
    launch.arg(&mut x).arg(&mut sum).arg(&count);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch_cooperative(shape(8, 64)) }.unwrap();
    assert!(stream.clone_dtoh(&x).unwrap().iter().all(|x| (x - 1.0).abs() <= 1e-5));
    let mut launch = stream.launch_builder(&normalize);
    launch.arg(&mut x).arg(&mut sum).arg(&count);
    // SAFETY: as above; too many blocks to be resident together.
    let refused = code(unsafe { launch.launch_cooperative(shape(132 * 32 + 1, 64)) });
    assert_eq!(refused, CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);

    // A launch with attributes, between copies of pinned memory and a function of the host, in order.
    let add = context.load_module(Ptx::from_src(TEXT)).unwrap().load_function("add").unwrap();
    let occupied = add.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap();
    assert_eq!(occupied, 8);
    // SAFETY: pointers and sizes fit each other, and all is done before the memory is freed.
    unsafe {
        let pinned = cudarc::driver::result::malloc_host(256, 0).unwrap().cast::<f32>();
        let values = std::slice::from_raw_parts_mut(pinned, 64);
        values.fill(2.0);
        let raw = stream.cu_stream();
        let device = cudarc::driver::result::malloc_async(raw, 256).unwrap();
        cudarc::driver::result::memcpy_htod_async(device, values, raw).unwrap();
        let mut parameters = (device, device, device, 64i32);
        let mut pointers = [
            std::ptr::from_mut(&mut parameters.0).cast(),
            std::ptr::from_mut(&mut parameters.1).cast(),
            std::ptr::from_mut(&mut parameters.2).cast(),
            std::ptr::from_mut(&mut parameters.3).cast(),
        ];
        let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let mut configuration: sys::CUlaunchConfig = std::mem::zeroed();
        (configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ) = (1, 1, 1);
        (configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ) = (64, 1, 1);
        (configuration.hStream, configuration.attrs, configuration.numAttrs) = (raw, &mut attribute, 1);
        let function = function_of(&context);
        sys::cuLaunchKernelEx(&configuration, function, pointers.as_mut_ptr(), std::ptr::null_mut()).result().unwrap();
        cudarc::driver::result::memcpy_dtoh_async(values, device, raw).unwrap();
        let mut seen = 0f32;
        let mut data = (pinned, std::ptr::from_mut(&mut seen));
        sys::cuLaunchHostFunc(raw, Some(look), std::ptr::from_mut(&mut data).cast()).result().unwrap();
        cudarc::driver::result::free_async(device, raw).unwrap();
        stream.synchronize().unwrap();
        assert_eq!((values[63], seen), (4.0, 4.0));
        // Freed in the order of the stream, so a second time is an error.
        assert_eq!(code(cudarc::driver::result::free_async(device, raw)), CUresult::CUDA_ERROR_INVALID_VALUE);
        cudarc::driver::result::free_host(pinned.cast()).unwrap();
    }
}

/// The raw handle of `add`. The module stays loaded as long as the process.
fn function_of(_context: &Arc<CudaContext>) -> sys::CUfunction {
    let text = std::ffi::CString::new(TEXT).unwrap();
    // SAFETY: the text ends with a zero, and the handles are those that the calls give.
    unsafe {
        let module = cudarc::driver::result::module::load_data(text.as_ptr().cast()).unwrap();
        cudarc::driver::result::module::get_function(module, c"add".to_owned()).unwrap()
    }
}

/// Looks at what the copy before it has brought.
unsafe extern "C" fn look(data: *mut std::ffi::c_void) {
    // SAFETY: the data is a pair of pointers that live until the stream is done.
    unsafe {
        let (from, to) = *data.cast::<(*const f32, *mut f32)>();
        *to = *from;
    }
}

#[test]
fn an_older_driver_says_so() {
    if outside("an_older_driver_says_so", &[("ALLOTROPE_EMULATOR_DRIVER_VERSION", "12.8")]).is_some() {
        return;
    }
    let mut version = 0;
    // SAFETY: the place is one for a number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().unwrap();
    assert_eq!(version, 12080);
}

#[test]
fn calls_fail_on_demand() {
    let plan = "cuMemAlloc_v2:2:2, cuStreamSynchronize:1:600,cuMemsetD8_v2:1:719,nonsense";
    if let Some(text) = outside("calls_fail_on_demand", &[("ALLOTROPE_EMULATOR_FAIL", plan)]) {
        assert!(text.contains("ALLOTROPE_EMULATOR_FAIL: `nonsense` is not like"), "{text}");
        return;
    }
    let (_context, stream) = start();
    // SAFETY: the memory is used for setting it alone.
    let allocate = || unsafe { cudarc::driver::result::malloc_sync(16) };
    let memory = allocate().unwrap();
    assert_eq!(code(allocate()), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    allocate().unwrap();
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_NOT_READY);
    stream.synchronize().unwrap();
    // SAFETY: so many bytes are there.
    let set = unsafe { cudarc::driver::result::memset_d8_sync(memory, 0, 16) };
    assert_eq!(code(set), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED, "an error of a kernel stays");
}

/// Gives the linker a text. Returns what it made of it, or its error with what is in the log.
fn link(text: &str) -> Result<Vec<u8>, (CUresult, String)> {
    let mut log = vec![1u8; 256];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    let (mut state, mut image, mut bytes) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
    let data = text.as_ptr().cast_mut().cast();
    // SAFETY: texts, options and places are as long as is said, and the log lives until the link is destroyed.
    unsafe {
        sys::cuLinkCreate_v2(2, options.as_mut_ptr(), values.as_mut_ptr(), &mut state).result().unwrap();
        let (none, no_values) = (std::ptr::null_mut(), std::ptr::null_mut());
        let added = sys::cuLinkAddData_v2(state, kind, data, text.len(), c"text".as_ptr(), 0, none, no_values);
        let completed = sys::cuLinkComplete(state, &mut image, &mut bytes);
        assert_eq!(added == CUresult::CUDA_SUCCESS, completed == CUresult::CUDA_SUCCESS);
        let code = if bytes > 0 { std::slice::from_raw_parts(image.cast::<u8>(), bytes).to_vec() } else { Vec::new() };
        sys::cuLinkDestroy(state).result().unwrap();
        assert_eq!(sys::cuLinkDestroy(state), CUresult::CUDA_ERROR_INVALID_HANDLE);
        if added == CUresult::CUDA_SUCCESS {
            return Ok(code);
        }
        let end = log.iter().position(|byte| *byte == 0).unwrap();
        Err((added, String::from_utf8_lossy(&log[..end]).into_owned()))
    }
}

#[test]
fn the_linker_gives_images_that_can_be_loaded() {
    if outside("the_linker_gives_images_that_can_be_loaded", &[]).is_some() {
        return;
    }
    let (context, stream) = start();
    let image = link(TEXT).unwrap();
    assert!(image.starts_with(b"\x7fELF"), "machine code is in such files");
    let add = context.load_module(Ptx::from_binary(image)).unwrap().load_function("add").unwrap();
    let a = stream.clone_htod(&[3f32; 64]).unwrap();
    let mut sum = stream.clone_htod(&[f32::NAN; 64]).unwrap();
    let count = 64;
    let mut launch = stream.launch_builder(&add);
    launch.arg(&mut sum).arg(&a).arg(&a).arg(&count);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(shape(1, 64)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&sum).unwrap(), [6.0; 64]);
    let wrong = [("add.f32", "add.up.f32"), ("sm_80", "sm_120")].map(|(from, to)| (TEXT.replace(from, to), to));
    for (text, part) in wrong {
        let (code, said) = link(&text).unwrap_err();
        assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(said.contains(part), "{said}");
    }
    // Machine code of others is none for the emulator.
    let mut other = vec![0u8; 64];
    other[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    assert_eq!(code(context.load_module(Ptx::from_binary(other))), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
}
