//! Runs small PTX texts on the machine, without the driver.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "shared by tests that each use a part"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use allotrope_cuda_emulator::machine::memory::{Memory, Region};
use allotrope_cuda_emulator::machine::{Counts, Launch, Random, Report, run};
use allotrope_cuda_emulator::program::{Kernel, load};
use allotrope_cuda_emulator::ptx::Error;

/// A device's memory and a loaded text.
pub struct Bench {
    pub memory: Memory,
    pub kernels: Vec<Arc<Kernel>>,
    pub seed: u64,
    /// Sees every launch that went well.
    pub witness: Option<Witness>,
    /// The text of each kernel.
    texts: BTreeMap<String, Arc<str>>,
    /// What memory holds, by its address, for a witness that compares it.
    pub formats: BTreeMap<u64, Format>,
}

/// Sees a launch: the kernel, its shape and arguments, and for each pointer among them what its memory held before and
/// after.
pub type Witness = Box<dyn FnMut(&str, Shape, &[Argument], &[[Vec<u8>; 2]])>;

/// What a kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    E4m3,
    /// Integers.
    Word,
}

/// A launch with laid out parameters.
pub struct Seen<'a> {
    pub text: &'a str,
    pub kernel: &'a str,
    pub shape: Shape,
    pub parameters: &'a [u8],
    /// Memory that has its address among the parameters, at a multiple of eight: the address, and the bytes before and after.
    pub memory: &'a [(u64, [Vec<u8>; 2])],
    pub formats: &'a BTreeMap<u64, Format>,
}

impl Seen<'_> {
    /// What was before in the memory whose address is at an offset of the parameters.
    pub fn before(&self, offset: usize) -> &[u8] {
        let wanted = u64::from_le_bytes(self.parameters[offset..offset + 8].try_into().unwrap());
        let (_, [before, _]) = self.memory.iter().find(|(address, _)| *address == wanted).unwrap();
        before
    }
}

/// Sees a launch with laid out parameters.
pub type LaidOutWitness = Box<dyn FnMut(&Seen<'_>)>;

thread_local! {
    /// Sees every launch with laid out parameters that goes well on this thread, of every bench.
    pub static LAID_OUT_WITNESS: RefCell<Option<LaidOutWitness>> = const { RefCell::new(None) };
}

/// How a kernel is launched.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub dynamic_shared: u32,
    pub cooperative: bool,
}

/// So many blocks of so many threads.
pub fn shape(blocks: u32, threads: u32) -> Shape {
    Shape { grid: [blocks, 1, 1], threads, dynamic_shared: 0, cooperative: false }
}

impl Bench {
    pub fn new(text: &str) -> Result<Self, Error> {
        let (memory, kernels, texts, formats) = Default::default();
        let mut bench = Self { memory, kernels, seed: seed(), witness: None, texts, formats };
        bench.load(text)?;
        Ok(bench)
    }

    /// Loads another text beside those that are there.
    pub fn load(&mut self, text: &str) -> Result<(), Error> {
        let memory = &mut self.memory;
        let program = load(text, &mut |variable| {
            let region = memory.allocate(variable.bytes.max(1))?;
            region.write(region.address, &vec![0; variable.bytes as usize]);
            region.write(region.address, &variable.initial);
            Some(region.address)
        })?;
        let text: Arc<str> = text.into();
        self.texts.extend(program.kernels.iter().map(|kernel| (kernel.name.clone(), Arc::clone(&text))));
        self.kernels.extend(program.kernels);
        Ok(())
    }

