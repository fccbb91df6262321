//! What streams and graphs do, one piece at a time.

use std::ffi::c_void;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use super::graph::Node;
use super::state::{self, Driver, Handle};
use super::status::Status;
use crate::machine::memory::Region;
use crate::machine::{FaultKind, Launch, Random, Report};
use crate::program::Kernel;

/// A pointer of the host, as a number: the driver only follows it where a caller has promised that it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostPointer(pub(super) usize);

/// A function of the host.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// A kernel's launch.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) function: Handle,
    pub(super) kernel: Arc<Kernel>,
    pub(super) grid: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) parameters: Vec<u8>,
    pub(super) cooperative: bool,
}

/// One piece of work.
#[derive(Clone)]
pub(super) enum Work {
    Launch(Box<Call>),
    /// Bytes that were copied from pageable memory when the call was made.
    CopyStaged {
        to: u64,
        bytes: Arc<[u8]>,
    },
    CopyIn {
        to: u64,
        from: HostPointer,
        bytes: u64,
    },
    CopyOut {
        to: HostPointer,
        from: u64,
        bytes: u64,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Set {
        to: u64,
        value: u32,
        width: u8,
        count: u64,
    },
    Record {
        event: Handle,
        round: u64,
    },
    Allocate(Arc<Region>),
    Free(u64),
    Host(HostFunction, HostPointer),
    Graph(Arc<Vec<Node>>),
    Nothing,
}

impl Work {
    /// The number of its node type.
    pub(super) fn node_type(&self) -> u32 {
        match self {
            Self::Launch(_) => 0,
            Self::CopyStaged { .. } | Self::CopyIn { .. } | Self::CopyOut { .. } | Self::Copy { .. } => 1,
            Self::Set { .. } => 2,
            Self::Host(..) => 3,
            Self::Graph(_) => 4,
            Self::Nothing => 5,
            Self::Record { .. } => 7,
            Self::Allocate(_) => 10,
            Self::Free(_) => 11,
        }
    }

    /// A name for pictures and reports.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Launch(call) => {
                let ([x, y, z], [a, b, c]) = (call.grid, call.threads);
                format!("{}<<<({x},{y},{z}),({a},{b},{c}),{}>>>", call.kernel.name, call.dynamic_shared)
            }
            Self::CopyStaged { bytes, .. } => format!("copy {} bytes in", bytes.len()),
            Self::CopyIn { bytes, .. } => format!("copy {bytes} bytes in"),
            Self::CopyOut { bytes, .. } => format!("copy {bytes} bytes out"),
            Self::Copy { bytes, .. } => format!("copy {bytes} bytes"),
            Self::Set { count, width, .. } => format!("set {count} elements of {width} bytes"),
            Self::Record { .. } => "record event".into(),
            Self::Allocate(region) => format!("allocate {} bytes", region.size),
            Self::Free(_) => "free".into(),
            Self::Host(..) => "host function".into(),
            Self::Graph(nodes) => format!("graph of {} nodes", nodes.len()),
            Self::Nothing => "nothing".into(),
        }
    }

    /// Does it, outside of the driver's lock.
    pub(super) fn perform(&self, driver: &Driver, random: &mut Random) -> Result<(), Status> {
        match self {
            Self::Launch(call) => launch(call, driver, random.bits()),
            Self::CopyStaged { to, bytes } => {
                let region = find(driver, "copy to", *to, bytes.len() as u64)?;
                region.write(*to, bytes);
                Ok(())
            }
            Self::CopyIn { to, from, bytes } => {
                let region = find(driver, "copy to", *to, *bytes)?;
                // SAFETY: the caller of the copy has promised that so many bytes are there until it is done.
                let source = unsafe { std::slice::from_raw_parts(from.0 as *const u8, *bytes as usize) };
                region.write(*to, source);
                Ok(())
            }
            Self::CopyOut { to, from, bytes } => {
                let region = find(driver, "copy from", *from, *bytes)?;
                // SAFETY: the caller of the copy has promised that so many bytes can be written until it is done.
                let place = unsafe { std::slice::from_raw_parts_mut(to.0 as *mut u8, *bytes as usize) };
                region.read(*from, place);
                Ok(())
            }
            Self::Copy { to, from, bytes } => {
                let source = find(driver, "copy from", *from, *bytes)?;
                let region = find(driver, "copy to", *to, *bytes)?;
                region.copy_from(*to, &source, *from, *bytes);
                Ok(())
            }
            Self::Set { to, value, width, count } => {
                let bytes = count.saturating_mul(u64::from(*width));
                let region = find(driver, "set", *to, bytes)?;
                let pattern = &value.to_le_bytes()[..*width as usize];
                region.write(*to, &pattern.repeat(*count as usize));
                Ok(())
            }
            Self::Record { event, round } => {
                let mut state = driver.lock();
                if let Some(event) = state.events.get_mut(event).filter(|event| event.round == *round) {
                    event.time = Some(Instant::now());
                }
                Ok(())
            }
            Self::Allocate(region) => {
                driver.lock().memory.revive(region);
                Ok(())
            }
            Self::Free(address) => {
                let freed = driver.lock().memory.free(*address);
                freed.map(|_| ()).ok_or_else(|| {
                    driver.complain(&format!("free of {address:#x}, which is not allocated"));
                    Status::INVALID_VALUE
                })
            }
            Self::Host(function, data) => {
                // SAFETY: the caller of `cuLaunchHostFunc` has promised that the function may be called with the
                // pointer.
                unsafe { function(data.0 as *mut c_void) };
                Ok(())
            }
            Self::Graph(nodes) => super::graph::perform(nodes, driver, random),
            Self::Nothing => Ok(()),
        }
    }
}

fn find(driver: &Driver, does: &str, address: u64, bytes: u64) -> Result<Arc<Region>, Status> {
    let mut state = driver.lock();
    if let Some(region) = state.memory.find(address, bytes) {
        return Ok(region);
    }
    let fault = state.memory.view().fault(does, address, bytes, 0);
    drop(state);
    driver.complain(&fault.message);
    Err(Status::ILLEGAL_ADDRESS)
}

fn launch(call: &Call, driver: &Driver, seed: u64) -> Result<(), Status> {
    let (view, launch) = {
        let mut state = driver.lock();
        let workspace = if call.cooperative { state.memory.workspace().ok_or(Status::OUT_OF_MEMORY)? } else { 0 };
        let launch = Launch {
            kernel: Arc::clone(&call.kernel),
            grid: call.grid,
            threads: call.threads,
            dynamic_shared: call.dynamic_shared,
            parameters: call.parameters.clone(),
            cooperative: call.cooperative,
            workspace,
            seed,
            check_uninitialized: state.options.check_uninitialized,
            host_threads: state.options.threads,
        };
        (state.memory.view(), launch)
    };
    match crate::machine::run(&launch, &view) {
        Ok(counts) => {
            state::count(counts);
            Ok(())
        }
        Err(report) => Err(driver.report(&report)),
    }
}

impl Driver {
    /// Writes down a fault and says which error it is.
    fn report(&self, report: &Report) -> Status {
        let (status, name) = match report.kind {
            FaultKind::Address => (Status::ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"),
            FaultKind::Alignment => (Status::MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"),
            _ => (Status::LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"),
        };
        self.complain(&format!("{name}: {report}"));
        status
    }

    /// Writes a text to standard error and to the file of reports.
    pub(super) fn complain(&self, text: &str) {
        eprintln!("CUDA emulator: {text}");
        let Some(path) = self.lock().options.report.clone() else { return };
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{text}")) {
            eprintln!("CUDA emulator: cannot write {path}: {error}");
        }
    }
}
