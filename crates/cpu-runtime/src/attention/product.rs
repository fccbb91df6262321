//! Register tiles: a few query rows times sixteen to sixty-four positions (scores), and weights of a few rows times
//! values (sums).
//!
//! A score is one chain of multiply-adds along the key, a sum one chain along positions, whatever the tile's shape.

use super::tile::{Keys, TILE};
use crate::isa::Task;
use crate::simd::{LANES, Simd};

/// The most rows in a register tile on any path.
pub(super) const MOST_ROWS: usize = 6;
/// The most vectors in a row of a register tile.
const MOST_VECTORS: usize = 4;

/// Calls a task that is written with the constants `M` (rows) and `N` (vectors): one compiled function for each.
macro_rules! call_tile {
    ($simd:ident, $rows:expr, $vectors:expr, $task:expr, [$($m:literal)*]) => {
        match $rows {
            $($m if $m <= $simd::TILE_ROWS => {
                const M: usize = $m;
                call_vectors!($simd, $vectors, $task, [1 2 3 4])
            })*
            _ => {}
        }
    };
}
macro_rules! call_vectors {
    ($simd:ident, $vectors:expr, $task:expr, [$($n:literal)*]) => {
        match $vectors {
            $($n => {
                const N: usize = $n;
                $simd::call($task)
            })*
            _ => {}
        }
    };
}

/// Scores of a few query rows.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// The first row, and bytes from a row to the next. A row has an element (or a pair) after the other.
    pub(super) queries: *const u8,
    pub(super) query_stride: usize,
    pub(super) keys: Keys,
    /// Vectors of a key.
    pub(super) depth: usize,
    /// What is to be fetched meanwhile, vector by vector.
    pub(super) next: Option<Keys>,
    /// Rows of [`TILE`] numbers.
    pub(super) scores: *mut f32,
}

/// Computes the scores of `rows` rows and the first `vectors` vectors of positions. With `PAIRS`, queries and keys are
/// pairs of bfloat16, otherwise single precision.
///
/// # Safety
/// Everything must be as large as its fields say, `rows` at most [`Simd::TILE_ROWS`], the path's features present.
#[inline(always)]
pub(super) unsafe fn multiply_keys<S: Simd, const PAIRS: bool>(rows: usize, vectors: usize, scores: &Scores) {
    let each = if S::TILE_ROWS == MOST_ROWS { MOST_VECTORS } else { 1 };
    for first in (0..vectors).step_by(each) {
        let mut part = *scores;
        part.keys.groups.rotate_left(first);
        part.next.iter_mut().for_each(|next| next.groups.rotate_left(first));
        // SAFETY: the caller's contract.
        unsafe {
            part.scores = scores.scores.add(first * LANES);
            call_tile!(S, rows, each.min(vectors - first), RunScores::<PAIRS, M, N>(part), [1 2 3 4 5 6]);
        }
    }
}

struct RunScores<const PAIRS: bool, const M: usize, const N: usize>(Scores);

impl<const PAIRS: bool, const M: usize, const N: usize> Task for RunScores<PAIRS, M, N> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "counted loops over constants keep the sums in registers")]
    fn run<S: Simd>(self) {
        let Scores { queries, query_stride, keys, depth, next, scores } = self.0;
        // SAFETY: the contract of `multiply_keys`.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            for at in 0..depth {
                let mut vectors = [S::splat(0.0); N];
                for n in 0..N {
                    vectors[n] = S::load_f32(keys.groups[n].add(at * keys.stride).cast());
                }
                if let Some(next) = &next {
                    for n in 0..N {
                        S::prefetch(next.groups[n].wrapping_add(at * next.stride));
                    }
                }
                for m in 0..M {
                    let query = S::splat(queries.add(m * query_stride + at * 4).cast::<f32>().read());
                    for n in 0..N {
                        sums[m][n] = match PAIRS {
                            true => S::multiply_add_pairs(sums[m][n], query, vectors[n]),
                            false => S::multiply_add(sums[m][n], query, vectors[n]),
                        };
                    }
                }
            }
            for m in 0..M {
                for n in 0..N {
                    S::store_f32(scores.add(m * TILE + n * LANES), sums[m][n]);
                }
            }
        }
    }
}

/// Sums of a few rows.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Rows of `width` numbers.
    pub(super) sums: *mut f32,
    /// Rows of [`TILE`] numbers.
    pub(super) weights: *const f32,
    /// `[TILE][width]`.
    pub(super) values: *const f32,
    pub(super) width: usize,
    /// The positions to add.
    pub(super) begin: usize,
    pub(super) end: usize,
    /// What the sums are multiplied with first, row by row.
    pub(super) factors: [f32; MOST_ROWS],
}

/// Rescales the sums of `rows` rows and adds weighted values to them, position after position.
///
/// # Safety
/// As [`multiply_keys`].
#[inline(always)]
pub(super) unsafe fn add_values<S: Simd>(rows: usize, sums: &Sums) {
    let most = if S::TILE_ROWS == MOST_ROWS { MOST_VECTORS } else { 1 };
    let vectors = sums.width / LANES;
    let parts = vectors.div_ceil(most);
    for index in 0..parts {
        let share = crate::team::partition(vectors, index, parts);
        let mut part = *sums;
        // SAFETY: the caller's contract.
        unsafe {
            part.sums = sums.sums.add(share.start * LANES);
            part.values = sums.values.add(share.start * LANES);
            call_tile!(S, rows, share.len(), RunSums::<M, N>(part), [1 2 3 4 5 6]);
        }
    }
}

struct RunSums<const M: usize, const N: usize>(Sums);

impl<const M: usize, const N: usize> Task for RunSums<M, N> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "counted loops over constants keep the sums in registers")]
    fn run<S: Simd>(self) {
        let Sums { sums, weights, values, width, begin, end, factors } = self.0;
        // SAFETY: the contract of `add_values`.
        unsafe {
            let mut local = [[S::splat(0.0); N]; M];
            for m in 0..M {
                let factor = S::splat(factors[m]);
                for n in 0..N {
                    local[m][n] = S::multiply(factor, S::load_f32(sums.add(m * width + n * LANES)));
                }
            }
            for position in begin..end {
                let mut vectors = [S::splat(0.0); N];
                for n in 0..N {
                    vectors[n] = S::load_f32(values.add(position * width + n * LANES));
                }
                for m in 0..M {
                    let weight = S::splat(weights.add(m * TILE + position).read());
                    for n in 0..N {
                        local[m][n] = S::multiply_add(local[m][n], weight, vectors[n]);
                    }
                }
            }
            for m in 0..M {
                for n in 0..N {
                    S::store_f32(sums.add(m * width + n * LANES), local[m][n]);
                }
            }
        }
    }
}
