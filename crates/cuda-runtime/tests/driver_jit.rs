//! PTX to machine code, and the cache of it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use allotrope_cuda_runtime::driver::{Context, Fault, Image};
use allotrope_cuda_runtime::jit::{KernelCache, Outcome, compile};
use allotrope_cuda_runtime::{CudaDevice, CudaOptions};
use allotrope_graph::Sizes;
use allotrope_graph::memory::plan_memory;
use allotrope_graph::text::parse;
use allotrope_runtime::conformance::{self, Weights};
use allotrope_runtime::{CacheLayout, Device, StartupLedger};
use common::{Bench, PTX, assert_scaled, outside};
use rand::RngExt;
use sha2::{Digest, Sha256};

fn is_compiled(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Compiled(_))
}

/// The files of a cache, in the order of their names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn compiled_code_runs_and_is_found_again() {
    if outside("compiled_code_runs_and_is_found_again", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::new(Some(folder.path().join("below").join("it")));
    let (code, outcome) = compile(&bench.context, PTX, &cache).unwrap();
    assert!(is_compiled(outcome));
    let module = bench.context.load_module(Image::Cubin(&code), "compiled").unwrap();
    bench.scale = module.function("scale").unwrap();
    let values = bench.floats(77);
    let (given, out) = (bench.put(&values), bench.poisoned(77));
    bench.stream.launch(&bench.launch(&out, &given, 3.5, 77, "compiled")).unwrap();
    assert_scaled(&bench.get(&out).unwrap(), &values, 3.5);

    assert_eq!(compile(&bench.context, PTX, &cache).unwrap(), (code.clone(), Outcome::Hit));
    // A new process has a new cache over the same files.
    let again = KernelCache::new(Some(folder.path().join("below/it")));
    assert_eq!(compile(&bench.context, PTX, &again).unwrap(), (code.clone(), Outcome::Hit));
    // Another text is another entry; without a folder nothing is kept.
    let other = format!("{PTX}// changed\n");
    assert!(is_compiled(compile(&bench.context, &other, &again).unwrap().1));
    assert_eq!(entries(&folder.path().join("below/it")).len(), 2);
    let none = KernelCache::new(None);
    for _ in 0..2 {
        let (same, outcome) = compile(&bench.context, PTX, &none).unwrap();
        assert!(is_compiled(outcome) && same == code);
    }
}

#[test]
fn another_driver_is_another_entry() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["13.0", "13.1"].map(|version| [("ALLOTROPE_EMULATOR_DRIVER_VERSION", version)]);
    // Both processes have their folder for temporary files in one place.
    for settings in &settings {
        let settings = [settings[0], ("TMPDIR", folder.path().to_str().unwrap())];
        if outside("another_driver_is_another_entry", &settings).is_none() {
            let cache = KernelCache::new(Some(std::env::temp_dir().join("kept")));
            let context = Context::open().unwrap();
            assert!(is_compiled(compile(&context, PTX, &cache).unwrap().1));
            assert_eq!(compile(&context, PTX, &cache).unwrap().1, Outcome::Hit);
            return;
        }
    }
    assert_eq!(entries(&folder.path().join("kept")).len(), 2);
}

#[test]
fn damage_is_a_miss_and_mended() {
    if outside("damage_is_a_miss_and_mended", &[]).is_some() {
        return;
    }
    let mut bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::new(Some(folder.path().to_owned()));
    let (code, _) = compile(&bench.context, PTX, &cache).unwrap();
    let path = entries(folder.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), b"altrjit1".to_vec(), whole[..20].to_vec(), vec![0; whole.len()]];
    for _ in 0..50 {
        let at = bench.random.random_range(0..whole.len());
        damaged.push(whole[..at].to_vec());
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bench.random.random_range(0..8);
        damaged.push(flipped);
    }
    damaged.push([whole.as_slice(), b"more"].concat());
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        let (same, outcome) = compile(&bench.context, PTX, &cache).unwrap();
        assert!(is_compiled(outcome) && same == code, "{} bytes", bytes.len());
        assert_eq!(fs::read(&path).unwrap(), whole, "it is replaced");
    }
    assert_eq!(compile(&bench.context, PTX, &cache).unwrap().1, Outcome::Hit);
}

#[test]
fn many_start_at_once() {
    if outside("many_start_at_once", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let expected = context.compile(PTX).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = KernelCache::new(Some(folder.path().to_owned()));
                for _ in 0..10 {
                    assert_eq!(compile(&context, PTX, &cache).unwrap().0, expected);
                    // Some take it away again meanwhile.
                    entries(folder.path()).first().map(fs::remove_file);
                }
            });
        }
    });
    assert!(entries(folder.path()).iter().all(|path| path.extension().unwrap() == "cubin"), "nothing is left over");
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    if outside("a_folder_that_cannot_be_written_is_no_error", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "is no folder").unwrap();
    let cache = KernelCache::new(Some(file.join("cache")));
    for _ in 0..2 {
        assert!(is_compiled(compile(&context, PTX, &cache).unwrap().1));
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "is no folder");
}

