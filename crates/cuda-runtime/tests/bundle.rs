//! The kernels that the program embeds, in the emulator: all of them load, whole and one by one, and those that measure
//! bandwidth move every byte.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::sync::Arc;

use allotrope_cuda_emulator::machine::memory::{Memory, Region};
use allotrope_cuda_emulator::machine::{Launch, Random, run};
use allotrope_cuda_emulator::program::{Program, load};
use allotrope_cuda_runtime::bundle::{Bundle, Kind, entry, entry_names};

/// Loads a module into a memory, which holds its variables.
fn loaded(text: &str, memory: &mut Memory, title: &str) -> Program {
    let program = load(text, &mut |variable| {
        let region = memory.allocate(variable.bytes.max(1))?;
        region.write(region.address, &vec![0; variable.bytes as usize]);
        region.write(region.address, &variable.initial);
        Some(region.address)
    });
    program.unwrap_or_else(|error| panic!("{title}: {error}"))
}

#[test]
fn every_kernel_loads_in_the_emulator() {
    let bundle = Bundle::embedded().unwrap();
    let (mut modules, mut kernels) = (0, 0);
    for listed in bundle.entries().iter().filter(|listed| listed.kind == Kind::Ptx) {
        let text = String::from_utf8(bundle.content(listed).unwrap()).unwrap();
        let title = format!("{} for compute_{}", listed.source, listed.architecture);
        let names = entry_names(&text);
        assert!(!names.is_empty(), "{title} has no kernels");
        let program = loaded(&text, &mut Memory::default(), &title);
        let found: BTreeSet<&str> = program.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(found, names.iter().copied().collect(), "{title}");
        for name in names {
            let alone = loaded(&entry(&text, name).unwrap(), &mut Memory::default(), &format!("{name} of {title}"));
            let found: Vec<&str> = alone.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            assert_eq!(found, [name], "{title}");
            kernels += 1;
        }
        modules += 1;
    }
    assert!(modules > 0);
    println!("{modules} modules of PTX with {kernels} kernels load");
}

#[test]
fn every_source_has_code_for_each_gpu_that_the_program_runs_on() {
    let bundle = Bundle::embedded().unwrap();
    let sources: BTreeSet<&str> = bundle.entries().iter().map(|listed| listed.source.as_str()).collect();
    for source in sources {
        for capability in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)]
        {
            let ptx = bundle.ptx(source, capability).unwrap();
            let target = match capability {
                (9, 0) => ".target sm_90a",
                (9.., _) => ".target sm_90",
                (8, 9) => ".target sm_89",
                _ => ".target sm_80",
            };
            assert!(ptx.lines().any(|line| line == target), "{source} on {capability:?}");
            let cubin = bundle.cubin(source, capability).unwrap();
            assert!(cubin.is_none_or(|cubin| cubin.starts_with(b"\x7fELF")), "{source} on {capability:?}");
        }
    }
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
        assert!(bundle.cubin("copy", capability).unwrap().is_some(), "{capability:?}");
    }
}

/// Threads of a block of the kernels of `copy.cu`.
const THREADS: u32 = 256;

/// Runs a kernel of `copy.cu`, whose arguments are two pointers and a number of vectors.
fn launch(
    memory: &mut Memory,
    program: &Program,
    name: &str,
    blocks: u32,
    pointers: [&Region; 2],
    vectors: u64,
    seed: u64,
) {
    let kernel = Arc::clone(program.kernels.iter().find(|kernel| kernel.name == name).unwrap());
    let words = [pointers[0].address, pointers[1].address, vectors];
    let parameters: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(kernel.parameter_bytes, parameters.len());
    let launch = Launch {
        kernel,
        grid: [blocks, 1, 1],
        threads: [THREADS, 1, 1],
        dynamic_shared: 0,
        parameters,
        cooperative: false,
        workspace: 0,
        seed,
        check_uninitialized: true,
        host_threads: 2,
    };
    if let Err(report) = run(&launch, &memory.view()) {
        panic!("{name} with {blocks} blocks and {vectors} vectors: {report}");
    }
}

fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.size as usize];
    region.read(region.address, &mut bytes);
    bytes
}

fn filled(memory: &mut Memory, content: &[u8]) -> Arc<Region> {
    let region = memory.allocate(content.len() as u64).unwrap();
    region.write(region.address, content);
    region
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
}

#[test]
fn copies_and_sums_take_in_every_byte_and_no_more() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let bundle = Bundle::embedded().unwrap();
    for capability in [(8, 0), (9, 0)] {
        for (vectors, blocks) in [(0, 1), (1, 1), (255, 1), (1000, 2), (5000, 3), (777, 7)] {
            let mut memory = Memory::default();
            let program = loaded(&bundle.ptx("copy", capability).unwrap(), &mut memory, "copy");
            let content: Vec<u8> = (0..vectors * 16).map(|_| random.bits() as u8).collect();
            // A vector more than is copied on either side, which must stay as it is.
            let from = filled(&mut memory, &[content.as_slice(), &[0xaa; 16]].concat());
            let to = filled(&mut memory, &vec![0xff; content.len() + 16]);
            launch(&mut memory, &program, "copy_vectors", blocks, [&to, &from], vectors as u64, random.bits());
            assert_eq!(bytes(&to), [content.as_slice(), &[0xff; 16]].concat(), "{vectors} vectors, {blocks} blocks");

            let threads = (blocks * THREADS) as usize;
            let mut expected = vec![0_u32; threads];
            for (index, word) in words(&content).into_iter().enumerate() {
                let sum = &mut expected[(index / 4) % threads];
                *sum = sum.wrapping_add(word);
            }
            let sums = filled(&mut memory, &vec![0xff; threads * 4]);
            launch(&mut memory, &program, "read_vectors", blocks, [&sums, &from], vectors as u64, random.bits());
            assert_eq!(words(&bytes(&sums)), expected, "{vectors} vectors, {blocks} blocks");
        }
    }
}
