//! Running a program to its end while watching its memory and its reads from storage.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::error::TaskError;
use crate::workspace;

/// What a program left behind.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Most memory that was resident at a time, mapped files included.
    pub(super) peak_memory_bytes: Option<u64>,
    /// Bytes that were read from storage and not from the page cache.
    pub(super) read_bytes: Option<u64>,
}

/// Runs a program in the repository's top folder and returns what it wrote and used.
///
/// # Errors
/// If it can't be started or fails; the message ends with what it wrote to standard error.
pub(super) fn capture(program: &Path, arguments: &[&str]) -> Result<Output, TaskError> {
    watch(Command::new(program).args(arguments))
}

/// As [`capture`], with a folder of its own for what the program keeps between starts.
///
/// # Errors
/// As there.
pub(super) fn capture_with_cache(program: &Path, arguments: &[&str], cache: &Path) -> Result<Output, TaskError> {
    watch(Command::new(program).args(arguments).env("XDG_CACHE_HOME", cache))
}

fn watch(command: &mut Command) -> Result<Output, TaskError> {
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy());
    let text = words.collect::<Vec<_>>().join(" ");
    let start = |source| TaskError::Start { command: text.clone(), source };
    let mut child = command
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || std::io::read_to_string(pipe)));
    let id = child.id();
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || observed(pipe, id)));
    let status = child.wait().map_err(start)?;
    let mut output: Output = joined(stderr);
    output.stdout = joined(stdout);
    if status.success() {
        return Ok(output);
    }
    Err(TaskError::Message(format!("`{text}` failed ({status}):\n{}", output.stderr.trim_end())))
}

/// What a reading thread read; nothing if the pipe broke, which the program's exit status tells about.
fn joined<T: Default>(thread: Option<thread::JoinHandle<std::io::Result<T>>>) -> T {
    thread.and_then(|thread| thread.join().ok()).and_then(Result::ok).unwrap_or_default()
}

/// Reads what a process writes to standard error, and its counters whenever it writes something: the last is its report, when
/// all work is done. Looking more often would take a processor from what is measured.
fn observed(mut pipe: impl Read, id: u32) -> std::io::Result<Output> {
    let mut output = Output::default();
    let (mut text, mut part) = (Vec::new(), [0; 1 << 16]);
    loop {
        let count = pipe.read(&mut part)?;
        if count == 0 {
            break;
        }
        output.observe(id);
        text.extend_from_slice(&part[..count]);
    }
    output.stderr = String::from_utf8_lossy(&text).into_owned();
    Ok(output)
}

impl Output {
    /// Reads the counters of a running process, where the system has them.
    fn observe(&mut self, id: u32) {
        if let Ok(status) = fs::read_to_string(format!("/proc/{id}/status"))
            && let Some(kibibytes) = field(&status, "VmHWM:")
        {
            // While a program is being loaded it has none.
            self.peak_memory_bytes = self.peak_memory_bytes.max(Some(kibibytes * 1024).filter(|bytes| *bytes > 0));
        }
        if let Ok(io) = fs::read_to_string(format!("/proc/{id}/io"))
            && let Some(bytes) = field(&io, "read_bytes:")
        {
            self.read_bytes = Some(bytes);
        }
    }
}

/// The first number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn output_and_failure_are_told_apart() {
        let output = capture(Path::new("sh"), &["-c", "echo out; echo err >&2; sleep 0.05"]).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        let error = capture(Path::new("sh"), &["-c", "echo why >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        assert!(capture(Path::new("no-such-program"), &[]).is_err());
        let cache = Path::new("/a/cache");
        let output = capture_with_cache(Path::new("sh"), &["-c", "echo $XDG_CACHE_HOME"], cache).unwrap();
        assert_eq!(output.stdout, "/a/cache\n");
    }

    #[test]
    fn fields_are_found_by_name() {
        let status = "VmPeak:\t  10 kB\nVmHWM:\t  1234 kB\n";
        assert_eq!(field(status, "VmHWM:"), Some(1234));
        assert_eq!(field(status, "VmSwap:"), None);
    }
}
