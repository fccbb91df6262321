//! What the settings' rules need to know of this machine before a device is opened.

use super::DEVICE;
use crate::team::available_threads;
use allotrope_config::{AttentionGraphSupport, DeviceFacts};

/// The facts about the CPU of this machine.
pub fn facts() -> DeviceFacts {
    DeviceFacts {
        name: DEVICE.to_owned(),
        kind: DEVICE.to_owned(),
        attention_graph_support: AttentionGraphSupport::Always,
        parallelism: available_threads(),
        available_memory: available_memory(),
        dedicated_memory: false,
        repack_weights: true,
        fp8_kv_cache: true,
        autotune: true,
        persistent_decode: true,
        kernel_cache: None,
    }
}

/// Memory that this process can have now, in bytes: what the machine has available, lowered to what its control group
/// leaves. Where the system does not say, 4 GiB.
fn available_memory() -> u64 {
    const UNKNOWN: u64 = 4 << 30;
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    machine.unwrap_or(UNKNOWN).min(control_group_available().unwrap_or(u64::MAX))
}

/// The `MemAvailable` line, in bytes.
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the process's control group (version 2) and those above it leave, if they set a limit.
fn control_group_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let group = root.join(path);
    let number = |file: std::path::PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    group
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(|group| {
            let (limit, used) = (number(group.join("memory.max"))?, number(group.join("memory.current"))?);
            Some(limit.saturating_sub(used))
        })
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn memory_is_read_from_the_line_that_counts_caches() {
        let text = "MemTotal:       24618464 kB\nMemFree:          100 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(meminfo_available(text), Some(23_000_000 * 1024));
        assert_eq!(meminfo_available("MemTotal: 5 kB\n"), None);
        assert_eq!(meminfo_available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn the_facts_are_of_a_machine_that_can_run_something() {
        let facts = facts();
        assert!(facts.parallelism >= 1);
        assert!(facts.available_memory > 0);
    }
}
