//! Weights without a file: made by shape, for runs whose answers do not matter.
//!
//! Values are pseudo-random, the same for the same name, type and shape on every machine, and as large as those of a model whose
//! layers keep the size of what goes through them: a matrix of `k` columns has elements of about `1 / √k`, the weight of a norm
//! is about one. They take memory as weights do that were read, so that speed can be measured with them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use allotrope_graph::{DType, Definition, Graph, Sizes, TensorType, WeightData};
use memmap2::{Mmap, MmapMut};

use crate::quantization::LinearScheme;

/// What a quantized weight is multiplied by, and a quantized activation: activations of about one fill the range of e4m3, and
/// matrices of any width have an exponent for their elements.
pub(crate) const SCHEME: LinearScheme = LinearScheme::Fp8Static { weight_scale: 1.0 / 256.0, input_scale: 1.0 / 32.0 };

/// Bytes that one state of the generator makes: the content depends on it, and not on who makes which part.
const BLOCK: usize = 64 << 10;

/// Blocks that a thread takes at a time.
const BLOCKS: usize = 64;

/// Words that are made side by side, so that vector instructions make them.
const LANES: usize = 8;

/// The most threads; memory is the limit long before.
const THREADS: usize = 16;

/// From this size on a tensor asks for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// Made-up tensors of the names and types that a graph wants. Each is made when it is first asked for, or all together.
#[derive(Debug, Default)]
pub(crate) struct DummyWeights {
    tensors: BTreeMap<String, DummyTensor>,
}

#[derive(Debug)]
struct DummyTensor {
    seed: u64,
    dtype: DType,
    shape: Vec<usize>,
    bytes: usize,
    pattern: Pattern,
    made: OnceLock<Mmap>,
    /// Whether the pages of `made` were given back.
    released: AtomicBool,
    /// The same bytes for who asks after that.
    made_again: OnceLock<Mmap>,
}

impl DummyWeights {
    /// The weights of a graph. Nothing is made yet.
    pub(crate) fn of(graph: &Graph) -> Self {
        let tensors = graph.values().iter().filter_map(|value| match (&value.definition, value.ty.tensor()) {
            (Definition::Weight(name), Some(tensor)) => Some((name.clone(), DummyTensor::new(name, tensor)?)),
            _ => None,
        });
        Self { tensors: tensors.collect() }
    }

    /// Makes what was not made yet, on several threads.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn make_all(&self) -> io::Result<()> {
        make(self.tensors.values().map(|tensor| (tensor, &tensor.made)).filter(|(_, made)| made.get().is_none()))
    }

    /// The tensor of that name; `None` if the graph has no such weight, or there is no memory for it, which is logged.
    pub(crate) fn weight(&self, name: &str) -> Option<WeightData<'_>> {
        let tensor = self.tensors.get(name)?;
        let place = if tensor.released.load(Ordering::Relaxed) { &tensor.made_again } else { &tensor.made };
        if place.get().is_none()
            && let Err(error) = make(std::iter::once((tensor, place)))
        {
            tracing::error!("no memory for the {} bytes of the dummy weight `{name}`: {error}", tensor.bytes);
        }
        let bytes = place.get()?.get(..tensor.bytes)?;
        Some(WeightData { dtype: tensor.dtype, shape: &tensor.shape, bytes })
    }

    /// Gives the memory of a tensor back, which was copied elsewhere.
    pub(crate) fn release(&self, name: &str) {
        let Some(tensor) = self.tensors.get(name) else { return };
        if tensor.made.get().is_some() && !tensor.released.swap(true, Ordering::Relaxed) {
            tensor.drop_pages();
        }
    }
}

impl DummyTensor {
    /// `None` if its size depends on the batch, which no weight's does.
    fn new(name: &str, tensor: &TensorType) -> Option<Self> {
        let shape: Vec<usize> = (0..tensor.shape.len()).map(|axis| tensor.static_size(axis)).collect::<Option<_>>()?;
        let bytes = tensor.bytes(&Sizes::default())?;
        Some(Self {
            seed: hash(name),
            dtype: tensor.dtype,
            pattern: Pattern::new(name, tensor.dtype, &shape),
            shape,
            bytes,
            made: OnceLock::new(),
            released: AtomicBool::new(false),
            made_again: OnceLock::new(),
        })
    }

    /// Zeroed memory for it: at least one byte, as there is no mapping of none.
    fn allocate(&self) -> io::Result<MmapMut> {
        let map = MmapMut::map_anon(self.bytes.max(1))?;
        #[cfg(target_os = "linux")]
        if self.bytes >= HUGE_PAGE
            && let Err(error) = map.advise(memmap2::Advice::HugePage)
        {
            tracing::debug!(%error, "no huge pages");
        }
        Ok(map)
    }

    /// Lets the kernel have the pages of `made`.
    fn drop_pages(&self) {
        #[cfg(unix)]
        if let Some(map) = self.made.get() {
            // SAFETY: the mapping stays, so no access leaves it; what is read from it afterwards is zero. Who released the tensor
            // said that its bytes were copied, and who asks for it again gets other memory. As with weights in a mapped file, all
            // that could go wrong is that numbers are wrong: every bit pattern is one.
            let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            if let Err(error) = advised {
                tracing::debug!(%error, "the kernel declined to release weights");
            }
        }
    }
}

