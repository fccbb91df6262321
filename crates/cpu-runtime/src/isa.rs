//! The instruction-set paths: which this machine can run, and how code is compiled for each.

use crate::simd::{Avx2, Avx512, Avx512Bf16, Portable, Simd};

/// An instruction-set path. Each has its own order of summation in matrix products; within one path, the bits of a
/// result depend on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust without fused multiply-add: any processor.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// [`Isa::Avx512`] with AVX-512 BF16 and VBMI.
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`] with the matrix tiles of AMX, for products of bf16 and FP8. Linux only, where the process may
    /// ask for them.
    Amx,
}

impl Isa {
    /// Every path there is, slowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The best path that this machine can run.
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// The paths that this machine can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this machine can run the path.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Self::Avx512 => {
                Self::Avx2.is_available() && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && has!("avx512bf16") && has!("avx512vbmi"),
            Self::Amx => Self::Avx512Bf16.is_available() && crate::linear::amx::available(),
        }
    }

    /// Whether this machine can run the path.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// The path's name, as reports print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Runs `task` compiled for this path; a path that the machine can't run falls back to the portable one, which is
    /// what keeps this function safe.
    #[inline]
    pub(crate) fn dispatch<T: Task>(self, task: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        {
            // Detection is a cached load; it is what makes the calls below sound.
            if self != Self::Portable && self.is_available() {
                // SAFETY: the features of the path were just found to be present.
                return unsafe {
                    match self {
                        Self::Avx2 => run_avx2(task),
                        Self::Avx512 => run_avx512(task),
                        _ => run_avx512_bf16(task),
                    }
                };
            }
        }
        run_portable(task)
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A piece of work that is generic over the instruction set. `run` and all it calls in its hot loops must be
/// `#[inline(always)]`, so that they are compiled with the features of the path.
pub(crate) trait Task {
    /// What the work yields.
    type Output;
    /// Does the work with the vectors of `S`.
    fn run<S: Simd>(self) -> Self::Output;
}

#[inline(never)]
pub(crate) fn run_portable<T: Task>(task: T) -> T::Output {
    task.run::<Portable>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run_avx2<T: Task>(task: T) -> T::Output {
    task.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn run_avx512<T: Task>(task: T) -> T::Output {
    task.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub(crate) fn run_avx512_bf16<T: Task>(task: T) -> T::Output {
    task.run::<Avx512Bf16>()
}
