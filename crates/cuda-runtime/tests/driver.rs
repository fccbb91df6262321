//! The layer over the driver, on the emulator.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use allotrope_cuda_runtime::driver::{Context, Fault, Image, Launch, probe};
use allotrope_runtime::DeviceError;
use common::{Bench, PTX, assert_scaled, outside, parameters};

#[test]
fn kernels_run() {
    if let Some(text) = outside("kernels_run", &[]) {
        assert!(!text.contains("CUDA emulator:"), "{text}");
        return;
    }
    let info = probe().unwrap();
    assert!(info.name.contains("emulator"), "{info:?}");
    assert_eq!((info.capability, info.driver_version), ((9, 0), (13, 0)));
    assert_eq!((info.memory_total, info.shared_memory_per_block), (8 << 30, 227 << 10));
    let mut bench = Bench::new();
    assert_eq!(bench.context.info(), &info);
    let a = bench.floats(1000);
    let (given, out) = (bench.put(&a), bench.poisoned(1000));
    let early = Launch { dependent: true, ..bench.launch(&out, &given, 0.5, 900, "scale of %3") };
    bench.stream.launch(&early).unwrap();
    let got = bench.get(&out).unwrap();
    assert_scaled(&got[..900], &a[..900], 0.5);
    assert!(got[900..].iter().all(|value| value.is_nan()), "what the kernel does not write stays");
    bench.stream.fill(&out, 0).unwrap();
    assert_eq!(bench.get(&out).unwrap(), [0.0; 1000]);
    let resources = bench.scale.resources();
    assert_eq!((resources.maximum_threads, resources.static_shared_memory, resources.local_memory), (1024, 0, 0));
    assert!(resources.registers > 0 && bench.scale.parameter_bytes() == 24);
}