/// Makes tensors, each into its place.
fn make<'a>(tensors: impl Iterator<Item = (&'a DummyTensor, &'a OnceLock<Mmap>)>) -> io::Result<()> {
    let mut made = Vec::new();
    for (tensor, place) in tensors {
        made.push((tensor, place, tensor.allocate()?));
    }
    let part = BLOCK * BLOCKS;
    let large = made.iter().any(|(tensor, ..)| tensor.bytes > part);
    let parts = Mutex::new(made.iter_mut().flat_map(|(tensor, _, map)| {
        let parts = map.get_mut(..tensor.bytes).unwrap_or_default().chunks_mut(part).enumerate();
        parts.map(|(index, bytes)| (*tensor, index * BLOCKS, bytes))
    }));
    let work = || {
        loop {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((tensor, block, bytes)) = next else { break };
            fill(bytes, tensor.seed, block, tensor.pattern);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
    std::thread::scope(|scope| {
        for _ in 1..if large { threads } else { 1 } {
            // Where the system gives no thread, the others do it all.
            let _ = std::thread::Builder::new().name("dummy weights".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    for (_, place, map) in made {
        // Another thread may have made the same; one of the two stays.
        let _ = place.set(map.make_read_only()?);
    }
    Ok(())
}

/// Which bits of eight bytes of elements are random, and which are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pattern {
    random: u64,
    set: u64,
}

/// The form of a float: bits of an element, of its mantissa, and the exponent of one.
struct Float {
    bits: u32,
    mantissa: u32,
    bias: i32,
}

impl Pattern {
    /// The sign and the mantissa of a matrix's elements are random and their exponent is fixed: magnitudes lie between one power
    /// of two and the next, and none is NaN or infinite. In a vector that is no bias, numbers lie between 1 and 1 1/8.
    fn new(name: &str, dtype: DType, shape: &[usize]) -> Self {
        let float = match dtype {
            DType::F32 => Float { bits: 32, mantissa: 23, bias: 127 },
            DType::F16 => Float { bits: 16, mantissa: 10, bias: 15 },
            DType::Bf16 => Float { bits: 16, mantissa: 7, bias: 127 },
            DType::F8E4M3 => Float { bits: 8, mantissa: 3, bias: 7 },
            DType::I32 => return Self { random: 0, set: 0 },
        };
        let sign = 1_u64 << (float.bits - 1);
        match shape {
            [_] if name.ends_with(".bias") => float.pattern(sign | low_bits(float.mantissa), -6),
            [_] => float.pattern(low_bits(float.mantissa.saturating_sub(3)), 0),
            _ => {
                let columns = shape.last().copied().unwrap_or(1).max(1) as f32;
                let stored_as = match (dtype, SCHEME) {
                    (DType::F8E4M3, LinearScheme::Fp8Static { weight_scale, .. }) => weight_scale,
                    _ => 1.0,
                };
                // The root mean square of numbers from 1 to 2 is 1.5.
                let exponent = (1.0 / (1.5 * columns.sqrt() * stored_as)).log2().round();
                float.pattern(sign | low_bits(float.mantissa), exponent as i32)
            }
        }
    }
}

impl Float {
    fn pattern(&self, random: u64, exponent: i32) -> Pattern {
        // Neither denormal nor the exponent of infinities and NaN.
        let most = (1 << (self.bits - 1 - self.mantissa)) - 2;
        let set = u64::from((exponent + self.bias).clamp(1, most).unsigned_abs()) << self.mantissa;
        let each = |element: u64| (0..64 / self.bits).fold(0, |word, at| word | element << (at * self.bits));
        Pattern { random: each(random), set: each(set) }
    }
}

fn low_bits(count: u32) -> u64 {
    (1 << count) - 1
}

/// Fowler, Noll and Vo's hash (FNV-1a).
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The `index`th number of Steele, Lea and Flood's SplitMix64 from a seed.
fn split_mix(seed: u64, index: u64) -> u64 {
    let mixed = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fills the blocks of a tensor from the `first` on: Marsaglia's xorshift, eight at a time, from a state for each block.
fn fill(bytes: &mut [u8], seed: u64, first: usize, pattern: Pattern) {
    for (block, bytes) in bytes.chunks_mut(BLOCK).enumerate() {
        let number = ((first + block) * LANES) as u64;
        // Zero is the one state that stays what it is.
        let mut state: [u64; LANES] = std::array::from_fn(|lane| split_mix(seed, number + lane as u64) | 1);
        let mut next = || {
            let mut made = [[0; 8]; LANES];
            for (state, made) in state.iter_mut().zip(&mut made) {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *made = (*state & pattern.random | pattern.set).to_le_bytes();
            }
            made
        };
        let (whole, rest) = bytes.as_chunks_mut::<{ 8 * LANES }>();
        for line in whole {
            line.copy_from_slice(next().as_flattened());
        }
        let last = next();
        rest.iter_mut().zip(last.as_flattened()).for_each(|(byte, made)| *byte = *made);
    }
}