#[test]
fn what_was_used_last_stays() {
    if outside("what_was_used_last_stays", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..5).map(|number| format!("{PTX}// {number}\n")).collect();
    let unbounded = KernelCache::new(Some(folder.path().to_owned()));
    let mut age = 1000;
    for text in &texts[..4] {
        let before = if folder.path().exists() { entries(folder.path()) } else { Vec::new() };
        compile(&context, text, &unbounded).unwrap();
        let new = entries(folder.path()).into_iter().find(|path| !before.contains(path)).unwrap();
        let file = fs::File::options().append(true).open(new).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        age -= 100;
    }
    fs::write(folder.path().join("notes.txt"), vec![0; 1 << 20]).unwrap();
    let abandoned = folder.path().join("1-1.partial");
    fs::write(&abandoned, "x").unwrap();
    let old = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().append(true).open(&abandoned).unwrap().set_modified(old).unwrap();
    // The first is the oldest, but was used again.
    assert_eq!(compile(&context, &texts[0], &unbounded).unwrap().1, Outcome::Hit);
    let size = fs::metadata(entries(folder.path()).into_iter().find(|p| p.extension().unwrap() == "cubin").unwrap());
    let bounded = KernelCache::bounded(Some(folder.path().to_owned()), size.unwrap().len() * 3 + 10);
    assert!(is_compiled(compile(&context, &texts[4], &bounded).unwrap().1));
    assert!(!abandoned.exists() && folder.path().join("notes.txt").exists());
    let found = |number: usize| {
        compile(&context, &texts[number], &KernelCache::bounded(Some(folder.path().to_owned()), u64::MAX))
    };
    for (number, expected) in [(0, true), (3, true), (4, true), (1, false), (2, false)] {
        assert_eq!(!is_compiled(found(number).unwrap().1), expected, "text {number}");
    }
}

#[test]
fn the_compiler_says_what_is_wrong() {
    if outside("the_compiler_says_what_is_wrong", &[]).is_some() {
        return;
    }
    let context = Context::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = KernelCache::new(Some(folder.path().to_owned()));
    let error = compile(&context, &PTX.replace("fma.rn.f32", "fma.up.f32"), &cache).unwrap_err();
    assert_eq!(error.fault(), &Fault::Program);
    let text = error.to_string();
    assert!(text.contains("CUDA_ERROR_INVALID_PTX") && text.contains("fma.up"), "{text}");
    assert!(entries(folder.path()).is_empty(), "what is refused is not kept");
    assert!(compile(&context, "a\0b", &cache).is_err());
    compile(&context, PTX, &cache).unwrap();
}

/// Machine code that is whole and of another driver than the one that is to run it costs time and nothing else.
#[test]
fn code_on_disk_that_the_driver_refuses_is_made_again() {
    if outside("code_on_disk_that_the_driver_refuses_is_made_again", &[]).is_some() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let graph = parse(
        "graph {
           input %token_ids: i32[T]
           weight %table: bf16[100, 16]
           %x: bf16[T, 16] = embedding(%table, %token_ids)
           %y: f32[T, 16] = cast<to=f32>(%x)
           return %y
         }",
    )
    .unwrap();
    let prepare = || {
        let mut device = CudaDevice::open(CudaOptions { cache: Some(folder.path().to_owned()) }).unwrap();
        let limits = Sizes { tokens: 8, sequences: 1, logit_rows: 1, blocks: 1 };
        let plan = plan_memory(&graph, device.target(), &[], limits, device.alignment()).unwrap();
        let weights = Weights::random(&mut conformance::random(), &graph);
        device.load_weights(&graph, Arc::new(weights), false).unwrap();
        device.allocate(&graph, &plan, CacheLayout { blocks: 1, block_size: 16 }).unwrap();
        let mut ledger = StartupLedger::since(std::time::Instant::now());
        let kernels = device.prepare_all(&graph, &mut ledger).unwrap();
        assert_eq!(kernels.len(), graph.groups().len());
        ledger.finish().phases.into_iter().map(|phase| phase.name).collect::<Vec<_>>()
    };
    let counts = |names: Vec<String>| names.into_iter().find(|name| name.starts_with("compile kernels")).unwrap();
    assert_eq!(counts(prepare()), "compile kernels (2, 0 cached)");
    assert_eq!(counts(prepare()), "compile kernels (0, 2 cached)");
    let kept: Vec<Vec<u8>> = entries(folder.path()).iter().map(|path| fs::read(path).unwrap()).collect();
    for path in entries(folder.path()) {
        let code = b"code of some other driver";
        let mark = fs::read(&path).unwrap()[..8].to_vec();
        fs::write(&path, [&mark[..], &Sha256::digest(code), code].concat()).unwrap();
    }
    assert_eq!(counts(prepare()), "compile kernels (2, 0 cached)");
    let again: Vec<Vec<u8>> = entries(folder.path()).iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(again == kept, "what is of no use is replaced");
}
