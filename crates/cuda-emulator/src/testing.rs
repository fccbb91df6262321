//! For tests of programs that use CUDA: what they run on, and how a process gets the emulator for its driver.
//!
//! A process has the driver that the dynamic linker found when it started, so a test that is to run on the emulator starts
//! another process: the program under test with [`library_path`], or its own test binary once more with [`outside`].

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that says what tests of CUDA run on: `cuda` for the driver and the GPU of the machine. Without it they run on
/// the emulator.
pub const TEST_DEVICE: &str = "ALLOTROPE_TEST_DEVICE";

/// The variable of the emulator's seed.
pub const SEED: &str = "ALLOTROPE_EMULATOR_SEED";

/// The names under which programs look for the driver: those that look for one alone find it, whichever it is.
pub const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// What cargo calls the emulator's library.
const LIBRARY: &str = "liballotrope_cuda_emulator.so";

/// Where the dynamic linker looks first.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Variables that would let one machine's settings, or what another run left behind, into a test.
const REMOVED: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "HOME", "XDG_CACHE_HOME"];

/// Whether tests run on the GPU of the machine.
pub fn on_a_gpu() -> bool {
    env::var(TEST_DEVICE).is_ok_and(|device| device == "cuda")
}

/// The folder to be named by `LD_LIBRARY_PATH` in a process that is to have the emulator: links to the library that cargo has
/// built beside this program.
///
/// # Errors
/// If the library is not there, since the program is of a package that does not depend on this one, or the links can't be made.
pub fn library_path() -> io::Result<PathBuf> {
    let executable = env::current_exe()?;
    let folders: Vec<&Path> = executable.ancestors().skip(1).take(2).collect();
    let library = folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.exists()).ok_or_else(|| {
        let message = format!(
            "{LIBRARY} is not beside {}: cargo builds it for the tests of packages that depend on \
                               allotrope-cuda-emulator",
            executable.display()
        );
        io::Error::new(io::ErrorKind::NotFound, message)
    })?;
    let folder = library.with_file_name("emulator-as-driver");
    fs::create_dir_all(&folder)?;
    for name in NAMES {
        // Tests that run at the same time make the same link: each makes its own, and moves it to the place.
        let own = folder.join(format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
        symlink(&library, &own)?;
        fs::rename(&own, folder.join(name))?;
    }
    Ok(folder)
}

/// A seed that is fresh, or the one that somebody asks for by the emulator's variable.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let asked = env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    asked.unwrap_or_else(|| RandomState::new().hash_one(0))
}

/// How a line begins that [`tell`] writes.
const TOLD: &str = "counted: ";

/// Shows what a run has counted, whether or not the test harness keeps what tests print.
pub fn tell(text: impl std::fmt::Display) {
    use std::io::Write as _;
    // The harness keeps what the macros print, and not what is written so.
    let _ = writeln!(io::stderr().lock(), "{TOLD}{text}");
}

/// Shows what another process has counted.
pub fn tell_again(written: &str) {
    written.lines().filter_map(|line| line.strip_prefix(TOLD)).for_each(tell);
}

/// Runs a test of this test binary, by its full name, in a process of its own that has the emulator for its driver, and gives
/// what it wrote. Inside of that process, and on a GPU, there is nothing to give: the test goes on.
///
/// The process has a fresh seed, which is printed; no cache of kernels; and the further variables of `settings`.
///
/// # Panics
/// If the test fails, or the emulator reports a fault: with what was written.
#[allow(clippy::panic, reason = "a test that can't be run fails")]
pub fn outside(test: &str, settings: &[(&str, &str)]) -> Option<String> {
    let folder = match on_a_gpu() {
        true => return None,
        false => library_path(),
    };
    let folder = folder.unwrap_or_else(|error| panic!("{error}"));
    if env::var_os(LIBRARY_PATH).as_deref() == Some(folder.as_os_str()) {
        return None;
    }
    let seed = seed().to_string();
    let mut command = Command::new(env::current_exe().unwrap_or_else(|error| panic!("{error}")));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    for name in REMOVED {
        command.env_remove(name);
    }
    command.env(LIBRARY_PATH, &folder).env(SEED, &seed).envs(settings.iter().copied());
    let output = command.output().unwrap_or_else(|error| panic!("{error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    tell_again(&text);
    let text = format!("{SEED}={seed}\n{text}");
    assert!(output.status.success() && text.contains("1 passed") && !text.contains("CUDA emulator:"), "{text}");
    Some(text)
}

/// Gives a process the emulator for its driver, with a fresh seed.
///
/// # Errors
/// As [`library_path`].
pub fn give(command: &mut Command) -> io::Result<u64> {
    let seed = seed();
    command.env(LIBRARY_PATH, library_path()?).env(SEED, seed.to_string());
    Ok(seed)
}

/// Gives a process what tests run on: the emulator as [`give`] does; on a GPU, the driver that this process has.
///
/// # Errors
/// As [`library_path`].
pub fn give_device(command: &mut Command) -> io::Result<()> {
    if !on_a_gpu() {
        return give(command).map(drop);
    }
    // The machine may need it to find its driver.
    command.envs(env::var_os(LIBRARY_PATH).map(|path| (LIBRARY_PATH, path)));
    Ok(())
}

/// Sees to it that a process finds no driver, whatever the machine has: under every name that is looked for, the folder gets a
/// file that is no library.
///
/// # Errors
/// If a file can't be written.
pub fn take_away(command: &mut Command, folder: &Path) -> io::Result<()> {
    let stems = ["", "64", "64_13", "64_130", "64_130_0", "64_12", "64_11", "64_10", "64_9"];
    let unversioned = stems.iter().flat_map(|stem| [format!("libcuda{stem}.so"), format!("libnvcuda{stem}.so")]);
    let versioned = (1..=13).map(|version| format!("libcuda.so.{version}"));
    for name in unversioned.chain(versioned) {
        fs::write(folder.join(name), "no library")?;
    }
    command.env(LIBRARY_PATH, folder);
    Ok(())
}
