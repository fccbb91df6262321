//! What a person is told where there is no GPU to use.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use allotrope_cuda_runtime::driver::{Context, Unavailable, probe};
use allotrope_runtime::DeviceError;
use common::{Driver, outside, outside_with};

/// The message of a probe that fails, with all that must be in it.
fn message(parts: &[&str]) -> Unavailable {
    let reason = probe().unwrap_err();
    let text = reason.to_string();
    for part in parts.iter().chain(&["--device cpu"]) {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(Context::open().unwrap_err(), reason, "it is the same whenever one asks");
    let error = DeviceError::from(reason.clone());
    assert!(matches!(error, DeviceError::Environment { message, .. } if message == text));
    reason
}

#[test]
fn no_driver() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    std::fs::write(&file, "no library").unwrap();
    if let Some(text) = outside_with("no_driver", &Driver::Files(file), &[]) {
        assert!(!text.contains("panicked"), "{text}");
        return;
    }
    assert_eq!(message(&["libcuda.so was not found", "580"]), Unavailable::NoDriver);
}

#[test]
fn a_library_that_is_no_driver() {
    // Any library will do, for instance the one for numbers.
    let folders =
        ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib/aarch64-linux-gnu"];
    let library = folders.iter().map(|folder| Path::new(folder).join("libm.so.6")).find(|path| path.exists());
    let Some(library) = library else { return };
    if let Some(text) = outside_with("a_library_that_is_no_driver", &Driver::Files(library), &[]) {
        assert!(!text.contains("panicked"), "{text}");
        return;
    }
    let reason = message(&["lacks cuCtxSetCurrent", "other functions", "no whole driver"]);
    assert!(matches!(reason, Unavailable::Incomplete { missing } if missing.len() > 40));
}

#[test]
fn an_old_driver() {
    if outside("an_old_driver", &[("ALLOTROPE_EMULATOR_DRIVER_VERSION", "12.8")]).is_some() {
        return;
    }
    let reason = message(&["too old", "CUDA 12.8", "CUDA 13.0 is needed", "580"]);
    assert_eq!(reason, Unavailable::OldDriver { found: (12, 8), needed: (13, 0) });
}

#[test]
fn a_newer_driver() {
    if outside("a_newer_driver", &[("ALLOTROPE_EMULATOR_DRIVER_VERSION", "14.1")]).is_some() {
        return;
    }
    assert_eq!(probe().unwrap().driver_version, (14, 1));
}

#[test]
fn hidden_devices() {
    if outside("hidden_devices", &[("CUDA_VISIBLE_DEVICES", "")]).is_some() {
        return;
    }
    let reason = message(&["CUDA_VISIBLE_DEVICES is ``", "CUDA_VISIBLE_DEVICES=0"]);
    assert_eq!(reason, Unavailable::Hidden { value: String::new() });
}

#[test]
fn no_device() {
    if outside("no_device", &[("ALLOTROPE_EMULATOR_FAIL", "cuInit:1:100,cuInit:2:100")]).is_some() {
        return;
    }
    assert_eq!(message(&["finds no GPU", "nvidia-smi"]), Unavailable::NoDevice);
}

#[test]
fn an_old_device() {
    if outside("an_old_device", &[("ALLOTROPE_EMULATOR_CAPABILITY", "7.5")]).is_some() {
        return;
    }
    let reason = message(&["CUDA emulator has compute capability 7.5", "need 8.0"]);
    assert!(matches!(reason, Unavailable::OldDevice { found: (7, 5), needed: (8, 0), .. }));
}

#[test]
fn a_driver_that_does_not_work() {
    let failing = [("ALLOTROPE_EMULATOR_FAIL", "cuInit:1:803,cuDevicePrimaryCtxRetain:1:2")];
    if outside("a_driver_that_does_not_work", &failing).is_some() {
        return;
    }
    let text = probe().unwrap_err().to_string();
    assert!(text.contains("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH") && text.contains("different versions"), "{text}");
    let text = Context::open().unwrap_err().to_string();
    assert!(text.contains("cuDevicePrimaryCtxRetain") && text.contains("out of GPU memory"), "{text}");
    Context::open().unwrap();
}

/// Every function that is called must be one that is looked for first, since calling one that is missing panics.
#[test]
fn every_function_is_looked_for() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let probe = std::fs::read_to_string(source.join("driver/probe.rs")).unwrap();
    let mut open: Vec<PathBuf> = vec![source];
    let mut called = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        for part in std::fs::read_to_string(&path).unwrap().split("sys::cu").skip(1) {
            let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.starts_with(char::is_uppercase) {
                assert!(probe.contains(&format!("\"cu{name}\",")), "cu{name} of {} is not looked for", path.display());
                called += 1;
            }
        }
    }
    assert!(called > 40, "{called}");
}
