//! Options, read from the environment once: the emulator is loaded into programs that do not know it, so there is no
//! other way in.

use std::env;

/// What can be chosen.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Seeds the order of streams, blocks and warps.
    pub(super) seed: u64,
    /// Whether there is a device at all.
    pub(super) device: bool,
    /// The compute capability.
    pub(super) capability: (u32, u32),
    /// The version of CUDA that the driver says it has.
    pub(super) version: (u32, u32),
    /// Device memory in bytes.
    pub(super) memory: u64,
    /// Host threads that run a kernel.
    pub(super) threads: usize,
    /// Whether reads of memory that nobody has written are faults.
    pub(super) check_uninitialized: bool,
    /// The file that reports are added to.
    pub(super) report: Option<String>,
}

impl Options {
    /// Reads the environment. What cannot be understood is said and left at its default.
    pub(super) fn read() -> Self {
        let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            seed: number("ALLOTROPE_EMULATOR_SEED").unwrap_or(0),
            device: visible.is_none_or(|list| list.split(',').next() == Some("0")),
            capability: version("ALLOTROPE_EMULATOR_CAPABILITY").unwrap_or((9, 0)),
            version: version("ALLOTROPE_EMULATOR_DRIVER_VERSION").unwrap_or((13, 0)),
            memory: number("ALLOTROPE_EMULATOR_MEMORY_MIB").unwrap_or(8192).saturating_mul(1 << 20),
            threads: number("ALLOTROPE_EMULATOR_THREADS").map_or(threads, |count| count.clamp(1, 256) as usize),
            check_uninitialized: env::var("ALLOTROPE_EMULATOR_UNINITIALIZED").as_deref() != Ok("ignore"),
            report: env::var("ALLOTROPE_EMULATOR_REPORT").ok(),
        }
    }
}

/// Two numbers with a point between them.
fn version(name: &str) -> Option<(u32, u32)> {
    let text = env::var(name).ok()?;
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if parts.is_none() {
        eprintln!("{name}: `{text}` is not like 9.0");
    }
    parts
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let value = text.parse().ok();
    if value.is_none() {
        eprintln!("{name}: `{text}` is not a number");
    }
    value
}