    /// Memory with these bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Arc<Region> {
        let region = self.memory.allocate(bytes.len().max(1) as u64).unwrap();
        region.write(region.address, bytes);
        region
    }

    pub fn put_words(&mut self, values: &[u32]) -> Arc<Region> {
        self.put(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn put_floats(&mut self, values: &[f32]) -> Arc<Region> {
        self.put(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Says what a region holds, for a witness.
    pub fn holds(&mut self, region: &Region, format: Format) {
        self.formats.insert(region.address, format);
    }

    /// Memory that a kernel must write all of: it holds a NaN at first in every format.
    pub fn poisoned(&mut self, bytes: usize) -> Arc<Region> {
        self.put(&vec![0xff; bytes])
    }

    pub fn launch(&mut self, name: &str, shape: Shape, arguments: &[Argument]) -> Result<Counts, Box<Report>> {
        let kernel = self.kernel(name);
        assert_eq!(kernel.parameters.len(), arguments.len(), "arguments of {name}");
        let mut parameters = vec![0; kernel.parameter_bytes];
        for (place, argument) in kernel.parameters.iter().zip(arguments) {
            let bytes = match argument {
                Argument::Pointer(address) => address.to_le_bytes().to_vec(),
                Argument::Word(value) => value.to_le_bytes().to_vec(),
                Argument::Float(value) => value.to_le_bytes().to_vec(),
            };
            assert_eq!(bytes.len(), place.bytes);
            parameters[place.offset..place.offset + place.bytes].copy_from_slice(&bytes);
        }
        let pointers = arguments.iter().filter_map(|argument| match argument {
            Argument::Pointer(address) => self.memory.find(*address, 1),
            _ => None,
        });
        let regions: Vec<Arc<Region>> = if self.witness.is_some() { pointers.collect() } else { Vec::new() };
        let before: Vec<Vec<u8>> = regions.iter().map(|region| bytes(region)).collect();
        let counts = self.launch_laid_out(name, shape, parameters)?;
        if let Some(witness) = &mut self.witness {
            let after = regions.iter().map(|region| bytes(region));
            let seen: Vec<[Vec<u8>; 2]> =
                before.into_iter().zip(after).map(|(before, after)| [before, after]).collect();
            witness(name, shape, arguments, &seen);
        }
        Ok(counts)
    }

    fn kernel(&self, name: &str) -> Arc<Kernel> {
        Arc::clone(self.kernels.iter().find(|kernel| kernel.name == name).expect("no such kernel"))
    }

    /// A launch whose parameters are bytes at the places where the kernel has them.
    pub fn launch_laid_out(&mut self, name: &str, shape: Shape, parameters: Vec<u8>) -> Result<Counts, Box<Report>> {
        let kernel = self.kernel(name);
        assert_eq!(kernel.parameter_bytes, parameters.len(), "bytes of parameters of {name}");
        let launch = Launch {
            kernel,
            grid: shape.grid,
            threads: [shape.threads, 1, 1],
            dynamic_shared: shape.dynamic_shared,
            parameters,
            cooperative: shape.cooperative,
            workspace: if shape.cooperative { self.memory.workspace().unwrap() } else { 0 },
            seed: self.seed,
            check_uninitialized: true,
            host_threads: 2,
        };
        let is_seen = LAID_OUT_WITNESS.with_borrow(Option::is_some);
        if !is_seen {
            return run(&launch, &self.memory.view());
        }
        let words = launch.parameters.as_chunks::<8>().0.iter().map(|eight| u64::from_le_bytes(*eight));
        let found = words.filter_map(|word| self.memory.find(word, 1).filter(|region| region.address == word));
        let regions: BTreeMap<u64, Arc<Region>> = found.map(|region| (region.address, region)).collect();
        let before: Vec<Vec<u8>> = regions.values().map(|region| bytes(region)).collect();
        let counts = run(&launch, &self.memory.view())?;
        let after = regions.iter().map(|(address, region)| (*address, bytes(region)));
        let memory: Vec<(u64, [Vec<u8>; 2])> =
            before.into_iter().zip(after).map(|(before, (address, after))| (address, [before, after])).collect();
        let (text, parameters) = (&self.texts[name], &launch.parameters);
        let seen = Seen { text, kernel: name, shape, parameters, memory: &memory, formats: &self.formats };
        LAID_OUT_WITNESS.with_borrow_mut(|witness| witness.iter_mut().for_each(|witness| witness(&seen)));
        Ok(counts)
    }
}

/// A kernel argument.
#[derive(Clone, Copy)]
pub enum Argument {
    Pointer(u64),
    Word(u32),
    Float(f32),
}

/// A pointer to a region.
pub fn at(region: &Region) -> Argument {
    Argument::Pointer(region.address)
}

/// The bytes of a region.
pub fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.size as usize];
    region.read(region.address, &mut bytes);
    bytes
}

pub fn words(region: &Region) -> Vec<u32> {
    bytes(region).as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
}

pub fn quads(region: &Region) -> Vec<u64> {
    bytes(region).as_chunks::<8>().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect()
}

pub fn floats(region: &Region) -> Vec<f32> {
    words(region).into_iter().map(f32::from_bits).collect()
}

/// A fresh seed, printed so that a failure can be run again.
pub fn seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = u64::from(since.subsec_nanos()) ^ since.as_secs() << 20;
    println!("seed {seed}");
    seed
}

/// Numbers between -1 and 1.
pub fn uniform(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// Asserts element by element, so that a NaN fails.
pub fn assert_close(got: &[f32], expected: &[f32], relative: f32, absolute: f32, what: &str) {
    if let Some(difference) = difference(got, expected, relative, absolute) {
        panic!("{what}: {difference}");
    }
}

/// The first element that is too far off.
pub fn difference(got: &[f32], expected: &[f32], relative: f32, absolute: f32) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} elements, expected {}", got.len(), expected.len()));
    }
    let far = got.iter().zip(expected).position(|(x, y)| {
        let error = (x - y).abs();
        // Said this way round, so that a NaN is too far off.
        let near = error <= relative * y.abs() + absolute;
        !near
    })?;
    Some(format!("element {far}: {}, expected {}", got[far], expected[far]))
}
