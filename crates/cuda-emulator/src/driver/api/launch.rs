//! Launches.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use super::device::PROCESSORS;
use super::module::resident;
use super::{In, Outcome, Pointer, export};
use crate::driver::state::{Handle, State, enter};
use crate::driver::status::Status;
use crate::driver::work::{Call, Work};

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Configuration {
    grid: [u32; 3],
    threads: [u32; 3],
    dynamic_shared: u32,
    stream: Pointer,
    attributes: *const Attribute,
    count: u32,
}

/// `CUlaunchAttribute`: a number, and a value of up to 64 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NodeParameters {
    pub(super) function: Handle,
    pub(super) grid: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) parameters: *const Pointer,
    pub(super) extra: *const Pointer,
    pub(super) kernel: usize,
    pub(super) context: usize,
}

/// The sizes of a launch.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) grid: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) cooperative: bool,
}

/// Checks a launch and reads its parameters.
pub(super) fn call(state: &State, function: Handle, sizes: Sizes, parameters: &In<Pointer>) -> Result<Call, Status> {
    let known = state.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
    let kernel = &known.kernel;
    let [x, y, z] = sizes.threads.map(u64::from);
    let threads = x * y * z;
    let grid_fits =
        sizes.grid.iter().zip([i32::MAX as u32, 65535, 65535]).all(|(side, most)| *side > 0 && *side <= most);
    if !grid_fits || threads == 0 || x > 1024 || y > 1024 || z > 64 || threads > 1024 {
        return Err(Status::INVALID_VALUE);
    }
    if threads > u64::from(kernel.most_threads) {
        return Err(Status::LAUNCH_OUT_OF_RESOURCES);
    }
    if sizes.dynamic_shared > known.dynamic_limit {
        return Err(Status::INVALID_VALUE);
    }
    if sizes.cooperative {
        let blocks: u64 = sizes.grid.iter().map(|side| u64::from(*side)).product();
        let held = resident(kernel.static_shared, threads as u32, sizes.dynamic_shared as usize);
        if blocks > u64::from(PROCESSORS * held) {
            return Err(Status::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
    }
    let mut laid_out = vec![0; kernel.parameter_bytes];
    for (index, place) in kernel.parameters.iter().enumerate() {
        let value = parameters.at(index)?.bytes(place.bytes)?;
        laid_out[place.offset..place.offset + place.bytes].copy_from_slice(&value);
    }
    Ok(Call {
        function,
        kernel: std::sync::Arc::clone(kernel),
        grid: sizes.grid,
        threads: sizes.threads,
        dynamic_shared: sizes.dynamic_shared,
        parameters: laid_out,
        cooperative: sizes.cooperative,
    })
}

fn launch(function: Handle, sizes: Sizes, stream: Pointer, parameters: &In<Pointer>, extra: Pointer) -> Outcome {
    // Parameters in one buffer are a form of the call that nobody uses any more.
    if extra.address() != 0 {
        return Err(Status::NOT_SUPPORTED);
    }
    let mut state = enter()?;
    let stream = state.stream(stream.address())?;
    let call = call(&state, function, sizes, parameters)?;
    state.submit(stream, Work::Launch(Box::new(call))).map(|_| ())
}

export! {
    fn cuLaunchKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, x: u32, y: u32, z: u32,
        dynamic_shared: u32, stream: Pointer, parameters: In<Pointer>, extra: Pointer,
    ) {
        let sizes = Sizes { grid: [grid_x, grid_y, grid_z], threads: [x, y, z], dynamic_shared, cooperative: false };
        launch(function, sizes, stream, &parameters, extra)
    }

    fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, x: u32, y: u32, z: u32,
        dynamic_shared: u32, stream: Pointer, parameters: In<Pointer>,
    ) {
        let sizes = Sizes { grid: [grid_x, grid_y, grid_z], threads: [x, y, z], dynamic_shared, cooperative: true };
        launch(function, sizes, stream, &parameters, Pointer(std::ptr::null_mut()))
    }

    fn cuLaunchKernelEx(configuration: In<Configuration>, function: Handle, parameters: In<Pointer>, extra: Pointer) {
        const COOPERATIVE: u32 = 2;
        const CLUSTER: u32 = 4;
        let configuration = configuration.get()?;
        let attributes = In(configuration.attributes);
        let mut cooperative = false;
        for index in 0..configuration.count as usize {
            let attribute = attributes.at(index)?;
            match attribute.id {
                COOPERATIVE => cooperative = attribute.value[0] != 0,
                // A cluster of one block is no cluster.
                CLUSTER if attribute.value[..3].iter().any(|side| *side > 1) => return Err(Status::NOT_SUPPORTED),
                // The others change when and where a kernel runs, which is any order here.
                _ => {}
            }
        }
        let Configuration { grid, threads, dynamic_shared, stream, .. } = configuration;
        launch(function, Sizes { grid, threads, dynamic_shared, cooperative }, stream, &parameters, extra)
    }
}