#[test]
fn streams_wait_for_events_of_each_other() {
    if outside("streams_wait_for_events_of_each_other", &[("ALLOTROPE_EMULATOR_SEED", "7")]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let other = bench.context.stream().unwrap();
    let values = bench.floats(500);
    let (first, last) = (bench.context.event(true).unwrap(), bench.context.event(true).unwrap());
    bench.stream.record(&first).unwrap();
    let (mut from, mut to) = (bench.put(&values), bench.poisoned(500));
    bench.stream.synchronize().unwrap();
    let mut expected = values.clone();
    for round in 0..20 {
        let b = round as f32 / 4.0;
        let launch = bench.launch(&to, &from, b, 500, "step");
        let (now, next) = if round % 2 == 0 { (&bench.stream, &other) } else { (&other, &bench.stream) };
        now.launch(&launch).unwrap();
        let event = bench.context.event(false).unwrap();
        now.record(&event).unwrap();
        next.wait(&event).unwrap();
        expected.iter_mut().for_each(|value| *value = value.mul_add(2.0, b));
        std::mem::swap(&mut from, &mut to);
    }
    bench.stream.record(&last).unwrap();
    last.synchronize().unwrap();
    assert!(last.is_done().unwrap());
    assert_eq!(bench.get(&from).unwrap(), expected);
    assert!(last.elapsed_since(&first).unwrap().as_nanos() > 0);
    let untimed = bench.context.event(false).unwrap();
    assert_eq!(last.elapsed_since(&untimed).unwrap_err().fault(), &Fault::Program);
}

#[test]
fn ranges_and_parameters_are_checked() {
    if outside("ranges_and_parameters_are_checked", &[]).is_some() {
        return;
    }
    let bench = Bench::new();
    let mut pinned = bench.context.allocate_pinned(16).unwrap();
    let buffer = bench.context.allocate(12).unwrap();
    for (offset, range) in [(0, 0..16), (8, 4..9), (0, 10..17), (usize::MAX, 0..1), (13, 0..0)] {
        let error = bench.stream.copy_to_device(&buffer, offset, &pinned, range.clone()).unwrap_err();
        assert_eq!((error.fault(), error.code()), (&Fault::Program, None), "{error}");
        let error = bench.stream.copy_to_host(&mut pinned, range.start, &buffer, offset..range.len()).unwrap_err();
        assert_eq!(error.fault(), &Fault::Program, "{error}");
    }
    let launch = Launch { parameters: vec![0; 20].into(), ..bench.launch(&buffer, &buffer, 0.0, 3, "short") };
    let error = bench.stream.launch(&launch).unwrap_err().to_string();
    for part in ["`short`", "grid 1×1×1", "block 64", "20 bytes", "the kernel's 24", "bug in Allotrope"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let launch = Launch { block: 4096, ..bench.launch(&buffer, &buffer, 0.0, 3, "wide") };
    let error = bench.stream.launch(&launch).unwrap_err();
    assert_eq!((error.fault(), error.code().unwrap().as_str()), (&Fault::Program, "CUDA_ERROR_INVALID_VALUE"));
    assert!(error.to_string().contains("launch `wide` of kernel `scale`, grid 1×1×1, block 4096"), "{error}");
    let module = bench.context.load_module(Image::Ptx(PTX), "test").unwrap();
    for (name, part) in [("none", "CUDA_ERROR_NOT_FOUND"), ("two", "exactly one parameter"), ("z\0", "zero inside")] {
        let error = module.function(name).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let huge = bench.scale.allow_shared_memory(300 << 10).unwrap_err().to_string();
    assert!(huge.contains("`scale` wants 307200 bytes") && huge.contains("can have 232448"), "{huge}");
    bench.scale.allow_shared_memory(100 << 10).unwrap();
    let launch = Launch { shared_memory: 100 << 10, ..bench.launch(&buffer, &buffer, 0.0, 0, "shared") };
    bench.stream.launch(&launch).unwrap();
    bench.stream.synchronize().unwrap();
}

#[test]
fn images_that_are_none_are_refused() {
    if outside("images_that_are_none_are_refused", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let wrong = PTX.replace("fma.rn.f32", "fma.up.f32");
    let error = context.load_module(Image::Ptx(&wrong), "row program 7").unwrap_err();
    assert_eq!(error.fault(), &Fault::Program);
    let text = error.to_string();
    assert!(text.contains("row program 7") && text.contains("fma.up"), "the compiler's words are in it: {text}");
    let newer = context.load_module(Image::Ptx(&PTX.replace("8.0", "99.0")), "new").unwrap_err();
    assert_eq!(newer.fault(), &Fault::Environment, "{newer}");
    let mut cubin = vec![0u8; 64];
    cubin[..6].copy_from_slice(b"\x7fELF\x02\x01");
    cubin[0x28..0x30].copy_from_slice(&60u64.to_le_bytes());
    (cubin[0x3a], cubin[0x3c]) = (64, 1);
    for image in [&b""[..], b"ELF", &cubin[..40], &cubin] {
        let error = context.load_module(Image::Cubin(image), "cubin").unwrap_err();
        assert!(error.code().is_none() && error.to_string().contains("no whole cubin"), "{error}");
    }
    cubin[0x3c] = 0;
    let error = context.load_module(Image::Cubin(&cubin), "cubin").unwrap_err();
    assert_eq!(error.fault(), &Fault::Environment, "{error}");
}

#[test]
fn memory_is_freed_and_runs_out_with_a_message() {
    if outside("memory_is_freed_and_runs_out_with_a_message", &[("ALLOTROPE_EMULATOR_MEMORY_MIB", "8")]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let (free, total) = context.memory().unwrap();
    assert_eq!((free, total), (8 << 20, 8 << 20));
    let buffer = context.allocate(5 << 20).unwrap();
    let same = buffer.clone();
    let error = context.allocate(4 << 20).unwrap_err();
    assert_eq!(error.fault(), &Fault::OutOfMemory { wanted: Some(4 << 20) });
    let text = error.to_string();
    for part in ["out of GPU memory", "4194304 bytes were wanted", "3145728 of 8388608 bytes are free", "lower"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(matches!(DeviceError::from(error), DeviceError::Environment { message, .. } if message == text));
    drop(buffer);
    assert_eq!(same.bytes(), 5 << 20);
    assert!(context.allocate(4 << 20).is_err(), "a clone keeps the memory");
    drop(same);
    context.allocate(8 << 20).unwrap();
    context.allocate(0).unwrap();
    context.check().unwrap();
}

#[test]
fn an_error_of_a_kernel_ends_the_context_and_names_what_ran() {
    let Some(text) = outside("an_error_of_a_kernel_ends_the_context_and_names_what_ran", &[]) else { return fault() };
    assert!(text.contains("kernel `scale`"), "the emulator says where:\n{text}");
}

fn fault() {
    let mut bench = Bench::new();
    let values = bench.floats(100);
    let (given, out) = (bench.put(&values), bench.poisoned(100));
    bench.stream.launch(&bench.launch(&out, &given, 0.0, 100, "before")).unwrap();
    bench.stream.synchronize().unwrap();
    bench.stream.launch(&bench.launch(&out, &given, 0.0, 100, "norm of %7")).unwrap();
    bench.stream.launch(&bench.launch(&out, &given, 0.0, 101, "product of %8")).unwrap();
    let error = bench.stream.synchronize().unwrap_err();
    assert_eq!((error.fault(), error.is_final()), (&Fault::Device, true));
    assert_eq!(error.code().unwrap(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.in_flight(), ["norm of %7", "product of %8"]);
    let text = error.to_string();
    assert!(text.contains("`norm of %7`, `product of %8`") && text.contains("bug in Allotrope"), "{text}");
    // Everything else says the same, at once.
    let later = [
        bench.stream.launch(&bench.launch(&out, &given, 0.0, 1, "later")).unwrap_err(),
        bench.stream.synchronize().unwrap_err(),
        bench.stream.fill(&out, 0).unwrap_err(),
        bench.context.allocate(16).unwrap_err(),
        bench.context.check().unwrap_err(),
        bench.context.load_module(Image::Ptx(PTX), "later").unwrap_err(),
        bench.get(&out).unwrap_err(),
    ];
    for later in later {
        assert_eq!((later.fault(), later.in_flight()), (error.fault(), error.in_flight()));
        let text = later.to_string();
        assert!(text.contains("was not tried") && text.contains("`product of %8`"), "{text}");
        let DeviceError::Internal { message, .. } = DeviceError::from(later) else { panic!("{text}") };
        assert!(message.contains("`product of %8`") && !message.contains("bug in Allotrope"), "{message}");
    }
    drop((bench, given, out));
    // A new context, which is what a new process would have, works.
    let mut bench = Bench::new();
    let values = bench.floats(10);
    let given = bench.put(&values);
    assert_eq!(bench.get(&given).unwrap(), values);
}

#[test]
fn misaligned_parameters_end_the_context_too() {
    if outside("misaligned_parameters_end_the_context_too", &[]).is_some() {
        return;
    }
    let bench = Bench::new();
    let out = bench.poisoned(8);
    let mut launch = bench.launch(&out, &out, 0.0, 4, "shifted");
    launch.parameters = parameters(out.address() + 2, out.address(), 0.0, 4);
    let event = bench.context.event(false).unwrap();
    bench.stream.launch(&launch).unwrap();
    let error = bench.stream.record(&event).and_then(|()| event.synchronize()).unwrap_err();
    assert_eq!(error.code().unwrap(), "CUDA_ERROR_MISALIGNED_ADDRESS");
    assert_eq!(error.in_flight(), ["shifted"]);
    assert!(bench.context.check().is_err());
}

#[test]
fn many_launches_in_flight_are_bounded_and_counted() {
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuStreamSynchronize:1:719")];
    if outside("many_launches_in_flight_are_bounded_and_counted", &failing).is_some() {
        return;
    }
    let bench = Bench::new();
    let out = bench.context.allocate(4).unwrap();
    for index in 0..300 {
        bench.stream.launch(&bench.launch(&out, &out, 0.0, 0, &format!("launch {index}"))).unwrap();
    }
    let error = bench.stream.synchronize().unwrap_err();
    assert_eq!(error.code().unwrap(), "CUDA_ERROR_LAUNCH_FAILED");
    assert_eq!(error.in_flight().len(), 128);
    let text = error.to_string();
    assert!(text.contains("`launch 172`") && text.contains("120 others") && text.contains("`launch 299`"), "{text}");
}

#[test]
fn contexts_and_buffers_serve_several_threads() {
    if outside("contexts_and_buffers_serve_several_threads", &[]).is_some() {
        return;
    }
    let bench = Arc::new(Bench::new());
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let bench = Arc::clone(&bench);
            scope.spawn(move || {
                let stream = bench.context.stream().unwrap();
                let values: Vec<f32> = (0..300).map(|index| (thread * 1000 + index) as f32).collect();
                let (given, out) = (bench.put(&values), bench.poisoned(300));
                bench.stream.synchronize().unwrap();
                stream.launch(&bench.launch(&out, &given, 1.0, 300, "threaded")).unwrap();
                stream.synchronize().unwrap();
                assert_scaled(&bench.get(&out).unwrap(), &values, 1.0);
            });
        }
    });
}

#[test]
fn memory_runs_out_in_the_middle_and_work_goes_on() {
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuLaunchKernelEx:2:2,cuStreamSynchronize:1:719")];
    if outside("memory_runs_out_in_the_middle_and_work_goes_on", &failing).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let values = bench.floats(64);
    let (given, out) = (bench.put(&values), bench.poisoned(64));
    let launch = bench.launch(&out, &given, 1.0, 64, "linear of %4");
    bench.stream.launch(&launch).unwrap();
    let error = bench.stream.launch(&launch).unwrap_err();
    assert_eq!(error.fault(), &Fault::OutOfMemory { wanted: None });
    assert!(error.to_string().contains("launch `linear of %4` of kernel `scale`, grid 1×1×1"), "{error}");
    bench.stream.launch(&launch).unwrap();
    assert_scaled(&bench.get(&out).unwrap(), &values, 1.0);
    // What was waited for is not to blame for what comes after.
    bench.stream.launch(&Launch { label: "attention of %5".into(), ..launch }).unwrap();
    let error = bench.stream.synchronize().unwrap_err();
    assert_eq!(error.in_flight(), ["attention of %5"]);
    assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED (a kernel failed)"), "{error}");
}

#[test]
fn broken_hardware_is_no_bug() {
    if outside("broken_hardware_is_no_bug", &[("ALLOTROPE_EMULATOR_FAIL", "cuStreamSynchronize:1:214")]).is_some() {
        return;
    }
    let bench = Bench::new();
    let error = bench.stream.synchronize().unwrap_err();
    assert_eq!((error.fault(), error.is_final()), (&Fault::Environment, true));
    let later = bench.context.allocate(1).unwrap_err();
    let text = later.to_string();
    assert!(text.contains("was not tried") && text.contains("CUDA_ERROR_ECC_UNCORRECTABLE"), "{text}");
    assert!(text.contains("restart the process") && !text.contains("bug"), "{text}");
    assert!(matches!(DeviceError::from(later), DeviceError::Environment { message, .. } if message == text));
}

#[test]
fn pinned_memory_is_waited_for_in_every_stream() {
    if outside("pinned_memory_is_waited_for_in_every_stream", &[("ALLOTROPE_EMULATOR_SEED", "11")]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let streams = [bench.context.stream().unwrap(), bench.context.stream().unwrap()];
    let mut pinned = bench.context.allocate_pinned(4 * 1000).unwrap();
    assert_eq!(pinned.as_slice::<f32>().unwrap(), [0.0; 1000], "it begins with zeros");
    let buffers: Vec<_> = (0..2).map(|_| bench.context.allocate(4000).unwrap()).collect();
    for _ in 0..30 {
        let values = bench.floats(1000);
        pinned.as_mut_slice().unwrap().copy_from_slice(&values);
        for (stream, buffer) in streams.iter().zip(&buffers) {
            stream.copy_to_device(buffer, 0, &pinned, 0..4000).unwrap();
        }
        // Waits for both copies, so neither sees this.
        pinned.as_mut_slice::<f32>().unwrap().fill(f32::NAN);
        for (stream, buffer) in streams.iter().zip(&buffers) {
            let mut back = bench.context.allocate_pinned(4000).unwrap();
            stream.copy_to_host(&mut back, 2000, buffer, 2000..4000).unwrap();
            streams[0].copy_to_host(&mut back, 0, buffer, 0..2000).unwrap();
            assert_eq!(back.as_slice::<f32>().unwrap(), values);
        }
    }
}
