//! What decides which parameters of a kernel are the fastest: the processor and the kernels.

use crate::isa::Isa;

/// The sources of the kernels that have parameters, and of what they are made of, each with its path in `src`.
macro_rules! sources {
    ($($path:literal),+ $(,)?) => {
        [$(($path, include_bytes!(concat!("../", $path)).as_slice())),+]
    };
}

const SOURCES: &[(&str, &[u8])] = &sources![
    "linear/amx/mod.rs",
    "linear/amx/pack.rs",
    "linear/amx/plan.rs",
    "linear/amx/products.rs",
    "linear/amx/registers.rs",
    "linear/amx/store.rs",
    "linear/mod.rs",
    "linear/share.rs",
    "linear/tile.rs",
    "linear/tuning.rs",
    "linear/unit.rs",
    "linear/weights.rs",
    "simd/avx2.rs",
    "simd/avx512.rs",
    "simd/avx512_bf16.rs",
    "simd/mod.rs",
    "simd/portable.rs",
];

/// The hash of the sources, computed when this is compiled.
const SOURCES_HASH: u64 = hash(SOURCES);

/// Fowler, Noll and Vo's hash (FNV-1a) over all files.
const fn hash(mut files: &[(&str, &[u8])]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    while let [(_, file), rest @ ..] = files {
        let mut bytes: &[u8] = file;
        // So that what moves from one file to the next changes it too.
        hash = (hash ^ bytes.len() as u64).wrapping_mul(0x100_0000_01b3);
        while let [byte, rest @ ..] = bytes {
            hash = (hash ^ *byte as u64).wrapping_mul(0x100_0000_01b3);
            bytes = rest;
        }
        files = rest;
    }
    hash
}

/// Text that changes with the processor, the instruction-set path, the kernels' sources and the version.
pub(super) fn fingerprint(isa: Isa) -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").map(|text| processor(&text)).unwrap_or_default();
    let (architecture, version) = (std::env::consts::ARCH, env!("CARGO_PKG_VERSION"));
    format!("cpu {architecture} {processor}; {isa}; kernels {SOURCES_HASH:016x}; version {version}")
}

/// The lines of `/proc/cpuinfo` that say what the first processor is, and not how it is at the moment.
fn processor(text: &str) -> String {
    const LASTING: [&str; 6] = ["vendor_id", "cpu family", "model", "model name", "stepping", "cache size"];
    let first = text.split("\n\n").next().unwrap_or_default();
    let fields = first.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()));
    let lasting: Vec<&str> = fields.filter(|(name, _)| LASTING.contains(name)).map(|(_, value)| value).collect();
    lasting.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::path::Path;

    #[test]
    fn every_kernel_source_is_part_of_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found: Vec<String> = Vec::new();
        let mut folders = vec![root.join("linear"), root.join("simd")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        found.retain(|path| !path.ends_with("tests.rs") && !path.contains("/tests/"));
        found.sort();
        let listed: Vec<&str> = SOURCES.iter().map(|(path, _)| *path).collect();
        assert_eq!(listed, found, "list every file below src/linear and src/simd in SOURCES, in order");
    }

    #[test]
    fn a_changed_byte_or_another_split_is_another_hash() {
        let one = hash(&[("a", b"xy"), ("b", b"z")]);
        assert_ne!(one, hash(&[("a", b"xy"), ("b", b"Z")]));
        assert_ne!(one, hash(&[("a", b"x"), ("b", b"yz")]));
        assert_ne!(one, hash(&[("b", b"z"), ("a", b"xy")]));
    }

    #[test]
    fn the_processor_is_what_it_is_and_not_how_it_is() {
        let text = |megahertz: &str, stepping: &str| {
            format!(
                "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon: 8480\n\
                 stepping\t: {stepping}\ncpu MHz\t\t: {megahertz}\ncache size\t: 107520 KB\n\nprocessor\t: 1\nmodel\t\t: 9\n"
            )
        };
        assert_eq!(processor(&text("2000.0", "8")), "GenuineIntel, 6, 143, Xeon: 8480, 8, 107520 KB");
        assert_eq!(processor(&text("2000.0", "8")), processor(&text("3100.5", "8")));
        assert_ne!(processor(&text("2000.0", "8")), processor(&text("2000.0", "6")));
        assert_eq!(processor(""), "");
    }

    #[test]
    fn each_instruction_set_has_its_own() {
        let all: std::collections::HashSet<String> = Isa::available().map(fingerprint).collect();
        assert_eq!(all.len(), Isa::available().count());
        assert_eq!(fingerprint(Isa::Portable), fingerprint(Isa::Portable));
    }
}
