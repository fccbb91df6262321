//! Puts the built driver where the loader finds it, and runs the test again there.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "for tests")]

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Set in the process that has the driver.
const INSIDE: &str = "ALLOTROPE_EMULATOR_TEST";

/// The driver that cargo has built for this test.
fn library() -> PathBuf {
    let executable = env::current_exe().unwrap();
    let folders = [executable.parent(), executable.parent().and_then(|folder| folder.parent())];
    let found = folders.into_iter().flatten().map(|folder| folder.join("liballotrope_cuda_emulator.so"));
    found.into_iter().find(|path| path.exists()).expect("cargo builds the driver with its tests")
}

/// Runs the named test in a process of its own that loads the emulator as `libcuda.so`. Returns what the process
/// wrote, or nothing inside of it, where the test goes on.
pub fn outside(test: &str, settings: &[(&str, &str)]) -> Option<String> {
    if env::var_os(INSIDE).is_some() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(library(), folder.path().join(name)).unwrap();
    }
    let report = folder.path().join("report");
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    command.env("LD_LIBRARY_PATH", folder.path()).env("ALLOTROPE_EMULATOR_REPORT", &report);
    command.envs(settings.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    Some(text + &std::fs::read_to_string(report).unwrap_or_default())
}
