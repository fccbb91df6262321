//! The layer over the driver, on the emulator.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use allotrope_cuda_runtime::driver::probe;
use common::{Bench, assert_scaled, outside};

#[test]
fn kernels_run() {
    if let Some(text) = outside("kernels_run", &[]) {
        assert!(!text.contains("CUDA emulator:"), "{text}");
        return;
    }
    let info = probe().unwrap();
    assert!(info.name.contains("emulator"), "{info:?}");
    assert_eq!((info.capability, info.driver_version), ((9, 0), (13, 0)));
    let mut bench = Bench::new();
    let a = bench.floats(1000);
    let (given, out) = (bench.put(&a), bench.poisoned(1000));
    bench.stream.launch(&bench.launch(&out, &given, 0.5, 1000, "scale of %3")).unwrap();
    assert_scaled(&bench.get(&out).unwrap(), &a, 0.5);
}
