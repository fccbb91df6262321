//! Runs a test in a process of its own that has the emulator as its driver, and what such tests share.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "for tests; each uses a part"
)]

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use allotrope_cuda_runtime::driver::{Buffer, Context, DriverError, Function, Image, Launch, Stream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The argument that tells the process that it has the driver. The test harness takes it for the name of another test.
const INSIDE: &str = "inside-of-the-emulator";

/// The driver that cargo has built for this test.
fn library() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let folders = [executable.parent(), executable.parent().and_then(|folder| folder.parent())];
    let found = folders.into_iter().flatten().map(|folder| folder.join("liballotrope_cuda_emulator.so"));
    found.into_iter().find(|path| path.exists()).expect("cargo builds the driver, on which this crate's tests depend")
}

/// Which driver a process gets.
pub enum Driver {
    /// The emulator.
    Emulator,
    /// Files of this content under every name that is looked for.
    Files(PathBuf),
}

/// Runs the named test in a process of its own. Returns what the process wrote, or nothing inside of it, where the test
/// goes on.
pub fn outside(test: &str, settings: &[(&str, &str)]) -> Option<String> {
    outside_with(test, &Driver::Emulator, settings)
}

/// Where a test of the device goes on: inside of a process that has the emulator (`false`), or, with
/// `ALLOTROPE_TEST_DEVICE=cuda`, right here on the machine's GPU (`true`). Elsewhere nothing, once such a process has run it; what that
/// wrote is printed.
pub fn on_the_device(test: &str, settings: &[(&str, &str)]) -> Option<bool> {
    if allotrope_cuda_emulator::testing::on_a_gpu() {
        return Some(true);
    }
    match outside(test, settings) {
        None => Some(false),
        Some(text) => {
            println!("{text}");
            None
        }
    }
}

/// A seed that no run had before.
pub fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// The same, with a driver of choice.
pub fn outside_with(test: &str, driver: &Driver, settings: &[(&str, &str)]) -> Option<String> {
    if std::env::args().any(|argument| argument == INSIDE) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, names) = match driver {
        Driver::Emulator => (library(), vec!["libcuda.so".to_owned(), "libcuda.so.1".to_owned()]),
        Driver::Files(file) => {
            let stems = ["", "64", "64_13", "64_130", "64_130_0", "64_10", "64_11", "64_12", "64_9"];
            let named = stems.iter().flat_map(|stem| [format!("libcuda{stem}.so"), format!("libnvcuda{stem}.so")]);
            let versions = ["13", "12", "11", "10", "9", "1"];
            let versioned = versions.iter().map(|version| format!("libcuda.so.{version}"));
            (file.clone(), named.chain(versioned).collect())
        }
    };
    for name in names {
        std::os::unix::fs::symlink(&file, folder.path().join(name)).unwrap();
    }
    let report = folder.path().join("report");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, INSIDE, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("LD_LIBRARY_PATH", folder.path()).env("ALLOTROPE_EMULATOR_REPORT", &report);
    command.env_remove("CUDA_VISIBLE_DEVICES").envs(settings.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    allotrope_cuda_emulator::testing::tell_again(&text);
    Some(text + &std::fs::read_to_string(report).unwrap_or_default())
}

/// `out[i] = a[i] * 2 + b`, for `count` elements of `f32`. Its parameter is a struct: `out`, `a`, `b`, `count`.
pub const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry scale(.param .align 8 .b8 scale_parameter[24])
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [scale_parameter];
    ld.param.u64 %rd2, [scale_parameter+8];
    ld.param.f32 %f1, [scale_parameter+16];
    ld.param.u32 %r1, [scale_parameter+20];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd4, %rd5;
    add.s64 %rd7, %rd3, %rd5;
    ld.global.f32 %f2, [%rd6];
    fma.rn.f32 %f3, %f2, 0f40000000, %f1;
    st.global.f32 [%rd7], %f3;
$done:
    ret;
}
.visible .entry two(.param .u64 first, .param .u64 second)
{
    ret;
}
";

/// Everything that a test needs.
pub struct Bench {
    pub context: Context,
    pub stream: Stream,
    pub scale: Function,
    pub random: ChaCha8Rng,
}

impl Bench {
    pub fn new() -> Self {
        Self::seeded(fresh_seed())
    }

    pub fn seeded(seed: u64) -> Self {
        eprintln!("seed {seed}");
        let context = Context::open().unwrap();
        let stream = context.stream().unwrap();
        let scale = context.load_module(Image::Ptx(PTX), "test").unwrap().function("scale").unwrap();
        Self { context, stream, scale, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.random.random_range(-4.0..4.0)).collect()
    }

    pub fn put(&self, values: &[f32]) -> Buffer {
        let bytes = values.len() * 4;
        let mut pinned = self.context.allocate_pinned(bytes).unwrap();
        pinned.as_mut_slice().unwrap().copy_from_slice(values);
        let buffer = self.context.allocate(bytes).unwrap();
        self.stream.copy_to_device(&buffer, 0, &pinned, 0..bytes).unwrap();
        buffer
    }

    pub fn poisoned(&self, count: usize) -> Buffer {
        self.put(&vec![f32::NAN; count])
    }

    pub fn get(&self, buffer: &Buffer) -> Result<Vec<f32>, DriverError> {
        let mut pinned = self.context.allocate_pinned(buffer.bytes())?;
        self.stream.copy_to_host(&mut pinned, 0, buffer, 0..buffer.bytes())?;
        Ok(pinned.as_slice()?.to_vec())
    }

    pub fn launch(&self, out: &Buffer, a: &Buffer, b: f32, count: usize, label: &str) -> Launch {
        Launch {
            function: self.scale.clone(),
            grid: [count.div_ceil(64).max(1) as u32, 1, 1],
            block: 64,
            shared_memory: 0,
            parameters: parameters(out.address(), a.address(), b, count),
            dependent: false,
            label: label.into(),
        }
    }
}

pub fn parameters(out: u64, a: u64, b: f32, count: usize) -> Arc<[u8]> {
    let mut bytes = out.to_le_bytes().to_vec();
    bytes.extend(a.to_le_bytes());
    bytes.extend(b.to_le_bytes());
    bytes.extend((count as u32).to_le_bytes());
    bytes.into()
}

/// Compares element by element.
pub fn assert_scaled(got: &[f32], a: &[f32], b: f32) {
    assert_eq!(got.len(), a.len());
    for (index, (got, a)) in got.iter().zip(a).enumerate() {
        let error = (got - a.mul_add(2.0, b)).abs();
        assert!(error <= 0.0, "element {index}: {got} for {a} and {b}");
    }
}
