//! Which processors the threads of a team may use, and which they keep to.

use super::MAX_THREADS;
use std::path::Path;

/// Numbers of processors are below this.
const MOST_PROCESSORS: usize = 1 << 16;

/// The number of threads that this process may run at once: the processors of its affinity mask, lowered to the whole
/// processors that its control group's quota is worth, and one at least.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// The processors that the threads of a team keep to: one each, node by node, so that neighbouring shares are in the same
/// memory and a thread finds what it touched first near by. `None` where all memory is equally near, where somebody chose
/// processors for this process already, and where there are fewer than threads.
pub(super) fn processors(threads: usize) -> Option<Vec<usize>> {
    processors_below(Path::new("/"), threads)
}

/// As [`processors`], by what the file system below `root` says.
fn processors_below(root: &Path, threads: usize) -> Option<Vec<usize>> {
    let nodes = root.join("sys/devices/system/node");
    let mut found: Vec<(usize, Vec<usize>)> = std::fs::read_dir(&nodes)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let processors = list(&std::fs::read_to_string(entry.path().join("cpulist")).ok()?)?;
            // A node may have memory only.
            (!processors.is_empty()).then_some((number, processors))
        })
        .collect();
    found.sort_unstable();
    if found.len() < 2 {
        return None;
    }
    let status = std::fs::read_to_string(root.join("proc/self/status")).ok()?;
    let allowed = list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)?;
    let online = list(&std::fs::read_to_string(root.join("sys/devices/system/cpu/online")).ok()?)?;
    if online.iter().any(|processor| !allowed.contains(processor)) {
        return None;
    }
    let all: Vec<usize> = found.into_iter().flat_map(|(_, processors)| processors).collect();
    (threads <= all.len()).then_some(all)
}

/// The numbers of a list such as `0-3,8`; `None` if it is none.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MOST_PROCESSORS || numbers.len() + last.saturating_sub(first) >= MOST_PROCESSORS {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Keeps the calling thread to a processor. Only a wish: without it the thread runs anywhere.
pub(super) fn stay_on(processor: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: processor }) {
        tracing::debug!(processor, "a thread could not be kept to its processor");
    }
}

/// The processor that the calling thread is on, where the system says so.
pub(super) fn current() -> Option<usize> {
    #[cfg(target_os = "linux")]
    // SAFETY: the call has no conditions.
    return usize::try_from(unsafe { libc::sched_getcpu() }).ok();
    #[cfg(not(target_os = "linux"))]
    None
}

/// Moves the calling thread to one of the processors that it may use and that `is_free`; if there is none, it stays. It
/// may use the same processors after as before.
#[cfg(target_os = "linux")]
pub(super) fn leave_for(is_free: impl Fn(usize) -> bool) {
    const MOST: usize = libc::CPU_SETSIZE as usize;
    let bytes = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of processors is bits, of which all patterns are valid, and the calls read or write as many bytes as
    // it has. Numbers are below its size.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, bytes, &raw mut allowed) != 0 {
            return;
        }
        let mut free: libc::cpu_set_t = std::mem::zeroed();
        let others = (0..MOST).filter(|processor| libc::CPU_ISSET(*processor, &allowed) && is_free(*processor));
        others.for_each(|processor| libc::CPU_SET(processor, &mut free));
        if libc::CPU_COUNT(&free) > 0 && libc::sched_setaffinity(0, bytes, &raw const free) == 0 {
            libc::sched_setaffinity(0, bytes, &raw const allowed);
        }
    }
}

/// Elsewhere threads are left to the system.
#[cfg(not(target_os = "linux"))]
pub(super) fn leave_for(_is_free: impl Fn(usize) -> bool) {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A file system of a machine: processors of its nodes, those that are online, and those that the process may use.
    fn machine(name: &str, nodes: &[&str], online: &str, allowed: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("allotrope-placement-{}-{name}", std::process::id()));
        let write = |path: String, text: String| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (node, processors) in nodes.iter().enumerate() {
            write(format!("sys/devices/system/node/node{node}/cpulist"), format!("{processors}\n"));
        }
        write("sys/devices/system/node/possible".into(), "0-1\n".into());
        write("sys/devices/system/cpu/online".into(), format!("{online}\n"));
        write("proc/self/status".into(), format!("Name:\tx\nCpus_allowed_list:\t{allowed}\nThreads:\t1\n"));
        root
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_that_leaves_may_use_what_it_could_before() {
        std::thread::spawn(|| {
            let allowed = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let allowed = || list(allowed().lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap());
            let before = allowed();
            let here = current().unwrap();
            leave_for(|_| false);
            leave_for(|processor| processor != here);
            assert_eq!(allowed(), before);
            let other = before.unwrap().into_iter().find(|processor| *processor != here);
            if let Some(other) = other {
                // The system may move it on, but hardly ever at once.
                assert!((0..100).any(|_| {
                    leave_for(|processor| processor == other);
                    current() == Some(other)
                }));
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn threads_go_node_by_node() {
        let root = machine("two", &["0-1,4", "2-3,5"], "0-5", "0-5");
        assert_eq!(processors_below(&root, 6), Some(vec![0, 1, 4, 2, 3, 5]));
        assert_eq!(processors_below(&root, 7), None, "more threads than processors");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn nobody_is_bound_where_it_is_no_use_or_was_decided_already() {
        for (name, nodes, online, allowed) in [
            ("one", &["0-3"][..], "0-3", "0-3"),
            ("memory-only", &["0-3", ""], "0-3", "0-3"),
            ("bound", &["0-1", "2-3"], "0-3", "0-2"),
            ("hostile", &["0-1", "2-99999999999"], "0-3", "0-3"),
            ("nonsense", &["0-1", "2-3"], "many", "0-3"),
        ] {
            let root = machine(name, nodes, online, allowed);
            assert_eq!(processors_below(&root, 2), None, "{name}");
            std::fs::remove_dir_all(root).unwrap();
        }
        assert_eq!(processors_below(Path::new("/nowhere"), 1), None);
    }

    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        assert_eq!(list("0-2,7,9-10\n"), Some(vec![0, 1, 2, 7, 9, 10]));
        assert_eq!(list("\n"), Some(vec![]));
        for wrong in ["0-", "a", "1-65536", "-", "0,,x"] {
            assert_eq!(list(wrong), None, "{wrong}");
        }
    }
}
